"""The maths of a policy with a critic: rewards on tokens, generalised advantage estimation, whitening, the value loss,
an adaptive KL coefficient. Pure functions; shapes are (chains, tokens) where nothing else is said.

A *choice* is what the critic values: each sampled token, or each slot (a step, or the choice to stop).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prm_core.training.policy.advantages.compose import EPSILON

# How fast the KL coefficient adapts, and the largest relative error it heeds.
ADAPTING, LARGEST_ERROR = 0.1, 0.2


def place_rewards(rewards: Tensor, token_slots: Tensor, sampled: Tensor) -> Tensor:
    """Rewards of slots, each on the last sampled token of its slot: (chains, tokens), 0 elsewhere.

    That of a slot without one is paid on the last token sampled before it, or the first of the chain.

    Args:
        rewards: (chains, slots).
        token_slots: the slot of each token, not falling from one sampled token to the next.
        sampled: True at tokens the policy sampled.
    """
    slots = torch.arange(rewards.shape[1])
    ends = ((token_slots[:, :, None] <= slots) & sampled[:, :, None]).sum(1) - 1
    by_number = torch.zeros(sampled.shape).scatter_add_(1, ends.clamp(min=0), rewards)
    return by_number.gather(1, (sampled.cumsum(1) - 1).clamp(min=0)).where(sampled, 0.0)


def choices(token_slots: Tensor, sampled: Tensor, over: str) -> Tensor:
    """True at sampled tokens with which a choice begins: all of them over `tokens`, the first of each slot over
    `steps`."""
    if over == "tokens":
        return sampled
    slots = token_slots.where(sampled, -1).cummax(1).values
    before = torch.cat([torch.full((len(slots), 1), -1), slots[:, :-1]], 1)
    return sampled & (slots > before)


def gae(rewards: Tensor, values: Tensor, there: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages A_t = d_t + gamma·lambda·A_t', d_t = r_t + gamma·V_t' - V_t, with t' the next place of the
    chain that is `there`; nothing comes after its last. 0 at other places.

    Source: Schulman et al. 2015, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 16.
    """
    found = torch.zeros_like(values)
    value_after, found_after = values.new_zeros(len(values)), values.new_zeros(len(values))
    for at in reversed(range(values.shape[1])):
        here = there[:, at]
        delta = rewards[:, at] + gamma * value_after - values[:, at]
        found_after = torch.where(here, delta + gamma * lam * found_after, found_after)
        value_after = torch.where(here, values[:, at], value_after)
        found[:, at] = found_after.where(here, 0.0)
    return found


def advantages_and_returns(
    rewards: Tensor, values: Tensor, chosen: Tensor, sampled: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantage of each sampled token, that of the choice it belongs to; and what the value of each choice should have
    been, at the token it begins with. Both 0 elsewhere.

    Args:
        rewards: of tokens; a choice earns those of all its tokens.
        values: of choices, at the token each begins with.
        chosen: see `choices`; the first sampled token of a chain is one.
    """
    number = (chosen.cumsum(1) - 1).clamp(min=0)

    def by_choice(of_tokens: Tensor, where: Tensor) -> Tensor:
        return torch.zeros_like(of_tokens).scatter_add_(1, number, of_tokens.where(where, 0.0))

    there = torch.arange(chosen.shape[1]) < chosen.sum(1, keepdim=True)
    found = gae(by_choice(rewards, sampled), by_choice(values, chosen), there, gamma, lam).gather(1, number)
    return found.where(sampled, 0.0), (found + values).where(chosen, 0.0)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Less their mean over `mask`, by their standard deviation there; 0 elsewhere, and where all are equal."""
    count = mask.sum().clamp(min=1)
    centred = (values - values.where(mask, 0.0).sum() / count).where(mask, 0.0)
    deviation = (centred.square().sum() / count).sqrt()
    return torch.where(deviation > EPSILON, centred / (deviation + EPSILON), 0.0)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, or of the value kept within `clip` of the old one where that is larger; and
    where it was. Shaped as inputs.

    Source: Schulman et al. 2017, "Proximal Policy Optimization", in the authors' code.
    """
    plain = (values - returns).square()
    kept = (old + (values - old).clamp(-clip, clip) - returns).square()
    return 0.5 * torch.maximum(plain, kept), kept > plain


def explained(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """The share of the returns' variance that the values explain, over `mask`: 1 of exact ones, 0 of a constant."""
    wanted, missed = returns[mask], (returns - values)[mask]
    spread = wanted.var(correction=0).item() if len(wanted) else 0.0
    return 1 - missed.var(correction=0).item() / spread if spread > EPSILON**2 else 0.0


def adapted(coefficient: float, kl: float, target: float) -> float:
    """The next KL coefficient: up to 2 % larger where the KL divergence is above its target, smaller where below.

    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", 2.2.
    """
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return coefficient * (1 + ADAPTING * error)
