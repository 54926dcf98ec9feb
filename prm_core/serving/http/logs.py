"""The log of a server: a JSON object a line, on stderr, of each request with its id and without its texts."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Key of `extra` under which a message's fields come.
FIELDS = "fields"


def request_id(given: str | None) -> str:
    """The client's own id where it is one, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(16)


class JsonLines(logging.Formatter):
    """A record as one line of JSON.

    Of an exception it has the type and where it was raised, and its text only where texts are asked for: it may quote
    what a client sent.

    Args:
        texts: whether they are.
    """

    def __init__(self, texts: bool) -> None:
        super().__init__()
        self._texts = texts

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            line["error"] = type(error).__name__
            line["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}"
                          for frame in traceback.extract_tb(error.__traceback__)[-20:]]
            if self._texts:
                line["error_text"] = str(error)[:1000]
        return json.dumps(line, default=str)


def configure(texts: bool) -> None:
    """All messages of the process as JSON lines on stderr; other libraries' from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(texts))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("prm_core", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.INFO)
