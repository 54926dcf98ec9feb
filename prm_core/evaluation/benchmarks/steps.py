"""Figures that every benchmark with step labels has beside its own protocol's, and those of first errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.benchmarks.base import Column, ScoredFile
from prm_core.evaluation.metrics import FirstErrors, JudgedSteps, Statistic

# Equal-width bins of the expected calibration error.
ECE_BINS = 10
STEP_COLUMNS = (
    Column("AUROC", "prm/auroc", "random/auroc"), Column("Brier", "prm/brier", "base_rate/brier"),
    Column("ECE", "prm/ece"), Column("lowest is last", "prm/lowest_is_last", "random/lowest_is_last"),
)


def judged(file: ScoredFile) -> JudgedSteps:
    """The scored steps that have a gold verdict.

    First-error benchmarks have none after a chain's first error: those steps are left out (METHODS 2).
    """
    rows = [(score, right, owner)
            for chain, scores, owner in zip(file.chains, file.scores, file.problem, strict=True)
            for score, right in zip(scores, chain.gold, strict=False) if right is not None]
    values, right, owners = zip(*rows, strict=True) if rows else ((), (), ())
    return JudgedSteps(np.array(values, dtype=np.float64), np.array(right, dtype=bool),
                       np.array(owners, dtype=np.int64), file.problems)


def step_statistics(file: ScoredFile) -> dict[str, Statistic]:
    """AUROC, Brier and ECE of the step scores, and how often a chain's lowest score is its last step's.

    Floors: `random/auroc` 0.5, `base_rate/brier` (a constant score, the share of right steps), and the share of lowest
    scores that fall on the last step by chance. A constant score has an ECE of 0, so ECE alone says nothing.
    """
    steps = judged(file)
    found: dict[str, Statistic] = {}
    if steps.scores.size:
        found["prm/auroc"] = metrics.auroc(steps.scores, steps.right, steps.problem)
        found["random/auroc"] = metrics.constant(0.5)
        # Advantages rank steps, but are no probabilities.
        if steps.scores.min() >= 0 and steps.scores.max() <= 1:
            found["prm/brier"] = metrics.brier(steps)
            found["base_rate/brier"] = metrics.base_rate_brier(steps)
            found["prm/ece"] = metrics.ece(steps, ECE_BINS)
    # A chain cut short has no score for its last step, so it cannot say whether that is the lowest.
    whole = [len(scores) == len(chain.steps) > 1 for chain, scores in zip(file.chains, file.scores, strict=True)]
    if any(whole):
        scores = [row for row, keep in zip(file.scores, whole, strict=True) if keep]
        owners = file.problem[np.array(whole)]
        found["prm/lowest_is_last"] = metrics.lowest_is_last(scores, owners, file.problems)
        found["random/lowest_is_last"] = metrics.share([1 / len(row) for row in scores], owners, file.problems)
    return found


def tally_statistics(name: str, tally: FirstErrors) -> dict[str, Statistic]:
    """A tally's four figures under a model's name."""
    return {f"{name}/first_error_f1": tally.f1, f"{name}/acc_err": tally.acc_err, f"{name}/acc_ok": tally.acc_ok,
            f"{name}/accuracy": tally.accuracy}


def labels(file: ScoredFile) -> list[int]:
    """Index of each chain's first wrong step, -1 for none, of the chains that say it."""
    return [chain.label for chain in file.chains if chain.label is not None]


def _telling(file: ScoredFile) -> ScoredFile:
    """The chains whose first wrong step, or its absence, is known."""
    return file.where(lambda chain: chain.label is not None)


def first_error_statistics(file: ScoredFile, threshold: float) -> dict[str, Statistic]:
    """ProcessBench's figures of the model and of four ways to know nothing.

    Models beside `prm`: `random` names -1 or a step uniformly; `coin` calls each step wrong with one probability, the
    best in hindsight (what scores that say nothing reach with a well-chosen threshold); `silent` never claims an
    error; `middle` knows whether the answer is right and names the middle step when it is not. Chains whose first
    wrong step is unknown are left out; nothing is found where no other is.
    """
    file = _telling(file)
    if not file.chains:
        return {}
    gold, steps = labels(file), [len(chain.steps) for chain in file.chains]
    columns = (gold, file.problem, file.problems)
    found = tally_statistics("prm", metrics.prm_tally(file.scores, *columns, threshold))
    found |= tally_statistics("random", metrics.random_tally(steps, *columns))
    found["silent/accuracy"] = metrics.tally(np.array(gold) < 0, *columns).accuracy
    found["prm_minus_random/first_error_f1"] = metrics.difference(found["prm/first_error_f1"],
                                                                  found["random/first_error_f1"])
    if min(gold) < 0 <= max(gold):
        found |= tally_statistics("coin", metrics.coin_tally(steps, *columns))
    right = [chain.outcome for chain in file.chains]
    if None not in right:
        found |= tally_statistics("middle", metrics.middle_tally(steps, [bool(r) for r in right], *columns))
    return found


def choose_first_error_threshold(files: Sequence[ScoredFile]) -> tuple[float, str]:
    """The threshold with the best first-error F1 on these files. Raises InputError when they lack a kind of chain."""
    files = [_telling(file) for file in files]
    scores = [row for file in files for row in file.scores]
    try:
        threshold, f1 = metrics.choose_threshold(scores, [label for file in files for label in labels(file)])
    except ValueError as error:
        raise InputError(f"{', '.join(file.name for file in files)}: {error}") from None
    return threshold, f"first-error F1 {100 * f1:.1f}"
