"""What a causal model computed of texts' beginnings, kept for texts that go on from there: hidden states, keys, values.

A search scores and continues the same prefixes again and again; here each of their tokens is computed once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from prm_core.models.padding import pad

# Tokens that are kept; what was not read for longest goes first.
KEPT = 200_000
# Tokens of one forward pass, those seen and those computed, which bounds the memory of activations.
AT_ONCE = 16_384
# Stands for minus infinity where a token may not look: finite, so that a padding row gets no NaN.
HIDDEN = -1e9

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """What the model computed of one text.

    Attributes:
        hidden: last hidden states, (tokens, width).
        layers: keys and values of each layer, (heads, tokens, width).
    """

    hidden: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]


class PrefixStates:
    """States of texts that a model has read.

    Args:
        backbone: a causal model without its head, whose attention follows a mask and positions (see `takes_trees`, and
            `shares_prefixes` of a whole model).
        boundary: token at which texts part: a text goes on from another that ends with one, or just before one.
        kept: tokens that are kept.
    """

    def __init__(self, backbone: PreTrainedModel, boundary: int, kept: int = KEPT) -> None:
        self.backbone = backbone
        self.boundary = boundary
        self.kept = kept
        self._states: OrderedDict[Key, State] = OrderedDict()
        self._tokens = 0

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> list[tuple[State, int]]:
        """The state of each text of at least one token, in order, and how many tokens were computed for it: those that
        no text before it, in this call or another, began with up to a boundary."""
        keys = [tuple(text) for text in texts]
        found: dict[Key, State] = {}
        costs: dict[Key, int] = {}
        for stage in (*self._shared(dict.fromkeys(keys)), keys):
            costs |= self._compute(stage, found)
        for key, state in found.items():
            self._keep(key, state)
        return [(found[key], costs.pop(key, 0) + sum(costs.pop(key[:end], 0) for end in self._ends(key)))
                for key in keys]

    def _ends(self, key: Key) -> list[int]:
        """Tokens up to and with each boundary."""
        return [at + 1 for at, token in enumerate(key) if token == self.boundary]

    def _shared(self, keys: Iterable[Key]) -> list[list[Key]]:
        """What several texts begin with and is not known, shorter ones first: each stage goes on from those before."""
        ends = {key: [end for end in self._ends(key) if end > self._known(key, {})] for key in keys}
        counts = Counter(key[:end] for key, places in ends.items() for end in places)
        stages: dict[int, dict[Key, None]] = {}
        for key, places in ends.items():
            most = 1
            for end in reversed(places):
                # Of beginnings that the same texts share the longest is enough.
                if counts[key[:end]] > most:
                    most = counts[key[:end]]
                    stages.setdefault(key[:end].count(self.boundary), {})[key[:end]] = None
        return [list(stages[depth]) for depth in sorted(stages)]

    def _known(self, key: Key, found: dict[Key, State]) -> int:
        """Tokens of the longest beginning whose state is there."""
        if key in found or key in self._states:
            return len(key)
        ends = (end for at in range(len(key) - 1, 0, -1) if key[at] == self.boundary for end in (at + 1, at))
        return next((end for end in ends if key[:end] in found or key[:end] in self._states), 0)

    def _compute(self, keys: Sequence[Key], found: dict[Key, State]) -> dict[Key, int]:
        """Puts the state of each text into `found`; returns how many tokens that took."""
        known = {key: self._known(key, found) for key in keys if key not in found}
        past = {key: found.get(key[:end]) or self._states[key[:end]] if end else None for key, end in known.items()}
        for key, end in known.items():
            if end == len(key):
                found[key] = past[key]
        # Of like length, which wastes least on padding.
        todo = sorted((key for key, end in known.items() if end < len(key)),
                      key=lambda key: (len(key) - known[key], known[key]))
        for batch in _batches(todo, [len(key) for key in todo]):
            for key, state in zip(batch, self._extend(batch, [past[key] for key in batch]), strict=True):
                found[key] = state
        return {key: len(key) - known[key] for key in todo}

    def _extend(self, keys: Sequence[Key], past: Sequence[State | None]) -> Iterator[State]:
        """The states of texts, of which the beginnings are there."""
        device = self.backbone.device
        seen = [0 if state is None else len(state.hidden) for state in past]
        new = [key[count:] for key, count in zip(keys, seen, strict=True)]
        ids = pad(new, 0).to(device)
        seen_at = torch.tensor(seen, device=device)
        cache, mask = DynamicCache(), None
        if longest := max(seen):
            before = torch.arange(longest, device=device) < seen_at[:, None]
            inside = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=device).tril()
            seeing = torch.cat([before[:, None, :].expand(-1, ids.shape[1], -1), inside.expand(len(keys), -1, -1)], 2)
            mask = torch.zeros(seeing.shape, dtype=self.backbone.dtype, device=device).masked_fill_(~seeing, HIDDEN)
            mask = mask[:, None]
            for number, layer in enumerate(next(state for state in past if state is not None).layers):
                cache.update(*(_stacked([None if state is None else state.layers[number][part] for state in past],
                                        longest, layer[part]) for part in (0, 1)), number)
        hidden = self.backbone(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True,
            position_ids=seen_at[:, None] + torch.arange(ids.shape[1], device=device),
        ).last_hidden_state
        for row, (state, tokens) in enumerate(zip(past, new, strict=True)):
            end = longest + len(tokens)
            # Copies: a view would keep the whole batch.
            layers = [tuple(torch.cat([states[row][:, : seen[row]], states[row][:, longest:end]], 1)
                            for states in (layer.keys, layer.values)) for layer in cache.layers]
            own = hidden[row, : len(tokens)]
            yield State(own.clone() if state is None else torch.cat([state.hidden, own]), layers)

    def _keep(self, key: Key, state: State) -> None:
        if key not in self._states:
            self._tokens += len(key)
        self._states[key] = state
        self._states.move_to_end(key)
        while self._tokens > self.kept and len(self._states) > 1:
            self._tokens -= len(self._states.popitem(last=False)[0])


def _batches(keys: Sequence[Key], sizes: Sequence[int]) -> Iterator[Sequence[Key]]:
    """Neighbours, as many as one pass takes."""
    start = 0
    while start < len(keys):
        end, longest = start, 0
        while end < len(keys) and (end == start or max(longest, sizes[end]) * (end + 1 - start) <= AT_ONCE):
            longest = max(longest, sizes[end])
            end += 1
        yield keys[start:end]
        start = end


def _stacked(rows: Sequence[Tensor | None], longest: int, like: Tensor) -> Tensor:
    """Right-padded (rows, heads, longest, width); 0 where there is nothing."""
    result = like.new_zeros(len(rows), like.shape[0], longest, like.shape[2])
    for target, row in zip(result, rows, strict=True):
        if row is not None:
            target[:, : row.shape[1]] = row
    return result

