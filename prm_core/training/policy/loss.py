"""The maths of policy optimisation: clipped surrogate, KL, token mean. Pure functions; advantages are estimators/."""

from __future__ import annotations

import torch
from torch import Tensor


def k3_kl(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference): exp(d) - d - 1 with d = reference - policy, never negative.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    delta = reference - logprobs
    return delta.exp() - delta - 1.0


def clipped_surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Per-token loss -min(ratio · A, clip(ratio, 1 ± clip) · A), and where the clip was active; shaped as inputs."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages), clipped * advantages < ratio * advantages


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of a batch where `mask` is True: long and short chains' tokens weigh alike."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
