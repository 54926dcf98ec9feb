"""What both sides of the reward-model benchmark measure alike: time and memory of updates, held-out step figures.

A side runs in a process of its own, by its own Python, as `python -m benchmarks.MODULE JOB RESULT`. This module is
imported on both sides, so it imports nothing that the peer's environment may lack.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "trl")
PROBABILITY_FLOOR = 1e-7
ERROR_LINES = 15


@dataclass(frozen=True, slots=True)
class Update:
    """One optimiser update: positions computed (padding among them), real tokens among these, chain tokens they
    stand for (more where chains share steps, or end in steps nobody labelled), and chains."""

    positions: int
    tokens: int
    chain_tokens: float
    chains: float


@dataclass(slots=True)
class Clock:
    """When each update ended, and what memory the process then had held at most.

    Args:
        device: `cpu` or `cuda`.
        warmup: updates that are not timed: they pay for lazy initialisation.
    """

    device: str
    warmup: int = 1
    ends: list[float] = field(default_factory=list)
    before: int = 0
    peak: int = 0

    def start(self) -> None:
        """Just before training."""
        self.before = memory(self.device)[0]

    def tick(self) -> None:
        """An update is done."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.peak = memory(self.device)[1]

    def figures(self, updates: Sequence[Update]) -> dict[str, float]:
        """Rates over the timed updates, and the memory in bytes.

        Raises ValueError when there is none to time.
        """
        timed = list(updates)[self.warmup : len(self.ends)]
        if not timed:
            raise ValueError(f"{len(self.ends)} updates and {self.warmup} of them to warm up: nothing is left to time")
        seconds = self.ends[len(self.ends) - 1] - self.ends[self.warmup - 1]
        totals = {name: sum(getattr(update, name) for update in timed) for name in Update.__slots__}
        return {
            "updates": len(timed), "seconds": seconds, "chains_per_update": totals["chains"] / len(timed),
            "positions_per_second": totals["positions"] / seconds, "tokens_per_second": totals["tokens"] / seconds,
            "chain_tokens_per_second": totals["chain_tokens"] / seconds,
            "memory_before": self.before, "memory_peak": self.peak,
        }


def memory(device: str) -> tuple[int, int]:
    """Bytes held now and at most so far: resident memory of this process, or what torch allocated on the GPU."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def step_figures(probabilities: Sequence[float], labels: Sequence[int]) -> dict[str, float]:
    """Held-out figures of labelled steps.

    Args:
        probabilities: of each step being right.
        labels: 1 right, 0 wrong.

    Returns:
        `dev_loss`: mean cross-entropy a step; `dev_f1`: mean of the F1 of right and of wrong steps at threshold one
        half (PRMBench's PRMScore), and these two; `dev_steps`.
    """
    losses, counts = [], {(label, said): 0 for label in (0, 1) for said in (0, 1)}
    for probability, label in zip(probabilities, labels, strict=True):
        kept = min(max(probability, PROBABILITY_FLOOR), 1 - PROBABILITY_FLOOR)
        losses.append(-math.log(kept if label else 1 - kept))
        counts[label, int(probability >= 0.5)] += 1
    mistakes = counts[0, 1] + counts[1, 0]
    right, wrong = (2 * counts[c, c] / max(2 * counts[c, c] + mistakes, 1) for c in (1, 0))
    return {"dev_loss": sum(losses) / len(losses), "dev_f1": (right + wrong) / 2, "dev_f1_right": right,
            "dev_f1_wrong": wrong, "dev_steps": len(losses)}


def beside(name: str, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """A figure that nothing is asked of, with its 95 % interval or range over runs."""
    return {"name": name, "value": value, "low": low, "high": high}


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed in this Python."""
    from importlib import metadata

    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def run_worker(python: str, module: str, job: dict[str, Any], threads: int) -> dict[str, Any]:
    """The result of `benchmarks.MODULE` on a job, in a fresh process of that Python.

    Raises RuntimeError with the end of its output when it fails.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }
    with tempfile.TemporaryDirectory() as name:
        files = Path(name) / "job.json", Path(name) / "result.json"
        files[0].write_text(json.dumps(job))
        done = subprocess.run([python, "-m", f"benchmarks.{module}", *map(str, files)], cwd=ROOT, env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            tail = "\n".join(done.stdout.splitlines()[-ERROR_LINES:])
            raise RuntimeError(f"benchmarks.{module} ended with {done.returncode}:\n{tail}")
        return json.loads(files[1].read_text())


def worker(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What a worker module does as a program: JOB in, RESULT out, with the versions and threads it ran with."""
    import torch

    job = json.loads(Path(sys.argv[1]).read_text())
    result = work(job) | {"versions": versions(), "threads": torch.get_num_threads()}
    Path(sys.argv[2]).write_text(json.dumps(result))
