"""Work in batches that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item], size: int, work: Callable[[Sequence[Item], int], Sequence[Result]], what: str
) -> list[Result]:
    """Results of all items, in order; `work` gets a batch of up to `size` and the position of its first item.

    A batch that runs out of memory is halved, and so are those after it; a single item that does raises.

    Args:
        what: who works on what, for the warning.
    """
    import torch
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    results: list[Result] = []
    while len(results) < len(items):
        batch, fits = items[len(results) : len(results) + size], True
        try:
            results += work(batch, len(results))
        except RuntimeError as error:
            fits = not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error))
            if len(batch) == 1 or fits:
                raise
        if not fits:
            # Not while the error is at hand: its traceback holds what the batch had allocated.
            size = len(batch) // 2
            log.warning("%s: out of memory with %d at once; going on with %d", what, len(batch), size)
            clear_device_cache(garbage_collection=True)
    return results
