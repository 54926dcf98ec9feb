"""Attention of texts that are packed into one row, each after a past of its own that is held elsewhere.

What lives here is one attention function for the transformers library. Nothing is padded but texts that share a past,
whose keys and values are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from prm_core.models.prefixes.switching import EXTRAS, UnsupportedAttention, register
from prm_core.models.prefixes.tree import Place

NAME = "prm_packed"
# Attention scores that exist at one time, which bounds the memory of long pasts.
SCORES = 2**23
# Tokens of runs that are put together: to copy so few takes less time than to attend to each run apart.
TOGETHER = 256
# (batch, heads, tokens, width) of queries, keys and values → what is attended and the log of the sum of its weights,
# (batch, heads, tokens).
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class _Group:
    """Texts that follow the same past: (start, end) of each in the packed row, and the runs of the past."""

    def __init__(self, spans: Sequence[tuple[int, int]], past: Sequence[Place], device: torch.device) -> None:
        self.longest = max(end - start for start, end in spans)
        self.span = spans[0] if len(spans) == 1 else None
        # Keys and values of each layer, one after the other: (heads, tokens, width).
        self.past = [states.flatten(0, 1).unbind(0) for states in _together(past)]
        # Column of each token, (texts, longest), padded with the first column, and where the tokens are in that.
        self.columns = self.real = None
        if self.span is None:
            lengths = torch.tensor([end - start for start, end in spans], device=device)
            starts = torch.tensor([start for start, _ in spans], device=device)
            inside = torch.arange(self.longest, device=device)
            real = inside < lengths[:, None]
            self.columns = (starts[:, None] + inside).where(real, 0)
            self.real = real.flatten().nonzero().squeeze(1)

    def take(self, packed: Tensor) -> Tensor:
        """(heads, tokens, width) → (heads, texts, longest, width)."""
        if self.span is not None:
            return packed[:, None, self.span[0] : self.span[1]]
        return packed[:, self.columns]

    def give(self, attended: Tensor, packed: Tensor) -> None:
        """(heads, texts, longest, width) into its places of (heads, tokens, width)."""
        if self.span is not None:
            packed[:, self.span[0] : self.span[1]] = attended[:, 0]
        else:
            packed[:, self.columns.flatten()[self.real]] = attended.flatten(1, 2)[:, self.real]


class Packed:
    """Texts of one pass.

    Args:
        spans: (start, end) of each text's new tokens in the packed row, which they fill.
        pasts: where each begins.

    Attributes:
        states: keys and values of the new tokens after the pass: (layers, 2, heads, tokens, width).
    """

    def __init__(self, spans: Sequence[tuple[int, int]], pasts: Sequence[Place], device: torch.device) -> None:
        groups: dict[tuple[tuple[int, int], ...], tuple[list[tuple[int, int]], list[Place]]] = {}
        for span, place in zip(spans, pasts, strict=True):
            past = place.path()
            groups.setdefault(tuple((id(run.branch), run.count) for run in past), ([], past))[0].append(span)
        self._groups = [_Group(alike, past, device) for members, past in groups.values() for alike in _alike(members)]
        self._states: dict[int, Tensor] = {}

    @property
    def states(self) -> Tensor:
        return torch.stack([self._states[layer] for layer in range(len(self._states))])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(heads, tokens, width) of queries (heads, tokens, width) and keys and values (key heads, tokens, width)."""
        self._states[layer] = torch.stack([key, value])
        result = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
        for group in self._groups:
            own, past = [group.take(part) for part in (query, key, value)], [
                (run[2 * layer], run[2 * layer + 1]) for run in group.past]
            after = _merged if query.device.type == "cpu" else _after
            group.give(_alone(*own, scaling) if not past else after(*own, past, scaling), result)
        return result


def _together(past: Sequence[Place]) -> Iterator[Tensor]:
    """Keys and values of runs that follow one another, of short ones together, (layers, 2, heads, tokens, width)."""
    waiting: list[Tensor] = []
    for run in past:
        if run.branch.states is None:
            continue
        states = run.branch.states[:, :, :, : run.count]
        if waiting and sum(one.shape[3] for one in waiting) + run.count > TOGETHER:
            yield torch.cat(waiting, 3) if len(waiting) > 1 else waiting[0]
            waiting = []
        waiting.append(states)
    if waiting:
        yield torch.cat(waiting, 3) if len(waiting) > 1 else waiting[0]


def _alike(spans: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Spans of like length, which wastes little on padding."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: span[1] - span[0]):
        if found and end - start > 1.5 * (found[0][1] - found[0][0]) + 16:
            yield found
            found = []
        found.append((start, end))
    yield found


def _alone(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention of texts without a past, (heads, texts, tokens, width) each."""
    query, key, value = (part.transpose(0, 1) for part in (query, key, value))
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]).transpose(0, 1)


def _merged(
    query: Tensor, key: Tensor, value: Tensor, past: Sequence[tuple[Tensor, Tensor]], scaling: float
) -> Tensor:
    """What `_after` gives, by the processor's fused kernel: of each run of the past and of the texts themselves apart,
    put together by how much weight each has. A pass of many short texts is mostly the time of calls, of which there are
    few here."""
    heads, texts, tokens, width = query.shape
    groups = key.shape[0]
    own, own_key, own_value = (part.transpose(0, 1) for part in (query, key, value))
    if groups != heads:
        own_key, own_value = (part.repeat_interleave(heads // groups, 1) for part in (own_key, own_value))
    attended, weight = FUSED(own, own_key, own_value, 0.0, True, scale=scaling)
    # Query heads that read the same keys stand side by side.
    flat = query.reshape(1, groups, -1, width)
    for keys, values in past:
        more, its = (part.reshape(heads, texts, tokens, *part.shape[3:]).transpose(0, 1)
                     for part in FUSED(flat, keys[None], values[None], 0.0, False, scale=scaling))
        attended = torch.lerp(attended, more, (its - weight).sigmoid()[..., None].to(more.dtype))
        weight = torch.logaddexp(weight, its)
    return attended.transpose(0, 1)


def _after(query: Tensor, key: Tensor, value: Tensor, past: Sequence[tuple[Tensor, Tensor]], scaling: float) -> Tensor:
    """Causal attention of texts after the same past, a block of them at a time.

    Args:
        query, key, value: (heads, texts, tokens, width); fewer heads of keys and values may serve more of queries.
        past: keys and values of its runs, (key heads, tokens of the run, width).
    """
    heads, texts, tokens, _ = query.shape
    before = sum(keys.shape[1] for keys, _ in past)
    result = query.new_empty(*query.shape[:3], value.shape[3])
    few = max(SCORES // (heads * tokens * (before + tokens)), 1)
    some = tokens if few > 1 or texts > 1 else max(SCORES // (heads * (before + tokens)), 1)
    for text in range(0, texts, few):
        for start in range(0, tokens, some):
            rows, end = slice(text, text + few), min(start + some, tokens)
            result[:, rows, start:end] = _block(query[:, rows, start:end], key[:, rows, :end], value[:, rows, :end],
                                                past, scaling)
    return result


def _block(query: Tensor, key: Tensor, value: Tensor, past: Sequence[tuple[Tensor, Tensor]], scaling: float) -> Tensor:
    heads, texts, tokens, width = query.shape
    groups, columns = key.shape[0], key.shape[2]
    shared = heads // groups
    # Query heads that read the same keys stand side by side, so nothing is repeated for them.
    query = query.reshape(groups, shared, texts, tokens, width).transpose(1, 2).reshape(
        groups, texts, shared * tokens, width) * scaling
    flat = query.reshape(groups, -1, width)
    scores = [(flat @ keys.transpose(1, 2)).view(groups, texts, shared * tokens, -1) for keys, _ in past]
    own = query @ key.transpose(2, 3)
    if tokens > 1:
        ahead = torch.ones(tokens, columns, dtype=torch.bool, device=query.device).triu(columns - tokens + 1)
        own = own.view(groups, texts, shared, tokens, columns).masked_fill(ahead, -torch.inf).view(own.shape)
    weights = torch.cat([*scores, own], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    *before, last = weights.split([*(keys.shape[1] for keys, _ in past), columns], -1)
    mixed = last @ value
    for weight, (_, values) in zip(before, past, strict=True):
        mixed += (weight.reshape(groups, -1, values.shape[1]) @ values).view(mixed.shape)
    return mixed.view(groups, texts, shared, tokens, -1).transpose(1, 2).reshape(heads, texts, tokens, -1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, packed: Packed | None = None, **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Of (1, heads, tokens, width) through `packed`; without it exactly the library's SDPA."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    asked = [name for name in EXTRAS if kwargs.get(name) is not None]
    if asked or len(query) != 1 or not hasattr(module, "layer_idx"):
        raise UnsupportedAttention(", ".join(asked) or "several rows, or a layer without a number")
    scaling = query.shape[3] ** -0.5 if scaling is None else scaling
    attended = packed.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return attended.transpose(0, 1)[None], None


register(NAME, _attention)

