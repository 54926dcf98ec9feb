"""Verdict rules: from successes of K rollouts to a verdict with the probability that it is right. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prm_core.registry import Registry


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the step is right (None: the rule cannot tell) and the probability that this verdict is right."""

    is_correct: bool | None
    confidence: float


# (successes after the step, successes before it, rollouts K) → Verdict
VerdictRule = Callable[[int, int, int], Verdict]
VERDICTS: Registry[VerdictRule] = Registry("verdict rule")


def probability_above(successes: int, rollouts: int, threshold: float) -> float:
    """P(value > threshold) under the posterior Beta(1 + successes, 1 + failures)."""
    from scipy.stats import beta

    return float(beta.sf(threshold, 1 + successes, 1 + rollouts - successes))


def _at_threshold(is_correct: bool, successes: int, rollouts: int, threshold: float) -> Verdict:
    above = probability_above(successes, rollouts, threshold)
    return Verdict(is_correct, above if is_correct else 1.0 - above)


@VERDICTS.register("majority")
def majority(successes: int, before: int, rollouts: int) -> Verdict:
    """Right when more than half of the rollouts succeed (the guide)."""
    return _at_threshold(2 * successes > rollouts, successes, rollouts, 0.5)


@VERDICTS.register("any")
def any_success(successes: int, before: int, rollouts: int) -> Verdict:
    """Right when at least one rollout succeeds (Math-Shepherd's hard estimation).

    The verdict separates values near 0 from the rest; its confidence is the posterior mass on its side of 1/K, the
    smallest success rate that K rollouts can show (½ for K = 1: no value lies above 1).
    """
    return _at_threshold(successes > 0, successes, rollouts, 1.0 / max(rollouts, 2))


@VERDICTS.register("relative")
def relative(successes: int, before: int, rollouts: int) -> Verdict:
    """Right when the step keeps at least half of the value the prefix had before it: what the step itself did.

    Undecided where no rollout succeeded before the step: there is nothing to compare with.
    """
    if before == 0:
        return Verdict(None, 0.0)
    return _at_threshold(2 * successes >= before, successes, rollouts, 0.5 * before / rollouts)
