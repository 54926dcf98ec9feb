"""What a reward model reads: chains as tensors, one chain a row, or trees of chains that share steps.

What lives here is the layout of tokens; how texts become tokens is the encoder's, how trees are built is
`training/trees.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from prm_core.models.encoder import EncodedChain

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ChainBatch:
    """Token rows with the steps in them. A step's *slot* is its number in its row.

    Attributes:
        ids: right-padded token ids, (batch, seq).
        steps: slot of the step each token was written in, -1 for prompt, observations and padding, (batch, seq).
        ends: position of each slot's last token, -1 where there is no step, (batch, slots).
        positions: place of each token in its chain, (batch, seq); None where a row is one chain.
        previous: column of the token before it in its chain, -1 for the first, (batch, seq); None likewise.
        mask: which columns each token sees, (batch, 1, seq, seq) bool; None for all columns up to its own.
        lineage: whether slot b is slot a or a step before it, (batch, slots, slots) [a, b] bool; None for b <= a.
    """

    ids: Tensor
    steps: Tensor
    ends: Tensor
    positions: Tensor | None = None
    previous: Tensor | None = None
    mask: Tensor | None = None
    lineage: Tensor | None = None

    def to(self, device: torch.device) -> ChainBatch:
        """The same on a device."""
        values = (getattr(self, field.name) for field in fields(self))
        return ChainBatch(*(None if value is None else value.to(device) for value in values))


def collate(encoded: Sequence[EncodedChain], pad_id: int, *, prompt_slot: bool = False) -> ChainBatch:
    """One chain a row.

    Args:
        encoded: the chains.
        pad_id: any token id; pads stand after all real tokens, where causal attention never looks back at them.
        prompt_slot: slot 0 is the bare prompt, so that a model can value it; step k then has slot k + 1.
    """
    from prm_core.models.likelihood import step_index
    from prm_core.models.padding import pad

    ids = pad([chain.ids for chain in encoded], pad_id)
    steps = step_index(encoded, ids.shape[1])
    if not prompt_slot:
        # One slot at least: chains may have no step yet.
        return ChainBatch(ids, steps, pad([chain.step_ends or [-1] for chain in encoded], -1))
    ends = pad([[chain.prompt_length - 1, *chain.step_ends] for chain in encoded], -1)
    return ChainBatch(ids, steps.where(steps < 0, steps + 1), ends)
