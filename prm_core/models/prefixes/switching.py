"""Attention of our own in a library's model: registered by a name, and switched on where a call needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

# What an attention layer may ask of its attention function beyond softmax(q k) v over all that came before.
EXTRAS = ("softcap", "sliding_window", "s_aux", "sinks", "position_bias", "bias", "indices", "block_indices")

# A sampler whose model also reads prefixes switches within its own block.
_switch = threading.RLock()


class UnsupportedAttention(Exception):
    """A layer asks for more than this attention does."""


def register(name: str, attention: Callable[..., Any]) -> None:
    """Makes an attention known to the library, with SDPA's masks."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)


@contextmanager
def switched_on(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model attends as registered under a name; its own attention is back when the block ends.

    In one thread of a process at a time. Others may go on with the same model meanwhile: an attention that is switched
    on so gives calls that do not ask for it the library's SDPA.
    """
    config = model.config
    with _switch:
        own = config._attn_implementation
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = own
