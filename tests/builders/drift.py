"""Served traffic and what it is compared with, made up: samples by their scores, an evaluation's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prm_core.platform import store
from prm_core.serving.drift.samples import Sample, sample
from prm_core.types import Call, Problem, Step, Trajectory


def served(question: str, scores: Sequence[float], **given: Any) -> Sample:
    """A sample of a trajectory with so many steps, which call `tools` and are written by `agent`."""
    calls = tuple(Call(name) for name in given.pop("tools", ()))
    steps = [Step("x" * given.pop("length", 10), agent=given.get("agent", ""), calls=calls)] * len(scores)
    given.pop("agent", None)
    return sample(question, steps, scores, **{"time": 0.0, "threshold": 0.5, "renderer": 2, **given})


def traffic(count: int, seed: int, *, mean: float = 0.8, **given: Any) -> list[Sample]:
    """Trajectories of one question each, of one to six steps whose scores are drawn around a mean."""
    rng = np.random.default_rng(seed)
    return [served(f"question {seed:06} {number:06}",
                   np.clip(rng.normal(mean, 0.1, rng.integers(1, 7)), 0, 1).tolist(), **given)
            for number in range(count)]


def evaluated(workspace: Path, questions: int) -> None:
    """Problems and scored chains as the stages before `register` leave them; the model saw half of each last chain."""
    chains, scores = [], []
    for split in ("train", "dev", "test"):
        store.write_jsonl(workspace / f"data/{split}.jsonl", [
            Problem(f"{split}-{number}", "arithmetic", f"question {split} {number}", "7") for number in
            range(questions)])
    for tag in ("dev-base", "test-base", "test-trained"):
        split = tag.split("-")[0]
        for number in range(questions):
            for draw in range(2):
                name, steps = f"{tag}/{split}-{number}/{draw}", (Step("3 + 4 = 7."), Step("The answer is 7."))
                chains.append(Trajectory(name, f"{split}-{number}", "p", steps, "7", True, 0))
                scores.append({"trajectory_id": name, "step_scores": [0.9, 0.2][: 1 if draw else 2], "prm_score": 0.2,
                               "orm_score": None, "out_of_domain": "", "combined_score": None})
    store.write_shard(workspace / "artifacts/evaluate/trajectories", 0, Trajectory, chains)
    store.write_jsonl(workspace / "artifacts/evaluate/scores.jsonl", scores)
