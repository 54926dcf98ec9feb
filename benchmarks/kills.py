"""The flow, a stage, Prefect's server and the database killed with SIGKILL at random moments: what is left behind?

    python -m benchmarks.kills [--kills 20] [--services] [--smoke] --out benchmarks/results/kills.json

A scratch checkout with three stages that each hold an MLflow run open for a second stands in for the chain; the flow,
its server, DVC, the locks and the notes are the real ones. With --smoke it is the chain itself on the smoke profile, in
a clone of HEAD. With --services MLflow and Prefect are servers on PostgreSQL and S3 (deploy/services.py), which whoever
watches over them starts again a moment after they were killed. After every kill the next run is let through to its end;
then no flow run, no task run and no MLflow run may still be open, no process of the killed run may be alive, and the
figures must be those of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import yaml

from benchmarks.report import Bar, parsed, write
from deploy import services
from prm_core import config as configuration
from prm_core.platform import environment, store

ROOT = Path(__file__).parents[1]
STAGES = ("first", "second", "third")
# What is killed; the flow is the process started here. Of the others, what a command line of its processes says.
FLOW, DATABASE = "flow", "database"
TARGETS = {FLOW: "", "stage": "--as-stage", "server": "flows.server"}
SMOKE_TARGETS = TARGETS | {"stage": " stage "}
# A killed server is noticed when the flow next talks to it, after Prefect's retries; a killed run's place in a registry
# that is shared is free after a minute and a half (flows/limits.py).
END_SECONDS = 900
# Of one that watches over servers, until it has noticed.
NOTICE_SECONDS = 3.0
# Figures that no two runs share.
TIMES = ("latency",)
OPEN = "('RUNNING', 'PENDING', 'PAUSED', 'CANCELLING', 'SCHEDULED')"
SIZES = {"warmup": 12, "train": 12, "dev": 4, "test": 4, "human_chains": 3}


class Checkout:
    """A scratch checkout with three stages in place of the chain.

    Attributes:
        folder: its root.
        log: what its runs say.
        servers: those that its runs are recorded with; None: the ones of the checkout.
    """

    targets = TARGETS

    def __init__(self, folder: Path, servers: services.Services | None) -> None:
        self.folder, self.servers = folder, servers
        self.log = folder.with_suffix(".log")
        self.turn = 0

    def make(self) -> None:
        """params.yaml, a DVC repository without git, and a graph that depends on turn.txt."""
        raw = configuration.read_yaml(ROOT / configuration.PARAMS_FILE)
        store.write_text(self.folder / configuration.PARAMS_FILE,
                         yaml.safe_dump({**raw, "data": SIZES}, sort_keys=False))
        stages, before = {}, "turn.txt"
        for name in STAGES:
            out = f"artifacts/{name}/out.txt"
            stages[name] = {"cmd": f"{sys.executable} -m benchmarks.kills --as-stage {name} {before}", "deps": [before],
                            "outs": [out]}
            before = out
        store.write_text(self.folder / "dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
        subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=self.folder, check=True)

    def begin(self) -> None:
        """Has every stage run at the next start."""
        self.turn += 1
        store.write_text(self.folder / "turn.txt", str(self.turn))

    def command(self) -> list[str]:
        """Of a run."""
        return [sys.executable, "-m", "benchmarks.kills", "--as-flow", str(self.folder)]

    def code(self) -> Path:
        """Where its modules are."""
        return ROOT

    def start(self) -> subprocess.Popen[bytes]:
        """A run of the flow, in a process of its own."""
        given = {**os.environ, "PREFECT_HOME": str(self.folder / ".prefect"), "PYTHONPATH": str(self.code())}
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PRM_HOME"):
            given.pop(name, None)
        given |= self.servers.environment if self.servers else {}
        with self.log.open("ab") as out:
            return subprocess.Popen(self.command(), cwd=self.folder, env=given, stdout=out, stderr=out)

    def figures(self) -> object:
        """What the last run came to."""
        path = self.folder / "artifacts" / STAGES[-1] / "out.txt"
        return path.read_text() if path.exists() else None

    def expected(self) -> object:
        """What a run comes to that nothing disturbs."""
        text = str(self.turn)
        for name in STAGES:
            text = outcome(name, text)
        return text

    def left_open(self) -> dict[str, int]:
        """How many runs are open in Prefect's and in MLflow's database."""
        return {"flow runs": self._count("prefect", "flow_run", "state_type"),
                "task runs": self._count("prefect", "task_run", "state_type"),
                "MLflow runs": self._count("mlflow", "runs", "status")}

    def _count(self, database: str, table: str, column: str) -> int:
        query = f"select count(*) from {table} where cast({column} as text) in {OPEN}"
        if self.servers is not None:
            import psycopg

            with psycopg.connect(self.servers.database_url(database)) as connection:
                return connection.execute(query).fetchone()[0]
        file = {"prefect": ".prefect/prefect.db", "mlflow": "mlflow.db"}[database]
        with closing(sqlite3.connect(f"file:{self.folder / file}?mode=ro", uri=True)) as opened:
            return opened.execute(query).fetchone()[0]


class SmokeCheckout(Checkout):
    """A clone of HEAD, at the sizes of the smoke profile."""

    targets = SMOKE_TARGETS

    def make(self) -> None:
        """The clone, with nothing that has run."""
        subprocess.run(["git", "clone", "--quiet", ROOT, self.folder], check=True)
        params = self.folder / configuration.PARAMS_FILE
        store.write_text(params, yaml.safe_dump(configuration.resolve(params, "smoke"), sort_keys=False))
        (self.folder / "data.dvc").unlink()
        self._undisturbed: object = None

    def begin(self) -> None:
        """Forgets what has run, and keeps the notes of runs that were killed."""
        self._undisturbed = self._undisturbed or self.figures()
        (self.folder / "dvc.lock").unlink(missing_ok=True)
        for name in ("artifacts", ".dvc/cache", ".dvc/tmp"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for work in (self.folder / ".work").glob("*"):
            if work.is_dir() and work.name not in ("flows", "open_runs"):
                shutil.rmtree(work)

    def command(self) -> list[str]:
        """Of a run."""
        return [sys.executable, "-m", "flows.run"]

    def code(self) -> Path:
        """Where its modules are."""
        return self.folder

    def figures(self) -> object:
        """What the last run came to."""
        path = self.folder / "artifacts/evaluate/metrics.json"
        found = store.read_json(path) if path.exists() else {}
        return {name: value for name, value in found.items() if not any(word in name for word in TIMES)}

    def expected(self) -> object:
        """What the first run came to, which nothing disturbed."""
        return self._undisturbed


def outcome(stage: str, before: str) -> str:
    """What a stage that stands in for a real one makes of its input."""
    return hashlib.sha256(f"{stage} {before}".encode()).hexdigest()


def be_stage(name: str, before: str) -> None:
    """A stage of the scratch checkout, in its folder."""
    from prm_core.platform import tracking

    here = Path.cwd()
    with tracking.stage_run(here, name, configuration.load(here)):
        time.sleep(1)
        store.write_text(here / f"artifacts/{name}/out.txt", outcome(name, (here / before).read_text()))


def be_flow(folder: Path) -> None:
    """`prm run` with the scratch checkout in place of this one, and nothing to promote."""
    from flows import run, server

    environment.project_root = lambda: folder
    # Prefect is imported with the flow, and by then must know its server.
    server.start()
    from flows import pipeline

    pipeline.CHAIN = STAGES
    pipeline.promote = lambda workplace, return_state: pipeline.Completed(name="Done", message="done")
    sys.argv = ["flows.run"]
    run.main()


def descendants(pid: int) -> dict[int, str]:
    """pid → command line of a process and all it started, as far as they live."""
    parents, lines = {}, {}
    for entry in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, ValueError):
            continue
        if state != "Z":
            parents[int(entry.name)], lines[int(entry.name)] = int(parent), line
    found = {pid} & lines.keys()
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: lines[one] for one in found}


def kill(checkout: Checkout, run: subprocess.Popen[bytes], target: str, moment: float) -> dict[int, str]:
    """Kills a target at a moment, or as soon as it is there; returns the run's processes of that instant, none where
    the run was through before.

    A server of --services is started again a little later.
    """
    time.sleep(moment)
    while run.poll() is None:
        alive = descendants(run.pid)
        if checkout.servers is not None and target in ("server", DATABASE):
            service = checkout.servers.prefect if target == "server" else checkout.servers.postgres
            service.kill()
            time.sleep(NOTICE_SECONDS)
            checkout.servers.revive()
            return alive
        hit = [run.pid] if target == FLOW else [
            pid for pid, line in alive.items() if pid != run.pid and checkout.targets[target] in line]
        if hit:
            # The innermost: a shell or DVC may carry the same words.
            os.kill(max(hit), signal.SIGKILL)
            return alive
        time.sleep(0.02)
    return {}


def alive_after(family: Mapping[int, str], seconds: float = 20) -> int:
    """How many of a run's processes live on, a while after it has ended."""
    deadline = time.monotonic() + seconds
    while alive := sum(descendants(pid).get(pid) == line for pid, line in family.items()):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return alive


def attempt(checkout: Checkout, target: str, moment: float) -> dict[str, object] | None:
    """One kill and the next run; None where the run was through, or past its last stage, before the moment came."""
    checkout.begin()
    run = checkout.start()
    family = kill(checkout, run, target, moment)
    code = run.wait(END_SECONDS)
    if not family:
        return None
    alive = alive_after(family)
    after = checkout.start().wait(END_SECONDS)
    return {"target": target, "moment": round(moment, 2), "exit code": code, "next exit code": after,
            "old processes": alive, "same figures": checkout.figures() == checkout.expected(), **checkout.left_open()}


def bars_of(tries: Sequence[Mapping[str, object]]) -> list[Bar]:
    """What is asked of all kills."""
    bars = []
    for key in ("flow runs", "task runs", "MLflow runs", "old processes"):
        most = max(one[key] for one in tries)
        bars.append(Bar(f"{key} after the next start, at most", most, None, None, "0", most == 0))
    failed = sum(one["next exit code"] != 0 for one in tries)
    bars.append(Bar("next runs that failed", failed, None, None, "0", failed == 0))
    same = sum(bool(one["same figures"]) for one in tries)
    bars.append(Bar("the figures of an undisturbed run", same, None, None, str(len(tries)), same == len(tries)))
    return bars


def main() -> None:
    """Kills and counts, and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--services", action="store_true", help="MLflow and Prefect on PostgreSQL, which is killed too")
    parser.add_argument("--smoke", action="store_true", help="the chain itself, on the smoke profile")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--as-stage", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--as-flow", type=Path, help=argparse.SUPPRESS)
    given = parsed(parser)
    if given.as_stage:
        return be_stage(*given.as_stage)
    if given.as_flow:
        return be_flow(given.as_flow)
    if given.out is None:
        parser.error("--out FILE is needed")
    if given.services and (reason := services.missing()):
        parser.error(f"not installed: {reason}")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prm-kills-")))
        scratch.chmod(0o711)
        servers = stack.enter_context(services.Services(scratch / "servers")) if given.services else None
        checkout = (SmokeCheckout if given.smoke else Checkout)(scratch / "checkout", servers)
        measure(checkout, given)
    return None


def measure(checkout: Checkout, given: argparse.Namespace) -> None:
    """The undisturbed run, the kills, and the file."""
    choose, tries, missed = random.Random(given.seed), [], 0
    targets = [*checkout.targets, *([DATABASE] if checkout.servers else [])]
    checkout.make()
    checkout.begin()
    began = time.monotonic()
    if checkout.start().wait():
        sys.exit(f"the first run failed:\n{checkout.log.read_text()[-3000:]}")
    usual = time.monotonic() - began
    while len(tries) < given.kills:
        done = attempt(checkout, targets[len(tries) % len(targets)], choose.uniform(0, usual))
        if done is None:
            missed += 1
            continue
        tries.append(done)
        sys.stderr.write(f"{len(tries)}: {done}\n")
    said, bars = checkout.log.read_text(), bars_of(tries)
    tracebacks = said.count("Traceback (most recent call last)")
    write(given, bars, usual_seconds=round(usual, 1), missed=missed, tracebacks=tracebacks, tries=tries)
    if tracebacks or not all(bar.holds for bar in bars):
        sys.stderr.write(said[-5000:])


if __name__ == "__main__":
    main()
