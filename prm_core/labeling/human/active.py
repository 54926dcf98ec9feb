"""Which steps a human should judge: often those the strategies are unsure of, sometimes any, and each with a known
chance, so that what people say of the picked steps can be weighed back to all steps. Pure functions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

StepKey = tuple[str, int]
# Share of the budget that is spent on any step alike: bounds every weight by 1 / (share · sampling fraction).
RANDOM_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Pick:
    """A step to review and the chance it had to be picked; one over it is its weight in what is fitted later."""

    key: StepKey
    chance: float


def priority(stated: Sequence[float], merged: float | None) -> float:
    """How much a step deserves a look, from 0: the square of the strategies' disagreement plus the posterior's width.

    Disagreement is the range of the strategies' probabilities that the step is right; the width is the standard
    deviation of a right-or-wrong verdict under the merged probability, scaled to 0 (sure) … 1 (even odds, or nothing
    known). The square sends most of the budget where both are large.

    Args:
        stated: P(step right) of each strategy that does not abstain.
        merged: the merged, calibrated one; None where nothing is known.
    """
    disagreement = max(stated) - min(stated) if stated else 0.0
    width = 1.0 if merged is None else 2 * (merged * (1 - merged)) ** 0.5
    return (disagreement + width) ** 2


def chances(priorities: Sequence[float], budget: int) -> list[float]:
    """Chance of each step to be picked: a part alike for all, a part in proportion to its priority, none above 1.

    They sum to the budget, or to the number of steps where that is smaller.
    """
    count, left = len(priorities), min(budget, len(priorities))
    total = sum(priorities)
    shares = [
        RANDOM_SHARE / count + (1 - RANDOM_SHARE) * (priority / total if total else 1 / count)
        for priority in priorities
    ]
    result = [0.0] * count
    open_rows = list(range(count))
    while open_rows:
        scale = left / sum(shares[row] for row in open_rows)
        sure = [row for row in open_rows if shares[row] * scale >= 1]
        if not sure:
            for row in open_rows:
                result[row] = shares[row] * scale
            break
        for row in sure:
            result[row] = 1.0
        left -= len(sure)
        open_rows = [row for row in open_rows if result[row] == 0.0]
        if left <= 0:
            break
    return result


def select_steps(priorities: Mapping[StepKey, float], budget: int, seed: int) -> list[Pick]:
    """Picks min(budget, number of steps) steps, each with its chance from `chances`.

    Systematic sampling along the steps ordered by position in their chain (and at random within one): every stratum of
    positions gets its due number, to within one. Source: Madow 1949 (sampling with unequal probabilities).

    Args:
        priorities: step → priority, not negative.

    Returns:
        The picks, those with the highest priority first.
    """
    rng = random.Random(f"review/{seed}")
    order = sorted(priorities)
    rng.shuffle(order)
    order.sort(key=lambda key: key[1])
    wanted = min(budget, len(order))
    if not wanted:
        return []
    own = chances([priorities[key] for key in order], wanted)
    picks, passed, tick = [], 0.0, rng.random()
    for key, chance in zip(order, own, strict=True):
        passed += chance
        # Rounding of the running sum must neither cost the last pick nor add one.
        if len(picks) < wanted and (passed > tick or key == order[-1]):
            picks.append(Pick(key, chance))
            tick += 1
    return sorted(picks, key=lambda pick: -priorities[pick.key])
