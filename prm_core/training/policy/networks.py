"""What a policy and its critic say of sampled tokens: log-probabilities and values. Forward passes, no loss."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def states_before(model: Any, ids: Tensor, sampled: Tensor) -> Tensor:
    """The last hidden states that the sampled tokens were chosen from, (sampled tokens, width)."""
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, :-1][sampled[:, 1:]]


def token_logprobs(model: Any, states: Tensor, ids: Tensor, sampled: Tensor, temperature: float) -> Tensor:
    """Log-probability of each sampled token at the sampling temperature, 0 elsewhere: (chains, tokens).

    Args:
        states: see `states_before`.
    """
    logits = model.get_output_embeddings()(states).float() / temperature
    values = torch.log_softmax(logits, -1).gather(1, ids[:, 1:][sampled[:, 1:]][:, None]).squeeze(1)
    return _at_tokens(values, sampled)


class Critic(nn.Module):
    """Says before each sampled token what reward is still to come: 0 until it has learned.

    Args:
        model: the policy.
        separate: reads with a copy of the policy's backbone, else from the policy's own hidden states.
    """

    def __init__(self, model: PreTrainedModel, *, separate: bool) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.base_model) if separate else None
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor, ids: Tensor, sampled: Tensor) -> Tensor:
        """Values at sampled tokens, 0 elsewhere: (chains, tokens).

        Args:
            states: of the policy, see `states_before`.
        """
        if self.backbone is not None:
            states = states_before(self.backbone, ids, sampled)
        return _at_tokens(self.head(states.float()).squeeze(1), sampled)


def _at_tokens(values: Tensor, sampled: Tensor) -> Tensor:
    """(sampled tokens,) → (chains, tokens), 0 where none was sampled."""
    result = torch.zeros(sampled.shape, device=sampled.device)
    result[:, 1:] = result[:, 1:].masked_scatter(sampled[:, 1:], values)
    return result
