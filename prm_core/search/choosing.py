"""What a search chooses by: pure functions of scores and answers. Nothing is sampled or scored here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

# Sums of scores that differ by less are a tie, however the additions were ordered.
_TIE = 1e-9


def first_best(values: Sequence[float]) -> int:
    """Place of the highest value, of equal ones the first. Raises ValueError where there is none."""
    return max(range(len(values)), key=values.__getitem__)


def vote(groups: Sequence[int], weights: Sequence[float]) -> int | None:
    """The group with the highest sum of weights, of equal ones the one that voted first; None where nobody votes.

    Args:
        groups: whose vote each chain is, as from `selection.group_answers`: negative for a chain without an answer.
        weights: of the votes; ones make it a majority.
    """
    sums: dict[int, float] = {}
    for group, weight in zip(groups, weights, strict=True):
        if group >= 0:
            sums[group] = sums.get(group, 0.0) + weight
    if not sums:
        return None
    most = max(sums.values())
    return next(group for group, total in sums.items() if total >= most - _TIE)


def supported(groups: Sequence[int], values: Sequence[float]) -> list[float]:
    """Self-consistency times score: how many chains give a chain's answer, times its value; 0 without an answer.

    The best is the best chain of the answer with the highest product of votes and best score, where weighted majority
    takes votes times mean score.
    """
    votes = Counter(groups)
    return [value * votes[group] if group >= 0 else 0.0 for group, value in zip(groups, values, strict=True)]


def cautious(scores: Sequence[float], members: Sequence[Sequence[float]]) -> list[float]:
    """Each step's score less the standard deviation of what the members of a committee say of it.

    Args:
        members: of each step, what each member says; empty without a committee.
    """
    if not members:
        return list(scores)
    return [score - statistics.pstdev(said) for score, said in zip(scores, members, strict=True)]


def expected_gain(surety: float, drawn: int) -> float:
    """What one more chain can be expected to add to the probability that the chosen chain is right, at most.

    Chains of one policy are exchangeable: the next is the best of drawn + 1 with probability 1 / (drawn + 1), and then
    adds no more than the chosen one lacks.

    Args:
        surety: probability that the chosen chain is right, cautiously.
        drawn: chains so far, at least one.
    """
    return (1 - min(max(surety, 0.0), 1.0)) / (drawn + 1)


def keep_best(values: Sequence[float], alike: Sequence[object], width: int) -> list[int]:
    """Places of the `width` highest values, best first, of equal values the first, and of those alike only the best."""
    kept: dict[object, int] = {}
    for place in sorted(range(len(values)), key=lambda place: -values[place]):
        kept.setdefault(alike[place], place)
    return list(kept.values())[:width]
