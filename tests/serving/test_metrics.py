"""What Prometheus is told, by one process and by several, and that the dashboard shows what there is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from prm_core.serving.metrics import SHARED, Metrics
from tests import ROOT

# vLLM's, without its prefix (v1/metrics/loggers.py).
VLLM = ("num_requests_running", "num_requests_waiting", "request_success_total", "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket", "request_inference_time_seconds_bucket", "iteration_tokens_bucket",
        "prompt_tokens_total", "request_prompt_tokens_bucket", "kv_cache_usage_perc", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "admission_rejections_total")


def names(text: str) -> set[str]:
    return set(re.findall(r"^(prm:\w+)", text, re.M))


@pytest.fixture(scope="module")
def shown() -> set[str]:
    """The series of a server that has counted everything."""
    metrics = Metrics("prm", 0.0)
    metrics.answered("/classify", 200, 0.1)
    metrics.answered("/classify", 400, 0.1)
    metrics.rejected("queue_full")
    metrics.judged([0.9, 0.1], 1, False, True, [("no-harm", "high")], True)
    metrics.sampled(1, True)
    metrics.trusted(True)
    metrics.queued(1, 1)
    metrics.begun(0.1)
    metrics.passed(3, 0.1, 0.5)
    metrics.scored(3, 1)
    metrics.looked_up(2, 1)
    metrics.swapped("done")
    metrics.compared(0.1, 0.0)
    metrics.alerted(False)
    metrics.registry_failed()
    return names(metrics.render().decode())


def test_the_names_that_dashboards_of_vllm_know_are_there(shown) -> None:
    assert {f"prm:{name}" for name in VLLM} <= shown


def test_the_dashboard_asks_for_what_there_is(shown) -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/prm-serving.json").read_text())
    asked = {name for panel in dashboard["panels"] for target in panel["targets"]
             for name in re.findall(r"prm:\w+", target["expr"])}
    assert asked <= shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    # All but those of which a part is shown under another name.
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    assert families - {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked} == {
        "prm:request_prompt_tokens"}


def test_what_several_processes_count_is_told_together(tmp_path) -> None:
    script = ("from prm_core.serving.metrics import Metrics; m = Metrics('prm', 0.0); "
              "m.judged([0.5], -1, False, False); m.queued(1, 0); m.scored(3, 0); print(m.render().decode())")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={**os.environ, SHARED: str(tmp_path)})
    assert 'prm:step_score_count{model_name="prm"} 2.0' in done.stdout
    assert 'prm:prompt_tokens_total{model_name="prm"} 6.0' in done.stdout
    assert 'prm:trajectories_total{model_name="prm",verdict="clean"} 2.0' in done.stdout


def test_a_process_that_has_ended_has_no_requests_any_more(tmp_path) -> None:
    script = "from prm_core.serving.metrics import Metrics; Metrics('prm').queued(5, 2)"
    environment = {**os.environ, SHARED: str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, env=environment)
    told = subprocess.run([sys.executable, "-c", f"{script}; print(Metrics('prm').render().decode())"], cwd=ROOT,
                          capture_output=True, text=True, check=True, env=environment).stdout
    assert 'prm:num_requests_running{model_name="prm"} 5.0' in told
