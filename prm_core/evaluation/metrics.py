"""The figures: ProcessBench protocol, step-level and chain-level statistics, bootstrap over problems.

Pure functions over arrays; nothing here samples, scores, judges or knows what an oracle is. A statistic is a function
of how much each problem weighs, so that a figure and its interval are one formula: weight 1 for every problem gives
the figure, the counts of a resample give one draw of its bootstrap distribution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# (resamples, problems) weights → (resamples,) values, NaN where undefined.
Statistic = Callable[[Floats], Floats]
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; all three NaN where the figure is undefined (no chain of the kind it counts)."""

    value: float
    low: float
    high: float

    @property
    def defined(self) -> bool:
        return math.isfinite(self.value)


class Bootstrap:
    """Percentile bootstrap over problems: a problem comes with all its chains, since they are not independent.

    The same resamples serve every statistic, so the interval of a difference is that of a paired comparison.

    Args:
        problems: how many.
        resamples: draws with replacement.
        seed: of the draws.
    """

    def __init__(self, problems: int, resamples: int, seed: int) -> None:
        if problems < 1:
            raise ValueError("a bootstrap needs at least one problem")
        self.problems = problems
        shares = np.full(problems, 1 / problems)
        self._weights = np.random.default_rng(seed).multinomial(problems, shares, size=resamples).astype(np.float64)

    def draws(self, statistic: Statistic) -> tuple[float, Floats]:
        """The figure, and its values on the resamples, (resamples,); NaN where undefined."""
        return float(statistic(np.ones((1, self.problems)))[0]), statistic(self._weights)

    def estimate(self, statistic: Statistic, *, centred: bool = False) -> Estimate:
        """The figure and its interval. Resamples in which it is undefined are left out of the interval.

        Args:
            statistic: of the problems' weights.
            centred: shift the interval by the draws' mean deviation from the figure, for statistics that resampling
                pushes away from zero (ECE: each resample adds noise to every bin, and noise counts as error).
        """
        return interval(*self.draws(statistic), centred)


def interval(value: float, draws: Floats, centred: bool = False) -> Estimate:
    """The estimate of a figure from its `Bootstrap.draws`; `centred` as in `Bootstrap.estimate`."""
    if not math.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan)
    draws = draws[np.isfinite(draws)]
    if draws.size == 0:
        return Estimate(value, value, value)
    if centred:
        draws = np.maximum(draws - draws.mean() + value, 0)
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(value, float(low), float(high))


def average(parts: Sequence[tuple[float, Floats]], *, centred: bool = False) -> Estimate:
    """The unweighted mean of figures on separate sets of problems, from each set's `Bootstrap.draws`."""
    value, draws = float(np.mean([value for value, _ in parts])), np.mean([draws for _, draws in parts], axis=0)
    return interval(value, draws, centred)


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
    """Sum over problems of `numerators` divided by that of `denominators`, both (problems,)."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)

    def statistic(weights: Floats) -> Floats:
        totals = weights @ bottom
        return np.divide(weights @ top, totals, out=np.full(totals.shape, np.nan), where=totals != 0)

    return statistic


def mean(values: ArrayLike) -> Statistic:
    """Mean over problems of one value each, (problems,)."""
    values = np.asarray(values, dtype=np.float64)
    return ratio(values, np.ones_like(values))


def share(hits: ArrayLike, problem: ArrayLike, problems: int) -> Statistic:
    """Mean of `hits` over items (chains, steps), problems weighing by their number of items.

    Args:
        hits: (items,), booleans or values.
        problem: (items,) index of the item's problem.
        problems: how many there are.
    """
    problem = np.asarray(problem, dtype=np.int64)
    sums = np.bincount(problem, np.asarray(hits, dtype=np.float64), minlength=problems)
    return ratio(sums, np.bincount(problem, minlength=problems))


def constant(value: float) -> Statistic:
    """The same whatever the weights."""
    return lambda weights: np.full(len(weights), value)


def difference(left: Statistic, right: Statistic) -> Statistic:
    """left - right on the same weights: a paired comparison."""
    return lambda weights: left(weights) - right(weights)


# ---------------------------------------------------------------------------------------------- first errors


def first_error(step_scores: Sequence[float], threshold: float) -> int:
    """0-based index of the first step whose score is below `threshold`, -1 when there is none."""
    return next((index for index, score in enumerate(step_scores) if score < threshold), -1)


@dataclass(frozen=True, slots=True)
class FirstErrors:
    """ProcessBench's tally, per problem, each array (problems,).

    Attributes:
        found: erroneous chains whose first error was named exactly (or the expected number of them).
        erroneous: chains with an error.
        passed: chains without an error of which none was claimed (or the expected number).
        sound: chains without an error.
    """

    found: Floats
    erroneous: Floats
    passed: Floats
    sound: Floats

    @property
    def acc_err(self) -> Statistic:
        """Share of erroneous chains whose first error is named exactly."""
        return ratio(self.found, self.erroneous)

    @property
    def acc_ok(self) -> Statistic:
        """Share of sound chains in which no error is claimed."""
        return ratio(self.passed, self.sound)

    @property
    def accuracy(self) -> Statistic:
        """Share of all chains whose first error, or its absence, is named exactly."""
        return ratio(self.found + self.passed, self.erroneous + self.sound)

    @property
    def f1(self) -> Statistic:
        """Harmonic mean of the two; undefined when either kind of chain is missing."""

        def statistic(weights: Floats) -> Floats:
            err, ok = self.acc_err(weights), self.acc_ok(weights)
            return np.divide(2 * err * ok, err + ok, out=np.where(np.isnan(err + ok), np.nan, 0.0), where=err + ok > 0)

        return statistic


def tally(hits: ArrayLike, gold: ArrayLike, problem: ArrayLike, problems: int) -> FirstErrors:
    """Tallies chains.

    Args:
        hits: (chains,) whether the gold index was predicted, or the probability of it.
        gold: (chains,) index of the first wrong step, -1 where every step is right.
        problem: (chains,) index of the chain's problem.
        problems: how many there are.
    """
    hits, bad = np.asarray(hits, dtype=np.float64), np.asarray(gold) >= 0
    problem = np.asarray(problem, dtype=np.int64)

    def total(values: Floats) -> Floats:
        return np.bincount(problem, values, minlength=problems)

    return FirstErrors(total(hits * bad), total(bad * 1.0), total(hits * ~bad), total(~bad * 1.0))


def prm_tally(
    scores: Sequence[Sequence[float]], gold: Sequence[int], problem: Sequence[int], problems: int, threshold: float
) -> FirstErrors:
    """The tally of a process reward model's step scores at a threshold. Source: Zheng et al. 2024, ProcessBench."""
    predicted = np.array([first_error(row, threshold) for row in scores])
    return tally(predicted == np.asarray(gold), gold, problem, problems)


def random_tally(steps: Sequence[int], gold: Sequence[int], problem: Sequence[int], problems: int) -> FirstErrors:
    """The floor: naming one of -1, 0 … steps-1 uniformly at random, in exact expectation (1 / (steps + 1) a chain).

    Args:
        steps: (chains,) number of steps.
    """
    return tally(1 / (np.asarray(steps) + 1), gold, problem, problems)


def coin_tally(steps: Sequence[int], gold: Sequence[int], problem: Sequence[int], problems: int) -> FirstErrors:
    """A floor for models whose threshold is chosen: each step is called wrong with one probability, in expectation.

    Of the probabilities 0.001, 0.002 … 0.999 the one with the best F1 on all the chains. Scores independent of the
    steps do just this, so a model below it has scores that say nothing.

    Args:
        steps: (chains,) number of steps.
    """
    steps, wrong = np.asarray(steps), np.asarray(gold)
    rates = np.arange(1, 1000) / 1000
    err = np.array([np.mean((1 - q) ** wrong[wrong >= 0] * q) for q in rates])
    ok = np.array([np.mean((1 - q) ** steps[wrong < 0]) for q in rates])
    q = rates[np.argmax(err * ok / (err + ok))]
    return tally(np.where(wrong < 0, (1 - q) ** steps, (1 - q) ** np.maximum(wrong, 0) * q), gold, problem, problems)


def middle_tally(
    steps: Sequence[int], answer_right: Sequence[bool], gold: Sequence[int], problem: Sequence[int], problems: int
) -> FirstErrors:
    """A second floor: knowing whether the answer is right, and naming the middle step when it is not."""
    predicted = np.where(answer_right, -1, np.asarray(steps) // 2)
    return tally(predicted == np.asarray(gold), gold, problem, problems)


def choose_threshold(scores: Sequence[Sequence[float]], gold: Sequence[int]) -> tuple[float, float]:
    """The threshold with the best first-error F1 over the given (dev) chains, and that F1.

    Candidates are the midpoints between neighbouring distinct scores and one beyond either end: every prediction any
    threshold can make. Of equally good ones the nearest to 0.5 is taken, then the lower, so the choice is
    deterministic and sits in the gap of well separated scores.

    Raises ValueError when the chains are not of both kinds: F1 is then undefined for every threshold.
    """
    gold_index = np.asarray(gold)
    if not ((gold_index >= 0).any() and (gold_index < 0).any()):
        raise ValueError("a threshold needs chains with an error and chains without one")
    width = max(len(row) for row in scores)
    padded = np.full((len(scores), width), np.inf)
    for i, row in enumerate(scores):
        padded[i, : len(row)] = row
    values = np.unique(padded[np.isfinite(padded)])
    edges = np.concatenate([[min(values[0], 0.0) - 1e-6], values, [max(values[-1], 1.0) + 1e-6]])
    best = (-1.0, 0.0, 0.0)
    for threshold in (edges[:-1] + edges[1:]) / 2:
        below = padded < threshold
        predicted = np.where(below.any(axis=1), below.argmax(axis=1), -1)
        hits = predicted == gold_index
        err, ok = hits[gold_index >= 0].mean(), hits[gold_index < 0].mean()
        f1 = 2 * err * ok / (err + ok) if err + ok > 0 else 0.0
        best = max(best, (float(f1), -abs(float(threshold) - 0.5), -float(threshold)))
    return -best[2], best[0]


# ------------------------------------------------------------------------------------------------ single steps


@dataclass(frozen=True, slots=True)
class JudgedSteps:
    """Steps with a score and a gold verdict, flattened.

    Attributes:
        scores: (steps,) probability that the step is right.
        right: (steps,) whether it is.
        problem: (steps,) index of its problem.
        problems: how many there are.
    """

    scores: Floats
    right: NDArray[np.bool_]
    problem: Ints
    problems: int


def judged_steps(
    scores: Sequence[Sequence[float]], gold: Sequence[int], problem: Sequence[int], problems: int
) -> JudgedSteps:
    """The steps up to and including each chain's first gold error.

    What follows the first error has no meaningful verdict (correct work on a wrong value is neither), and a model
    trained on first errors was never taught one; METHODS 2. Steps without a score (truncated) are left out.
    """
    rows: list[tuple[float, bool, int]] = []
    for chain, wrong, owner in zip(scores, gold, problem, strict=True):
        kept = chain if wrong < 0 else chain[: wrong + 1]
        rows += [(score, index != wrong, owner) for index, score in enumerate(kept)]
    values, right, owners = zip(*rows, strict=True) if rows else ((), (), ())
    return JudgedSteps(np.array(values, dtype=np.float64), np.array(right, dtype=bool),
                       np.array(owners, dtype=np.int64), problems)


def step_accuracy(steps: JudgedSteps, threshold: float) -> Statistic:
    """Share of steps on whose rightness the score, cut at `threshold`, agrees with the gold verdict."""
    return share((steps.scores >= threshold) == steps.right, steps.problem, steps.problems)


def auroc(scores: ArrayLike, right: ArrayLike, problem: ArrayLike) -> Statistic:
    """Probability that a right item outscores a wrong one, ties counting half (area under the ROC curve).

    Args:
        scores, right, problem: (items,) each.
    """
    right, problem = np.asarray(right, dtype=bool), np.asarray(problem, dtype=np.int64)
    _, rank = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    ranks = int(rank.max()) + 1 if rank.size else 0

    def one(weights: Floats) -> float:
        weight = weights[problem]
        positive = np.bincount(rank, weight * right, minlength=ranks)
        negative = np.bincount(rank, weight * ~right, minlength=ranks)
        pairs = positive.sum() * negative.sum()
        return float(positive @ (np.cumsum(negative) - negative / 2) / pairs) if pairs else math.nan

    return lambda weights: np.array([one(row) for row in weights])


def ece(steps: JudgedSteps, bins: int) -> Statistic:
    """Expected calibration error of the step scores; see `calibration.expected_calibration_error`.

    In sums by problem and bin: |Σ(score - right)| of each bin over all steps, which weighs bins by their steps.
    Raises ValueError when a score is no probability.
    """
    if not np.all((steps.scores >= 0) & (steps.scores <= 1)):
        raise ValueError("scores must lie in [0, 1] to be compared with how often they are right")
    edges = np.minimum((steps.scores * bins).astype(np.int64), bins - 1)
    cell = steps.problem * bins + edges
    shape = (steps.problems, bins)
    gap = np.bincount(cell, steps.scores - steps.right, minlength=steps.problems * bins).reshape(shape)
    count = np.bincount(steps.problem, minlength=steps.problems).astype(np.float64)

    def statistic(weights: Floats) -> Floats:
        totals = weights @ count
        gaps = np.abs(weights @ gap).sum(axis=1)
        return np.divide(gaps, totals, out=np.full(totals.shape, np.nan), where=totals > 0)

    return statistic


def brier(steps: JudgedSteps) -> Statistic:
    """Brier score of the step scores."""
    return share((steps.scores - steps.right) ** 2, steps.problem, steps.problems)


def base_rate_brier(steps: JudgedSteps) -> Statistic:
    """Brier score of the best constant score, the share p of right steps: p (1 - p)."""
    rate = share(steps.right, steps.problem, steps.problems)

    def statistic(weights: Floats) -> Floats:
        p = rate(weights)
        return p * (1 - p)

    return statistic


# ------------------------------------------------------------------------------------------------ whole chains


def lowest_is_last(scores: Sequence[Sequence[float]], problem: Sequence[int], problems: int) -> Statistic:
    """ORM drift: share of chains of two steps or more whose lowest score is the last step's alone.

    High means that the model waits for the answer instead of judging steps: 44.5 % for Math-Shepherd, 17.3 % for
    Qwen2.5-Math-PRM-7B. Source: Zhang et al. 2025, "The Lessons of Developing Process Reward Models".
    """
    chains = [(row[-1] < min(row[:-1]), owner) for row, owner in zip(scores, problem, strict=True) if len(row) > 1]
    return share([hit for hit, _ in chains], [owner for _, owner in chains], problems)


def length_slope(scores: ArrayLike, lengths: ArrayLike, problem: ArrayLike, problems: int) -> Statistic:
    """Least-squares slope of chain scores on chain length within problems, per step.

    For chains that deserve the same score (those with a wrong answer): comparing chains of one problem takes the
    problem's difficulty out, and what is left is a liking for length. Negative: short wrong chains score higher.

    Args:
        scores, lengths, problem: (chains,) each.
    """
    y, x = np.asarray(scores, dtype=np.float64), np.asarray(lengths, dtype=np.float64)
    problem = np.asarray(problem, dtype=np.int64)
    count = np.maximum(np.bincount(problem, minlength=problems), 1)
    x = x - (np.bincount(problem, x, minlength=problems) / count)[problem]
    y = y - (np.bincount(problem, y, minlength=problems) / count)[problem]
    return ratio(np.bincount(problem, x * y, minlength=problems), np.bincount(problem, x * x, minlength=problems))
