"""A decoder of the Llama family, its keys and values in buffers of a fixed size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from prm_core.models.static.attention import attend
from prm_core.models.static.graph import fused

# Columns are a multiple of this.
BLOCK = 64


class StaticDecoder:
    """The passes of a model over a few new tokens of texts whose beginnings are in the buffers.

    The model's own weights are read; only those of queries, keys and values are copied, to be one matrix (`refresh`).

    Args:
        backbone: a model without its head; `supports` says yes to it.
        slots: texts that are held at one time.
        columns: tokens of the longest text.
    """

    def __init__(self, backbone: PreTrainedModel, slots: int, columns: int) -> None:
        config = backbone.config
        self.backbone = backbone
        self.slots = slots
        self.heads = config.num_attention_heads
        self.own = getattr(config, "num_key_value_heads", None) or self.heads
        first = backbone.layers[0].self_attn
        self.width = first.head_dim
        self.scale = first.scaling
        # The last column takes what padding writes beyond a text's end.
        self.columns = -(-(columns + 1) // BLOCK) * BLOCK
        like = {"dtype": backbone.dtype, "device": backbone.device}
        shape = (slots, self.own, self.columns, self.width)
        self.keys = [torch.zeros(shape, **like) for _ in backbone.layers]
        self.values = [torch.zeros(shape, **like) for _ in backbone.layers]
        places = torch.arange(self.columns, device=backbone.device)[None]
        with torch.no_grad():
            cos, sin = backbone.rotary_emb(self.keys[0][:1, 0], places)
        self.cos, self.sin = cos[0].clone(), sin[0].clone()
        self._joint: list[tuple[Tensor, Tensor | None]] = []
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over weights that have changed since."""
        joint = []
        for layer in self.backbone.layers:
            parts = [getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj")]
            bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
            joint.append((torch.cat([part.weight for part in parts]), bias))
        if not self._joint:
            self._joint = joint
            return
        # In place: graphs read where they lie.
        for (weight, bias), (new, new_bias) in zip(self._joint, joint, strict=True):
            weight.copy_(new)
            if bias is not None:
                bias.copy_(new_bias)

    def forward(self, ids: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """Last hidden states (rows, tokens, width) of new tokens (rows, tokens), whose keys and values are written.

        Tokens may be padded at the right: what padding writes is overwritten by the tokens that come there.

        Args:
            slots: of each row, (rows,).
            seen: tokens of each row's text before these, (rows,).
        """
        rows, tokens = ids.shape
        places = (seen[:, None] + torch.arange(tokens, device=ids.device)).clamp(max=self.columns - 1)
        # All rows' tokens as one list, so that what is compiled has one size that changes.
        flat = places.flatten()
        cos, sin = self.cos[flat][:, None], self.sin[flat][:, None]
        at = slots[:, None].expand(-1, tokens).flatten()
        stream = self.backbone.embed_tokens(ids.flatten())
        added = torch.zeros_like(stream)
        for layer, (weight, bias), keys, values in zip(
                self.backbone.layers, self._joint, self.keys, self.values, strict=True):
            norm = layer.input_layernorm
            stream, read = _norm(stream, added, norm.weight, norm.variance_epsilon)
            joint = functional.linear(read, weight, bias).view(rows * tokens, -1, self.width)
            query, key = _rotated(joint, cos, sin, self.heads, self.own)
            keys[at, :, flat] = key
            values[at, :, flat] = joint[:, self.heads + self.own :]
            mixed = attend(query.view(rows, tokens, self.heads, self.width), keys, values, slots, seen, self.scale)
            added = layer.self_attn.o_proj(mixed.reshape(rows * tokens, -1))
            norm = layer.post_attention_layernorm
            stream, read = _norm(stream, added, norm.weight, norm.variance_epsilon)
            added = layer.mlp.down_proj(_gated(layer.mlp.gate_proj(read), layer.mlp.up_proj(read)))
        norm = self.backbone.norm
        return _norm(stream, added, norm.weight, norm.variance_epsilon)[1].view(rows, tokens, -1)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copies whole slots (count,) to others (count,)."""
        for states in (*self.keys, *self.values):
            states[target] = states[source]


@fused
def _norm(stream: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream with what a block adds, and its root-mean-square norm; (tokens, width)."""
    stream = stream + added
    wide = stream.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return stream, weight * wide.to(stream.dtype)


@fused
def _rotated(joint: Tensor, cos: Tensor, sin: Tensor, heads: int, own: int) -> tuple[Tensor, Tensor]:
    """Queries and keys at their places, (tokens, heads, width)."""
    found = []
    for part in (joint[:, :heads], joint[:, heads : heads + own]):
        half = part.shape[-1] // 2
        turned = torch.cat([-part[..., half:], part[..., :half]], -1)
        found.append(part * cos + turned * sin)
    return found[0], found[1]


@fused
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


@torch.inference_mode()
def supports(backbone: Any) -> bool:
    """Whether the passes are the model's own: tried on a few tokens, in two steps. What is not built like Llama (norms,
    gates, attention of other kinds) says no."""
    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or getattr(backbone.config, "sliding_window", None):
        return False
    ids = torch.arange(12, device=backbone.device)[None] % backbone.config.vocab_size
    slots, seen = torch.tensor([0], device=backbone.device), torch.tensor([0], device=backbone.device)
    try:
        decoder = StaticDecoder(backbone, 1, 12)
        found = torch.cat([decoder.forward(ids[:, :7], slots, seen), decoder.forward(ids[:, 7:], slots, seen + 7)], 1)
        whole = backbone(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False
    # Reduced precision rounds either way.
    slack = 1e-3 if backbone.dtype == torch.float32 else 0.1
    return bool((found.float() - whole.float()).abs().max() <= slack * whole.float().abs().max())
