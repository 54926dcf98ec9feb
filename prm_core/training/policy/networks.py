"""What a policy and its critic say of learned tokens: log-probabilities and values. Forward passes, no loss."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prm_core.models.causal import as_mask
from prm_core.models.static.graph import fused
from prm_core.training.policy.groups import Pass

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits that exist at one time where there would be more.
LOGITS = 2**28


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
    head = model.get_output_embeddings()
    if len(read.targets) * head.weight.shape[0] > LOGITS and getattr(head, "bias", None) is None:
        found = _Chosen.apply(states[read.chosen], head.weight, read.targets, temperature)
        return _at_tokens(found, read.learned)
    logits = head(states).float() / temperature
    return _at_tokens(torch.log_softmax(logits, -1)[read.chosen, read.targets], read.learned)


class _Chosen(torch.autograd.Function):
    """Log-probabilities of chosen tokens, the logits computed part by part and again for the gradient, so that those of
    all tokens never exist at one time."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """(tokens,) float32 of states (tokens, width), a head's weight (vocabulary, width) and tokens (tokens,)."""
        found = [_chosen(state @ weight.T, target, temperature)
                 for state, target in zip(*_parts(weight, states, targets), strict=True)]
        chosen, total = (torch.cat(part) for part in zip(*found, strict=True))
        ctx.save_for_backward(states, weight, targets, total)
        ctx.temperature = temperature
        return chosen

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        states, weight, targets, total = ctx.saved_tensors
        of_states, of_weight = [], torch.zeros_like(weight, dtype=torch.float32)
        for state, target, sums, part in zip(*_parts(weight, states, targets, total, grad), strict=True):
            of_logits = _pull(state @ weight.T, target, sums, part, ctx.temperature)
            of_states.append(of_logits @ weight)
            of_weight += of_logits.T @ state
        return torch.cat(of_states), of_weight.to(weight.dtype), None, None


def _parts(weight: Tensor, *lists: Tensor) -> list[tuple[Tensor, ...]]:
    """Each list over tokens in parts, whose logits are few enough."""
    size = max(1, LOGITS // weight.shape[0])
    return [values.split(size) for values in lists]


@fused
def _chosen(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the logarithm of what its row is normalised by."""
    scaled = logits.float() / temperature
    total = scaled.logsumexp(-1)
    return scaled.gather(1, targets[:, None]).squeeze(1) - total, total


@fused
def _pull(logits: Tensor, targets: Tensor, total: Tensor, grad: Tensor, temperature: float) -> Tensor:
    """Gradient of the logits."""
    shares = (logits.float() / temperature - total[:, None]).exp()
    here = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return ((here.float() - shares) * (grad / temperature)[:, None]).to(logits.dtype)


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
