"""What a causal model computed of texts that go on: a slot of the buffers each, the one read longest ago goes first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prm_core.models.padding import pad
from prm_core.models.static.decoder import StaticDecoder
from prm_core.models.static.graph import Graphed

# Tokens that are kept.
KEPT = 200_000
# New tokens of a text up to which its pass is a graph; their number is filled up to a multiple of STEP.
LONGEST, STEP = 64, 8
# Tokens of one pass that is no graph, which bounds the memory of activations.
AT_ONCE = 16_384
# Tokens that are compared first.
GLANCE = 8


class StaticStates:
    """States of texts that a model has read; what `PrefixPool` is elsewhere.

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
        # The text of each slot; slots in the order they were read.
        self._texts: list[list[int]] = [[] for _ in range(self.slots)]
        self._order = list(range(self.slots))
        self._graphs: dict[tuple[int, ...], Graphed] = {}

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> list[tuple[Tensor, int]]:
        """Hidden states of each text of at least one token, (tokens, width), in order, and how many tokens were
        computed for it: those that no text of an earlier call began with, and none for an equal text in this call."""
        numbers: dict[tuple[int, ...], int] = {}
        which = [numbers.setdefault(tuple(text), len(numbers)) for text in texts]
        distinct = [list(text) for text in numbers]
        found: list[Tensor] = []
        costs: list[int] = []
        for start in range(0, len(distinct), self.slots):
            part = distinct[start : start + self.slots]
            placed = self._place(part)
            self._compute([(text, *place) for text, place in zip(part, placed, strict=True)])
            for text, (slot, seen) in zip(part, placed, strict=True):
                found.append(self._hidden[slot, : len(text)].clone())
                costs.append(len(text) - seen)
        first = set()
        result = []
        for number in which:
            result.append((found[number], 0 if number in first else costs[number]))
            first.add(number)
        return result

    def _best(self, text: list[int]) -> tuple[int, int]:
        """How many of its tokens a held text begins with, at most, and that one's slot; first one that ends there."""
        ended = [slot for slot, held in enumerate(self._texts) if held and len(held) <= len(text)
                 and text[max(len(held) - GLANCE, 0) : len(held)] == held[-GLANCE:] and text[: len(held)] == held]
        if ended:
            slot = max(ended, key=lambda slot: len(self._texts[slot]))
            if len(self._texts[slot]) >= len(text) - LONGEST:
                return len(self._texts[slot]), slot
        # Nearly all of it may lie in a text that goes on differently.
        near = [slot for slot, held in enumerate(self._texts) if held[:GLANCE] == text[:GLANCE]]
        return max([(0, -1), *((_common(self._texts[slot], text), slot) for slot in (*near, *ended))],
                   key=lambda found: (found[0], found[1] in ended))

    def _place(self, texts: Sequence[list[int]]) -> list[tuple[int, int]]:
        """Slot of each text, and how many of its tokens are there already."""
        placed: dict[int, tuple[int, int]] = {}
        best = [self._best(text) for text in texts]
        taken: set[int] = set()
        # Those that go on from a whole text keep its slot.
        for number, (common, slot) in enumerate(best):
            if slot >= 0 and common == len(self._texts[slot]) and slot not in taken:
                placed[number] = (slot, common)
                taken.add(slot)
        others = [number for number in range(len(texts)) if number not in placed]
        sources = {best[number][1] for number in others}
        spare = [slot for slot in self._order if slot not in taken and slot not in sources]
        copies: list[tuple[int, int]] = []
        # Others copy what they begin with; where no room is left they take the place of what they branch off from.
        for number, slot in zip(others, spare, strict=False):
            common, source = best[number]
            copies += [(source, slot)] if common else []
            placed[number] = (slot, common)
            taken.add(slot)
        for number in others:
            common, slot = best[number]
            if number not in placed and slot >= 0 and slot not in taken:
                placed[number] = (slot, common)
                taken.add(slot)
        left = (slot for slot in self._order if slot not in taken)
        for number in others:
            if number not in placed:
                placed[number] = (next(left), 0)
                taken.add(placed[number][0])
        for source, slot in copies:
            pair = [torch.tensor([one], device=self._hidden.device) for one in (source, slot)]
            self.decoder.copy(*pair)
            self._hidden[slot] = self._hidden[source]
        for number, text in enumerate(texts):
            self._texts[placed[number][0]] = text
        read = [placed[number][0] for number in range(len(texts))]
        self._order = [slot for slot in self._order if slot not in taken] + read
        return [placed[number] for number in range(len(texts))]

    def _compute(self, rows: Sequence[tuple[Sequence[int], int, int]]) -> None:
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

    def _pass(self, rows: Sequence[tuple[Sequence[int], int, int]]) -> None:
        if not rows:
            return
        new = [text[seen:] for text, _, seen in rows]
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


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
