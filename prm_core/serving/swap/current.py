"""The version that answers, and the requests it is at: another takes over between two requests, never within one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prm_core.serving.service import ScoringService


@dataclass(frozen=True, slots=True)
class Served:
    """What answers.

    Attributes:
        service: the model.
        defaults: parameters of a request that names none.
        name: the registered model's, or the folder's: the same from version to version.
        source: the version as the registry has it (`models:/prm/3`), or the folder.
        calibrated: when, in seconds since 1970; None where that is not known.
        example: the request that it was logged with, as JSON values; None of a model that was not logged.
    """

    service: ScoringService
    defaults: Mapping[str, Any]
    name: str
    source: str
    calibrated: float | None = None
    example: Mapping[str, Any] | None = None


class Current:
    """Which version answers. Thread-safe.

    What a version has computed and kept is its service's, so that none of it is another version's.

    Args:
        served: the first one.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._inside: dict[int, int] = {}
        self._changed = threading.Condition()

    @property
    def served(self) -> Served:
        """Who answers a request that begins now."""
        return self._served

    @contextmanager
    def request(self) -> Iterator[Served]:
        """Around a request: yields who answers it, from its first byte to its last."""
        with self._changed:
            served = self._served
            self._inside[id(served)] = self._inside.get(id(served), 0) + 1
        try:
            yield served
        finally:
            with self._changed:
                self._inside[id(served)] -= 1
                if not self._inside[id(served)]:
                    del self._inside[id(served)]
                    self._changed.notify_all()

    def take_over(self, served: Served) -> Served:
        """Has requests that begin from now on answered by another version; returns the one before."""
        with self._changed:
            before, self._served = self._served, served
        return before

    def retire(self, served: Served) -> None:
        """Ends a version that has been taken over from, once its last request is answered."""
        with self._changed:
            self._changed.wait_for(lambda: id(served) not in self._inside)
        served.service.close()
