"""A process that imports the heavy libraries once and forks itself for each `prm` and `dvc` command of a flow.

A stage's process spends 3 to 7 seconds importing torch, transformers and MLflow, and DVC's half a second; eleven
stages, a minute. While Prefect starts, the server imports them on the other core; a command then hands it its
arguments, folder, environment and standard streams and passes on its exit code. Each command still has a process of its
own, whose memory goes with it. Without a server (`dvc repro` by hand) a command runs where it is. python -P
prm_core/platform/command_server.py ARGUMENTS… `dvc ARGUMENTS…`, in the server where there is one Only the standard
library is imported here: a program that runs this file and nothing else starts in no time.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Where the server listens, for the processes of a flow.
SOCKET = "PRM_COMMAND_SERVER"
PRM, DVC = "prm", "dvc"
# Begins a command line of DVC.
DVC_COMMAND = (sys.executable, "-P", __file__)
DVC_MODULES = ("dvc.cli.parser", "dvc.repo", "dvc.repo.index", "dvc.repo.open_repo", "dvc.repo.brancher", "dvc.dvcfile",
               "dvc.stage.loader", "dvc.parsing", "dvc.cachemgr", "dvc.analytics", "dvc.compare", "dvc_data.index",
               "dvc_data.index.checkout", "dvc_data.index.fetch", "dvc_data.index.collect",
               "dvc_data.hashfile.db.local",
               # Imported where they are used: half of the time of each command, most of it networkx.
               "networkx", "dvc.lock", "dvc.repo.datasets", "dvc.repo.plots", "dvc.stage.run", "dvc.stage.cache",
               "ruamel.yaml", "rich.console", "rich.json", "rich.status")
# In the order the flow wants them. A command that comes earlier imports what is missing itself.
MODULES = (
    *DVC_MODULES,
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    # What checking a configuration looks names up in, then what most stages use.
    "prm_core.config",
    "prm_core.domains",
    "prm_core.labeling.strategies",
    "prm_core.labeling.merging",
    "prm_core.training.policy.advantages",
    "prm_core.search",
    "prm_core.stages.base",
    "prm_core.sampling.sampler",
    "prm_core.sampling.rollouts",
    "prm_core.scoring.scorer",
    "accelerate",
    "transformers.optimization",
    "pyarrow.parquet",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "alembic.command",
    "scipy.stats",
    "sklearn.isotonic",
    # Of great_expectations, one by one: meanwhile commands wait.
    "pandas",
    "altair",
    "great_expectations",
    "mlflow.pyfunc.model",
    "matplotlib.figure",
    "prm_core.evaluation.report",
    "prm_core.serving.model_registry",
)
START = ("import sys; from prm_core.cli.app import run_command_line; from prm_core.platform import command_server; "
         "command_server.serve(sys.argv[1], run_command_line)")
_LENGTH = struct.Struct("!I")
# What a shell reports of a process that signal 9 ended; the flow tries such a stage again.
KILLED = 128 + signal.SIGKILL


@contextmanager
def started() -> Iterator[None]:
    """A server for the commands this process starts, as long as the block lasts; an outer block serves inner ones."""
    if SOCKET in os.environ:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="prm-"))
    path = folder / "commands"
    # The server ends when this end of the pipe closes, even if this process is killed.
    process = subprocess.Popen([sys.executable, "-c", START, str(path)], stdin=subprocess.PIPE)
    os.environ[SOCKET] = str(path)
    try:
        yield
    finally:
        del os.environ[SOCKET]
        process.stdin.close()
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def forward(program: str = PRM) -> int | None:
    """Has the server run this process's command line; returns the exit code, None when no server answers.

    Args:
        program: PRM or DVC, whose arguments the command line holds.
    """
    path = os.environ.get(SOCKET)
    if not path:
        return None
    # The socket's name too: what the command runs, as DVC a stage and a stage its processes, is forwarded in its turn.
    asked = {"program": program, "argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ)}
    request = json.dumps(asked).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return None
        socket.send_fds(connection, [_LENGTH.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        answer = connection.recv(_LENGTH.size)
    return _LENGTH.unpack(answer)[0] if len(answer) == _LENGTH.size else KILLED


def serve(path: str, run: Callable[[], None]) -> None:
    """Imports, then forks for each command, until standard input ends.

    Args:
        path: the socket's path.
        run: runs the `prm` command line in `sys.argv`.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting = list(MODULES)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(path)
        listener.listen()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select(timeout=0 if waiting else None)}
            if sys.stdin in ready:
                return
            if listener not in ready:
                # A library that does not import is the business of the command that needs it.
                try:
                    importlib.import_module(waiting.pop(0))
                except Exception:
                    traceback.print_exc()
                continue
            connection, _ = listener.accept()
            # What is imported is there to stay: a command's collector would go through a million objects again and
            # again, and by touching them copy them.
            gc.freeze()
            if os.fork() == 0:
                selector.close()
                listener.close()
                _run_command(connection, run)
            connection.close()


def _run_command(connection: socket.socket, run: Callable[[], None]) -> None:
    """In the forked child: takes the command's place, runs it, answers with the exit code. Does not return, and leaves
    no process behind."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    head, streams, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    body = b""
    while len(body) < _LENGTH.unpack(head)[0]:
        body += connection.recv(65536)
    request = json.loads(body)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    # Its lines come in turn with those of the processes that it starts.
    sys.stdout.reconfigure(line_buffering=True)
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    code = 0
    try:
        if request["program"] == DVC:
            run = run_dvc
        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(_LENGTH.pack(code))
    os.killpg(0, signal.SIGKILL)


def run_dvc() -> None:
    """Runs the `dvc` command line in `sys.argv`; ends the process with its exit code."""
    from dvc.cli import main

    sys.exit(main(sys.argv[1:]))


def _die_with(connection: socket.socket) -> None:
    """Ends this process, and those it started, when the one whose command it runs is gone."""
    if not connection.recv(1):
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    answer = forward(DVC)
    if answer is None:
        os.execv(sys.executable, [sys.executable, "-m", "dvc", *sys.argv[1:]])
    sys.exit(answer)
