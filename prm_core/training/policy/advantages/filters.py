"""Filters: which chains of a group are learned from. Those left out enter no statistic either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prm_core.training.policy.advantages.base import FILTERS, GroupRewards

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.config import AdvantageConfig


@FILTERS.register("none")
def keep_all(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """Every chain."""
    import torch

    return torch.ones(len(rewards.outcomes), dtype=torch.bool)


@FILTERS.register("prof")
def consistent(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """All but `left_out` of a group's judged chains: of right answers those with the lowest mean score go, of wrong
    ones those with the highest, more from whichever are more. The reward model chooses, and never pays.

    Source: Ye et al. 2025, "Beyond Correctness" (PROF).
    """
    import torch

    kept = torch.ones(len(rewards.outcomes), dtype=torch.bool)
    worth = mean_scores(rewards)
    for start in range(0, len(kept), rewards.group_size):
        rows = [row for row in range(start, start + rewards.group_size) if rewards.judged[row]]
        sides = {True: sorted((row for row in rows if rewards.outcomes[row] > 0), key=lambda row: worth[row].item()),
                 False: sorted((row for row in rows if rewards.outcomes[row] <= 0), key=lambda row: -worth[row].item())}
        for _ in range(min(settings.left_out, max(0, len(rows) - 1))):
            kept[sides[len(sides[True]) >= len(sides[False])].pop(0)] = False
    return kept


@FILTERS.register("top_k_rejected")
def best_scored(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """All but the `left_out` chains of each group with the lowest mean score, chains without one first."""
    import torch

    worth = mean_scores(rewards).masked_fill(~rewards.judged, -torch.inf).reshape(-1, rewards.group_size)
    order = worth.argsort(dim=1, stable=True)
    kept = torch.ones_like(worth, dtype=torch.bool)
    kept.scatter_(1, order[:, : min(settings.left_out, rewards.group_size - 1)], False)
    return kept.reshape(-1)


def mean_scores(rewards: GroupRewards) -> Tensor:
    """Mean score of each chain's steps, 0 of one without, (chains,)."""
    return rewards.scores.where(rewards.steps, 0.0).sum(1) / rewards.steps.sum(1).clamp(min=1)
