"""Choosing among N sampled chains: best-of-N, (weighted) majority, oracle. Their expected accuracy from S >= N samples.

Pure functions over the samples of one problem. None of them picks an arbitrary subset of the S samples: each is the
mean over N-subsets, so curves over N carry no noise from which subset was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# Every subset of 16 samples fits (C(16, 8) = 12,870): majority is then exact too. Beyond, so many are drawn.
MAX_SUBSETS = 20_000
# Sums of scores that differ by less are a tie, however the floating-point additions were ordered.
_TIE = 1e-9


def group_answers(
    answers: Sequence[str | None], answer_classes: Callable[[Sequence[str]], Sequence[int]]
) -> NDArray[np.int64]:
    """Which answers are one and the same: a group number for each, -1 for chains that state none.

    Args:
        answers: (samples,).
        answer_classes: a class number for each of several answers, by value (1/2 = 0.5), never by substring, and
            whatever their order.

    Returns:
        (samples,) the class numbers.
    """
    groups = np.full(len(answers), -1, dtype=np.int64)
    stated = [i for i, answer in enumerate(answers) if answer is not None]
    groups[stated] = answer_classes([answer for answer in answers if answer is not None])
    return groups


def _check_n(samples: int, n: int) -> None:
    if not 1 <= n <= samples:
        raise ValueError(f"N = {n} of {samples} samples; N must lie between 1 and the samples per problem")


def best_of_n(scores: ArrayLike, right: ArrayLike, n: int) -> float:
    """Probability that the best-scored of N chains, drawn from the S without replacement, is right.

    The chain of rank i (0 is best) is the best of C(S-1-i, N-1) of the C(S, N) subsets; chains of equal score share
    their weights evenly, as a coin flip among them would.

    Args:
        scores: (samples,), higher is better.
        right: (samples,), whether the chain's answer is right.
        n: chains to choose from.

    Raises ValueError unless 1 <= n <= samples.
    """
    scores, right = np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=np.float64)
    _check_n(scores.size, n)
    total = math.comb(scores.size, n)
    weights = np.array([math.comb(scores.size - 1 - i, n - 1) / total for i in range(scores.size)])
    _, ties = np.unique(-scores, return_inverse=True)
    order = np.argsort(ties, kind="stable")
    shared = np.bincount(ties[order], weights) / np.bincount(ties)
    return float(shared[ties] @ right)


def oracle_at_n(right: ArrayLike, n: int) -> float:
    """pass@N: probability that at least one of N chains, drawn from the S without replacement, is right.

    1 - C(S-c, N) / C(S, N) with c right chains; unbiased. Source: Chen et al. 2021, "Evaluating Large Language Models
    Trained on Code", eq. 1. Raises ValueError unless 1 <= n <= samples.
    """
    right = np.asarray(right, dtype=bool)
    _check_n(right.size, n)
    return 1 - math.comb(right.size - int(right.sum()), n) / math.comb(right.size, n)


@lru_cache(maxsize=16)
def _subsets(samples: int, n: int, limit: int, seed: int) -> NDArray[np.bool_]:
    """(subsets, samples) membership: every N-subset when at most `limit` exist, else `limit` seeded random ones."""
    if math.comb(samples, n) <= limit:
        chosen = np.array(list(combinations(range(samples), n)))
    else:
        noise = np.random.default_rng(seed).random((limit, samples))
        chosen = np.argpartition(noise, n - 1, axis=1)[:, :n]
    member = np.zeros((len(chosen), samples), dtype=bool)
    np.put_along_axis(member, chosen, True, axis=1)
    member.flags.writeable = False
    return member


def majority_of_n(
    groups: ArrayLike,
    right: ArrayLike,
    n: int,
    *,
    weights: ArrayLike | None = None,
    seed: int = 0,
    limit: int = MAX_SUBSETS,
) -> float:
    """Probability that the answer with the most votes among N chains, drawn from the S, is right.

    Exact over all N-subsets while at most `limit` exist, over `limit` seeded ones beyond. Answers with equally many
    votes share the subset evenly. Chains without an answer do not vote; a subset in which none votes is wrong.

    Args:
        groups: (samples,) as from `group_answers`: equal numbers are equal answers, negative is none.
        right: (samples,), whether the chain's answer is right.
        n: chains that vote.
        weights: (samples,) non-negative; the vote is then weighted (sum of scores per distinct answer).
        seed: of the random subsets.
        limit: most subsets looked at.

    Raises ValueError unless 1 <= n <= samples.
    """
    groups, right = np.asarray(groups, dtype=np.int64), np.asarray(right, dtype=np.float64)
    _check_n(groups.size, n)
    votes = np.ones(groups.size) if weights is None else np.asarray(weights, dtype=np.float64)
    present = np.unique(groups[groups >= 0])
    if present.size == 0:
        return 0.0
    one_hot = (groups[:, None] == present).astype(np.float64)
    group_right = (right @ one_hot) / one_hot.sum(axis=0)
    member = _subsets(groups.size, n, limit, seed).astype(np.float64)
    # An answer nobody in the subset gave cannot win, even when all who vote have weight 0.
    totals = np.where(member @ one_hot > 0, member @ (votes[:, None] * one_hot), -np.inf)
    best = totals.max(axis=1, keepdims=True)
    winners = np.isfinite(totals) & (totals >= best - _TIE)
    credit = (winners @ group_right) / np.maximum(winners.sum(axis=1), 1)
    return float(credit.mean())
