"""Everything that is asked of agents, in one table: texts, traces, the chain's time, search, alarms, judges, blame and
what a policy learns.

    python -m benchmarks.agents --quick --out FILE
    python -m benchmarks.agents --runs WORKSPACE… --teams WORKSPACE… --out benchmarks/results/agents.json

Each part is a benchmark of its own, which says what it measures; here they run one after the other and their bars stand
together. Without finished runs (of the profile `agents`, and of `agents-team`; a seed each) the parts that need such
are left out: `--quick` does the others in small, within five minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, parsed, write
from benchmarks.robustness_timing import seconds
from prm_core.platform import store

ROOT = Path(__file__).parents[1]
# Profile → the most that its chain may take on two cores.
SECONDS = {"agents-smoke": 90.0, "agents": 720.0}


def parts(quick: bool, runs: Sequence[str], teams: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The benchmarks that can be run on what there is, with their arguments."""
    small = ["--quick"] if quick else []
    found = [("agent_texts", small), ("judge", small)]
    if runs:
        found += [("agent_search", [*runs]), ("alarms", [*runs]), ("judges", [*runs])]
    if teams:
        found.append(("blame", [*teams]))
    if runs and not quick:
        found.append(("policy", [*runs, "--ways", "configured", "outcome only"]))
    return found


def run(module: str, given: Sequence[str], out: Path) -> dict[str, Any]:
    """The result of one benchmark, which shows its own table as it ends. A part that fails ends all."""
    subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *given, "--out", str(out)], cwd=ROOT, check=True)
    return store.read_json(out)


def timed(profile: str) -> Bar:
    """The whole chain of a profile from nothing, in a fresh clone of what is committed."""
    with tempfile.TemporaryDirectory(prefix="prm-agents-") as folder:
        took = seconds(profile, ROOT, "HEAD", Path(folder) / "clone")
    return Bar(f"the chain {profile} from nothing, seconds", took, None, None, f"<= {SECONDS[profile]:g}",
               took <= SECONDS[profile])


def main() -> None:
    """Runs what can be run; writes and prints all bars."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents")
    parser.add_argument("--quick", action="store_true", help="within five minutes: the same, smaller")
    parser.add_argument("--runs", type=Path, nargs="*", default=[],
                        help="finished runs of the profile agents, one a seed")
    parser.add_argument("--teams", type=Path, nargs="*", default=[],
                        help="finished runs of the profile agents-team, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    bars, commands = [timed(profile) for profile in SECONDS if profile == "agents-smoke" or not given.quick], {}
    with tempfile.TemporaryDirectory() as folder:
        for module, options in parts(given.quick, [str(one.resolve()) for one in given.runs],
                                     [str(one.resolve()) for one in given.teams]):
            result = run(module, options, Path(folder) / f"{module}.json")
            commands[module] = result["command"]
            bars += [Bar(**{**bar, "name": f"{module}: {bar['name']}"}) for bar in result["bars"]]
    write(given, bars, parts=commands)


if __name__ == "__main__":
    main()
