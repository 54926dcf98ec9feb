"""How an alarm and a clean prefix (scoring/conformal.py) fare on runs with gold that they were not fitted on.

Pure functions over arrays. Their intervals are Clopper and Pearson's with the problems as the trials: runs of one
problem are not independent, and as many of them as there are count as one. That is exact with a run a problem and too
wide with more, and unlike a bootstrap's it says what a count of none leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from prm_core.evaluation.metrics import INTERVAL, Estimate
from prm_core.scoring.conformal import Alarm, CleanPrefix


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


def measure_alarm(
    alarm: Alarm, runs: Sequence[Sequence[float]], first_errors: Sequence[int], problem: Sequence[int]
) -> AlarmFigures:
    """What an alarm does on runs that fail where they hold an error.

    Args:
        runs: step scores of whole runs, other than it was fitted on.
        first_errors: (runs,) index of the first wrong step, -1 where there is none.
        problem: (runs,), as for `share_of_runs`.
    """
    stops = [alarm.step(scores) for scores in runs]
    rows = list(zip(stops, runs, first_errors, problem, strict=True))
    failing, sound = [row for row in rows if row[2] >= 0], [row for row in rows if row[2] < 0]
    owners = [row[3] for row in failing]
    early = [before_last_third(stop, len(scores)) for stop, scores, _, _ in failing]
    saved = sum(len(scores) - stop - 1 for stop, scores, _, _ in failing if stop >= 0)
    taken = sum(len(scores) for _, scores, _, _ in failing)
    return AlarmFigures(
        false_alarms=share_of_runs([row[0] >= 0 for row in sound], [row[3] for row in sound]),
        stopped=share_of_runs([row[0] >= 0 for row in failing], owners),
        stopped_early=share_of_runs(early, owners),
        failed_early=share_of_runs([before_last_third(error, len(scores)) for _, scores, error, _ in failing], owners),
        steps_saved=saved / taken if taken else math.nan,
    )


def measure_prefix(
    prefix: CleanPrefix, runs: Sequence[Sequence[float]], first_errors: Sequence[int], problem: Sequence[int]
) -> PrefixFigures:
    """What a clean prefix promises of runs other than it was fitted on. Arguments as for `measure_alarm`."""
    lengths = np.array([prefix.length(scores) for scores in runs], dtype=np.int64)
    clean = np.array([len(scores) if error < 0 else error
                      for scores, error in zip(runs, first_errors, strict=True)], dtype=np.int64)
    broken, owners, promised = lengths > clean, np.asarray(problem), lengths > 0
    return PrefixFigures(
        broken=share_of_runs(broken, owners),
        broken_promises=share_of_runs(broken[promised], owners[promised]),
        promised=float(promised.mean()) if len(lengths) else math.nan,
        steps_kept=float(lengths[~broken].sum() / clean.sum()) if clean.sum() else math.nan,
    )
