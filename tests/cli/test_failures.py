"""prm_core/cli/failures.py: what the system and the libraries say, as one line that names the file and a way out."""

from __future__ import annotations

import errno
import socket
import sqlite3

import pytest

from prm_core.cli import failures
from prm_core.errors import GateError, InputError
from prm_core.platform import store
from prm_core.types import Problem


def wrapped(inner: Exception) -> Exception:
    """As libraries do."""
    try:
        try:
            raise inner
        except Exception as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(("error", "code", "begin", "has"), [
    (InputError("bad"), 2, "error: bad", ""),
    (GateError("worse"), 1, "stopped: worse", ""),
    (KeyboardInterrupt(), 130, "interrupted", ""),
    (OSError(errno.ENOSPC, "No space left on device", "out.json"), 2, "error: out.json: the disk is full", "Make room"),
    (wrapped(OSError(errno.EDQUOT, "Disk quota exceeded", "x")), 2, "error: x: the disk is full", ""),
    (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "error: below ", "the disk is full"),
    (wrapped(sqlite3.OperationalError("database or disk is full")), 2, "error: below ", "the disk is full"),
    (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: no permission", "ls -ld"),
    (OSError(errno.EROFS, "Read-only file system", "a/b"), 2, "error: a/b: the file system is read-only", ""),
    (wrapped(sqlite3.OperationalError("attempt to write a readonly database")), 2, "error: below ", "readonly"),
    (wrapped(sqlite3.DatabaseError("database disk image is malformed")), 2, "error: below ", "the database is broken"),
])
def test_what_a_user_can_mend_is_one_line(error, code, begin, has, capsys):
    with pytest.raises(SystemExit) as ended, failures.told():
        raise error
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n"), said.startswith(begin), has in said) == (code, 1, True, True), said


@pytest.mark.parametrize("error", [KeyError("x"), FileExistsError(errno.EEXIST, "exists", "x"), RuntimeError("bug")])
def test_a_fault_of_ours_stays_a_traceback(error):
    with pytest.raises(type(error)), failures.told():
        raise error


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_that_is_none(port):
    with pytest.raises(InputError, match=f"--port {port}: a port is a number from 1 to 65535"):
        failures.check_port("127.0.0.1", port)


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port} "):
            failures.check_port("127.0.0.1", port)


def test_of_a_file_that_the_disk_has_no_room_for_nothing_stays(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")

    def write() -> None:
        with store.whole(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as failed:
        write()
    assert failed.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]
    assert path.read_text() == "old"


def test_a_broken_shard_is_named(tmp_path):
    store.write_shard(tmp_path, 0, Problem, [Problem("p", "d", "q", "1")])
    path = store.shard_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"part-00000\.parquet: no readable Parquet file"):
        store.read_shards(Problem, tmp_path)
