"""Whether a server answers at all, asked once and briefly. MLflow by itself tries for minutes before it says no."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from prm_core.errors import InputError

SECONDS = 5.0
# Where a URI names none.
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

_answered: set[str] = set()


class Unreachable(InputError):
    """A tracking store on the network does not answer."""


def check(uri: str, seconds: float = SECONDS, *, again: bool = False) -> None:
    """Raises Unreachable when the store at a URI does not answer; one on this disk always does.

    A server that answers with an error is there. Asked once a process.

    Args:
        uri: as in MLFLOW_TRACKING_URI.
        seconds: how long to wait for an answer.
        again: ask also where it has answered before.
    """
    parts = urlsplit(uri)
    if not parts.hostname or (uri in _answered and not again):
        return
    # Without a user and a password, which are not asked for, nor shown.
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    reason = _ask(shown, seconds) if parts.scheme in ("http", "https") else _connect(shown, seconds)
    if reason:
        raise Unreachable(f"the tracking store {shown} cannot be reached ({reason}); start it, or correct "
                          "MLFLOW_TRACKING_URI, or unset it to record in the workspace itself")
    _answered.add(uri)


def _ask(uri: str, seconds: float) -> str:
    """Why an HTTP server does not answer, empty when it does. Found as MLflow finds it, through a proxy if need be."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=seconds).close()
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        # Whether a certificate is good enough is MLflow's to say (MLFLOW_TRACKING_INSECURE_TLS).
        return "" if isinstance(error.reason, ssl.SSLError) else _said(error.reason, seconds)
    except OSError as error:
        return _said(error, seconds)
    return ""


def _connect(uri: str, seconds: float) -> str:
    """Why a database server does not take a connection, empty when it does."""
    parts = urlsplit(uri)
    port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    if port is None:
        return ""
    try:
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
    except OSError as error:
        return _said(error, seconds)
    return ""


def _said(error: object, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s"
    if isinstance(error, OSError):
        return error.strerror or (os.strerror(error.errno) if error.errno else type(error).__name__)
    return str(error)
