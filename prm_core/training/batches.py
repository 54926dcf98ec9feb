"""Order of training: length-bucketed batches, the same for the same seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# Batches are cut from shuffled windows of this many batches, sorted by length inside: little padding, and batches
# still differ from epoch to epoch.
WINDOW = 8


def bucketed_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index once, in batches of like length, in random order."""
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), batch_size * WINDOW):
        window = sorted(order[start : start + batch_size * WINDOW], key=lengths.__getitem__)
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    return batches


def batches_from(
    lengths: Sequence[int], batch_size: int, seed: int, *, start: int, stop: int
) -> Iterator[tuple[int, list[int]]]:
    """(update, indices) for updates `start`…`stop` of an endless sequence of epochs; resuming needs only `start`."""
    per_epoch = len(bucketed_batches(lengths, batch_size, seed, 0))
    order: list[list[int]] = []
    for update in range(start, stop):
        epoch, position = divmod(update, per_epoch)
        if position == 0 or not order:
            order = bucketed_batches(lengths, batch_size, seed, epoch)
        yield update, order[position]


def cut_where_longer(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of the rows in at most two parts, the shorter ones first, so that padding each part to its longest row
    leaves the fewest tokens."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    def padded(first: int) -> int:
        shorter = first * lengths[order[first - 1]] if first else 0
        return shorter + (len(order) - first) * lengths[order[-1]]

    first = min(range(len(order)), key=padded, default=0)
    return [part for part in (order[:first], order[first:]) if part]
