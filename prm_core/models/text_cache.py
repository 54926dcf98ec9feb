"""Token ids of texts, kept within a limit of bytes: chains of a tree share most of their steps, and an agent's next
question repeats all of the last one."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable

# Bytes of texts and ids.
LIMIT = 2**26
# Of an entry's place in the table, and of an id in a tuple with its number.
ENTRY, ID = 200, 40


class TextCache:
    """What a tokenizer makes of texts, each asked once while it is kept; one that takes more than an eighth of the
    limit is not. Thread-safe, which fast tokenizers are not ("Already borrowed").

    Args:
        encode: the tokenizer's.
        limit: bytes.
    """

    def __init__(self, encode: Callable[[str], tuple[int, ...]], limit: int = LIMIT) -> None:
        self._encode = encode
        self._limit = limit
        self._kept: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self.size = 0
        # Whoever uses the tokenizer for anything else holds it too.
        self.lock = threading.RLock()

    def __call__(self, text: str) -> tuple[int, ...]:
        """Ids of a text."""
        with self.lock:
            found = self._kept.get(text)
            if found is not None:
                self._kept.move_to_end(text)
                return found
            found = self._encode(text)
            size = _size(text, found)
            if size <= self._limit // 8:
                self._kept[text] = found
                self.size += size
                while self.size > self._limit:
                    self.size -= _size(*self._kept.popitem(last=False))
            return found


def _size(text: str, ids: tuple[int, ...]) -> int:
    return ENTRY + sys.getsizeof(text) + ID * len(ids)
