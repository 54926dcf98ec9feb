"""A thread-safe cache of chain scores that forgets the least recently used and what is older than its time to live."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from cachetools import TTLCache

from prm_core.scoring.scorer import ChainScore
from prm_core.turns import identity
from prm_core.types import Step


def context_key(version: str, prompt: str, steps: Sequence[Step]) -> str:
    """SHA-256, hex, over everything a chain's scores depend on: the model's version, the prompt and every step.

    Canonical JSON keeps the boundaries between the parts, so that no two contexts share a text. Never Python's `hash`
    (differs between processes, collides) and never a window of the last turns (different histories collide).
    """
    parts = [version, prompt, identity(steps)]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()


class ScoreCache:
    """Chain scores by context key. They are held as arrays: of numbers of Python's a long chain's take ten times the
    memory.

    Args:
        size: entries kept; 0 keeps none.
        ttl: seconds an entry lives.
        timer: clock in seconds.
    """

    def __init__(self, size: int, ttl: float, timer: Callable[[], float] = time.monotonic) -> None:
        self._entries: TTLCache[str, tuple[ChainScore, np.ndarray]] = TTLCache(maxsize=size, ttl=ttl, timer=timer)
        self._lock = threading.Lock()

    def get(self, key: str) -> ChainScore | None:
        """The scores under a key, None where they are not held."""
        with self._lock:
            found = self._entries.get(key)
        if found is None:
            return None
        rest, table = found
        scores, raw, *members = table.tolist()
        return replace(rest, step_scores=tuple(scores), raw_scores=tuple(raw),
                       members=tuple(zip(*members, strict=True)))

    def put(self, key: str, score: ChainScore) -> None:
        """Keeps scores under a key."""
        if self._entries.maxsize:
            table = np.array([score.step_scores, score.raw_scores, *zip(*score.members, strict=True)], dtype=np.float64)
            entry = replace(score, step_scores=(), raw_scores=(), members=()), table
            with self._lock:
                self._entries[key] = entry

    def clear(self) -> None:
        """Keeps nothing of what was put so far."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        with self._lock:
            self._entries.expire()
            return len(self._entries)
