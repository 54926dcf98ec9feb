"""Processes without their start: a fork of this one, taken before any test has run, forks itself for each command that
the tests start. Each command still is a process of its own, with the command line, folder, environment, streams and
exit code it was given; what is saved are the 5 seconds of imports that the tests have behind them.
"""

from __future__ import annotations

import json
import logging
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from prm_core.cli.app import run_command_line
from prm_core.platform import command_server

SOCKET = "PRM_TESTS_PYTHON"
CLIENT = Path(__file__).parent / "warm/client.py"


@contextmanager
def forking() -> Iterator[None]:
    """Such a fork for `run`, for CLIENT and, within `commands`, for `prm`."""
    folder = Path(tempfile.mkdtemp(prefix="prm-tests-python-"))
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        sys.stdin = os.fdopen(reader)
        command_server.MODULES = ()
        try:
            command_server.serve(str(folder / "commands"), _run)
        finally:
            os._exit(0)
    os.close(reader)
    os.environ[SOCKET] = str(folder / "commands")
    try:
        yield
    finally:
        del os.environ[SOCKET]
        # The fork ends with its standard input.
        os.close(writer)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def commands() -> Iterator[None]:
    """`prm` commands started meanwhile are forks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(command_server.SOCKET, os.environ[SOCKET])
        yield


def run(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str] = os.environ, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS…`, its output captured. Raises TimeoutError, and ends it, after so many seconds."""
    request = json.dumps({"program": command_server.PRM, "argv": ["-m", module, *arguments], "cwd": str(cwd),
                          "environment": dict(env)}).encode()
    with (
        socket.socket(socket.AF_UNIX) as connection, Path(os.devnull).open() as nothing,
        tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors,
    ):
        connection.settimeout(timeout)
        connection.connect(os.environ[SOCKET])
        length = command_server._LENGTH
        socket.send_fds(connection, [length.pack(len(request))], [nothing.fileno(), out.fileno(), errors.fileno()])
        connection.sendall(request)
        answer = connection.recv(length.size)
        out.seek(0)
        errors.seek(0)
        code = length.unpack(answer)[0] if answer else command_server.KILLED
        return subprocess.CompletedProcess(["-m", module, *arguments], code, out.read(), errors.read())


def signal_listener(port: int, number: int) -> None:
    """Sends a signal to whatever listens on a port: the command that was started only waits for its fork."""
    for one in psutil.net_connections("tcp4"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid:
            os.kill(one.pid, number)


def _run() -> None:
    """In the process of a command: as after a start of Python."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    root = logging.getLogger()
    root.handlers.clear()
    root.setLevel(logging.WARNING)
    if sys.argv[0] != "-m":
        run_command_line()
        return
    module = sys.argv[1]
    del sys.argv[0]
    sys.path.insert(0, os.getcwd())
    runpy.run_module(module, run_name="__main__", alter_sys=True)
