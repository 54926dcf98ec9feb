"""Chains as tensors: one chain a row, which slot is which step, and what padding is."""

from __future__ import annotations

import pytest
import torch
from torch import tensor

from prm_core.models.chains import ChainBatch, collate
from prm_core.models.encoder import EncodedChain

# Prompt of 2 tokens, steps [10 11 SEP] and [12 obs SEP], where the observation is not the policy's.
LONG = EncodedChain([1, 9, 10, 11, 9, 12, 13, 9], 2, [4, 7], [False] * 2 + [True] * 3 + [True, False, True], 0)
SHORT = EncodedChain([1, 2, 9, 20, 9], 3, [4], [False] * 3 + [True] * 2, 1)
BARE = EncodedChain([5, 9], 2, [], [False] * 2, 3)


def test_slots_are_the_steps_of_each_chain() -> None:
    batch = collate([LONG, SHORT], 0)
    assert batch.ids.tolist() == [LONG.ids, [*SHORT.ids, 0, 0, 0]]
    assert batch.steps.tolist() == [[-1, -1, 0, 0, 0, 1, -1, 1], [-1, -1, -1, 0, 0, -1, -1, -1]]
    assert batch.ends.tolist() == [[4, 7], [4, -1]]
    assert (batch.positions, batch.previous, batch.mask, batch.lineage) == (None, None, None, None)


def test_the_bare_prompt_is_slot_0_where_a_model_values_it() -> None:
    batch = collate([LONG, SHORT, BARE], 0, prompt_slot=True)
    assert batch.ends.tolist() == [[1, 4, 7], [2, 4, -1], [1, -1, -1]]
    assert batch.steps.tolist() == [[-1, -1, 1, 1, 1, 2, -1, 2], [-1, -1, -1, 1, 1, -1, -1, -1], [-1] * 8]


def test_a_chain_without_steps_has_an_empty_slot() -> None:
    assert collate([BARE], 0).ends.tolist() == [[-1]]
    assert collate([BARE, SHORT], 0).ends.tolist() == [[-1], [4]]


def test_moving_a_batch_moves_what_is_there() -> None:
    batch = ChainBatch(tensor([[1]]), tensor([[0]]), tensor([[0]]), positions=tensor([[0]]), mask=tensor([[[[True]]]]))
    moved = batch.to(torch.device("meta"))
    there = (moved.ids, moved.steps, moved.ends, moved.positions, moved.mask)
    assert {value.device.type for value in there} == {"meta"}
    assert (moved.previous, moved.lineage) == (None, None)


@pytest.mark.parametrize("prompt_slot", [False, True])
def test_every_written_token_belongs_to_the_slot_whose_end_follows_it(prompt_slot: bool) -> None:
    batch = collate([LONG, SHORT], 0, prompt_slot=prompt_slot)
    for row, chain in enumerate((LONG, SHORT)):
        for column, written in enumerate(chain.scored):
            slot = batch.steps[row, column].item()
            assert (slot >= 0) == written
            if written:
                first = 0 if slot == 0 else batch.ends[row, slot - 1].item() + 1
                assert first <= column <= batch.ends[row, slot]
