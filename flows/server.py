"""Prefect's server: a temporary one that ends with the run it is for, and the one of `make ui`.

Both answer only requests that name them: Prefect itself takes any Host header and lets any page's script read its
answers, so that a page on the web could act through the browser of whoever has the server open.

    python -m flows.server [--host HOST] [--port PORT]
    python -m flows.server --prepare        set-up: what a new database begins with, see `prepare`

Prefect is imported in the server's own process alone.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from prm_core.cli import failures
from prm_core.errors import InputError
from prm_core.platform import guard

API_URL = "PREFECT_API_URL"
KEY = "PREFECT_SERVER_API_AUTH_STRING"
START_SECONDS = 120
DATABASE_URL = "PREFECT_API_DATABASE_CONNECTION_URL"
RESTARTS = 3
_TEMPORARY = "--temporary"
DATABASE = "prefect.db"


def start() -> None:
    """Has PREFECT_API_URL name a server: the user's own, or a temporary one that ends when this process does.

    The server is there on return; it starts up while this process imports Prefect. Raises InputError with what it said
    where it does not start.
    """
    if os.environ.get(API_URL):
        return
    if not os.environ.get(DATABASE_URL):
        check_database(_home() / DATABASE)
    running = _Temporary()
    # Registered before Prefect registers what it still has to send, and so called after that.
    atexit.register(running.stop)
    os.environ[API_URL] = f"http://127.0.0.1:{running.port}/api"
    importlib.import_module("prefect")
    _wait_until_it_answers(running.process, running.said)
    threading.Thread(target=running.keep, daemon=True).start()


class _Temporary:
    """The temporary server's process. One that is killed is replaced on the same port: Prefect's client tries again for
    a minute, so that the run goes on."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._stopping = threading.Event()
        self.port = 0
        self._spawn()

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "flows.server", _TEMPORARY, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)
        self.port = int(self.process.stdout.readline().strip() or self.port)
        threading.Thread(target=self.said.extend, args=(self.process.stderr,), daemon=True).start()

    def keep(self) -> None:
        """Starts it again when it ends before its time, a few times."""
        for _ in range(RESTARTS):
            self.process.wait()
            if self._stopping.is_set():
                return
            self._spawn()

    def stop(self) -> None:
        self._stopping.set()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _wait_until_it_answers(process: subprocess.Popen[str], said: list[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{os.environ[API_URL]}/health", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            time.sleep(0.2)
            why = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")
            home = os.environ.get("PREFECT_HOME", "")
            raise InputError(f"Prefect's server does not start ({why}); " + (
                f"{DATABASE_URL} names its database: start that, or correct it" if os.environ.get(DATABASE_URL) else
                f"its database is in {home}: mend it, or move that folder away and a new one is made (past runs are "
                "then no longer shown)"))
        time.sleep(0.1)


def check_database(path: Path) -> None:
    """Raises InputError for a file that SQLite would not take for a database; Prefect's own error is a page long."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise InputError(f"{path}: is no SQLite database, or a broken one; bring back a copy of it, or move it "
                                 "away and a new one is made (past runs are then no longer shown)")


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME", ".prefect"))


def _template() -> Path:
    """A database as the migrations of the installed Prefect leave it, in this Python's environment."""
    return Path(sys.prefix, "share", "prm", f"prefect-{metadata.version('prefect')}.db")


def prepare() -> None:
    """Has Prefect migrate an empty database, for every new one to begin with: its hundred migrations take 4 seconds."""
    template = _template()
    template.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=template.parent) as folder:
        # Not the one that the user's environment may name.
        others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        subprocess.run([sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"], check=True,
                       env={**others, "PREFECT_HOME": folder}, stdout=subprocess.DEVNULL)
        with (closing(sqlite3.connect(Path(folder, DATABASE))) as made,
              closing(sqlite3.connect(Path(folder, "whole"))) as whole):
            # With what is still in its log.
            made.backup(whole)
        os.replace(Path(folder, "whole"), template)


def begin_database(home: Path) -> None:
    """Puts the prepared database where there is none yet; without one, Prefect makes its own, as it does elsewhere
    (PREFECT_API_DATABASE_CONNECTION_URL)."""
    if os.environ.get(DATABASE_URL) or (home / DATABASE).exists() or not _template().is_file():
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as folder:
        copy = Path(shutil.copy(_template(), folder))
        # Another server's that has started meanwhile stays.
        with suppress(FileExistsError):
            os.link(copy, home / DATABASE)


def address() -> str:
    """Of the server this process talks to."""
    return os.environ.get(API_URL, "")


def is_unreachable(error: BaseException) -> bool:
    """Whether an error, or what it came of, says that the server does not answer."""
    import httpx

    return any(isinstance(one, httpx.TransportError) for one in failures.chain(error))


def check_open_to(host: str) -> None:
    """Raises InputError where others can reach an address and no key is set."""
    if not guard.is_loopback(host) and not os.environ.get(KEY):
        raise InputError(f"--host {host}: anyone who reaches it could run flows here; set {KEY}=USER:PASSWORD (and "
                         "PREFECT_API_AUTH_STRING for those who use it), or stay on 127.0.0.1")


def serve(listener: socket.socket, host: str, *, temporary: bool) -> None:
    """Runs the server on a bound socket until it is stopped."""
    begin_database(_home())
    port = listener.getsockname()[1]
    origins = ",".join(f"http://{name}:{port}" for name in guard.own_names(host))
    # Who holds a place under a limit must outlive this process, or the place stays taken for ever.
    os.environ.setdefault("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
                          "prefect.server.concurrency.lease_storage.filesystem")
    # Flow runs as old as their server keeps events go as well.
    os.environ.setdefault("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED", "events,flow_runs")
    # Prefect reads its settings when it is imported. The page asks the API at this address, whatever the port.
    os.environ.setdefault("PREFECT_UI_API_URL", f"http://{host}:{port}/api")
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", origins)
    if temporary:
        os.environ.update({"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"})
    import uvicorn
    from prefect.server.api.server import create_app

    # Around it, not in it: its automations ask the application itself, under another name.
    app = guard.OnlyOwn(create_app(), host=host, port=port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=3))
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


def _end_with_stdin() -> None:
    """Ends this process when the one that started it has ended."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    os._exit(1)


def main() -> None:
    """The command line; see the module's first lines."""
    parser = argparse.ArgumentParser(prog="python -m flows.server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument(_TEMPORARY, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help="make what a new database begins with, and end")
    given = parser.parse_args()
    with failures.told():
        if given.prepare:
            prepare()
            return
        if given.temporary:
            listener = socket.create_server(("127.0.0.1", given.port))
            # Not the run's Ctrl-C: the run ends first, and says so to this server.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            sys.stdout.write(f"{listener.getsockname()[1]}\n")
            sys.stdout.flush()
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        else:
            check_open_to(given.host)
            listener = failures.listen(given.host, given.port)
        serve(listener, given.host, temporary=given.temporary)


if __name__ == "__main__":
    main()
