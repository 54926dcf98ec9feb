"""The errors a user can do something about. Each message names the input, the reason and the way out."""

from __future__ import annotations

from typing import Literal


class PrmError(Exception):
    """Base of every error this project raises on purpose."""


class InputError(PrmError):
    """Bad input from outside: a file, a config value, a request. The CLI exits with 2, the server answers 400."""


class GateError(PrmError):
    """A check that must stop the chain did: critical expectation failed, promotion refused. The CLI exits with 1."""


class OverloadError(PrmError):
    """No more is taken in for now. The server answers 503.

    Attributes:
        retry_after: seconds after which it is worth asking again.
        cause: what monitoring calls it.
    """

    def __init__(
        self, reason: str, retry_after: float = 1.0, cause: Literal["queue_full", "deadline", "draining"] = "queue_full"
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.cause = cause
