"""What has the watcher look at the registry at once: rung in one of several worker processes, it is heard in all."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

# How often the file is looked at.
SECONDS = 0.5


class Bell:
    """Thread-safe.

    Args:
        file: by which other processes hear of it, each with a bell of its own; None where there are none.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._rung = threading.Event()
        self._heard = self._written()

    def ring(self) -> None:
        """Ends the wait of whoever waits, or the next one."""
        if self._file is not None:
            self._file.write_text(secrets.token_hex(8), encoding="utf-8")
        self._rung.set()

    def wake(self) -> None:
        """The same in this process alone."""
        self._rung.set()

    def wait(self, seconds: float) -> bool:
        """Whether it is rung within so many seconds; returns as soon as it is."""
        end = time.monotonic() + seconds
        while True:
            left = max(end - time.monotonic(), 0.0)
            rung = self._rung.wait(left if self._file is None else min(left, SECONDS))
            written = self._written()
            if rung or written != self._heard:
                self._rung.clear()
                self._heard = written
                return True
            if left <= 0:
                return False

    def _written(self) -> str:
        try:
            return self._file.read_text(encoding="utf-8") if self._file is not None else ""
        except OSError:
            return ""
