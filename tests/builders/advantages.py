"""Rewards of groups of chains, a token a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from prm_core.training.policy.advantages import GroupRewards


def make(scores: Sequence[Sequence[float]], outcomes: Sequence[float] | None = None, *, group_size: int | None = None,
         stops: bool = False, starts: Sequence[float] | None = None, agents: Sequence[Sequence[int]] | None = None,
         ids: Tensor | None = None) -> GroupRewards:
    """One token a step, in chains that stop by their last step, or by a token of its own."""
    chains, width = len(scores), max(len(row) for row in scores) + stops
    counts = tensor([len(row) for row in scores])
    slots = torch.arange(width)
    steps = slots < counts[:, None]
    there = slots < (counts + stops)[:, None]

    def padded(rows: Sequence[Sequence[float]]) -> Tensor:
        return tensor([[*row, *[0.0] * (width - len(row))] for row in rows])

    token_slots = torch.where(there, slots, -1)
    return GroupRewards(
        tensor([*(outcomes or [0.0] * chains)]), padded(scores),
        tensor([math.nan] * chains if starts is None else [*starts]), steps, there, counts > 0,
        torch.zeros(there.shape, dtype=torch.long) if agents is None else padded(agents).long(),
        torch.arange(there.numel()).reshape(there.shape), torch.zeros(there.shape) if ids is None else ids, token_slots,
        token_slots >= 0, group_size or chains)


def close(one: Tensor, expected: Sequence[Any]) -> None:
    assert_close(one, tensor(expected), atol=1e-4, rtol=1e-4)
