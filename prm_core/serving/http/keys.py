"""API keys: a file of names and digests that is read again when it changes, so that a key can be added or revoked
while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
from collections.abc import Mapping
from pathlib import Path

from prm_core.errors import InputError

log = logging.getLogger(__name__)

ENTRY = re.compile(r"([\w.@-]{1,64})\s+([0-9a-fA-F]{64})")


class ApiKeys:
    """Who may ask. Thread-safe.

    A line of the file is a name and the SHA-256, in hex, of that name's key: the file does not give the keys away.
    Blank lines and those that begin with # are passed over. A name may stand on several lines, while one key takes over
    from another.

    Args:
        path: the file.

    Raises InputError where it is missing, holds no key or a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = self._stamped()
        self._digests = self._read()

    def name(self, headers: Mapping[str, str]) -> str | None:
        """Whose key a request carries, None where it has none that is known.

        It is `Authorization: Bearer KEY`, or `X-API-Key: KEY`. Every digest is compared, each in constant time, whether
        or not one was found: how long it takes tells nothing of the keys.
        """
        given = headers.get("x-api-key", "")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            given = token
        digest = hashlib.sha256(given.strip().encode()).hexdigest()
        found = None
        for name, known in self._current():
            if hmac.compare_digest(digest, known):
                found = name
        return found

    def _current(self) -> list[tuple[str, str]]:
        with self._lock:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._digests = self._read()
                    log.info("%s: %d keys", self._path, len(self._digests))
                except InputError as error:
                    # Nobody, rather than somebody whose key may just have been taken out.
                    self._digests = []
                    log.error("no key is accepted until this is corrected: %s", error)
            return self._digests

    def _stamped(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[tuple[str, str]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self._path}: the file of API keys cannot be read ({type(error).__name__}); http.keys "
                             "names it") from None
        found = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            entry = ENTRY.fullmatch(line.strip())
            if entry is None:
                # Not shown: it may be a key.
                raise InputError(f"{self._path}:{number}: no API key; a line is a name and the SHA-256 of its key, in "
                                 "hex")
            found.append((entry[1], entry[2].lower()))
        if not found:
            raise InputError(f"{self._path}: no API key in it; leave http.keys empty to do without")
        return found
