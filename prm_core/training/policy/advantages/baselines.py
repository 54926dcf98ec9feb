"""Baselines: what a slot's credit is compared with.

One that looks only at other chains of the question, and at what came before the slot, changes no expected gradient. The
two that are taken off before rewards are summed (`step`, `token`) do: how many times they are taken off is decided by
when a chain stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prm_core.training.policy.advantages.base import BASELINES, Rewards

if TYPE_CHECKING:
    from torch import Tensor

# A mean over nothing is divided by it.
TINY = 1e-8
# Difference of lowest scores at which likeness falls to 1/e, and what is left of it however unlike two beginnings are.
ALIKE = 0.1
LEAST_ALIKE = 0.02


@BASELINES.register("none")
def no_baseline(rewards: Rewards) -> Tensor:
    """The credit itself."""
    return rewards.credit(rewards.values).where(rewards.known, 0.0)


@BASELINES.register("group")
def group_mean(rewards: Rewards) -> Tensor:
    """Less the mean credit of the group's chains at the same slot, its own among them, which takes its share off each
    gradient: a G-th where all G chains have the slot, more where fewer have."""
    import torch

    credit = _grouped(rewards.credit(rewards.values), rewards)
    known = _grouped(rewards.known, rewards)
    mean = credit.where(known, 0.0).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, credit - mean, 0.0).reshape(rewards.values.shape)


@BASELINES.register("leave_one_out")
def leave_one_out(rewards: Rewards) -> Tensor:
    """Less the mean credit of the other chains at the same slot; of all their slots where none got that far."""
    return _against_others(rewards, lambda clean: clean.new_ones(()))


@BASELINES.register("prefix")
def by_prefix(rewards: Rewards) -> Tensor:
    """As `leave_one_out`, but those count most whose beginning is about as clean, by the lowest score before the slot:
    what follows a wrong step is compared with what others made of a wrong step."""
    return _against_others(
        rewards, lambda clean: (-(clean[:, :, None] - clean[:, None]).abs() / ALIKE).exp() + LEAST_ALIKE)


@BASELINES.register("step")
def step_mean(rewards: Rewards) -> Tensor:
    """Each reward less the mean over all that are paid in the group, then credited. Biased: see the module.

    Source: Shao et al. 2024, "DeepSeekMath", 4.1.3.
    """
    values, paid = _grouped(rewards.values, rewards), _grouped(rewards.known & rewards.paid, rewards)
    mean = values.where(paid, 0.0).sum((1, 2), keepdim=True) / paid.sum((1, 2), keepdim=True).clamp(min=1)
    centred = (values - mean).where(paid, 0.0).reshape(rewards.values.shape)
    return rewards.credit(centred).where(rewards.known, 0.0)


@BASELINES.register("token")
def token_mean(rewards: Rewards) -> Tensor:
    """Each reward less its number of tokens times what the other chains earn a token, then credited. Biased.

    Source: Cheng et al. 2025 (PURE), its baseline against short chains.
    """
    values = _grouped(rewards.values.where(rewards.known, 0.0), rewards).sum(2)
    tokens = _grouped(rewards.tokens.where(rewards.known, 0).to(values.dtype), rewards).sum(2)
    rate = (_others(values) / _others(tokens).clamp(min=1)).reshape(-1, 1)
    return rewards.credit((rewards.values - rate * rewards.tokens).where(rewards.known, 0.0)).where(rewards.known, 0.0)


def _grouped(values: Tensor, rewards: Rewards) -> Tensor:
    """(chains, slots) → (groups, members, slots)."""
    return values.reshape(-1, rewards.group_size, values.shape[1])


def _against_others(rewards: Rewards, likeness: Callable[[Tensor], Tensor]) -> Tensor:
    """Credits less the mean credit of the other chains at the same slot, weighed by likeness. Where none of them has
    it, less their mean at all slots; but 0 where stopping is not compared: a fee on going on alone would pay for it. A
    chain without others has no baseline.

    Args:
        likeness: from how clean each beginning is, (groups, members, slots), to the weights of each other chain for
            each, (groups, members, members, slots).
    """
    import torch

    credit = _grouped(rewards.credit(rewards.values).where(rewards.known, 0.0), rewards)
    known = _grouped(rewards.known, rewards)
    other = ~torch.eye(rewards.group_size, dtype=torch.bool)[None, :, :, None]
    weights = likeness(_grouped(rewards.clean, rewards)) * (known[:, None] & other)
    over = weights.sum(2)
    alike = (weights * credit[:, None]).sum(2) / over.clamp(min=TINY)
    slots = known.sum(2, keepdim=True)
    anywhere = _others(credit.sum(2, keepdim=True)) / _others(slots).clamp(min=1) if rewards.stops else credit
    return (credit - torch.where(over > 0, alike, anywhere)).reshape(rewards.values.shape).where(rewards.known, 0.0)


def _others(values: Tensor) -> Tensor:
    """The sum over the other members, (groups, members, …)."""
    return values.sum(1, keepdim=True) - values
