"""The benchmark of a language model's chain reads finished workspaces, and claims nothing of none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import language_chain as benchmark
from prm_core.evaluation.metrics import Estimate
from prm_core.platform import store
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests.builders.training import make_encoder, save_lm, small_values

METHODS = ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "oracle")


def label(chain: str, step: int, right: bool | None, strategy: str = "merged") -> StepLabel:
    return StepLabel(chain, step, strategy, None, right, 0.9, 5, "")


def finished(root: Path, *, trained: float = 0.04) -> Path:
    """A workspace whose evaluation is done, as far as the benchmark reads it: 10 test questions."""
    root.mkdir()
    values = small_values(domain="general", evaluate={"samples": 2, "best_of": [1, 2]},
                          label={"strategies": ["rollout", "verifier"]})
    (root / "params.yaml").write_text(json.dumps(values))

    def shown(name: str, value: float, low: float, high: float) -> dict[str, float]:
        return {f"test/{name}": value, f"test/{name}_low": low, f"test/{name}_high": high}

    table = {"test/n_problems": 10, **shown("policy_base/pass_at_1", 0, 0, 0),
             **shown("policy_trained/pass_at_1", trained, 0.01, 0.09),
             **shown("trained_minus_base/pass_at_1", trained, -0.01, 0.09),
             **shown("prm_minus_majority/accuracy_at_2", 0, 0, 0), **shown("orm/outcome_auroc", 0.7, 0.6, 0.8),
             "test/prm/outcome_auroc_left_out": "undefined: no chain of the kind it counts"}
    for name in METHODS:
        for n in (1, 2):
            table |= shown(f"{name}/accuracy_at_{n}", 0.1 * n, 0.0, 0.4)
    for policy in benchmark.POLICIES:
        table |= {f"test/{policy}/{name}": 20 for name in benchmark.COUNTS}
    artifacts = root / "artifacts"
    for stage, figures in (("evaluate", table), ("warmup", {"warmup/loss": 1.5}), ("calibrate", {"training_rows": 3}),
                           ("train_prm", {}), ("train_policy", {})):
        store.write_json(artifacts / stage / "metrics.json", figures)
    chains = [Trajectory(f"gen/{n}", f"p{n // 2}", "tiny", (Step("a"), Step("b")), "1", n in (0, 1, 4), 0)
              for n in range(6)]
    store.write_shard(artifacts / "generate/trajectories", 0, Trajectory, chains)
    store.write_shard(artifacts / "label/merged", 0, StepLabel, [
        label("gen/0", 0, True), label("gen/0", 1, True), label("gen/1", 0, True), label("gen/1", 1, False),
        label("gen/2", 0, False), label("gen/3", 0, None), label("gen/4", 0, True)])
    store.write_shard(artifacts / "label/labels", 0, StepLabel, [
        label("gen/0", 0, True, "rollout"), label("gen/2", 0, False, "verifier")])
    store.write_jsonl(root / "data/test.jsonl", [
        Problem(f"t{n}", "general", f"What is {n} + 1?", str(n + 1), {}) for n in range(3)])
    return root


def test_finished_workspaces_become_figures_with_intervals(tmp_path, monkeypatch) -> None:
    root, out = finished(tmp_path / "seed-1"), tmp_path / "chain.json"
    base = save_lm(tmp_path / "base", make_encoder())
    monkeypatch.setattr(sys, "argv", ["language_chain", str(root), "--base", str(base), "--base-samples", "2", "--out",
                                      str(out)])
    benchmark.main()
    result = json.loads(out.read_text())
    assert result["command"] == ("python -m benchmarks.language_chain seed-1 --base base --base-samples 2 --out "
                                 "chain.json")
    one, = result["runs"]
    # None of 10: Clopper and Pearson's interval.
    assert one["pass_at_1"]["policy_base"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.3085, abs=1e-4)}
    assert one["outcome_auroc"]["prm"] == {"left_out": "undefined: no chain of the kind it counts"}
    assert one["prm_minus_majority"] == {"left_out": "no question on which the two could differ"}
    assert one["chosen"]["oracle"]["2"]["value"] == 0.2
    assert one["training"] == {"warmup/loss": 1.5, "training_rows": 3}
    assert one["cost"] == {}
    # No answer of random weights is right: of three questions that says little.
    assert (result["base"]["value"], result["base"]["high"]) == (0.0, pytest.approx(0.7076, abs=1e-4))
    rows = {bar["name"]: bar for bar in result["bars"]}
    assert "PRM: AUROC of outcomes, %" not in rows
    assert rows["ORM: AUROC of outcomes, %"]["holds"]
    assert not rows["trained - warmed-up, points"]["holds"]
    assert not rows["warmed-up policy: right, %"]["holds"]


def test_labels_are_held_against_how_chains_end(tmp_path) -> None:
    found = benchmark.measure(finished(tmp_path / "seed-1"))["labels"]
    assert (found["chains"], found["questions"], found["right"]) == (6, 3, 3)
    merged = found["merged"]
    # Of gen/0, 1, 2 and 4; gen/3 and 5 have no verdict.
    assert (merged["decided"], merged["tokens"]) == (4, 35)
    assert merged["right_called_right"]["chains"] == 3
    assert merged["right_called_right"]["value"] == pytest.approx(2 / 3)
    assert merged["wrong_called_wrong"]["value"] == 1.0
    assert merged["wrong_called_wrong"]["low"] < 0.05
    assert "wrong_called_wrong" not in found["rollout"]


def test_several_runs_have_their_range_and_the_worst_must_hold(tmp_path) -> None:
    found = [benchmark.measure(finished(tmp_path / str(n), trained=value))
             for n, value in enumerate((0.02, 0.06, 0.03))]
    bar = next(bar for bar in benchmark.bars(found, None) if bar.name.startswith("trained - "))
    assert (bar.value, bar.low, bar.high) == pytest.approx((3, 2, 6))
    assert bar.holds


def test_an_interval_of_some_stays_as_it_is() -> None:
    assert benchmark.widened(Estimate(0.5, 0.4, 0.6), 10) == Estimate(0.5, 0.4, 0.6)
    assert benchmark.widened(Estimate(1.0, 1.0, 1.0), 10).low == pytest.approx(0.6915, abs=1e-4)
