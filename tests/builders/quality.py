"""Small synthetic workspaces for the tests of validation, calibration and review: no model, a known truth per step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prm_core import config as configuration
from prm_core.config import Config
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests import ROOT

STRATEGIES = ["rollout", "mc_dropout"]
STEPS = 3
DEFAULTS = configuration.read_yaml(ROOT / "params.yaml")


def make_config(**sections: Mapping[str, Any]) -> Config:
    """The repository's configuration with fixed bounds, so that tuning params.yaml changes no test here."""
    fixed = {
        "seed": 0,
        "label": {"strategies": STRATEGIES, "merge": "vote", "consensus": False, "lone_vote_factor": 0.6,
                  "max_failed_share": 0.05},
        "validate": {"min_coverage": 0.8, "max_abstention": 0.5, "correct_share": [0.3, 0.98],
                     "mean_confidence": [0.5, 1.0], "min_agreement": 0.7, "max_drift": 0.05,
                     "critical": ["values_in_range", "lineage", "unique_keys", "coverage", "label_balance"]},
        "calibrate": {"method": "isotonic", "stack": False, "min_labels": 50, "bins": 10, "min_confidence": 0.5,
                      "review_share": 0.25},
    }
    return configuration.parse(configuration.merge(configuration.merge(DEFAULTS, fixed), sections), "test")


def problem(number: int) -> Problem:
    return Problem(f"p{number}", "arithmetic", f"What is {number} + 1?", str(number + 1))


def trajectory(number: int, prefix: str = "gen", steps: int = STEPS) -> Trajectory:
    texts = [f"step {index} of chain {number}" for index in range(steps)]
    return Trajectory(f"{prefix}-{number}", f"p{number}", "policy", tuple(map(Step, texts)), "1", True, 0)


def label(
    trajectory_id: str, index: int, is_correct: bool | None = True, confidence: float = 0.9,
    strategy: str = "merged", value: float | None = None, reasoning: str = "because",
) -> StepLabel:
    return StepLabel(trajectory_id, index, strategy, value, is_correct, confidence, 1, reasoning)


def made(row: StepLabel) -> StepLabel:
    """The row with the lineage that the label stage gives it."""
    made_by = {"strategy": f"{row.strategy}@1", "model": "", "parameters": {}, "seed": 0}
    return dataclasses.replace(row, lineage=json.dumps(made_by, sort_keys=True))


def human(trajectory_id: str, index: int, is_correct: bool, reviewer: str = "ann") -> StepLabel:
    return StepLabel(trajectory_id, index, f"human:{reviewer}", float(is_correct), is_correct, 1.0, 0, "")


def right(number: int, index: int) -> bool:
    """The truth: every third chain goes wrong at its middle step."""
    return number % 3 != 0 or index < 1


LABEL_FIGURES = {"train/merged/label_error": 0.04, "train/merged/label_error_low": 0.01,
                 "train/merged/label_error_high": 0.09}


def write_workspace(
    root: Path, *, chains: int = 30, human_chains: int = 0, author: str = "policy",
    change: Callable[[str, list[StepLabel]], Iterable[StepLabel]] = lambda table, rows: rows,
) -> Path:
    """data/ and the outputs of generate and label, with labels that agree with the truth unless `change` says else.

    Args:
        human_chains: chains human-0… with a human label on each step and merged labels like the others.
        author: who wrote those; "policy" wrote the generated ones.
        change: (labels or merged, its rows) → the rows written.
    """
    store.write_jsonl(root / "data/train.jsonl", [problem(n) for n in range(chains)])
    generated = [trajectory(n) for n in range(chains)]
    store.write_shard(root / "artifacts/generate/trajectories", 0, Trajectory, generated)
    reviewed = [dataclasses.replace(trajectory(n, "human"), policy=author) for n in range(1000, 1000 + human_chains)]
    store.write_jsonl(root / "data/human/problems.jsonl", [problem(n) for n in range(1000, 1000 + human_chains)])
    store.write_jsonl(root / "data/human/trajectories.jsonl", reviewed)
    truths = [(t.id, i, right(int(t.id.split("-")[1]), i)) for t in (*generated, *reviewed) for i in range(STEPS)]
    store.write_jsonl(root / "data/human/labels.jsonl",
                      [human(t, i, ok) for t, i, ok in truths if t.startswith("human")])
    labels = [made(label(t, i, ok, strategy=name)) for t, i, ok in truths for name in STRATEGIES]
    merged = [made(label(t, i, ok)) for t, i, ok in truths]
    store.write_shard(root / "artifacts/label/labels", 0, StepLabel, list(change("labels", labels)))
    store.write_shard(root / "artifacts/label/merged", 0, StepLabel, list(change("merged", merged)))
    store.write_json(root / "artifacts/label/metrics.json", LABEL_FIGURES)
    return root


def run_stage(stage: Stage, root: Path, config: Config) -> None:
    """Runs a stage on a workspace as `execute` does, without params.yaml."""
    outputs = {name: root / path for name, path in stage.outputs.items()}
    for path in outputs.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    inputs = {name: root / path for name, path in stage.inputs.items()}
    stage.run(config, StageIO(inputs, outputs, root / ".work", root))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Tracked:
    """Stands in for an MLflow run, whose own tests are tests/platform/test_tracking.py."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.artifacts: list[Path] = []
        self.tags: dict[str, str] = {}

    @contextmanager
    def stage_run(self, workspace: Path, stage: str, config: Config, inputs: Mapping[str, Path] | None = None):
        yield self

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.update({name: float(value) for name, value in metrics.items()})

    def note_output(self, path: Path) -> None:
        assert path.exists()

    def tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def log_artifact(self, path: Path) -> None:
        assert path.exists()
        self.artifacts.append(path)
