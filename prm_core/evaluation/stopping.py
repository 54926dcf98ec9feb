"""An alarm and a clean prefix (scoring/conformal.py) fitted on chains with gold, and how they fare on others.

A chain fails where it holds an error. The intervals are Clopper and Pearson's with the problems as the trials: runs of
one problem are not independent, and as many of them as there are count as one. That is exact with a run a problem and
too wide with more, and unlike a bootstrap's it says what a count of none leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prm_core.evaluation.judged_chains import Chain, first_per_problem
from prm_core.evaluation.metrics import INTERVAL, Estimate
from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises, TooFewRuns, fit_alarm, fit_clean_prefix

# How often an alarm may be false and a clean prefix hold an error, and how surely over the draw of the dev problems.
ALPHA, PREFIX_ALPHA, CONFIDENCE = 0.05, 0.1, 0.9


@dataclass(frozen=True, slots=True)
class Runs:
    """Chains as the columns that this module takes.

    Attributes:
        scores: of each run's steps.
        first_errors: (runs,) index of the first wrong step, -1 where there is none.
        problem: (runs,), what each run is of: its problem's index.
    """

    scores: Sequence[Sequence[float]]
    first_errors: Sequence[int]
    problem: Sequence[int]


@dataclass(frozen=True, slots=True)
class AlarmFigures:
    """What an alarm did.

    Attributes:
        false_alarms: share of the runs that do not fail which it stopped.
        stopped: share of the failing runs which it stopped.
        stopped_early: share of the failing runs which it stopped before their last third began.
        failed_early: share of the failing runs whose first error lies there: what one can hope for who sees an error
            when it is made and not before.
        steps_saved: share of the failing runs' steps that were not taken.
    """

    false_alarms: Estimate
    stopped: Estimate
    stopped_early: Estimate
    failed_early: Estimate
    steps_saved: float


@dataclass(frozen=True, slots=True)
class PrefixFigures:
    """What a clean prefix promised.

    Attributes:
        broken: share of runs whose promised steps hold an error; a run that is promised nothing holds none.
        broken_promises: the same, of the runs that are promised a step or more.
        promised: their share.
        steps_kept: clean steps promised, of all steps before the runs' first errors.
    """

    broken: Estimate
    broken_promises: Estimate
    promised: float
    steps_kept: float


def share_of_runs(hits: ArrayLike, problem: ArrayLike) -> Estimate:
    """Share of `hits` and its 95 % interval, NaN where there is no run.

    Args:
        hits: (runs,), true or false.
        problem: (runs,), what a run is of: its problem's index or id.

    Source: Clopper and Pearson 1934, with the share of as many trials as there are problems.
    """
    from scipy.stats import beta

    hits, trials = np.asarray(hits, dtype=np.float64), len(np.unique(np.asarray(problem)))
    if not trials:
        return Estimate(math.nan, math.nan, math.nan)
    count, (low, high) = float(hits.mean()) * trials, (level / 100 for level in INTERVAL)
    return Estimate(float(hits.mean()), float(beta.ppf(low, count, trials - count + 1)) if count > 0 else 0.0,
                    float(beta.ppf(high, count + 1, trials - count)) if count < trials else 1.0)


def before_last_third(step: int, steps: int) -> bool:
    """Whether a run that is stopped after a step (0-based) has not begun its last third; False for step -1."""
    return step >= 0 and 3 * (step + 1) <= 2 * steps


def judged_runs(chains: Sequence[Chain]) -> Runs:
    """The chains with gold that the PRM scored to their end and can judge; others get neither alarm nor promise."""
    return _columns(_judged(chains))


def fit(chains: Sequence[Chain], confidence: float = CONFIDENCE) -> tuple[Promises, dict[str, str]]:
    """Both, from chains of which there may be several a problem: of each the first that tells something counts.

    Returns:
        them, and `alarm` or `prefix` → why it is left out, where there are too few problems.
    """
    judged = _judged(chains)
    sound = _columns(first_per_problem([chain for chain in judged if chain.gold_error < 0], 1))
    runs = _columns(first_per_problem(judged, 1))
    alarm: Alarm | None = None
    prefix: CleanPrefix | None = None
    reasons = {}
    try:
        alarm = fit_alarm(sound.scores, [False] * len(sound.scores), ALPHA, confidence)
    except TooFewRuns as error:
        reasons["alarm"] = str(error)
    try:
        prefix = fit_clean_prefix(runs.scores, runs.first_errors, PREFIX_ALPHA, confidence)
    except TooFewRuns as error:
        reasons["prefix"] = str(error)
    return Promises(alarm, prefix), reasons


def _judged(chains: Sequence[Chain]) -> list[Chain]:
    return [chain for chain in chains if chain.gold is not None and chain.step_scores and not chain.truncated
            and not chain.out_of_domain]


def _columns(chains: Sequence[Chain]) -> Runs:
    return Runs([chain.step_scores or () for chain in chains], [chain.gold_error for chain in chains],
                [chain.problem for chain in chains])


def figures(promises: Promises, chains: Sequence[Chain], split: str) -> dict[str, float]:
    """The flat keys of metrics.json: `<split>/prm/<figure>`, with `_low` and `_high`; those that no run tells left out.

    Args:
        chains: other than the promises were fitted on.
    """
    runs = judged_runs(chains)
    measured: dict[str, Estimate | float] = {}
    if promises.alarm is not None:
        alarm = measure_alarm(promises.alarm, runs)
        measured |= {"alarm_false": alarm.false_alarms, "alarm_stopped": alarm.stopped,
                     "alarm_stopped_early": alarm.stopped_early, "alarm_steps_saved": alarm.steps_saved}
    if promises.prefix is not None:
        prefix = measure_prefix(promises.prefix, runs)
        measured |= {"prefix_broken": prefix.broken, "prefix_broken_promises": prefix.broken_promises,
                     "prefix_steps_kept": prefix.steps_kept}
    table: dict[str, float] = {}
    for name, found in measured.items():
        parts = {"": found} if isinstance(found, float) else {
            "": found.value, "_low": found.low, "_high": found.high}
        table |= {f"{split}/prm/{name}{part}": value for part, value in parts.items() if math.isfinite(value)}
    return table


def left_out(reasons: Mapping[str, str]) -> dict[str, str]:
    """The keys of metrics.json that say why there is no alarm or no prefix, of what `fit` says."""
    return {f"dev/prm/{name}_left_out": why for name, why in reasons.items()}


def measure_alarm(alarm: Alarm, runs: Runs) -> AlarmFigures:
    """What an alarm does on runs other than it was fitted on."""
    rows = [(alarm.step(scores), len(scores), error, problem)
            for scores, error, problem in zip(runs.scores, runs.first_errors, runs.problem, strict=True)]
    failing, sound = [row for row in rows if row[2] >= 0], [row for row in rows if row[2] < 0]

    def of_failing(hits: Sequence[bool]) -> Estimate:
        return share_of_runs(hits, [problem for *_, problem in failing])

    saved = sum(steps - stop - 1 for stop, steps, *_ in failing if stop >= 0)
    taken = sum(steps for _, steps, *_ in failing)
    return AlarmFigures(
        false_alarms=share_of_runs([stop >= 0 for stop, *_ in sound], [problem for *_, problem in sound]),
        stopped=of_failing([stop >= 0 for stop, *_ in failing]),
        stopped_early=of_failing([before_last_third(stop, steps) for stop, steps, *_ in failing]),
        failed_early=of_failing([before_last_third(error, steps) for _, steps, error, _ in failing]),
        steps_saved=saved / taken if taken else math.nan,
    )


def measure_prefix(prefix: CleanPrefix, runs: Runs) -> PrefixFigures:
    """What a clean prefix promises of runs other than it was fitted on."""
    lengths = np.array([prefix.length(scores) for scores in runs.scores], dtype=np.int64)
    clean = np.array([len(scores) if error < 0 else error
                      for scores, error in zip(runs.scores, runs.first_errors, strict=True)], dtype=np.int64)
    broken, owners, promised = lengths > clean, np.asarray(runs.problem), lengths > 0
    return PrefixFigures(
        broken=share_of_runs(broken, owners),
        broken_promises=share_of_runs(broken[promised], owners[promised]),
        promised=float(promised.mean()) if len(lengths) else math.nan,
        steps_kept=float(lengths[~broken].sum() / clean.sum()) if clean.sum() else math.nan,
    )
