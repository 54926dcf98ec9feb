"""Trajectories whose steps somebody judged, for judges to be compared on: of a workspace, and of labelled files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.evaluation.benchmarks.agents import problem_of
from prm_core.evaluation.judges.base import Case
from prm_core.formats import FORMATS
from prm_core.platform import store
from prm_core.types import Problem, Trajectory

log = logging.getLogger(__name__)
TRAJECTORIES = Path("artifacts/evaluate/trajectories")


def read(path: Path, format_name: str, tag: str) -> list[Case]:
    """The cases of a workspace or a file.

    Args:
        path: a folder with `data/` and `artifacts/evaluate/`, or a file.
        format_name: of a file.
        tag: of a workspace: the split and the policy whose trajectories are taken (`test-base`).

    Raises InputError where nothing is found, naming what is missing.
    """
    return of_workspace(path, tag) if path.is_dir() else of_file(path, format_name)


def of_file(path: Path, format_name: str) -> list[Case]:
    """Labelled chains; a soft label of 0.5 and more counts as right, a neutral rating too. Those without a label are
    left out, and counted."""
    found, unlabelled = [], 0
    for number, chain in enumerate(FORMATS[format_name].read(path)):
        if all(label is None for label in chain.labels):
            unlabelled += 1
            continue
        gold = tuple(None if label is None else label >= 0.5 for label in chain.labels)
        found.append(Case(f"{number}:{chain.id}" if chain.id else str(number), problem_of(chain), chain.prompt,
                          chain.asked, chain.tools, chain.steps, gold))
    if unlabelled:
        log.warning("%s: %d chains without any label left out", path, unlabelled)
    if not found:
        raise InputError(f"{path}: none of its {unlabelled} chains has a label; name a file with step labels")
    return found


def of_workspace(folder: Path, tag: str) -> list[Case]:
    """The trajectories that a workspace's evaluation measured under a tag, judged by the oracle up to the first wrong
    step: what follows has no verdict, as reward models are trained. Those without a step are left out, and counted."""
    shards, split = folder / TRAJECTORIES, tag.split("-")[0]
    problems_file = folder / f"data/{split}.jsonl"
    for path in (shards, problems_file):
        if not path.exists():
            raise InputError(f"{folder}: has no {path.relative_to(folder)}; name a file of labelled chains, or a "
                             "workspace whose stage evaluate has run")
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, problems_file)}
    found, empty, tags = [], 0, set()
    for run in store.read_shards(Trajectory, shards):
        tags.add(run.id.split("/")[0])
        if not run.id.startswith(f"{tag}/"):
            continue
        problem = problems.get(run.problem_id)
        if problem is None or problem.domain not in ORACLES:
            why = (f"is of no problem in {problems_file.relative_to(folder)}" if problem is None else
                   f"is of domain {problem.domain}, whose steps no oracle judges; name a file of labelled chains")
            raise InputError(f"{folder}: trajectory {run.id} {why}")
        if run.steps:
            found.append(_judged(run, problem))
        empty += not run.steps
    if empty:
        log.warning("%s: %d trajectories without a step left out", folder, empty)
    if not found:
        raise InputError(f"{folder}: has no trajectories {tag} with a step; there are {', '.join(sorted(tags))}")
    return found


def _judged(run: Trajectory, problem: Problem) -> Case:
    gold = ORACLES[problem.domain](problem, run.steps)
    case = Case(run.id, problem.id, problem.prompt, problem.prompt, run.tools, run.steps, tuple(gold))
    end = len(gold) if case.first_error in (None, -1) else case.first_error + 1
    return replace(case, gold=(*gold[:end], *(None,) * (len(gold) - end)))


def some(cases: Iterable[Case], limit: int, per_problem: int = 0) -> list[Case]:
    """At most `limit` cases, 0 for all, in their order: the first of each problem before any second one.

    Args:
        per_problem: at most so many of a problem, 0 for all.
    """
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int, Case]] = []
    for number, case in enumerate(cases):
        rounds.append((seen[case.problem], number, case))
        seen[case.problem] += 1
    kept = [one for one in sorted(rounds, key=lambda one: one[:2]) if not per_problem or one[0] < per_problem]
    return [case for _, _, case in sorted(kept[: limit or len(kept)], key=lambda one: one[1])]
