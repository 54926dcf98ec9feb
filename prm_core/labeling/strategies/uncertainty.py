"""Uncertainty measures: how much passes with dropout disagree on a step. Pure functions over tensors.

A measure keeps something of each pass (`observe`) and turns what it kept into one figure for each step (`combine`);
larger is more uncertain, 0 where a step does not exist. `MEASURES` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.models import likelihood
from prm_core.models.likelihood import reduce_by_step
from prm_core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

# Tokens whose whole distributions over the vocabulary are held at once.
CHUNK = 256


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Encoded chains that go through the backbone together.

    Attributes:
        ids: token ids, (batch, seq).
        steps: the step each token was written in, -1 for others, (batch, seq).
        ends: position of each step's last token, 0 where a step does not exist, (batch, count).
        exists: whether a step exists, (batch, count).
        head: from hidden states to vocabulary logits.
    """

    ids: Tensor
    steps: Tensor
    ends: Tensor
    exists: Tensor
    head: nn.Module


@dataclass(frozen=True, slots=True)
class Measure:
    """How passes become the uncertainty of each step.

    Attributes:
        observe: (hidden states of a pass (batch, seq, width), batch) → what to keep of it.
        combine: (what was kept, stacked: (passes, …), batch) → (batch, count).
        words: "{:.2f}" and its unit, for people.
    """

    observe: Callable[[Tensor, StepBatch], Tensor]
    combine: Callable[[Tensor, StepBatch], Tensor]
    words: str


MEASURES: Registry[Measure] = Registry("uncertainty measure")


def predictive_uncertainty(logprobs: Tensor, steps: Tensor, count: int) -> Tensor:
    """Minus the log of the mean probability of each step's least expected token, in nats: (batch, count).

    Args:
        logprobs: of each written token in each pass, (passes, batch, seq).
        steps: (batch, seq).
        count: steps of the longest chain.

    Source: the Bayesian predictive of Gal & Ghahramani 2016.
    """
    import torch

    mean = torch.logsumexp(logprobs, 0) - math.log(len(logprobs))
    return -reduce_by_step(mean, steps, count, "amin")


def likelihood_spread(logprobs: Tensor, steps: Tensor, count: int) -> Tensor:
    """Standard deviation over passes of each step's log-likelihood, in nats: (batch, count). Arguments as above."""
    import torch

    by_pass = torch.stack([reduce_by_step(one, steps, count, "sum") for one in logprobs])
    return by_pass.std(0, correction=0)


def mutual_information(hidden: Tensor, head: nn.Module, chunk: int = CHUNK) -> Tensor:
    """Mutual information of each token and the weights, in nats: entropy of the mean minus mean of the entropies.

    Args:
        hidden: states that predict the tokens, (passes, tokens, width).
        head: from them to vocabulary logits.
        chunk: tokens for which (tokens, vocabulary) is held at once, whatever the number of passes.

    Returns:
        (tokens,), not negative.

    Source: BALD, Houlsby et al. 2011; Gal, Islam & Ghahramani 2017, eq. 5.
    """
    import torch

    result = []
    for part in hidden.split(chunk, dim=1):
        total, entropies = torch.zeros(()), torch.zeros(())
        for one in part:
            logprobs = torch.log_softmax(head(one).float(), -1)
            probabilities = logprobs.exp()
            entropies = entropies + torch.special.entr(probabilities).sum(-1)
            total = total + probabilities
        result.append(torch.special.entr(total / len(part)).sum(-1) - entropies / len(part))
    return torch.cat(result).clamp(min=0)


def representation_spread(hidden: Tensor) -> Tensor:
    """Variance of a state over passes, summed over its dimensions, by the squared norm of its mean: (batch, count).

    Args:
        hidden: states at the steps' ends, (passes, batch, count, width).
    """
    values = hidden.float()
    return values.var(0, correction=0).sum(-1) / values.mean(0).square().sum(-1).clamp(min=1e-12)


def _logprobs(hidden: Tensor, batch: StepBatch) -> Tensor:
    return likelihood.token_logprobs(hidden, batch.head, batch.ids, batch.steps)


def _predicting(hidden: Tensor, batch: StepBatch) -> Tensor:
    """States that predict a written token: (tokens, width)."""
    return hidden[:, :-1][batch.steps[:, 1:] >= 0]


def _at_ends(hidden: Tensor, batch: StepBatch) -> Tensor:
    return hidden.take_along_dim(batch.ends[:, :, None], 1)


def _information_by_step(hidden: Tensor, batch: StepBatch) -> Tensor:
    import torch

    values = mutual_information(hidden, batch.head)
    tokens = torch.zeros(batch.ids.shape, dtype=values.dtype, device=values.device)
    tokens[:, 1:] = tokens[:, 1:].masked_scatter(batch.steps[:, 1:] >= 0, values)
    return reduce_by_step(tokens, batch.steps, batch.ends.shape[1], "sum")


MEASURES.register("predictive")(Measure(
    _logprobs, lambda kept, batch: predictive_uncertainty(kept, batch.steps, batch.ends.shape[1]),
    "predictive uncertainty {:.2f} nats"))
MEASURES.register("likelihood")(Measure(
    _logprobs, lambda kept, batch: likelihood_spread(kept, batch.steps, batch.ends.shape[1]),
    "log-likelihood spread {:.2f} nats"))
MEASURES.register("bald")(Measure(
    _predicting, _information_by_step, "information about the weights {:.3f} nats"))
MEASURES.register("representation")(Measure(
    _at_ends, lambda kept, batch: representation_spread(kept) * batch.exists, "relative spread of states {:.3f}"))
