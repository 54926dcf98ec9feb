"""A Ray cluster of this machine, for tests and measurements: started on a free port, ended with all its processes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from deploy.services import HOST, free_ports

# How Ray names the processes of the runner's workers (prm_core/platform/shards/cluster.py).
WORKER = "ray::Worker"
# Looks at whether it has started, each of a second and more.
TRIES = 60
# On a busy machine a node gives up when its own agent takes 15 seconds to start.
STARTS = 4


class RayCluster:
    """A running one.

    Attributes:
        address: for `workers.address`.
        environment: of a process that may join it: the cluster asks for a token.
    """

    def __init__(self, address: str, environment: Mapping[str, str], head: psutil.Process) -> None:
        self.address, self.environment, self._head = address, environment, head

    def workers(self) -> list[psutil.Process]:
        """The processes that work on shards, or wait for some."""
        found = []
        for process in self._head.children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                    found.append(process)
        return found


@contextmanager
def started(cores: int, **environment: str) -> Iterator[RayCluster]:
    """A cluster with room for so many workers; `environment` is that of its processes, over this one's.

    Raises RuntimeError with what Ray said when it does not start.
    """
    # Of its own, whatever token lies in the user's home: without a mode Ray takes that for the cluster alone.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            [port] = free_ports(1)
            address = f"{HOST}:{port}"
            process, said = stack.enter_context(_head(port, cores, {**os.environ, **token, **environment}))
            if _ready(process, address, {**os.environ, **token}):
                break
            if not left:
                said.seek(0)
                raise RuntimeError(f"Ray did not start:\n{said.read()[-4000:]}")
        yield RayCluster(address, token, psutil.Process(process.pid))


@contextmanager
def _head(
    port: int, cores: int, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", f"--num-cpus={cores}",
               "--include-dashboard=false", f"--object-store-memory={200 * 2**20}", "--block"]
    with tempfile.TemporaryFile(mode="w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        try:
            yield process, said
        finally:
            with suppress(psutil.NoSuchProcess):
                for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                    one.kill()
            process.wait()


def _ready(process: subprocess.Popen[bytes], address: str, environment: Mapping[str, str]) -> bool:
    """Waits until a node of the cluster is at work; False when it ends before."""
    status = [str(Path(sys.executable).with_name("ray")), "status", f"--address={address}"]
    for _ in range(TRIES):
        if process.poll() is not None:
            return False
        if " node_" in subprocess.run(status, env=environment, capture_output=True, text=True, check=False).stdout:
            return True
        time.sleep(0.5)
    return False
