"""The GPU pack: scoring step by step, sampling, policy updates and reward-model training, beside what people use.

    python -m benchmarks.gpu --out FOLDER [--minutes 9] [--parts scoring sampling …] [--mini] [--device cuda]

Needs torch, transformers, accelerate and peft; no Prefect, MLflow or DVC. Peers are TRL 1.13 and 1.16, looked for in
--peers FOLDER as `trl-1.13.0` and `trl-1.16.0` (unpacked wheels), with what they need in its other folders or on the
path; without them their figures are left out with the reason. Every part has its share of the time, writes its result
as it comes (FOLDER/PART.json) and fails alone. With --mini the same code runs on tiny shapes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.gpu import measure, parts

ROOT = Path(__file__).resolve().parents[2]
# Beyond its share a part gets this long to end by itself, in seconds.
GRACE = 20.0


def main() -> int:
    """All parts, or with --one a single one in this process. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=tuple(parts.PARTS), default=list(parts.PARTS))
    parser.add_argument("--mini", action="store_true", help="tiny shapes, on a CPU: the test of this program")
    parser.add_argument("--device", default=None, help="cuda, or with --mini cpu")
    parser.add_argument("--peers", type=Path, help="folder with unpacked wheels of the peers")
    parser.add_argument("--one", choices=tuple(parts.PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.device = given.device or ("cpu" if given.mini else "cuda")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        return one(given)
    begin, left = time.monotonic(), {name: parts.PARTS[name].share for name in given.parts}
    for name in given.parts:
        # What earlier parts left over is shared out among those to come.
        seconds = (60 * given.minutes - (time.monotonic() - begin)) * left[name] / sum(left.values())
        del left[name]
        measure.say(f"{name}: {seconds:.0f} s")
        run(given, name, seconds)
    summary = [json.loads((given.out / f"{name}.json").read_text()) for name in given.parts]
    for part in summary:
        for figure in part["figures"]:
            measure.say(measure.told(part["part"], figure))
    failed = [part["part"] for part in summary if part["error"]]
    measure.say(f"done; failed: {', '.join(failed) or 'none'}")
    return 0


def run(given: argparse.Namespace, name: str, seconds: float) -> None:
    """A part in a process of its own, ended when its time is over."""
    words = [sys.executable, "-u", "-m", "benchmarks.gpu", "--out", str(given.out), "--one", name, "--device",
             given.device, "--minutes", str(seconds / 60)]
    words += ["--mini"] if given.mini else []
    words += ["--peers", str(given.peers)] if given.peers else []
    environment = os.environ | {
        "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    (given.out / f"{name}.json").unlink(missing_ok=True)
    try:
        code = subprocess.run(words, cwd=ROOT, env=environment, timeout=seconds + GRACE, check=False).returncode
        reason = f"the process ended with {code}"
    except subprocess.TimeoutExpired:
        code, reason = 1, f"ended after {seconds + GRACE:.0f} s"
    if code:
        result = measure.Result.open(given.out, name, given.device)
        result.error = result.error or reason
        result.write()
        measure.say(f"{name}: {result.error.strip().splitlines()[-1]}")


def one(given: argparse.Namespace) -> int:
    """A part in this process; an error becomes its result."""
    result = measure.Result(given.out, given.one, given.device)
    result.write()
    budget = measure.Budget(60 * given.minutes)
    try:
        parts.PARTS[given.one].work(measure.Job(result, budget, given.device, given.mini, given.peers))
    except Exception:
        result.error = traceback.format_exc()
        sys.stderr.write(result.error)
    result.seconds = budget.spent()
    result.write()
    return 1 if result.error else 0


if __name__ == "__main__":
    raise SystemExit(main())
