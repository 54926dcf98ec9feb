"""Log-likelihood of the steps of chains under a language model, all steps in one causal pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prm_core.models.encoder import EncodedChain

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def step_index(chains: Sequence[EncodedChain], width: int) -> Tensor:
    """For each token the step it was written in, -1 for prompt, observations and padding: (batch, width) int64."""
    import torch

    result = torch.full((len(chains), width), -1, dtype=torch.int64)
    for row, chain in enumerate(chains):
        start = chain.prompt_length
        for step, end in enumerate(chain.step_ends):
            written = torch.tensor(chain.scored[start : end + 1])
            result[row, start : end + 1][written] = step
            start = end + 1
    return result


def token_logprobs(hidden: Tensor, output_embeddings: torch.nn.Module, ids: Tensor, steps: Tensor) -> Tensor:
    """Log-probability of each written token, 0 elsewhere: (batch, seq).

    Args:
        hidden: last hidden states, (batch, seq, width).
        output_embeddings: the vocabulary head.
        ids: token ids, (batch, seq).
        steps: from `step_index`, (batch, seq); the vocabulary is only computed where it is not -1.
    """
    import torch

    written = steps[:, 1:] >= 0
    logits = output_embeddings(hidden[:, :-1][written]).float()
    targets = ids[:, 1:][written]
    values = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    result = hidden.new_zeros(ids.shape, dtype=torch.float32)
    result[:, 1:] = result[:, 1:].masked_scatter(written, values)
    return result


def reduce_by_step(values: Tensor, steps: Tensor, count: int, reduce: str) -> Tensor:
    """`sum` or `amin` of token values within each step: (batch, count), 0 where a step does not exist."""
    result = values.new_zeros(values.shape[0], count + 1)
    # Column `count` takes what belongs to no step.
    index = steps.where(steps >= 0, count)
    return result.scatter_reduce(1, index, values, reduce, include_self=False)[:, :count]
