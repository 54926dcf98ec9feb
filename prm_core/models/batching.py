"""How many at once: rows of a batch that fit in memory, and work in batches that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


def sampling_rows(model: PreTrainedModel, gib: float, tokens: int) -> int:
    """Rows whose sampling stays within so many GiB, at least 1.

    Counted for a row: keys and values of `tokens` tokens, twice (a cache that grows is copied), and logits,
    probabilities and their running sum over the vocabulary in float32. Shared prefixes need less.

    Args:
        model: a causal LM.
        tokens: longest prefix and new tokens together.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys_and_values = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    row = 2 * tokens * keys_and_values + 3 * 4 * config.vocab_size
    return max(int(gib * 2**30 / row), 1)


def in_batches(
    items: Sequence[Item], size: int, work: Callable[[Sequence[Item], int], Sequence[Result]], what: str
) -> list[Result]:
    """Results of all items, in order; `work` gets a batch of up to `size` and the position of its first item.

    A batch that runs out of memory is halved, and so are those after it; a single item that does raises.

    Args:
        what: who works on what, for the warning.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch, fits = items[len(results) : len(results) + size], True
        try:
            results += work(batch, len(results))
        except RuntimeError as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            fits = False
        if not fits:
            # Not while the error is at hand: its traceback holds what the batch had allocated.
            size = len(batch) // 2
            log.warning("%s: out of memory with %d at once; going on with %d", what, len(batch), size)
            free_memory()
    return results


def free_memory() -> None:
    """Gives back what a batch that ran out of memory had allocated."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
