"""The GPU pack in miniature: each part's code on a CPU, without what a bare machine lacks; parts fail alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import measure, parts
from tests import ROOT

# Imported nowhere by the pack: no wheel of them is carried.
MISSING = ("prefect", "mlflow", "dvc", "great_expectations", "pydantic", "datasets", "trl", "aiohttp", "fastapi",
           "starlette", "matplotlib", "sqlalchemy", "nicegui")
SCRIPT = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING!r}))
from pathlib import Path
from benchmarks.gpu import measure, parts
for name, part in parts.PARTS.items():
    result = measure.Result(Path(sys.argv[1]), name, "cpu")
    part.work(measure.Job(result, measure.Budget(600), "cpu", True, None))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("gpu")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in parts.PARTS}


def figures(result: dict) -> dict[str, dict]:
    return {figure["name"]: figure for figure in result["figures"]}


def test_every_part_runs_on_a_bare_machine(found: dict[str, dict]) -> None:
    for name, result in found.items():
        assert result["error"] is None
        assert result["figures"]
        assert result["device"] == "cpu"
        assert result["versions"]["torch"] != "none"
        assert "failed" not in result["notes"], name
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in result["figures"])


def test_peers_that_are_not_there_are_said(found: dict[str, dict]) -> None:
    for name, release in (("policy", "1.16.0"), ("training", "1.13.0"), ("lora", "1.13.0")):
        assert found[name]["notes"]["peer"].startswith(f"no TRL {release}")
        assert not any("TRL" in figure["name"] for figure in found[name]["figures"])


def test_what_is_fast_is_right(found: dict[str, dict]) -> None:
    scoring, sampling = figures(found["scoring"]), figures(found["sampling"])
    assert scoring["states step by step against a whole pass, relative"]["value"] < 1e-4
    assert scoring["ScoringSession.score, a step of 30 tokens, 4 sessions"]["tokens_computed"] == 30
    assert sampling["log-probabilities against a pass over whole texts, mean absolute difference"]["high"] < 1e-4


def test_a_part_that_fails_has_its_error_as_its_result(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--parts", "sampling",
                           "--minutes", "1", "--device", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "failed: sampling" in done.stdout
    assert "nonsense" in json.loads((tmp_path / "sampling.json").read_text())["error"]


def test_operations_are_those_of_products_and_of_attention_within_chains() -> None:
    config = measure.configuration("mini")
    # Query and output 64 x 64, key and value 64 x 32, three matrices 64 x 96; two layers.
    assert measure.layer_weights(config) == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
