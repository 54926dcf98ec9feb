"""Padding rows of token ids into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Right-padded (rows, longest) int64 tensor."""
    import torch

    result = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        result[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return result
