"""Human labels of a workspace: reading `data/human`, and what several reviewers together say of a step.

Human-labelled chains serve calibration only. The rule is kept by content: a generated chain with the same prompt and
steps as a human-labelled one never enters the training set, whatever its id.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.turns import identity
from prm_core.types import Problem, StepLabel, Trajectory

Row = TypeVar("Row", Problem, Trajectory, StepLabel)
StepKey = tuple[str, int]

HUMAN_PREFIX = "human:"
DIGEST_DIGITS = 12
FILES = {"problems": "problems.jsonl", "trajectories": "trajectories.jsonl", "labels": "labels.jsonl"}


@dataclass(slots=True)
class HumanData:
    """The records of `data/human`: labels, and the trajectories and problems they refer to."""

    problems: list[Problem] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)
    labels: list[StepLabel] = field(default_factory=list)


def _read(kind: type[Row], path: Path) -> list[Row]:
    # No human label yet is a normal state: the file is absent or empty.
    return store.read_jsonl(kind, path) if path.is_file() and path.stat().st_size else []


def read_human(folder: Path) -> HumanData:
    """The human labels of a folder, empty where there are none.

    Raises InputError on a malformed line, and when a label refers to a step that the folder's trajectories lack.
    """
    data = HumanData(
        _read(Problem, folder / FILES["problems"]),
        _read(Trajectory, folder / FILES["trajectories"]),
        _read(StepLabel, folder / FILES["labels"]),
    )
    steps = {t.id: len(t.steps) for t in data.trajectories}
    for label in data.labels:
        if not 0 <= label.step_index < steps.get(label.trajectory_id, 0):
            raise InputError(
                f"{folder / FILES['labels']}: a label names step {label.step_index} of trajectory "
                f"{label.trajectory_id!r}, which {FILES['trajectories']} beside it does not have; remove the label or "
                "add the trajectory"
            )
    return data


def write_human(folder: Path, data: HumanData) -> None:
    """Writes the three files, labels last, so that no label is ever without its trajectory."""
    for name, file in FILES.items():
        store.write_jsonl(folder / file, getattr(data, name))


def all_trajectories(generated: Sequence[Trajectory], human: Sequence[Trajectory]) -> list[Trajectory]:
    """Generated trajectories, then the human-labelled ones, each id once.

    Raises InputError when one id stands for two different chains.
    """
    found: dict[str, Trajectory] = {}
    for trajectory in (*generated, *human):
        if found.setdefault(trajectory.id, trajectory).steps != trajectory.steps:
            raise InputError(f"trajectory id {trajectory.id!r} stands for two different chains; ids in data/human must "
                             "differ from generated ones (`prm review import` sees to that)")
    return list(found.values())


def digest_of(*parts: object) -> str:
    """DIGEST_DIGITS hex digits of SHA-256 over JSON values."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:DIGEST_DIGITS]


def chain_digest(prompt: str, trajectory: Trajectory) -> str:
    """What identifies a chain by content: the prompt and everything in its steps."""
    return digest_of(prompt, identity(trajectory.steps))


def chain_digests(trajectories: Iterable[Trajectory], problems: Mapping[str, Problem]) -> dict[str, str]:
    """Trajectory id → `chain_digest`. Raises InputError when a trajectory's problem is not among `problems`."""
    digests = {}
    for trajectory in trajectories:
        problem = problems.get(trajectory.problem_id)
        if problem is None:
            raise InputError(
                f"trajectory {trajectory.id!r} answers problem {trajectory.problem_id!r}, which is neither in "
                "data/train.jsonl nor in data/human/problems.jsonl; generate again after changing data/"
            )
        digests[trajectory.id] = chain_digest(problem.prompt, trajectory)
    return digests


@dataclass(frozen=True, slots=True)
class HumanVerdicts:
    """What reviewers say of steps.

    Attributes:
        verdicts: (trajectory_id, step_index) → the step is right; no step after a chain's first wrong one.
        ties: steps left out because as many reviewers call them right as wrong.
        after_error: steps left out because an earlier step of their chain is wrong: "is this step right" has no
            clear meaning there.
    """

    verdicts: dict[StepKey, bool]
    ties: int
    after_error: int


def human_verdicts(labels: Sequence[StepLabel]) -> HumanVerdicts:
    """The majority of reviewers on each step; a label without a verdict does not vote."""
    votes: dict[StepKey, Counter[bool]] = defaultdict(Counter)
    for label in labels:
        if label.is_correct is not None:
            votes[label.trajectory_id, label.step_index][label.is_correct] += 1
    decided = {key: count[True] > count[False] for key, count in votes.items() if count[True] != count[False]}
    first_error: dict[str, int] = {}
    for (trajectory_id, step_index), right in decided.items():
        if not right:
            first_error[trajectory_id] = min(step_index, first_error.get(trajectory_id, step_index))
    kept = {key: right for key, right in decided.items() if key[1] <= first_error.get(key[0], key[1])}
    return HumanVerdicts(kept, ties=len(votes) - len(decided), after_error=len(decided) - len(kept))
