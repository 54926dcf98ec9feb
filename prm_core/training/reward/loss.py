"""Losses of reward models: pure functions over logits, as sums, so that rows may be spread over passes and ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cross_entropy_sum(
    logits: Tensor, targets: Tensor, weights: Tensor, class_weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Sum of weighted binary cross-entropies, a scalar.

    Args:
        logits: of "right", any shape.
        targets: P(right) or a value in [0, 1], hard or soft, same shape.
        weights: how often each target counts, 0 for none, same shape.
        class_weights: factors of the terms for wrong and for right.
    """
    from torch.nn.functional import logsigmoid

    wrong, right = class_weights
    terms = right * targets * logsigmoid(logits) + wrong * (1 - targets) * logsigmoid(-logits)
    # Where there is no target the logit may be anything, also infinite, and 0 · inf is NaN.
    return -(weights * terms).where(weights > 0, 0.0).sum()


def preference_sum(logits: Tensor, pairs: Tensor) -> Tensor:
    """Sum of Bradley-Terry losses -log sigmoid(chosen - rejected), a scalar.

    Args:
        logits: (batch, slots).
        pairs: (row, slot) of the chosen, then of the rejected step, (pairs, 4).
    """
    from torch.nn.functional import logsigmoid

    row, chosen, other, rejected = pairs.unbind(1)
    return -logsigmoid(logits[row, chosen] - logits[other, rejected]).sum()


def balanced_weights(right: float, total: float) -> tuple[float, float]:
    """Class weights (wrong, right) with which both classes weigh half of the total.

    Raises ValueError when there is only one class.
    """
    if not 0 < right < total:
        raise ValueError(f"{right:g} of {total:g} targets are right; balanced weights need both classes")
    return total / (2 * (total - right)), total / (2 * right)
