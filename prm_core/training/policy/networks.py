"""What a policy and its critic say of learned tokens: log-probabilities and values. Forward passes, no loss."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prm_core.scoring.reward import as_mask
from prm_core.training.policy.groups import Pass

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def states_before(model: Any, read: Pass) -> Tensor:
    """The last hidden states that the learned tokens of a pass are chosen from, (states, width)."""
    backbone, chains = model.base_model, read.chains
    hidden = backbone(input_ids=chains.ids, attention_mask=as_mask(chains.mask, backbone),
                      position_ids=chains.positions, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[read.states]


def token_logprobs(model: Any, states: Tensor, read: Pass, temperature: float) -> Tensor:
    """Log-probability of each learned token at the sampling temperature, 0 elsewhere: (rows, tokens).

    Args:
        states: see `states_before`.
    """
    logits = model.get_output_embeddings()(states).float() / temperature
    return _at_tokens(torch.log_softmax(logits, -1)[read.chosen, read.targets], read.learned)


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

    def forward(self, states: Tensor, read: Pass) -> Tensor:
        """Values at learned tokens, 0 elsewhere: (rows, tokens).

        Args:
            states: of the policy, see `states_before`.
        """
        if self.backbone is not None:
            states = states_before(self.backbone, read)
        return _at_tokens(self.head(states.float()).squeeze(1)[read.chosen], read.learned)


def _at_tokens(values: Tensor, learned: Tensor) -> Tensor:
    """(learned tokens,) → (rows, tokens), 0 where none is learned."""
    return torch.zeros(learned.shape, device=learned.device).masked_scatter(learned, values)
