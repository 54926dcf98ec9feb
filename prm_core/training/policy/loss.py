"""The maths of policy optimisation: surrogates, KL, how tokens weigh. Pure functions; advantages are in advantages/."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (log-probabilities, those when sampled, advantages, clip below, clip above) → loss of each token, where it was cut
Surrogate = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]


def k3_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = reference - policy, never negative.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    delta = reference - logprobs
    return delta.exp() - delta - 1.0


def clipped_surrogate(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Per-token loss -min(ratio · A, clip(ratio, 1 - low, 1 + high) · A), and where the clip was active; shaped as
    inputs.

    Source: Schulman et al. 2017, "Proximal Policy Optimization"; a `high` above `low` as in Yu et al. 2025, "DAPO".
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1.0 - low, 1.0 + high)
    return -torch.minimum(ratio * advantages, clipped * advantages), clipped * advantages < ratio * advantages


def cispo(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Per-token loss -min(ratio, 1 + high) · A · log-probability, the ratio without gradient: no token loses its own.

    Source: MiniMax 2025, "MiniMax-M1", eq. 4, without a lower bound.
    """
    ratio = (logprobs.detach() - old_logprobs).exp()
    return -ratio.clamp(max=1.0 + high) * advantages * logprobs, ratio > 1.0 + high


SURROGATES: dict[str, Surrogate] = {"clip": clipped_surrogate, "cispo": cispo}


def sampler_weights(logprobs: Tensor, sampled: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Ratio of each token's probability by the trainer to that by the sampler, and the same up to `cap`, the weight of
    its loss; shaped as inputs.

    Source: Espeholt et al. 2018, "IMPALA", its truncated importance weights, for each token by itself.
    """
    ratios = (logprobs - sampled).exp()
    return ratios, ratios.clamp(max=cap)


def token_weights(mask: Tensor, normaliser: str, longest: int) -> Tensor:
    """How much each token's loss counts, (chains, tokens), 0 where `mask` is False.

    Args:
        mask: True at tokens that are learned from, (chains, tokens).
        normaliser: `token_mean`: all tokens of the batch alike (DAPO); `sequence_mean`: each chain alike, its tokens
            among themselves (GRPO); `constant`: a token of any chain and batch alike, by the `longest` chain (Dr.GRPO).
        longest: tokens of the longest chain there may be.
    """
    chains = max(1, len(mask))
    if normaliser == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if normaliser == "sequence_mean":
        return mask / (mask.sum(1, keepdim=True).clamp(min=1) * chains)
    return mask / (longest * chains)
