"""A small workspace with a review queue, and answers brought into it, for the tests of review."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prm_core.platform import store
from prm_core.review.files import read_answers, reviewer_name
from prm_core.review.importing import ImportReport, import_answers
from prm_core.review.queue import review_queue
from prm_core.review.session import HUMAN, QUEUE, generated
from prm_core.types import StepLabel
from tests.builders.quality import STEPS, label, problem, trajectory, write_workspace

MERGED = tuple(label(f"gen-{n}", i, True, 0.8, value=0.8) for n in range(6) for i in range(STEPS))


def queue_of(
    merged: tuple[StepLabel, ...] | list[StepLabel] = MERGED, labels: tuple[StepLabel, ...] | list[StepLabel] = (),
    budget: int = 100, seed: int = 0,
) -> list[dict[str, Any]]:
    """The review queue over six chains of three steps."""
    problems = {f"p{n}": problem(n) for n in range(6)}
    return review_queue(merged, labels, [trajectory(n) for n in range(6)], problems, budget=budget, seed=seed)


def write_queue(root: Path, budget: int = 8) -> Path:
    """Six generated chains, two seed human chains, and a queue over the generated ones; returns `root`."""
    write_workspace(root, chains=6, human_chains=2)
    votes = [label(f"gen-{n}", i, i % 2 == 0, strategy=name, reasoning=f"{name} says so") for n in range(6)
             for i in range(STEPS) for name in ("rollout", "verifier")]
    store.write_jsonl(root / QUEUE, queue_of(labels=votes, budget=budget))
    return root


def bring_in(root: Path, file: Path, reviewer: str = "ann") -> ImportReport:
    """Imports a file of answers."""
    return import_answers(read_answers(file, reviewer_name(reviewer)), root / HUMAN, generated(root))


def counts(report: ImportReport) -> tuple[int, int, int, int]:
    """Added, replaced, unchanged, unanswered."""
    return report.added, report.replaced, report.unchanged, report.unanswered
