"""What a causal model computed of texts that go on: a slot of the buffers each, the one read longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm_core.models.padding import pad
from prm_core.models.prefix_states import KEPT, Key, State
from prm_core.models.static.decoder import StaticDecoder
from prm_core.models.static.graph import Graphed

# New tokens of a text up to which its pass is a graph; their number is filled up to a multiple of STEP.
LONGEST, STEP = 64, 8
# Tokens of one pass that is no graph, which bounds the memory of activations.
AT_ONCE = 16_384


class StaticStates:
    """States of texts that a model has read; what `PrefixStates` is elsewhere.

    Args:
        backbone: `supports` says yes to it.
        columns: tokens of the longest text.
        kept: tokens that there is room for.
    """

    def __init__(self, backbone: PreTrainedModel, columns: int, kept: int = KEPT) -> None:
        self.slots = max(kept // columns, 1)
        # One slot more takes what rows write that only fill up a graph.
        self.decoder = StaticDecoder(backbone, self.slots + 1, columns)
        width = backbone.config.hidden_size
        self._hidden = torch.zeros(
            self.slots + 1, self.decoder.columns, width, dtype=backbone.dtype, device=backbone.device)
        # Of each slot its text, in the order they were read.
        self._texts: OrderedDict[int, Key] = OrderedDict((slot, ()) for slot in range(self.slots))
        self._graphs: dict[tuple[int, ...], Graphed] = {}

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> list[tuple[State, int]]:
        """The state of each text of at least one token, without its layers, in order, and how many tokens were computed
        for it: those that no text before it, in this call or another, began with."""
        keys = [tuple(text) for text in texts]
        distinct = list(dict.fromkeys(keys))
        found: dict[Key, tuple[Tensor, int]] = {}
        for start in range(0, len(distinct), self.slots):
            part = distinct[start : start + self.slots]
            placed = self._place(part)
            self._compute([(key, *placed[key]) for key in part])
            for key, (slot, seen) in placed.items():
                found[key] = (self._hidden[slot, : len(key)].clone(), len(key) - seen)
        left = {key: cost for key, (_, cost) in found.items()}
        return [(State(found[key][0], ()), left.pop(key, 0)) for key in keys]

    def _place(self, keys: Sequence[Key]) -> dict[Key, tuple[int, int]]:
        """Slot of each text, and how many of its tokens are there already."""
        placed: dict[Key, tuple[int, int]] = {}
        held = dict(self._texts)
        best = {key: max(((_common(text, key), slot) for slot, text in held.items() if text), default=(0, -1))
                for key in keys}
        taken: set[int] = set()
        # Those that go on from a whole text keep its slot.
        for key in sorted(keys, key=len):
            common, slot = best[key]
            if slot >= 0 and common == len(held[slot]) and slot not in taken:
                placed[key] = (slot, common)
                taken.add(slot)
        others = [key for key in keys if key not in placed]
        sources = {best[key][1] for key in others}
        spare = [slot for slot in held if slot not in taken and slot not in sources]
        copies: list[tuple[int, int]] = []
        # Others copy what they begin with; where no room is left they take the place of what they branch off from.
        for key, slot in zip(others, spare, strict=False):
            common, source = best[key]
            copies += [(source, slot)] if common else []
            placed[key] = (slot, common)
            taken.add(slot)
        for key in others:
            common, slot = best[key]
            if key not in placed and slot >= 0 and slot not in taken:
                placed[key] = (slot, common)
                taken.add(slot)
        left = (slot for slot in held if slot not in taken)
        for key in others:
            if key not in placed:
                placed[key] = (next(left), 0)
        for source, slot in copies:
            pair = [torch.tensor([one], device=self._hidden.device) for one in (source, slot)]
            self.decoder.copy(*pair)
            self._hidden[slot] = self._hidden[source]
        for key in keys:
            slot, _ = placed[key]
            self._texts[slot] = key
            self._texts.move_to_end(slot)
        return placed

    def _compute(self, rows: Sequence[tuple[Key, int, int]]) -> None:
        """Passes over the new tokens of (text, slot, tokens seen)."""
        todo = sorted((row for row in rows if row[2] < len(row[0])), key=lambda row: len(row[0]) - row[2])
        short = [row for row in todo if len(row[0]) - row[2] <= LONGEST]
        self._pass(short)
        todo = todo[len(short) :]
        while todo:
            # Of like length, the longest last.
            count = max(1, AT_ONCE // (len(todo[-1][0]) - todo[-1][2]))
            self._pass(todo[-count:])
            todo = todo[:-count]

    def _pass(self, rows: Sequence[tuple[Key, int, int]]) -> None:
        if not rows:
            return
        new = [key[seen:] for key, _, seen in rows]
        longest = max(map(len, new))
        graphed = longest <= LONGEST
        count = len(rows)
        if graphed:
            longest, count = -(-longest // STEP) * STEP, 1 << (len(rows) - 1).bit_length()
        device = self._hidden.device
        ids = torch.zeros(count, longest, dtype=torch.int64)
        filled = pad(new, 0)
        ids[: len(rows), : filled.shape[1]] = filled
        slots = torch.tensor([slot for _, slot, _ in rows] + [self.slots] * (count - len(rows)))
        seen = torch.tensor([seen for _, _, seen in rows] + [0] * (count - len(rows)))
        given = [one.to(device) for one in (ids, slots, seen)]
        if not graphed:
            self.step(*given)
            return
        if (count, longest) not in self._graphs:
            # Example rows that write where nobody reads.
            nowhere = torch.full_like(given[1], self.slots)
            self._graphs[count, longest] = Graphed(self.step, given[0], nowhere, given[2])
        self._graphs[count, longest](*given)

    def step(self, ids: Tensor, slots: Tensor, seen: Tensor) -> Tensor:
        """A pass whose hidden states are kept; see `StaticDecoder.forward`."""
        hidden = self.decoder.forward(ids, slots, seen)
        places = (seen[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(max=self.decoder.columns - 1)
        self._hidden[slots[:, None], places] = hidden
        return hidden


def _common(one: Key, other: Key) -> int:
    """Tokens that both begin with."""
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    low, high = 0, size - 1
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
