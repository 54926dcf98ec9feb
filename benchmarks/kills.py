"""The flow, a stage and Prefect's temporary server killed with SIGKILL at random moments: what is left behind?

    python -m benchmarks.kills [--kills 20] --out benchmarks/results/kills.json

A scratch checkout with three stages that each hold an MLflow run open for a second stands in for the chain; the flow,
its server, DVC, the locks and the notes are the real ones. After every kill the next run is let through to its end;
then no flow run, no task run and no MLflow run may still be open, and no process of the killed run may be alive.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import yaml

from benchmarks.report import Bar, write_as
from prm_core import config as configuration
from prm_core.platform import environment, store

ROOT = Path(__file__).parents[1]
STAGES = ("first", "second", "third")
# target → what its command line says; the flow is the process started here.
TARGETS = {"flow": "", "stage": "--as-stage", "server": "flows.server"}
# A killed server is noticed when the flow next talks to it, after Prefect's retries.
END_SECONDS = 180
SIZES = {"warmup": 12, "train": 12, "dev": 4, "test": 4, "human_chains": 3}


def make_checkout(folder: Path) -> None:
    """params.yaml, a DVC repository without git, and a graph that depends on turn.txt."""
    raw = configuration.read_yaml(ROOT / configuration.PARAMS_FILE)
    store.write_text(folder / configuration.PARAMS_FILE, yaml.safe_dump({**raw, "data": SIZES}, sort_keys=False))
    stages, before = {}, "turn.txt"
    for name in STAGES:
        out = f"artifacts/{name}/out.txt"
        stages[name] = {"cmd": f"{sys.executable} -m benchmarks.kills --as-stage {name}", "deps": [before],
                        "outs": [out]}
        before = out
    store.write_text(folder / "dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
    store.write_text(folder / "turn.txt", "0")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)


def be_stage(name: str) -> None:
    """A stage of the scratch checkout, in its folder."""
    from prm_core.platform import tracking

    here = Path.cwd()
    with tracking.stage_run(here, name, configuration.load(here)):
        time.sleep(1)
        store.write_text(here / f"artifacts/{name}/out.txt", (here / "turn.txt").read_text() + name)


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


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """A run of the flow, in a process of its own."""
    given = {**os.environ, "PREFECT_HOME": str(folder / ".prefect"), "PYTHONPATH": str(ROOT)}
    given.pop("PREFECT_API_URL", None)
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "benchmarks.kills", "--as-flow", str(folder)], cwd=folder,
                                env=given, stdout=out, stderr=out)


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


def kill(run: subprocess.Popen[bytes], target: str, moment: float) -> dict[int, str]:
    """Kills a target at a moment, or as soon as it is there; returns the run's processes of that instant."""
    time.sleep(moment)
    while run.poll() is None:
        alive = descendants(run.pid)
        hit = [pid for pid, line in alive.items() if pid == run.pid or (target != "flow" and TARGETS[target] in line)]
        hit = [run.pid] if target == "flow" else [pid for pid in hit if pid != run.pid]
        if hit:
            # The innermost: a shell or DVC may carry the same words.
            os.kill(max(hit), signal.SIGKILL)
            return alive
        time.sleep(0.02)
    return {}


def left_open(folder: Path) -> dict[str, int]:
    """How many runs are open in Prefect's and in MLflow's database."""
    counts = {}
    for name, file, query in (
        ("flow runs", ".prefect/prefect.db", "select count(*) from flow_run where state_type in {}"),
        ("task runs", ".prefect/prefect.db", "select count(*) from task_run where state_type in {}"),
        ("MLflow runs", "mlflow.db", "select count(*) from runs where status in {}"),
    ):
        states = "('RUNNING', 'PENDING', 'PAUSED', 'CANCELLING', 'SCHEDULED')"
        with closing(sqlite3.connect(f"file:{folder / file}?mode=ro", uri=True)) as database:
            counts[name] = database.execute(query.format(states)).fetchone()[0]
    return counts


def main() -> None:
    """Kills and counts, and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--as-stage", help=argparse.SUPPRESS)
    parser.add_argument("--as-flow", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_stage:
        return be_stage(given.as_stage)
    if given.as_flow:
        return be_flow(given.as_flow)
    if given.out is None:
        parser.error("--out FILE is needed")
    choose, tries = random.Random(given.seed), []
    with tempfile.TemporaryDirectory(prefix="prm-kills-") as scratch:
        folder, log = Path(scratch), Path(scratch) / "runs.log"
        make_checkout(folder)
        began = time.monotonic()
        if start(folder, log).wait():
            sys.exit(f"the first run failed:\n{log.read_text()[-3000:]}")
        usual = time.monotonic() - began
        missed = 0
        while len(tries) < given.kills:
            target = list(TARGETS)[len(tries) % len(TARGETS)]
            moment = choose.uniform(0, usual)
            store.write_text(folder / "turn.txt", str(len(tries) + missed + 1))
            run = start(folder, log)
            family = kill(run, target, moment)
            code = run.wait(END_SECONDS)
            if not family:
                # It was through, or past its last stage, before the moment came: that was no kill.
                missed += 1
                continue
            deadline = time.monotonic() + 20
            while (alive := {pid for pid, line in family.items() if descendants(pid).get(pid) == line}):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
            after = start(folder, log).wait(END_SECONDS)
            tries.append({"target": target, "moment": round(moment, 2), "exit code": code, "next exit code": after,
                          "old processes": len(alive), **left_open(folder)})
            sys.stderr.write(f"{len(tries)}: {tries[-1]}\n")
        said = log.read_text()
    bars = []
    for key in ("flow runs", "task runs", "MLflow runs", "old processes"):
        most = max(one[key] for one in tries)
        bars.append(Bar(f"{key} after the next start, at most", most, None, None, "0", most == 0))
    failed = sum(one["next exit code"] != 0 for one in tries)
    bars.append(Bar("next runs that failed", failed, None, None, "0", failed == 0))
    tracebacks = said.count("Traceback (most recent call last)")
    command = f"python -m benchmarks.kills --kills {given.kills} --seed {given.seed} --out {given.out.name}"
    write_as(command, given.out, bars, usual_seconds=round(usual, 1), missed=missed, tracebacks=tracebacks, tries=tries)
    if failed or tracebacks:
        sys.stderr.write(said[-5000:])
    return None


if __name__ == "__main__":
    main()
