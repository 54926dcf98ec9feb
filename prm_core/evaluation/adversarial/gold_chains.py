"""Chains whose first wrong step is known, from files and from a workspace: what the adversarial suite starts from."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core.domains import arithmetic
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from prm_core.formats.base import get
from prm_core.platform import steps
from prm_core.platform.records import read_rows
from prm_core.types import Problem, Step, Trajectory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GoldChain:
    """A chain and where it goes wrong.

    Attributes:
        name: unique; the random numbers its edits are drawn with depend on it alone.
        prompt: the question as a model reads it; chains of one question count as one problem.
        steps: at least one.
        first_error: index of the first wrong step, -1 when the chain is sound.
        problem: the problem where its domain has an oracle, which then judges every edited chain; else None.
    """

    name: str
    prompt: str
    steps: tuple[Step, ...]
    first_error: int
    problem: Problem | None = None

    @property
    def sound(self) -> bool:
        """Whether every step is right."""
        return self.first_error < 0


def judged(name: str, problem: Problem, steps: Sequence[Step]) -> GoldChain:
    """A chain of a problem whose domain has an oracle."""
    return GoldChain(name, problem.prompt, tuple(steps), first_error(ORACLES[problem.domain](problem, steps)), problem)


def judged_or_answered(name: str, problem: Problem, steps: Sequence[Step], right: bool) -> GoldChain:
    """A chain of any problem.

    Without an oracle its answer speaks for all of it: a chain with a right one counts as sound, one with a wrong one as
    wrong in its last step.
    """
    if problem.domain in ORACLES:
        return judged(name, problem, steps)
    return GoldChain(name, problem.prompt, tuple(steps), -1 if right else len(steps) - 1)


def from_labelled(chains: Iterable[LabelledChain], name: str) -> list[GoldChain]:
    """Chains of a labelled file; those whose first error is unknown are dropped and counted."""
    kept, dropped = [], 0
    for number, chain in enumerate(chains):
        if chain.first_error is None:
            dropped += 1
        else:
            kept.append(GoldChain(f"{name}/{number}", chain.asked, chain.steps, chain.first_error))
    if dropped:
        log.warning("%s: %d chains dropped, a step before their first known error has no label", name, dropped)
    return kept


def read_chains(path: Path, format_name: str) -> list[GoldChain]:
    """The chains of a file.

    Args:
        path: JSON lines, a JSON array or Parquet.
        format_name: a labelled format (processbench, prm800k, …), or `arithmetic`: problems of the embedded domain
            with their `meta` (data/test.jsonl as it is). Their `steps` are judged by the oracle; a problem without
            any gives its worked solution.

    Raises InputError for an unknown format, a bad record, or a file without a chain of known first error.
    """
    if format_name == arithmetic.NAME:
        chains = [_arithmetic(where, record) for where, record in read_rows(path)]
    elif format_name in FORMATS:
        chains = from_labelled(FORMATS[format_name].read(path), str(path))
    else:
        raise InputError(f"unknown format {format_name!r}; known: {', '.join(sorted([arithmetic.NAME, *FORMATS]))}")
    if not chains:
        raise InputError(f"{path}: no chain whose first wrong step is known is left")
    return chains


def _arithmetic(where: str, record: dict[str, object]) -> GoldChain:
    prompt, meta = get(record, "prompt", str, where), get(record, "meta", dict, where)
    missing = {"start", "events"} - set(meta)
    if missing:
        raise InputError(f"{where}: meta lacks {', '.join(sorted(missing))}, which the oracle needs; take problems as "
                         "`prm data make` writes them")
    problem = Problem(str(record.get("id", where)), arithmetic.NAME, prompt, str(record.get("answer", "")), meta)
    source = record.get("steps", meta.get("solution"))
    return judged(where, problem, steps.parse_steps(source, where))


def from_trajectories(problems: Iterable[Problem], trajectories: Iterable[Trajectory]) -> list[GoldChain]:
    """The trajectories of these problems, judged by their domain's oracle.

    Those of other problems and those without a step are left out, the latter counted. Raises InputError for a problem
    whose domain has no oracle.
    """
    by_id = {problem.id: problem for problem in problems}
    for problem in by_id.values():
        if problem.domain not in ORACLES:
            raise InputError(f"problem {problem.id} is of domain {problem.domain}, whose steps no oracle judges; name "
                             "a file of chains with labels instead")
    chains, empty = [], 0
    for trajectory in trajectories:
        if trajectory.problem_id not in by_id:
            continue
        if trajectory.steps:
            chains.append(judged(trajectory.id, by_id[trajectory.problem_id], trajectory.steps))
        else:
            empty += 1
    if empty:
        log.warning("%d trajectories without a step left out", empty)
    return chains


def pick_chains(chains: Sequence[GoldChain], per_problem: int, seed: int) -> list[GoldChain]:
    """Up to `per_problem` different sound chains of each question, and as many unsound ones; 0 keeps every chain.

    Of chains with the same question and steps the first counts.
    """
    distinct = list({(chain.prompt, chain.steps): chain for chain in reversed(chains)}.values())[::-1]
    if per_problem == 0:
        return distinct
    taken: Counter[tuple[str, bool]] = Counter()
    kept: set[str] = set()
    for chain in random.Random(f"pick/{seed}").sample(distinct, len(distinct)):
        key = (chain.prompt, chain.sound)
        if taken[key] < per_problem:
            taken[key] += 1
            kept.add(chain.name)
    return [chain for chain in distinct if chain.name in kept]

