"""Texts that begin alike, read as trees: what they share is computed once, in one pass whose mask shows each token what
stands before it in its own text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from prm_core.models.causal import as_mask, takes_trees

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

# Share of the texts' tokens that trees have at most where they pay: their attention is dense, within a row.
WORTH = 0.6
# Widest row, where no text is longer, by the width of the model's states: a token is compared with all others of its
# row, which then costs about as much as all else.
ROW_WIDTHS = 4


class Row(NamedTuple):
    """Trees side by side.

    Attributes:
        ids, depths: of each token, and how many stand before it in its text, (tokens,).
        paths: of each text, the columns of its tokens, in order.
    """

    ids: list[int]
    depths: list[int]
    paths: list[NDArray[np.int64]]

    def mask(self, width: int) -> NDArray[np.bool_]:
        """True where a token (row) sees another (column), (width, width); what is beyond the tokens sees itself."""
        seen = np.eye(width, dtype=bool)
        for path in self.paths:
            seen[np.ix_(path, path)] |= np.tri(len(path), dtype=bool)
        return seen


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two texts begin with alike."""
    both = min(len(one), len(other))
    return next((at for at in range(both) if one[at] != other[at]), both)


def tree_share(texts: Sequence[Sequence[int]]) -> float:
    """Tokens of the texts' trees, as a share of theirs; the texts in order, so that those that begin alike are
    neighbours."""
    total = sum(map(len, texts))
    return 1 - sum(shared(*pair) for pair in itertools.pairwise(texts)) / total if total else 1.0


def plant(texts: Sequence[Sequence[int]], width: int) -> list[Row]:
    """Rows of at most `width` tokens, or of one longer text alone; texts in order as `tree_share` has them.

    A text whose tree has no room left begins another one in the next row.
    """
    rows: list[Row] = []
    last: Sequence[int] = ()
    for text in texts:
        known = shared(last, text) if rows else 0
        if not rows or len(rows[-1].ids) + len(text) - known > width:
            rows.append(Row([], [], []))
            known = 0
        row = rows[-1]
        column = len(row.ids)
        own = np.arange(column, column + len(text) - known)
        row.paths.append(np.concatenate([row.paths[-1][:known], own]) if known else own)
        row.ids.extend(text[known:])
        row.depths.extend(range(known, len(text)))
        last = text
    return rows


class Forest:
    """A backbone that reads texts as trees.

    Args:
        backbone: causal; one whose attention takes no such mask, or on another device than a CPU, where kernels without
            a mask have not been measured against it, reads every text whole.
        pad_id: any token.
    """

    def __init__(self, backbone: PreTrainedModel, pad_id: int) -> None:
        self._backbone = backbone
        self._pad_id = pad_id
        self._takes: bool | None = None

    def pays(self, texts: Sequence[Sequence[int]]) -> bool:
        """Whether texts, in order, share enough to be read so."""
        if self._backbone.device.type != "cpu" or tree_share(texts) > WORTH:
            return False
        if self._takes is None:
            self._takes = takes_trees(self._backbone)
        return self._takes

    def hidden(self, texts: Sequence[Sequence[int]], columns: int) -> Tensor:
        """The last states at each text's tokens, (texts, columns, width), 0 beyond its end.

        Args:
            texts: of at least one token each, in order.
        """
        rows = plant(texts, ROW_WIDTHS * self._backbone.config.get_text_config().hidden_size)
        width = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), width), self._pad_id)
        depths = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids)
            depths[number, : len(row.ids)] = torch.tensor(row.depths)
        mask = torch.from_numpy(np.stack([row.mask(width) for row in rows]))[:, None]
        states = self._backbone(input_ids=ids, attention_mask=as_mask(mask, self._backbone), position_ids=depths,
                                use_cache=False).last_hidden_state
        found = states.new_zeros(len(texts), columns, states.shape[2])
        placed = ((number, path) for number, row in enumerate(rows) for path in row.paths)
        for target, (number, path) in zip(found, placed, strict=True):
            target[: len(path)] = states[number, torch.from_numpy(path)]
        return found
