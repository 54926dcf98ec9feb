"""GRPO's process form with outcomes beside it: each source of reward normalised in its group, then weighted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prm_core.config import PolicyTrainingConfig
from prm_core.training.policy.estimators.base import ESTIMATORS, GroupRewards

if TYPE_CHECKING:
    from torch import Tensor

# Added to standard deviations; a group of equal rewards has no preference and gets advantage 0.
EPSILON = 1e-6


def normalise_groups(values: Tensor, known: Tensor) -> Tensor:
    """Values minus their group's mean, over its standard deviation; what is excluded enters neither.

    Args:
        values: (groups, members).
        known: True where a value counts, (groups, members).

    Returns:
        (groups, members), 0 where `known` is False and in groups whose known values are all equal.
    """
    import torch

    count = known.sum(1, keepdim=True).clamp(min=1)
    mean = values.where(known, 0.0).sum(1, keepdim=True) / count
    centred = (values - mean).where(known, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return torch.where(deviation > EPSILON, centred / (deviation + EPSILON), 0.0)


def process_returns(step_rewards: Tensor, step_mask: Tensor, group_size: int) -> Tensor:
    """Process form of GRPO: each step's reward normalised over all steps of its group, summed over the steps to come.

    Args:
        step_rewards: (chains, steps), chains of a group next to each other.
        step_mask: True where a step exists, (chains, steps).
        group_size: chains per group.

    Returns:
        (chains, steps): at step k the sum of the normalised rewards of the steps that end at or after it.

    Source: Shao et al. 2024, "DeepSeekMath", 4.1.3.
    """
    chains, steps = step_rewards.shape
    shape = (chains // group_size, group_size * steps)
    normalised = normalise_groups(step_rewards.reshape(shape), step_mask.reshape(shape)).reshape(chains, steps)
    return normalised.flip(1).cumsum(1).flip(1) * step_mask


def hybrid_advantages(
    outcomes: Tensor, step_rewards: Tensor, step_mask: Tensor, token_steps: Tensor, token_mask: Tensor, *,
    group_size: int, outcome_weight: float, process_weight: float,
) -> Tensor:
    """Advantage of each token: outcome and process rewards, each normalised in the group on its own, then weighted.

    Args:
        outcomes, step_rewards, step_mask, token_steps, token_mask, group_size: as in `GroupRewards`.

    Returns:
        (chains, tokens), 0 at tokens that were not sampled.
    """
    import torch

    grouped = outcomes.reshape(-1, group_size)
    outcome = normalise_groups(grouped, torch.ones_like(grouped, dtype=torch.bool)).reshape(-1, 1)
    returns = process_returns(step_rewards, step_mask, group_size)
    process = returns.gather(1, token_steps.clamp(min=0)).where(token_steps >= 0, 0.0)
    return (outcome_weight * outcome + process_weight * process) * token_mask


@ESTIMATORS.register("hybrid")
def hybrid(rewards: GroupRewards, settings: PolicyTrainingConfig) -> Tensor:
    """`hybrid_advantages` with the configured weights."""
    return hybrid_advantages(
        rewards.outcomes, rewards.step_rewards, rewards.step_mask, rewards.token_steps, rewards.token_mask,
        group_size=rewards.group_size, outcome_weight=settings.outcome_weight, process_weight=settings.process_weight,
    )
