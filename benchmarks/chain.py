"""The bars of the whole chain: time, memory, and the quality of what comes out.

    python -m benchmarks.chain --out benchmarks/results/chain.json      smoke and default profile
    python -m benchmarks.chain --quick --out FILE                       the smoke profile alone: times

Every timed run happens in a fresh clone of this checkout's HEAD, with no cache, database or data of its own yet; only
the installed packages are shared. The user's own results stay where they are.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.platform import environment, store

SECONDS = {"run": 600, "again": 30, "smoke": 90}
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Timed:
    """A finished command: wall seconds, peak memory of its process tree in bytes, exit code, output."""

    seconds: float
    peak: int
    code: int
    output: str


def timed(command: list[str], folder: Path) -> Timed:
    """Runs a command and samples the memory its process tree holds (proportional set size, once a second)."""
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(1.0):
            total = 0
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in family:
                try:
                    total += member.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    output, _ = process.communicate()
    stop.set()
    return Timed(time.monotonic() - start, peak, process.returncode, output)


def clone(root: Path, folder: Path) -> Path:
    """A fresh clone whose code, not this checkout's, is what its commands import."""
    subprocess.run(["git", "clone", "-q", str(root), str(folder)], check=True)
    for name in ("PRM_HOME", "PREFECT_HOME"):
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = str(folder)
    return folder


def prm_run(folder: Path, profile: str) -> Timed:
    """`prm run` in a clone; ends the benchmark when it fails."""
    result = timed([sys.executable, "-m", "prm_core.cli", "run", "--profile", profile], folder)
    if result.code:
        sys.exit(f"prm run --profile {profile} ended with {result.code}:\n{result.output[-3000:]}")
    return result


def stages_up_to_date(output: str) -> int:
    """Stages that the flow's summary reports as up to date."""
    return sum("up to date" in line for line in output.splitlines() if "│" in line)


def quality_bars(metrics: dict[str, float], best_of: list[int]) -> list[Bar]:
    """The bars on what the chain produced, all measured on held-out problems."""

    def figure(key: str) -> tuple[float, float, float]:
        return tuple(100 * metrics[f"test/{key}{end}"] for end in ("", "_low", "_high"))

    f1, majority, orm = figure("prm/first_error_f1"), figure("prm_minus_majority/accuracy_at_8"), figure(
        "prm_minus_orm/accuracy_at_8")
    gain = figure("trained_minus_base/pass_at_1")
    curve = [100 * metrics[f"test/prm_best_of_n/accuracy_at_{n}"] for n in best_of]
    smallest = min(after - before for before, after in itertools.pairwise(curve))
    wrong = figure("policy_base/wrong_step_right_answer")
    base = figure("policy_base/pass_at_1")
    return [
        Bar("PRM first-error F1", *f1, ">= 88", f1[0] >= 88),
        Bar("best-of-8: PRM - majority, points", *majority, ">= 5", majority[0] >= 5),
        Bar("best-of-8: PRM - ORM, points", *orm, ">= 0", orm[0] >= 0),
        Bar("best-of-N: smallest step as N doubles, points", smallest, None, None, ">= 0", smallest >= 0),
        Bar("policy pass@1: trained - base, points", *gain, ">= 5, interval above 0", gain[0] >= 5 and gain[1] > 0),
        Bar("base policy pass@1, %", *base, "35 to 65", 35 <= base[0] <= 65),
        Bar("right answers with a wrong step, %", *wrong, ">= 3", wrong[0] >= 3),
    ]


def again_bars(folder: Path, workspace: Path, profile: str, repeats: int) -> list[Bar]:
    """The same run with nothing changed, and what DVC says of the workspace."""
    runs = [prm_run(folder, profile) for _ in range(repeats)]
    seconds = [run.seconds for run in runs]
    status = timed(["dvc", "status"], workspace).output
    repro = timed(["dvc", "repro"], workspace).output
    up_to_date = min(stages_up_to_date(run.output) for run in runs)
    return [
        Bar(f"{profile} again, nothing changed, seconds", statistics.median(seconds), min(seconds), max(seconds),
            "<= 30", statistics.median(seconds) <= SECONDS["again"]),
        Bar(f"{profile}: stages reported up to date", up_to_date, None, None, "11", up_to_date == 11),
        Bar(f"{profile}: dvc status clean", float("up to date" in status), None, None, "1", "up to date" in status),
        Bar(f"{profile}: stages dvc repro runs", repro.count("Running stage"), None, None, "0",
            "Running stage" not in repro),
    ]


def main() -> None:
    """Measures, writes and prints the bars."""
    given = arguments("chain")
    root = environment.project_root()
    bars: list[Bar] = []
    more: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        smokes = []
        for number in range(1 if given.quick else given.repeats):
            folder = clone(root, Path(name) / f"smoke-{number}")
            smokes.append(prm_run(folder, "smoke").seconds)
        median = statistics.median(smokes)
        bars.append(Bar("smoke from nothing, seconds", median, min(smokes), max(smokes), "<= 90",
                        median <= SECONDS["smoke"]))
        if given.quick:
            bars += again_bars(folder, folder / "runs" / "smoke", "smoke", given.repeats)
        else:
            folder = clone(root, Path(name) / "default")
            first = prm_run(folder, "default")
            bars += [
                Bar("default from nothing, seconds", first.seconds, None, None, "<= 600",
                    first.seconds <= SECONDS["run"]),
                Bar("default: peak memory, GiB", first.peak / GIB, None, None, "< 6", first.peak < 6 * GIB),
                *again_bars(folder, folder, "default", given.repeats),
            ]
            metrics = store.read_json(folder / "artifacts/evaluate/metrics.json")
            warmup = store.read_json(folder / "artifacts/warmup/metrics.json")
            backbone = 100 * warmup["dev/backbone/pass_at_1"]
            bars += [*quality_bars(metrics, configuration.load(folder).evaluate.best_of),
                     Bar("backbone pass@1, dev, %", backbone, None, None, ">= 95", backbone >= 95)]
            more["summary"] = [line for line in first.output.splitlines() if "│" in line]
            more["metrics"] = metrics
    write(given, bars, **more)


if __name__ == "__main__":
    main()
