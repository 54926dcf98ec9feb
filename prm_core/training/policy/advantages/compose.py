"""Advantages of tokens, composed of form, credit, baseline, scale and filter, as `train_policy.advantages` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from prm_core.training.policy.advantages.base import BASELINES, FORMS, GroupRewards, Rewards
from prm_core.training.policy.advantages.constraint import NO_LIMIT, Limit, constrained

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.config import AdvantageConfig

# Rewards that are spread less are equal: their differences are rounding.
EPSILON = 1e-6
# Baselines of single rewards.
BEFORE_SUMMING = ("step", "token")


def to_go(values: Tensor) -> Tensor:
    """Each slot is credited with its reward and those after it."""
    return values.flip(1).cumsum(1).flip(1)


def whole_chain(values: Tensor) -> Tensor:
    """Each slot is credited with all rewards of its chain."""
    return values.sum(1, keepdim=True).expand_as(values)


def own_step(values: Tensor) -> Tensor:
    """Each slot is credited with its own reward."""
    return values


CREDITS: dict[str, Callable[[Tensor], Tensor]] = {"to_go": to_go, "chain": whole_chain, "step": own_step}


def advantages(
    rewards: GroupRewards, kept: Tensor, settings: AdvantageConfig, limit: Limit = NO_LIMIT
) -> Tensor:
    """Advantage of each token, (chains, tokens), 0 at tokens that were not sampled and in chains that are left out.

    Args:
        kept: which chains a filter keeps, (chains,).
        limit: what broken rules do.
    """
    import torch

    sources = [*_sources(rewards, kept, settings)]
    found = torch.zeros(rewards.slots.shape)
    for weight, source in sources:
        found = found + weight * _scaled(BASELINES[settings.baseline](source), source, settings)
    if settings.turn_weight:
        episode = sum(weight * source.credit(source.values) for weight, source in sources)
        there = rewards.slots & kept[:, None]
        found = found + settings.turn_weight * among_equal_states(episode, rewards.states, there)
    found = constrained(found, _costs(rewards, kept), limit, BASELINES[settings.baseline])
    result = found.gather(1, rewards.token_slots.clamp(min=0)).where(rewards.token_slots >= 0, 0.0)
    if settings.process_sets:
        result = result / process_sets(rewards.ids, rewards.group_size)
    # What rounding leaves of equal rewards is nothing: Adam would make a step of it.
    return result.where(result.abs() > EPSILON, 0.0) * (rewards.token_mask & kept[:, None])


def _sources(
    rewards: GroupRewards, kept: Tensor, settings: AdvantageConfig
) -> Iterator[tuple[float, Rewards]]:
    """Each source of reward with its weight: outcomes, and process rewards, of each agent for itself where so asked."""
    import torch

    slots = rewards.slots & kept[:, None]
    tokens = torch.zeros(slots.shape, dtype=torch.long).scatter_add_(
        1, rewards.token_slots.clamp(min=0), ((rewards.token_slots >= 0) & rewards.token_mask).long())
    clean = clean_before(rewards)
    if settings.outcome_weight:
        last = _last(rewards.slots)
        yield settings.outcome_weight, Rewards(
            rewards.outcomes[:, None] * last, last & slots, slots, to_go, tokens, clean, True,
            rewards.group_size)
    if settings.process_weight:
        values, credit = process_rewards(rewards, settings), CREDITS[settings.credit]
        # A step that is credited with its own reward alone says nothing of the choice to stop.
        stops = settings.credit != "step"
        known = (slots if stops else slots & rewards.steps) & rewards.judged[:, None]
        paid = known & (_last(rewards.slots) if settings.gate else rewards.steps)
        whose = rewards.agents if settings.per_agent else torch.zeros_like(rewards.agents)
        for agent in whose[known].unique().tolist():
            own = whose == agent
            yield settings.process_weight, Rewards(
                values.where(own, 0.0), paid & own, known & own, credit, tokens, clean, stops,
                rewards.group_size)


def slot_rewards(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """What each slot earns of both sources by their weights, the outcome at the chain's last, before any baseline:
    (chains, slots)."""
    outcomes = rewards.outcomes[:, None] * _last(rewards.slots)
    found = settings.outcome_weight * outcomes
    return found + settings.process_weight * process_rewards(rewards, settings) if settings.process_weight else found


def _costs(rewards: GroupRewards, kept: Tensor) -> Rewards:
    """Broken rules as a source of their own, credited to every slot before them too: where all who come to a step break
    a rule there, what led to it is what can be left."""
    import torch

    costs = torch.zeros(rewards.slots.shape) if rewards.costs is None else rewards.costs
    slots = rewards.slots & kept[:, None]
    steps = rewards.steps & slots
    return Rewards(costs * steps, steps, slots, to_go, torch.zeros_like(rewards.agents), clean_before(rewards),
                   True, rewards.group_size)


def process_rewards(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """The process reward of each slot, (chains, slots), in the configured form, before any baseline."""
    import torch

    scores = rewards.scores + settings.right_bonus * rewards.outcomes[:, None]
    values = FORMS[settings.form](replace(rewards, scores=scores), settings)
    first, last = settings.late_weights
    if first != last:
        place = torch.arange(values.shape[1]) / (rewards.steps.sum(1, keepdim=True) - 1).clamp(min=1)
        values = values * (first + (last - first) * place.clamp(max=1)) * 2 / (first + last)
    if settings.gate:
        # Paid at the end: before it nobody knows whether the answer will be right.
        values = values.sum(1, keepdim=True) * rewards.outcomes[:, None] * _last(rewards.slots)
    return values.where(rewards.judged[:, None], 0.0)


def clean_before(rewards: GroupRewards) -> Tensor:
    """The lowest score before each slot, 1 before the first and in chains that were not judged, (chains, slots)."""
    import torch

    scores = rewards.scores.where(rewards.steps & rewards.judged[:, None], 1.0).clamp(0, 1)
    return torch.cat([torch.ones(len(scores), 1), scores.cummin(1).values[:, :-1]], 1)


def _last(slots: Tensor) -> Tensor:
    """True at each chain's last slot, (chains, slots)."""
    import torch

    return slots & (torch.arange(slots.shape[1]) == slots.sum(1, keepdim=True) - 1)


def _scaled(found: Tensor, source: Rewards, settings: AdvantageConfig) -> Tensor:
    """Advantages over the standard deviation of what was compared, in each group or in the whole batch: of rewards
    where the baseline is taken off them, else of whole chains. Where all is equal nothing is preferred."""
    import torch

    if settings.scale == "none":
        return found
    if settings.baseline in BEFORE_SUMMING:
        values, known = source.values, source.paid
    else:
        values, known = source.values.sum(1, keepdim=True), source.known.any(1, keepdim=True)
    groups = -1 if settings.scale == "group" else 1
    shape = (groups, source.group_size * values.shape[1]) if groups < 0 else (1, values.numel())
    values, known = values.reshape(shape), known.reshape(shape)
    count = known.sum(1, keepdim=True).clamp(min=1)
    centred = (values - values.where(known, 0.0).sum(1, keepdim=True) / count).where(known, 0.0)
    deviation = (centred.square().sum(1) / count[:, 0]).sqrt()
    deviation = deviation.repeat_interleave(len(found) // len(deviation))[:, None]
    return torch.where(deviation > EPSILON, found / (deviation + EPSILON), 0.0)


def among_equal_states(credit: Tensor, states: Tensor, known: Tensor) -> Tensor:
    """Credits less their mean over the slots that begin in the same state, 0 where one is alone, (chains, slots).

    Source: Feng et al. 2025, "Group-in-Group Policy Optimization" (GiGPO), without standard deviations.
    """
    import torch

    _, which = states[known].unique(return_inverse=True)
    own = credit[known]
    count = torch.bincount(which)
    mean = torch.zeros(len(count), dtype=own.dtype).scatter_add_(0, which, own) / count
    found = torch.zeros_like(credit)
    found[known] = own - mean[which]
    return found


def process_sets(ids: Tensor, group_size: int) -> Tensor:
    """How many chains of its group share all tokens up to each one, (chains, tokens): the size of its process set.

    Source: Sullivan 2025, "GRPO is Secretly a Process Reward Model" (λ-GRPO).
    """
    grouped = ids.reshape(-1, group_size, ids.shape[1])
    same = (grouped[:, :, None] == grouped[:, None]).cummin(-1).values
    return same.sum(2).reshape(ids.shape)
