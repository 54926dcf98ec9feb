"""What was asked of late, in memory alone, so that a new version can be tried on it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from prm_core.serving.engine.requests import characters
from prm_core.serving.service import ScoringAnswer, ScoringRequest

# Of all trajectories that are kept.
CHARACTERS = 2**22


@dataclass(frozen=True, slots=True)
class Seen:
    """A trajectory that was asked about.

    Attributes:
        source: the version that answered.
        request: what was asked.
        step_scores: what it said.
        size: characters.
    """

    source: str
    request: ScoringRequest
    step_scores: Sequence[float]
    size: int


class Recent:
    """The last trajectories that were asked about. Thread-safe.

    Args:
        most: how many; there are fewer where they are long (CHARACTERS).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: deque[Seen] = deque()
        self._size = 0
        self._lock = threading.Lock()

    def add(self, source: str, requests: Sequence[ScoringRequest], answers: Sequence[ScoringAnswer]) -> None:
        """Keeps what a version answered."""
        if not self._most:
            return
        found = [Seen(source, request, answer.analysis.step_scores,
                      len(request.prompt) + sum(map(characters, request.steps)))
                 for request, answer in zip(requests[-self._most :], answers[-self._most :], strict=True)
                 if answer.analysis is not None]
        with self._lock:
            self._kept += found
            self._size += sum(seen.size for seen in found)
            while len(self._kept) > self._most or self._size > CHARACTERS:
                self._size -= self._kept.popleft().size

    def clear(self) -> None:
        """Keeps nothing of what was asked so far."""
        with self._lock:
            self._kept.clear()
            self._size = 0

    def answered_by(self, source: str) -> list[Seen]:
        """Those that a version answered, the oldest first."""
        with self._lock:
            return [seen for seen in self._kept if seen.source == source]
