"""What advantages are made of: the rewards of groups of chains, and how a chain is laid out in slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.config import AdvantageConfig


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """Rewards of sampled chains, chains of a question next to each other.

    A chain is laid out in slots: its steps, and one more where its policy chose, after the last step, to stop. That
    choice is one as any other: with another baseline than the choice to go on, or none, stopping is paid or fined
    (METHODS 10).

    Attributes:
        outcomes: 1 where the answer is right, (chains,).
        scores: what the reward model says of each step, (chains, slots).
        starts: what it says of the bare question, NaN of models that say nothing of it, (chains,).
        steps: True where a slot is a step, (chains, slots).
        slots: True where there is a slot, (chains, slots).
        judged: whether the model scored every step of a chain, (chains,); the others have no process reward and enter
            no statistic of it.
        agents: number of the agent whose step it is, (chains, slots).
        states: number of what a slot begins with: equal where question and all before it read alike, (chains, slots).
        ids: tokens, (chains, tokens).
        token_slots: the slot each token belongs to, -1 for none, (chains, tokens).
        token_mask: True at tokens the policy sampled, (chains, tokens).
        group_size: chains a question.
        costs: 1 at steps that break a rule, (chains, slots); None where there are no rules.
    """

    outcomes: Tensor
    scores: Tensor
    starts: Tensor
    steps: Tensor
    slots: Tensor
    judged: Tensor
    agents: Tensor
    states: Tensor
    ids: Tensor
    token_slots: Tensor
    token_mask: Tensor
    group_size: int
    costs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rewards:
    """Rewards of one source, and what a baseline may look at. Shapes are (chains, slots).

    Attributes:
        values: the reward of each slot, 0 where there is none.
        paid: True at slots that this source can reward.
        known: True at slots of chains that have such rewards.
        credit: from rewards to what each slot is credited with; linear.
        tokens: number of sampled tokens of each slot.
        clean: how right the chain was before each slot, 1 at the first: the lowest score so far.
        stops: whether the choice to stop is among the slots.
        group_size: chains a question.
    """

    values: Tensor
    paid: Tensor
    known: Tensor
    credit: Callable[[Tensor], Tensor]
    tokens: Tensor
    clean: Tensor
    stops: bool
    group_size: int


# From the scores of the steps to rewards (chains, slots), 0 where there is no step.
Form = Callable[[GroupRewards, "AdvantageConfig"], "Tensor"]
FORMS: Registry[Form] = Registry("form of process rewards")
# From rewards to advantages (chains, slots), 0 where nothing is known.
Baseline = Callable[[Rewards], "Tensor"]
BASELINES: Registry[Baseline] = Registry("baseline")
# Which chains are learned from and enter the statistics, (chains,).
ChainFilter = Callable[[GroupRewards, "AdvantageConfig"], "Tensor"]
FILTERS: Registry[ChainFilter] = Registry("filter of chains")
