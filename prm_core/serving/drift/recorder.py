"""Writes samples of served traffic from a thread of its own: a request never waits for it and never fails by it."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from prm_core.config import DriftConfig
from prm_core.errors import InputError
from prm_core.serving.drift.samples import STAMP, SUFFIX, Sample, files, write
from prm_core.serving.drift.withdrawn import read_withdrawn, without

log = logging.getLogger(__name__)

# Characters of texts after which a file is written, however few trajectories hold them.
LONGEST_TEXTS = 2**24
CLOSING_SECONDS = 5.0
Draft = Callable[[], Sample]


class Recorder:
    """Takes drafts of samples, makes them, and writes them to files that are whole or not there.

    A process that is killed loses what it has not written, at most `seconds` of it.

    Args:
        folder: of the files.
        config: how much may wait, and when a file is written and removed.
        clock: seconds since 1970.

    Attributes:
        dropped: drafts that found no room, or no disk; without lock, for figures.
    """

    def __init__(self, folder: Path, config: DriftConfig, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._config, self._clock = folder, config, clock
        self._waiting: queue.Queue[list[Draft] | None] = queue.Queue(config.queue)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._numbers, self._files = itertools.count(), itertools.count()
        self._kept: dict[int, Sample] = {}
        # By model and trajectory, the number of the last of that; what a request goes on with is not kept besides.
        self._last: dict[tuple[str, str], int] = {}
        self._characters = 0
        self._due = 0.0
        self.dropped = 0

    def offer(self, drafts: list[Draft]) -> bool:
        """Takes a request's drafts; False where there is no room."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
                    self._thread.start()
        try:
            self._waiting.put_nowait(drafts)
        except queue.Full:
            self.dropped += len(drafts)
            return False
        return True

    def close(self) -> None:
        """Writes what there is, and takes nothing more."""
        thread = self._thread
        if thread is None:
            return
        try:
            self._waiting.put(None, timeout=CLOSING_SECONDS)
        except queue.Full:
            log.warning("samples of served traffic that still waited are lost")
        thread.join(CLOSING_SECONDS)

    def _work(self) -> None:
        while True:
            try:
                left = max(0.0, self._due - time.monotonic()) if self._kept else None
                drafts = self._waiting.get(timeout=left)
            except queue.Empty:
                drafts = []
            if drafts is None:
                self._write()
                return
            for draft in drafts:
                self._add(draft)
            full = len(self._kept) >= self._config.rows or self._characters >= LONGEST_TEXTS
            if self._kept and (full or time.monotonic() >= self._due):
                self._write()

    def _add(self, draft: Draft) -> None:
        try:
            made = draft()
            key = made.version, made.prefixes[-1]
        except Exception:
            # Whatever a client sent must not end the thread.
            log.exception("a served trajectory could not be sampled")
            self.dropped += 1
            return
        if not self._kept:
            self._due = time.monotonic() + self._config.seconds
        if len(made.prefixes) > 1:
            self._kept.pop(self._last.pop((made.version, made.prefixes[-2]), -1), None)
        number = next(self._numbers)
        self._kept[number], self._last[key] = made, number
        self._characters += len(made.text or "")

    def _write(self) -> None:
        kept, self._kept, self._last, self._characters = list(self._kept.values()), {}, {}, 0
        if not kept:
            return
        try:
            # Withdrawn while it waited.
            kept = without(kept, read_withdrawn(self._folder.parent))
        except InputError as error:
            log.warning("%d samples of served traffic are lost: %s", len(kept), error)
            self.dropped += len(kept)
            return
        if kept:
            self._put(kept)

    def _put(self, kept: list[Sample]) -> None:
        begins = datetime.fromtimestamp(min(one.time for one in kept), UTC)
        path = self._folder / f"{begins:{STAMP}}-{os.getpid()}-{next(self._files)}{SUFFIX}"
        try:
            write(path, kept)
            self._forget()
        except OSError as error:
            self.dropped += len(kept)
            log.warning("%d samples of served traffic are lost: %s", len(kept), error)

    def _forget(self) -> None:
        """Removes files that are too old, and what a killed process left half-written a day ago."""
        oldest = self._clock() - 86400 * self._config.keep_days
        for begins, path in files(self._folder):
            if begins < oldest:
                path.unlink(missing_ok=True)
        for path in self._folder.glob(f".*{SUFFIX}.tmp"):
            if path.stat().st_mtime < self._clock() - 86400:
                path.unlink(missing_ok=True)
