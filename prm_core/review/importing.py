"""Reviewers' answers into `data/human`, and one of them out again: the only code that writes human labels, whether they
come from a file or from the review page.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from prm_core.errors import InputError
from prm_core.labeling.calibrate import CHANCE
from prm_core.labeling.human.labels import (
    FILES,
    HUMAN_PREFIX,
    HumanData,
    StepKey,
    chain_digest,
    digest_of,
    read_human,
    write_human,
)
from prm_core.platform import store
from prm_core.review.files import Answer
from prm_core.types import Problem, StepLabel, Trajectory


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        added, replaced, unchanged, unanswered: answers new, changed, already there and left open.
        superseded: answers that the same reviewer gave anew further on; the later ones count.
        new_chains: chains new to `data/human`.
    """

    added: int
    replaced: int
    unchanged: int
    unanswered: int
    superseded: int
    new_chains: int


def durable_id(trajectory_id: str, chain: str) -> str:
    """The id a generated chain has in `data/human`. Generated ids are positions in a run: after a new one they name
    other chains.

    Args:
        chain: the chain's digest.
    """
    return f"{trajectory_id}@{chain}"


class Generated:
    """The generated chains of a workspace and the problems they answer, read when first asked for.

    Args:
        trajectories: folder of the generated shards; there may be none.
        problems: JSONL file of the problems.
    """

    def __init__(self, trajectories: Path, problems: Path) -> None:
        self._trajectories, self._problems = trajectories, problems

    @cached_property
    def _chains(self) -> dict[str, Trajectory]:
        if not any(self._trajectories.glob("part-*.parquet")):
            return {}
        return {t.id: t for t in store.read_shards(Trajectory, self._trajectories)}

    @cached_property
    def _by_problem(self) -> dict[str, Problem]:
        return {p.id: p for p in store.read_jsonl(Problem, self._problems)}

    def load(self) -> None:
        """Reads them now."""
        if self._chains:
            _ = self._by_problem

    def find(self, trajectory_id: str, chain: str) -> tuple[Problem, Trajectory] | None:
        """Copies of a chain and its problem under ids of their own; None where no such chain was generated."""
        found = self._chains.get(trajectory_id)
        problem = self._by_problem.get(found.problem_id) if found else None
        if found is None or problem is None or chain_digest(problem.prompt, found) != chain:
            return None
        kept = dataclasses.replace(problem, id=f"{problem.id}@{digest_of(problem.prompt, problem.answer)}")
        return kept, dataclasses.replace(found, id=durable_id(trajectory_id, chain), problem_id=kept.id)


@contextmanager
def _locked(human: Path, how: int) -> Iterator[None]:
    # The folder itself is locked: a lock file in it would become part of the data.
    descriptor = os.open(human, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _writing(human: Path) -> AbstractContextManager[None]:
    """Keeps other writers out of a folder of human labels, in this process or another."""
    human.mkdir(parents=True, exist_ok=True)
    return _locked(human, fcntl.LOCK_EX)


def reading(human: Path) -> AbstractContextManager[None]:
    """Keeps writers out of a folder of human labels while it is read: its files are replaced one after the other."""
    return _locked(human, fcntl.LOCK_SH) if human.is_dir() else nullcontext()


def import_answers(answers: Iterable[Answer], human: Path, generated: Generated) -> ImportReport:
    """Adds answers to a folder of human labels, with the chains and problems they are about.

    The same answers again change nothing; a new answer to the same step by the same reviewer replaces the old one, and
    of several among these the latest counts. Nothing is written when any answer is at fault. Several processes may
    import at once.

    Args:
        human: folder of the human labels; labels get strategy "human:<reviewer>".

    Raises InputError naming the answer that is about a step that is not there or a chain that was generated anew
    since the export.
    """
    with _writing(human):
        data = read_human(human)
        existing = {(r.trajectory_id, r.step_index, r.strategy): r for r in data.labels}
        chains, problems = {t.id: t for t in data.trajectories}, {p.id: p for p in data.problems}
        before, counts, latest = len(chains), Counter[str](), {}
        # Those without a time stay in their order.
        for answer in sorted(answers, key=lambda answer: answer.given_at):
            problem, trajectory = _located(answer, chains, problems, generated)
            if answer.verdict is None:
                counts["unanswered"] += 1
                continue
            key = trajectory.id, answer.step_index, HUMAN_PREFIX + answer.reviewer
            picked = json.dumps({CHANCE: answer.chance}) if answer.chance is not None else ""
            label = StepLabel(*key, float(answer.verdict), answer.verdict, 1.0, 0, answer.note, picked)
            counts["superseded"] += latest.get(key, label) != label
            latest[key] = label
            chains.setdefault(trajectory.id, trajectory)
            problems.setdefault(problem.id, problem)
        for key, label in latest.items():
            old = existing.get(key)
            counts["added" if old is None else "unchanged" if old == label else "replaced"] += 1
            existing[key] = label
        if counts["added"] or counts["replaced"]:
            write_human(human, HumanData(list(problems.values()), list(chains.values()), list(existing.values())))
    return ImportReport(**{k: counts[k] for k in ("added", "replaced", "unchanged", "unanswered", "superseded")},
                        new_chains=len(chains) - before)


def _located(
    answer: Answer, chains: dict[str, Trajectory], problems: dict[str, Problem], generated: Generated
) -> tuple[Problem, Trajectory]:
    """The chain an answer is about: among the human ones first, then the generated ones."""
    known = chains.get(durable_id(answer.trajectory_id, answer.chain))
    found = (problems[known.problem_id], known) if known else generated.find(answer.trajectory_id, answer.chain)
    if found is None:
        raise InputError(f"{answer.where}: no trajectory {answer.trajectory_id!r} with these steps is known; the "
                         "chains were generated anew since the export: export the queue again and answer that")
    steps = len(found[1].steps)
    if not 0 <= answer.step_index < steps:
        raise InputError(f"{answer.where}: trajectory {answer.trajectory_id!r} has {steps} steps, there is no step "
                         f"{answer.step_index}; keep step_index as exported")
    return found


def rewrite(human: Path, change: Callable[[HumanData], HumanData]) -> bool:
    """Replaces the labels of a folder by what is made of them, while nobody else writes; chains and problems that no
    label needs go too. Returns whether anything has changed."""
    if not human.is_dir():
        return False
    with _writing(human):
        before = read_human(human)
        data = change(HumanData(list(before.problems), list(before.trajectories), list(before.labels)))
        needed = {row.trajectory_id for row in data.labels}
        data.trajectories = [t for t in data.trajectories if t.id in needed]
        asked = {t.problem_id for t in data.trajectories}
        data.problems = [p for p in data.problems if p.id in asked]
        if data == before:
            return False
        # Labels first as well as last, so that no label is ever without its trajectory.
        store.write_jsonl(human / FILES["labels"], data.labels)
        write_human(human, data)
    return True


def retract(human: Path, step: StepKey, reviewer: str) -> StepLabel | None:
    """Takes a reviewer's label of a step out again, with its chain and problem where no other label needs them.

    Args:
        step: (trajectory_id, step_index) as in `data/human`.

    Returns:
        The label that was taken out, None where there was none.
    """
    key = *step, HUMAN_PREFIX + reviewer
    with _writing(human):
        data = read_human(human)
        taken = [r for r in data.labels if (r.trajectory_id, r.step_index, r.strategy) == key]
        if not taken:
            return None
        data.labels = [r for r in data.labels if r not in taken]
        if not any(r.trajectory_id == step[0] for r in data.labels):
            left = {t.problem_id for t in data.trajectories if t.id == step[0]}
            data.trajectories = [t for t in data.trajectories if t.id != step[0]]
            left -= {t.problem_id for t in data.trajectories}
            data.problems = [p for p in data.problems if p.id not in left]
        # Labels first as well as last, so that no label is ever without its trajectory.
        store.write_jsonl(human / FILES["labels"], data.labels)
        write_human(human, data)
    return taken[0]
