"""Attention of rows that share prefixes: a prefix's keys and values are stored once and read by all of its rows.

What lives here is one attention function for the transformers library, the cache it reads and the test of whether a
model can use it. The decoding loop is `sampler`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prm_core.models.prefixes.switching import EXTRAS, UnsupportedAttention, register, switched_on

NAME = "prm_shared_prefix"
# Columns by which the buffer of a row's own keys and values grows. Whole blocks are multiplied and what is not written
# yet is masked: matrix products of whole buffers are several times faster than of narrow views into them.
BLOCK = 32
# Softmax in powers of two: exp2 is several times faster than exp on a CPU, above all where it underflows.
LOG2_E = math.log2(math.e)
# Stands for minus infinity where a row may not look: finite, so that a row with nothing to see gets weight 0, not NaN.
HIDDEN = -1e30


class SharedPrefix:
    """Keys and values of the prefixes of a batch: each group of rows reads the first columns of its own prefix.

    Args:
        layers: keys and values of each layer (groups, heads, columns, width).
        groups: group of each row (rows,); every group has one.
        lengths: how many columns of its group's prefix each row sees (rows,); 0 is allowed.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], groups: Tensor, lengths: Tensor) -> None:
        self.layers = layers
        self.reads = 0
        self._arrange(groups, lengths)

    def _arrange(self, groups: Tensor, lengths: Tensor) -> None:
        """Gives each row a place in a (groups, places) grid, and each place its mask."""
        used, self.groups, counts = torch.unique(groups, return_inverse=True, return_counts=True)
        self.lengths, columns = lengths, max(int(lengths.max()), 1)
        count, self.places = len(used), int(counts.max())
        if count < self.layers[0][0].shape[0]:
            self.layers = [(keys[used], values[used]) for keys, values in self.layers]
        if columns < self.layers[0][0].shape[2]:
            self.layers = [tuple(state[:, :, :columns].contiguous() for state in layer) for layer in self.layers]
        order, numbers = self.groups.argsort(stable=True), torch.arange(len(groups), device=groups.device)
        first = (counts.cumsum(0) - counts)[self.groups[order]]
        places = torch.empty_like(order).index_copy_(0, order, numbers - first)
        self.cells = self.groups * self.places + places
        self.full = len(groups) == count * self.places and torch.equal(self.cells, numbers)
        limits = lengths.new_full((count * self.places,), columns).index_copy_(0, self.cells, lengths)
        hidden = torch.arange(columns, device=groups.device) >= limits[:, None]
        # (groups, 1, places, 1, columns); None where every row sees every column.
        self.bias = None
        if bool(hidden.any()):
            self.bias = torch.zeros(hidden.shape, device=groups.device).masked_fill_(hidden, HIDDEN)
            self.bias = self.bias.view(count, 1, self.places, 1, columns)

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows (left,), and the prefixes that they read."""
        self._arrange(self.groups[rows], self.lengths[rows])

    def _to_grid(self, rows: Tensor) -> Tensor:
        """(rows, heads, queries, width) → (groups, heads, places · queries, width); empty places hold 0."""
        cells = len(self.layers[0][0]) * self.places
        grid = rows if self.full else rows.new_zeros(cells, *rows.shape[1:]).index_copy_(0, self.cells, rows)
        _, heads, queries, width = rows.shape
        return grid.view(-1, self.places, heads, queries, width).transpose(1, 2).reshape(
            -1, heads, self.places * queries, width)

    def _to_rows(self, grid: Tensor, queries: int) -> Tensor:
        """The inverse of `_to_grid`."""
        groups, heads, _, width = grid.shape
        rows = grid.view(groups, heads, self.places, queries, width).transpose(1, 2).reshape(-1, heads, queries, width)
        return rows if self.full else rows[self.cells]

    def attend(self, layer: int, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of each row to its prefix, before normalisation.

        Args:
            layer: number of the layer.
            query: scaled (rows, key-value heads, queries a head, width).

        Returns:
            sum of 2^(score - top) · value, top score, sum of 2^(score - top); (rows, heads, queries, width or 1).
        """
        self.reads += 1
        keys, values = self.layers[layer]
        queries = query.shape[2]
        scores = (self._to_grid(query) @ keys.transpose(-1, -2)).float()
        if self.bias is not None:
            scores.view(*scores.shape[:2], self.places, queries, -1).add_(self.bias)
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).exp2_()
        total = weights.sum(-1, keepdim=True)
        mixed = (weights.to(values.dtype) @ values).float()
        return self._to_rows(mixed, queries), self._to_rows(top, queries), self._to_rows(total, queries)


class SuffixLayer(CacheLayerMixin):
    """Keys and values of what the rows have written themselves, in a buffer of whole blocks; rows can leave.

    `update` returns the buffer, so the caller masks the columns from `length` on; they hold zeros.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys, self.values = self._grown(self.keys, end), self._grown(self.values, end)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys, self.values

    @staticmethod
    def _grown(buffer: Tensor, columns: int) -> Tensor:
        return functional.pad(buffer, (0, 0, 0, -(-columns // BLOCK) * BLOCK - buffer.shape[2]))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def keep(self, rows: Tensor) -> None:
        """Keeps these rows (left,). Numbers below `left` must stand at their own place, so few rows are copied."""
        moved = (rows >= len(rows)).nonzero().squeeze(1)
        for buffer in (self.keys, self.values):
            buffer[moved] = buffer[rows[moved]]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, shared_prefix: SharedPrefix | None = None, **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """One softmax over a shared prefix and a row's own tokens; without `shared_prefix` exactly the library's SDPA.

    The two parts are attended apart and joined by their log-sum-exps, which is the same softmax.
    Source: Juravsky et al. 2024, "Hydragen"; Milakov & Gimelshein 2018, "Online normalizer calculation for softmax".

    Args:
        query: (rows, heads, 1, width).
        key, value: what the rows wrote themselves (rows, key-value heads, tokens, width).
        attention_mask: added to the scores of those, (tokens,) or any shape that broadcasts.

    Returns:
        (rows, 1, heads, width), None.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    asked = [name for name in EXTRAS if kwargs.get(name) is not None]
    if asked or query.shape[2] != 1 or not hasattr(module, "layer_idx"):
        raise UnsupportedAttention(", ".join(asked) or "more than one query, or a layer without a number")
    rows, heads, _, width = query.shape
    scaling = LOG2_E * (width**-0.5 if scaling is None else scaling)
    # Query heads that read the same key-value head stand side by side, so nothing is repeated for them.
    query = query.reshape(rows, key.shape[1], heads // key.shape[1], width) * scaling
    mixed, top, total = shared_prefix.attend(module.layer_idx, query)
    scores = (query @ key.transpose(-1, -2)).float().add_(attention_mask)
    joint = torch.maximum(scores.amax(-1, keepdim=True), top)
    weights = scores.sub_(joint).exp2_()
    share = (top - joint).exp2_()
    total = total.mul_(share).add_(weights.sum(-1, keepdim=True))
    mixed = mixed.mul_(share).add_(weights.to(value.dtype) @ value).div_(total)
    return mixed.to(value.dtype).reshape(rows, 1, heads, -1), None


register(NAME, _attention)


def decode_step(
    model: PreTrainedModel, tokens: Tensor, positions: Tensor, prefix: SharedPrefix, cache: Cache
) -> Tensor:
    """Logits (rows, vocabulary) after one more token a row (rows,) at its position (rows,), within `switched_on`.

    Raises UnsupportedAttention when the model's layers ask for more, or do not read the prefix.
    """
    before = prefix.reads
    length = cache.layers[0].length + 1
    # A four-dimensional mask passes the library as it is.
    mask = torch.zeros(1, 1, 1, -(-length // BLOCK) * BLOCK, device=tokens.device)
    mask[..., length:] = HIDDEN
    logits = model(
        input_ids=tokens[:, None], position_ids=positions[:, None], attention_mask=mask, past_key_values=cache,
        use_cache=True, shared_prefix=prefix,
    ).logits[:, -1]
    if prefix.reads != before + len(prefix.layers):
        raise UnsupportedAttention(f"{prefix.reads - before} of {len(prefix.layers)} layers read the shared prefix")
    return logits


@torch.inference_mode()
def shares_prefixes(model: PreTrainedModel) -> bool:
    """Whether the model's attention is one that reads shared prefixes: full causal attention in every layer.

    Asks the config, then the layers themselves in a step of one token. Sliding windows, soft caps, attention sinks,
    position biases, recurrent layers and encoder-decoder models say no.
    """
    config = model.config
    if (
        not getattr(model, "_supports_attention_backend", False)
        or config.is_encoder_decoder
        or any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ())
        # A model of several parts, each with its own config, would not be switched as a whole.
        or any(getattr(module, "config", config) is not config for module in model.modules())
    ):
        return False
    token = torch.zeros(1, dtype=torch.int64, device=model.device)
    try:
        layers = encode(model, token[None])
        prefix = SharedPrefix(layers, token, token + 1)
        with switched_on(model, NAME):
            decode_step(model, token, token + 1, prefix, suffix_cache(layers))
    except (UnsupportedAttention, TypeError):
        # TypeError: the model takes no position_ids or hands no extra arguments to its layers.
        return False
    return True


def encode(model: PreTrainedModel, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values (rows, heads, seq, width) of right-padded ids (rows, seq).

    Under causal attention no real token sees the padding, so there is no mask.
    """
    cache = DynamicCache()
    model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def suffix_cache(layers: list[tuple[Tensor, Tensor]]) -> Cache:
    """An empty cache for what rows write after a prefix of these layers."""
    return Cache(layers=[SuffixLayer() for _ in layers])
