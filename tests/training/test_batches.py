"""Training order: every example once an epoch, like lengths together, resumable anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.training.batches import batches_from, bucketed_batches, cut_where_longer

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=150)


@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation_and_deterministic(lengths, size: int, seed: int, epoch: int) -> None:
    batches = bucketed_batches(lengths, size, seed, epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    # Only the last window can end in a batch that is not full.
    assert sum(len(batch) < size for batch in batches) <= 1
    assert batches == bucketed_batches(lengths, size, seed, epoch)


@given(lengths=LENGTHS, size=st.integers(1, 5), start=st.integers(0, 60), count=st.integers(0, 60))
def test_going_on_from_any_update_gives_what_an_undisturbed_run_has_there(lengths, size, start, count) -> None:
    whole = list(batches_from(lengths, size, 7, start=0, stop=start + count))
    assert list(batches_from(lengths, size, 7, start=start, stop=start + count)) == whole[start:]
    assert [update for update, _ in whole] == list(range(start + count))


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(1, 101))
    orders = [bucketed_batches(lengths, 4, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_a_batch_holds_like_lengths_but_not_the_same_ones_every_epoch() -> None:
    lengths = [1 + i % 40 for i in range(640)]
    batches = bucketed_batches(lengths, 16, 0, 0)
    padding = sum(max(lengths[i] for i in b) * len(b) - sum(lengths[i] for i in b) for b in batches)
    assert padding / sum(lengths) == pytest.approx(0.06, abs=0.06)
    # Batches come in random order, not from short to long.
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert any(one > other for one, other in pairwise(longest))
    assert {frozenset(b) for b in batches}.isdisjoint({frozenset(b) for b in bucketed_batches(lengths, 16, 0, 1)})


@given(lengths=st.lists(st.integers(1, 50), max_size=12))
def test_rows_are_cut_where_padding_is_least(lengths: list[int]) -> None:
    parts = cut_where_longer(lengths)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    assert len(parts) <= 2

    def padded(parts: list[list[int]]) -> int:
        return sum(len(part) * max(lengths[row] for row in part) for part in parts if part)

    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    assert padded(parts) == min(padded([order[:first], order[first:]]) for first in range(len(order) + 1))


def test_one_length_is_one_part() -> None:
    assert cut_where_longer([5, 5, 5]) == [[0, 1, 2]]
    assert cut_where_longer([9, 5, 9, 5]) == [[1, 3], [0, 2]]
    assert cut_where_longer([]) == []
