"""Runs of agents. AgentProcessBench: how well a reward model rates the messages of agents that use tools. Who&When: how
well it names the agent and the step that made a run of several agents fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prm_core.errors import InputError
from prm_core.evaluation import blame, metrics
from prm_core.evaluation.benchmarks.base import Benchmark, BenchmarkChain, Column, ScoredFile, register
from prm_core.evaluation.benchmarks.first_error import from_labelled
from prm_core.evaluation.benchmarks.first_error import measure as measure_first_errors
from prm_core.evaluation.benchmarks.steps import (
    STEP_COLUMNS,
    choose_first_error_threshold,
    first_error_statistics,
    step_statistics,
)
from prm_core.evaluation.metrics import Statistic
from prm_core.formats import FORMATS, LabelledChain

log = logging.getLogger(__name__)


def problem_of(chain: LabelledChain) -> str:
    """What the (five) trajectories of one task share."""
    fields: Mapping[str, Any] = chain.meta.get("rest", {})
    if fields.get("query_index") is not None:
        return f"{fields.get('data_source', '')}:{fields['query_index']}"
    return str(fields.get("question") or chain.prompt)


def read(path: Path) -> list[BenchmarkChain]:
    """`messages`, `step_labels` ({"message index": -1, 0 or 1}), `final_label`; JSON lines.

    Tool replies are observations: context of the steps after them, not scored. A neutral rating counts as right
    wherever only right and wrong are told apart. The first error is unknown where a message before it is unrated, or
    where none is wrong and not all are rated; trajectories that nobody rated are left out and counted.

    Raises InputError where no other is.
    """
    chains, unrated = [], 0
    for chain in FORMATS["agentprocessbench"].read(path, neutral="right"):
        given, indices = chain.meta["labels"], [int(step.ref) for step in chain.steps]
        if all(rating is None for rating in given.values()):
            unrated += 1
            continue
        ratings = tuple(given.get(str(index)) for index in indices)
        wrong = min((int(index) for index, rating in given.items() if rating == -1), default=None)
        # A first error that says nothing was left out as a step: no prediction can name it.
        label = -1 if wrong is None else indices.index(wrong) if wrong in indices else len(indices)
        before = [rating for index, rating in zip(indices, ratings, strict=True) if wrong is None or index < wrong]
        rated = sum(rating is not None for rating in given.values())
        chains.append(BenchmarkChain(
            chain.asked, chain.steps, tuple(None if value is None else value >= 0.5 for value in chain.labels),
            None if None in before else label, chain.outcome, problem_of(chain), ratings=ratings,
            hidden=rated - sum(rating is not None for rating in ratings)))
    if not chains:
        raise InputError(f"{path}: nobody rated any message of its {unrated} trajectories; name one with step_labels")
    if unrated:
        log.warning("%s: trajectories that nobody rated left out: %d", path, unrated)
    unknown = sum(chain.label is None for chain in chains)
    if unknown:
        log.warning("%s: trajectories not rated up to their first error, for StepAcc alone: %d", path, unknown)
    return chains


def _step_accuracies(file: ScoredFile, threshold: float) -> dict[str, Statistic]:
    """Shares of rated steps; a step without a score is a miss, as a missing label is in the benchmark's script."""
    rows = [(rating, scores[index] >= threshold if index < len(scores) else None, owner)
            for chain, scores, owner in zip(file.chains, file.scores, file.problem, strict=True)
            for index, rating in enumerate((*chain.ratings, *(None,) * chain.hidden))
            if rating is not None or index >= len(chain.ratings)]
    if not rows:
        return {}
    owners = [owner for _, _, owner in rows]

    def share(hits: list[Any]) -> Statistic:
        return metrics.share(np.array(hits, dtype=np.float64), owners, file.problems)

    return {
        "prm/step_accuracy": share([passed is not None and rating == (1 if passed else -1)
                                    for rating, passed, _ in rows]),
        "random/step_accuracy": metrics.constant(1 / 3),
        "silent/step_accuracy": share([rating == 1 for rating, _, _ in rows]),
        "ceiling/step_accuracy": share([rating not in (None, 0) for rating, _, _ in rows]),
        "prm/step_accuracy_binary": share([passed is not None and rating is not None and passed == (rating >= 0)
                                           for rating, passed, _ in rows]),
        "random/step_accuracy_binary": metrics.constant(1 / 2),
        "silent/step_accuracy_binary": share([rating is not None and rating >= 0 for rating, _, _ in rows]),
    }


def measure(file: ScoredFile, threshold: float) -> Mapping[str, Statistic]:
    """StepAcc (`step_accuracy`) and FirstErrAcc (`accuracy`), with floors; first-error F1 and single steps beside them.

    StepAcc is the share of rated steps whose rating is given exactly, all steps of all files in one pot; FirstErrAcc
    the share of trajectories whose first -1 is at the predicted place, or that have none and none is predicted. One
    score cannot say "neutral": at or above the threshold it says +1, below it -1, so StepAcc is at most
    `ceiling/step_accuracy`. `step_accuracy_binary` asks only whether a step is an error.

    Source: Fan et al. 2026, "AgentProcessBench"; eval/compare.py of RUCBM/AgentProcessBench.
    """
    return first_error_statistics(file, threshold) | _step_accuracies(file, threshold) | step_statistics(file)


BENCHMARK = register(Benchmark(
    "agentprocessbench", "JSON lines with messages, step_labels, final_label: StepAcc and FirstErrAcc, files pooled",
    read, measure, choose_first_error_threshold,
    ((Column("StepAcc", "prm/step_accuracy", "random/step_accuracy"),
      Column("silent", "silent/step_accuracy"), Column("ceiling", "ceiling/step_accuracy"),
      Column("error or not", "prm/step_accuracy_binary", "silent/step_accuracy_binary")),
     (Column("FirstErrAcc", "prm/accuracy", "random/accuracy"), Column("silent", "silent/accuracy"),
      Column("F1", "prm/first_error_f1", "random/first_error_f1"), Column("coin F1", "coin/first_error_f1"),
      Column("middle F1", "middle/first_error_f1")),
     STEP_COLUMNS),
    pooled=True,
))


def read_failed(path: Path) -> list[BenchmarkChain]:
    """ATIF as `agentpile` writes Who&When in it: `mistake_step` labels, and who takes a step in its `actor`."""
    return from_labelled(FORMATS["atif"].read(path), path)


def measure_failed(file: ScoredFile, threshold: float) -> Mapping[str, Statistic]:
    """How often the agent of the first wrong step is named in runs that failed, beside first errors and single steps.

    Who&When has failed runs alone, and asks for the agent and the step: `faulty_agent` and `acc_err`. One that ended
    well, or has no wrong step or no named agent, counts with first errors only.

    Source: Zhang et al. 2025, "Which Agent Causes Task Failures and When?".
    """
    runs = [blame.FailedRun(agents, scores, chain.label, int(owner))
            for chain, scores, owner in zip(file.chains, file.scores, file.problem, strict=True)
            if (agents := blame.agents_of(chain.steps)) and not chain.outcome and scores
            and chain.label is not None and chain.label >= 0]
    return {**blame.naming_statistics(runs, file.problems, threshold), **measure_first_errors(file, threshold)}


WHO_AND_WHEN = register(Benchmark(
    "who_and_when", "ATIF with mistake_step labels: the agent and the step that made a run fail", read_failed,
    measure_failed, choose_first_error_threshold,
    ((Column("agent", "prm/faulty_agent", "random/faulty_agent"), Column("majority", "majority/faulty_agent"),
      Column("step", "prm/acc_err", "random/acc_err"), Column("F1", "prm/first_error_f1", "random/first_error_f1")),
     STEP_COLUMNS),
    pooled=True,
))
