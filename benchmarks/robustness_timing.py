"""How long this build takes against another one: whole chain, smoke, tests, in turn on the same machine."""

from __future__ import annotations

import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.chain import clone, timed
from benchmarks.report import Bar, machine
from prm_core.errors import InputError
from prm_core.platform import environment

RUN, SMOKE, TEST = "run", "smoke", "test"
# What is timed → the largest share of the other build's time.
SHARES = {RUN: 0.5, SMOKE: 0.7, TEST: 0.6}
NAMES = {RUN: "the whole chain", SMOKE: "smoke", TEST: "make test"}
PYTEST = re.compile(r"^\t\$\(BIN\)/python (-m pytest.*)$", re.M)
LAST_WORDS = 3000


@dataclass(frozen=True, slots=True)
class Round:
    """Wall seconds of both builds, one right after the other."""

    base: float
    this: float


def command(what: str, checkout: Path) -> list[str]:
    """What `make run`, `make smoke` or `make test` calls in a checkout, with this Python."""
    if what == TEST:
        found = PYTEST.search((checkout / "Makefile").read_text())
        if found is None:
            raise InputError(f"{checkout}/Makefile: no line that runs pytest; time a build that has `make test`")
        return [sys.executable, *shlex.split(found[1])]
    return [sys.executable, "-m", "prm_core.cli", "run", "--profile", "default" if what == RUN else what]


def seconds(what: str, source: Path, commit: str, folder: Path) -> float:
    """Seconds of one command in a fresh clone. Ends the benchmark when it fails."""
    subprocess.run(["git", "-c", "advice.detachedHead=false", "checkout", "-q", commit], cwd=clone(source, folder),
                   check=True)
    result = timed(command(what, folder), folder)
    if result.code:
        sys.exit(f"{what} of {commit} ended with {result.code}:\n{result.output[-LAST_WORDS:]}")
    return round(result.seconds, 1)


def commit_of(checkout: Path, name: str) -> str:
    """The full name of a commit in a checkout. Raises InputError where there is none."""
    done = subprocess.run(["git", "rev-parse", "--verify", f"{name}^{{commit}}"], cwd=checkout, capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise InputError(f"--timing {name}: neither a folder nor a commit of this repository; fetch it, or name a "
                         "checkout")
    return done.stdout.strip()


def measure(
    base: str, whats: Sequence[str], rounds: int, keep: Callable[[str, dict[str, Any]], None]
) -> None:
    """Times both builds in turn.

    Args:
        base: a checkout, whose HEAD counts, or a commit of this repository.
        whats: of SHARES.
        rounds: of each; who begins alternates.
        keep: gets the record of a kind after each of its rounds.
    """
    root = environment.project_root()
    folder = Path(base)
    source, name = (folder.resolve(), "HEAD") if folder.is_dir() else (root, base)
    builds = {"base": (source, commit_of(source, name)), "this": (root, commit_of(root, "HEAD"))}
    for what in whats:
        done: list[Round] = []
        for number in range(rounds):
            took = {}
            for side in ("base", "this") if number % 2 == 0 else ("this", "base"):
                # One at a time on the disk: a clone with its artifacts is large.
                with tempfile.TemporaryDirectory() as scratch:
                    took[side] = seconds(what, *builds[side], Path(scratch) / side)
            done.append(Round(**took))
            keep(what, {"base": builds["base"][1], "commit": builds["this"][1], "machine": machine(),
                        "rounds": [asdict(one) for one in done]})


def bars(timing: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Median and range over rounds of this build's time as a share of the other's.

    Args:
        timing: what `measure` kept, by what was timed.
    """
    found = []
    for what, share in SHARES.items():
        if what in timing:
            ratios = [one["this"] / one["base"] for one in timing[what]["rounds"]]
            middle = statistics.median(ratios)
            name = f"{NAMES[what]}: time / that of {timing[what]['base'][:7]}, median of {len(ratios)} rounds"
            found.append(Bar(name, middle, min(ratios), max(ratios), f"<= {share:g}", middle <= share))
    return found
