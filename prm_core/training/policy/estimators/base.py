"""What an advantage estimator is: the rewards of groups of chains in, an advantage for each token out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.config import PolicyTrainingConfig
from prm_core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroupRewards:
    """Rewards of sampled chains, chains of a question next to each other.

    Attributes:
        outcomes: (chains,), 1 where the answer is right.
        step_rewards: the process reward of each step, (chains, steps).
        step_mask: True where a step exists, (chains, steps).
        token_steps: the step each token belongs to, -1 for none (the end token after the last step), (chains, tokens).
        token_mask: True at tokens the policy sampled, (chains, tokens).
        group_size: chains per question.
    """

    outcomes: Tensor
    step_rewards: Tensor
    step_mask: Tensor
    token_steps: Tensor
    token_mask: Tensor
    group_size: int


# (rewards, settings) → advantages (chains, tokens), 0 at tokens that were not sampled
Estimator = Callable[[GroupRewards, PolicyTrainingConfig], "Tensor"]
ESTIMATORS: Registry[Estimator] = Registry("advantage estimator")
