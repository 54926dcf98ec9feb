"""Sampling without replacement: what was drawn from a prefix before is not drawn from it again.

All that may be drawn is a tree of tokens. From the probability of each token that may come next that is taken away
which was used up below it, so that a sample follows the model, given that it is none of those drawn before.

Source: Shi, Bieber & Sutton 2020, "Incremental Sampling Without Replacement for Sequence Models" (ICML).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# Tokens, and the log-probability of each.
Written: TypeAlias = tuple[Sequence[int], Sequence[float]]
# Where less than this is left all was drawn, but for rounding, and anything may come again.
EXHAUSTED = 1e-5


class Taken:
    """What rows that are decoded together may not write again.

    Args:
        drawn: of each row, what was drawn from its prefix before; the same ones twice are one.
        written: what each row has written so far.
    """

    def __init__(self, drawn: Sequence[Sequence[Written]], written: Sequence[Sequence[int]]) -> None:
        # Of the rows that may become one of these, what of it is still to come.
        self._ahead: dict[int, list[Written]] = {}
        for row, (known, start) in enumerate(zip(drawn, written, strict=True)):
            at = len(start)
            self._set(row, [(ids[at:], logprobs[at:]) for ids, logprobs in
                            {tuple(ids): logprobs for ids, logprobs in known}.items() if ids[:at] == tuple(start)])

    def _set(self, row: int, ahead: list[Written]) -> None:
        if left := [one for one in ahead if one[0]]:
            self._ahead[row] = left

    def left_of(self, probabilities: Tensor) -> Tensor:
        """What is left of the probabilities (rows, vocabulary) of the next token; they sum to less than 1."""
        used: dict[tuple[int, int], float] = {}
        for row, known in self._ahead.items():
            for ids, logprobs in known:
                used[row, ids[0]] = used.get((row, ids[0]), 0.0) + math.exp(sum(logprobs))
        if not used:
            return probabilities
        rows, tokens = torch.tensor(list(used), device=probabilities.device).T
        left = probabilities.clone()
        left[rows, tokens] -= torch.tensor(list(used.values()), dtype=left.dtype, device=left.device)
        left.clamp_(min=0)
        return left.where(left.sum(-1, keepdim=True) > EXHAUSTED, probabilities)

    def go_on(self, tokens: Tensor) -> None:
        """After these tokens (rows,)."""
        if not self._ahead:
            return
        before, self._ahead, written = self._ahead, {}, tokens.tolist()
        for row, known in before.items():
            self._set(row, [(ids[1:], logprobs[1:]) for ids, logprobs in known if ids[0] == written[row]])

    def keep(self, rows: Tensor) -> None:
        """Keeps the rows of these numbers (left,), in this order."""
        if self._ahead:
            self._ahead = {new: self._ahead[old] for new, old in enumerate(rows.tolist()) if old in self._ahead}
