"""Placement: which slots the rewards of single tokens are paid in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prm_core.training.policy.advantages.base import GroupRewards

if TYPE_CHECKING:
    from torch import Tensor


def placed(rewards: GroupRewards, of_tokens: Tensor, placement: str) -> GroupRewards:
    """With the rewards of sampled tokens as scores. All that was sampled is paid, what ends a chain too.

    Args:
        of_tokens: 0 at tokens that were not sampled, (chains, tokens).
        placement: `step`: a slot is paid the sum over its tokens; `token`: each sampled token is a slot of its own.
    """
    import torch

    if placement == "token":
        rewards = _by_token(rewards)
    there = rewards.token_slots >= 0
    scores = torch.zeros(rewards.slots.shape).scatter_add_(
        1, rewards.token_slots.clamp(min=0), of_tokens.where(there, 0.0))
    return replace(rewards, scores=scores, steps=rewards.slots, judged=rewards.token_mask.any(1))


def _by_token(rewards: GroupRewards) -> GroupRewards:
    """With a slot for each sampled token, which is its agent's, and begins with all tokens before it."""
    import torch

    sampled = rewards.token_mask
    numbers = (sampled.cumsum(1) - 1).where(sampled, -1)
    slots = torch.arange(int(sampled.sum(1).max())) < sampled.sum(1, keepdim=True)

    def by_slot(of_tokens: Tensor) -> Tensor:
        return torch.zeros(slots.shape, dtype=of_tokens.dtype).scatter_add_(
            1, numbers.clamp(min=0), of_tokens.where(sampled, 0))

    own = rewards.token_slots.clamp(min=0)
    # Each token of a step that breaks a rule answers for it.
    costs = None if rewards.costs is None else by_slot(rewards.costs.gather(1, own))
    return replace(rewards, slots=slots, agents=by_slot(rewards.agents.gather(1, own)),
                   states=by_slot(_states(rewards)), token_slots=numbers, costs=costs)


def _states(rewards: GroupRewards) -> Tensor:
    """A number for what stands before each token, equal in chains of a group that read alike up to there."""
    import torch

    width = rewards.ids.shape[1]
    grouped = rewards.ids.reshape(-1, rewards.group_size, width)
    same = (grouped[:, :, None] == grouped[:, None]).cummin(-1).values
    before = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], -1)
    first = before.long().argmax(2)
    groups = torch.arange(len(grouped))[:, None, None] * rewards.group_size
    return ((groups + first) * width + torch.arange(width)).reshape(rewards.ids.shape)
