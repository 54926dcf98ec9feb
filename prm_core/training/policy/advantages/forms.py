"""Forms of process rewards: what the scores of a chain's steps pay. A chain's reward is the sum over its steps.

In a form that is causal a step's reward depends on no later step; only then may a step be credited with the rewards
from its own on (`to_go`). The others are credited to whole chains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.training.policy.advantages.base import FORMS, GroupRewards

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.config import AdvantageConfig


@FORMS.register("sum")
def sum_of_scores(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """Each step's score: a chain is worth the more the more steps it has. Causal.

    Source: Shao et al. 2024, "DeepSeekMath", 4.1.3.
    """
    return rewards.scores.where(rewards.steps, 0.0)


@FORMS.register("mean")
def mean_of_scores(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """Each step's score over the number of steps. Not causal: a further step changes what those before it paid."""
    return rewards.scores.where(rewards.steps, 0.0) / rewards.steps.sum(1, keepdim=True).clamp(min=1)


@FORMS.register("min")
def soft_min(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """Scores weighed by softmax(-score / temperature): about the lowest one, paid where it is. Not causal.

    Source: Cheng et al. 2025, "Stop Summation" (PURE), temperature 0.1.
    """
    import torch

    logits = (-rewards.scores / settings.min_temperature).masked_fill(~rewards.steps, -torch.inf)
    # A chain without steps has no weights.
    weights = torch.softmax(logits, 1).where(rewards.steps, 0.0)
    return weights * rewards.scores.where(rewards.steps, 0.0)


@FORMS.register("lowest")
def running_min(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """The first score, then what each step takes off the lowest so far: the chain is worth its lowest score. Causal; a
    step above the lowest pays nothing, so neither padding nor stopping does."""
    return _increments(rewards.scores.where(rewards.steps, 1.0).cummin(1).values, rewards.steps)


@FORMS.register("prod")
def product(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """The first score, then what each step takes off the product of all so far: the chain is worth the probability that
    all of its steps are right, were they independent. Causal; each step costs something."""
    return _increments(rewards.scores.where(rewards.steps, 1.0).cumprod(1), rewards.steps)


@FORMS.register("delta")
def differences(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """What each step changes of the score; of a model that does not score the bare question the first counts whole. The
    sum telescopes to the last score, so stalling earns nothing. Causal."""
    start = rewards.starts.nan_to_num(0.0)
    return _increments(rewards.scores, rewards.steps, start)


@FORMS.register("pav")
def prover_advantages(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    """`pav_alpha` times the advantage of each step under the prover that takes the best of `pav_samples` continuations.
    Paid for the step itself (`credit: step`), beside the outcome.

    Source: Setlur et al. 2024, "Rewarding Progress", eq. 5. Raises InputError for scores of a model without values.
    """
    if rewards.starts.isnan().any():
        raise InputError("form pav needs the values of an advantage model, with one of the bare question; set "
                         "train_policy.reward_model to pav")
    values, start = (1 - (1 - one) ** settings.pav_samples for one in (rewards.scores, rewards.starts))
    return settings.pav_alpha * _increments(values, rewards.steps, start)


def _increments(values: Tensor, steps: Tensor, start: Tensor | float = 0.0) -> Tensor:
    """What each step adds to a value, (chains, slots), from a start (chains,)."""
    import torch

    first = torch.as_tensor(start, dtype=values.dtype).expand(len(values))[:, None]
    return (values - torch.cat([first, values[:, :-1]], 1)).where(steps, 0.0)
