"""Verdict rules: from rollouts before and after a step to a verdict with the probability that it is right.

Pure functions; what is sampled, and in which order, is the strategies'.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from prm_core.registry import Registry

# `relative`: the share of its value that a prefix must keep for the step to be right.
KEPT = 0.5
# Points at which the posterior of the value before a step is read.
QUANTILES = 64


@dataclass(frozen=True, slots=True)
class Tally:
    """Rollouts from one prefix, and how many of them reached the right answer."""

    successes: int
    rollouts: int

    def with_more(self, successes: int, rollouts: int) -> Tally:
        """This tally and more rollouts of the same prefix."""
        return Tally(self.successes + successes, self.rollouts + rollouts)

    @property
    def value(self) -> float:
        """Monte-Carlo value of the prefix; undefined without rollouts."""
        return self.successes / self.rollouts


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the step is right (None: the rule cannot tell) and the probability that this verdict is right."""

    is_correct: bool | None
    confidence: float


@dataclass(frozen=True, slots=True)
class VerdictRule:
    """A way to judge a step by rollouts.

    Attributes:
        judge: (rollouts after the step, those before it, the most rollouts K a prefix can get) → verdict. Never
            turns from right to wrong as successes after the step are added.
        compares: whether it reads the rollouts before the step, so that the bare question is rolled out too.
    """

    judge: Callable[[Tally, Tally, int], Verdict]
    compares: bool


VERDICTS: Registry[VerdictRule] = Registry("verdict rule")


@lru_cache(maxsize=65536)
def probability_above(tally: Tally, threshold: float) -> float:
    """P(value > threshold) under the posterior Beta(1 + successes, 1 + failures)."""
    from scipy.stats import beta

    return float(beta.sf(threshold, 1 + tally.successes, 1 + tally.rollouts - tally.successes))


@lru_cache(maxsize=65536)
def probability_kept(after: Tally, before: Tally, share: float) -> float:
    """P(value after >= share · value before), the two values with independent Beta posteriors.

    The mean over equally likely values before (midpoints of quantiles) of the tail after; within 0.01 of the integral.
    """
    import numpy as np
    from scipy.stats import beta

    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    values = beta.ppf(levels, 1 + before.successes, 1 + before.rollouts - before.successes)
    return float(beta.sf(share * values, 1 + after.successes, 1 + after.rollouts - after.successes).mean())


def _at_threshold(is_correct: bool, tally: Tally, threshold: float) -> Verdict:
    above = probability_above(tally, threshold)
    return Verdict(is_correct, above if is_correct else 1.0 - above)


def majority(after: Tally, before: Tally, most: int) -> Verdict:
    """Right when more than half of the rollouts succeed (the guide)."""
    return _at_threshold(2 * after.successes > after.rollouts, after, 0.5)


def any_success(after: Tally, before: Tally, most: int) -> Verdict:
    """Right when at least one rollout succeeds (Math-Shepherd's hard estimation).

    The verdict separates values near 0 from the rest; its confidence is the posterior mass on its side of 1/K, the
    smallest success rate that K rollouts can show (½ for K = 1: no value lies above 1).
    """
    return _at_threshold(after.successes > 0, after, 1.0 / max(most, 2))


def relative(after: Tally, before: Tally, most: int) -> Verdict:
    """Right when the step more likely than not keeps half of the value the prefix had before it: what the step did.

    Undecided where no rollout succeeded before the step: there is nothing to lose.
    """
    if before.successes == 0:
        return Verdict(None, 0.0)
    kept = probability_kept(after, before, KEPT)
    return Verdict(kept >= 0.5, max(kept, 1.0 - kept))


VERDICTS.register("majority")(VerdictRule(majority, compares=False))
VERDICTS.register("any")(VerdictRule(any_success, compares=False))
VERDICTS.register("relative")(VerdictRule(relative, compares=True))


def settled(rule: VerdictRule, after: Tally, before: Tally, most: int, decided: float) -> bool:
    """Whether more rollouts of this prefix are not worth buying.

    They are not when K are there, when no outcome of those left could change the verdict (curtailed sampling), or
    when the verdict's posterior probability has reached `decided` (1: only the first two).
    """
    left = most - after.rollouts
    if left <= 0:
        return True
    lost = rule.judge(after.with_more(0, left), before, most).is_correct
    won = rule.judge(after.with_more(left, left), before, most).is_correct
    if lost == won:
        return True
    verdict = rule.judge(after, before, most) if after.rollouts else Verdict(None, 0.0)
    return verdict.is_correct is not None and decided < 1 and verdict.confidence >= decided
