"""Errors as one line and an exit code, for every command: ours, those of the system, and a library's about a database.

What nobody can do something about stays a traceback.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prm_core.errors import GateError, InputError
from prm_core.platform.workers import WorkerDied

BAD_INPUT, SAID_NO, INTERRUPTED = 2, 1, 130
_FULL = re.compile(r"no space left on device|disk is full|disk quota exceeded|os error 28\b", re.IGNORECASE)
_READ_ONLY = re.compile(r"read-only file system|readonly database|os error 30\b", re.IGNORECASE)
_BROKEN = re.compile(r"file is not a database|database disk image is malformed|file is encrypted", re.IGNORECASE)
_FULL_CODES = {errno.ENOSPC, errno.EDQUOT}
_CODES = {errno.EROFS: "the file system is read-only", errno.EACCES: "no permission", errno.EPERM: "no permission"}


@contextmanager
def told() -> Iterator[None]:
    """Ends the process with one line and its exit code when the block fails in a way that a user can mend: 2 for bad
    input, a full disk, a missing permission or a broken database, 1 for a gate that said no and for a worker that was
    killed, 130 for Ctrl-C."""
    try:
        yield
    except InputError as error:
        end(f"error: {error}", BAD_INPUT)
    except GateError as error:
        end(f"stopped: {error}", SAID_NO)
    except WorkerDied as error:
        end(f"error: {error}", SAID_NO)
    except KeyboardInterrupt:
        end("interrupted: what was finished is kept, and the same command goes on from there", INTERRUPTED)
    except Exception as error:
        reason = system_reason(error)
        if reason is None:
            raise
        end(f"error: {reason}", BAD_INPUT)


def end(line: str, code: int) -> None:
    """Says a line on stderr and ends the process."""
    sys.stdout.flush()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    sys.exit(code)


def system_reason(error: BaseException) -> str | None:
    """What keeps the system from going on, with the way out; None where an error is of another kind.

    Libraries wrap such errors in their own and tell of them in words alone.
    """
    causes = list(chain(error))
    file = next((str(one.filename) for one in causes if isinstance(one, OSError) and one.filename), None)
    # Unwritten buffers name no file.
    place = file or f"below {os.getcwd()}"
    codes = {one.errno for one in causes if isinstance(one, OSError)}
    said = " ".join(str(one) for one in causes)
    if codes & _FULL_CODES or _FULL.search(said):
        return (f"{place}: the disk is full; nothing half-written is left where a result belongs. Make room (old "
                "folders below runs/, `dvc gc -w`), then run the same command again: it goes on from what is finished")
    if _BROKEN.search(said):
        database = re.search(r"sqlite:///(\S+?\.db)", said)
        return (f"{database[1] if database else place}: the database is broken ({_BROKEN.search(said)[0]}); bring back "
                "a copy of it, or move it away and a new one is made")
    for code, reason in _CODES.items():
        if code in codes and file is not None:
            return f"{file}: {reason}; write where you may, or have it allowed (`ls -ld` shows whose it is)"
    if found := _READ_ONLY.search(said):
        return f"{place}: {found[0].lower()}; write where you may, or have it allowed"
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of, one after the other."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address. Raises InputError where nothing can listen there."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port}: a port is a number from 1 to 65535")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As uvicorn does: a port in TIME_WAIT is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port} ({error.strerror or error}); stop what runs there or give "
                         "another --port") from None
    return listener


def check_port(host: str, port: int) -> None:
    """Raises InputError when nothing can listen there."""
    listen(host, port).close()
