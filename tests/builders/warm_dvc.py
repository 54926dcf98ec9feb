"""DVC without its start: one process imports it and forks itself for each `python -m dvc`, as the command server does
for `prm`. Each call still is a process of its own, with the command line, folder, environment, streams and exit code it
was given; what is saved is a second of imports, a hundred times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOCKET = "PRM_TESTS_DVC"
# Its package `dvc` is found before the real one by any Python that has it on PYTHONPATH.
CLIENT = Path(__file__).parent / "warm"


@contextmanager
def started() -> Iterator[None]:
    """Such a process for every `python -m dvc` that this one and its children start meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="prm-tests-dvc-"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen([sys.executable, "-u", "-m", __name__, str(folder / "commands")], env=environment,
                               cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(CLIENT), before)))
    os.environ[SOCKET] = str(folder / "commands")
    try:
        yield
    finally:
        del os.environ[SOCKET], os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
        process.stdin.close()
        process.wait()
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    import importlib

    from prm_core.platform import command_server

    for module in command_server.DVC_MODULES:
        importlib.import_module(module)
    command_server.MODULES = ()
    print("ready", flush=True)  # noqa: T201
    command_server.serve(sys.argv[1], command_server.run_dvc)
