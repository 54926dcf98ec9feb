"""The whole chain over seeds, levels of difficulty and stand-ins for other processors: what is a property, not a draw.

    python -m benchmarks.robustness --out benchmarks/results/robustness.json               every chain and bar
    python -m benchmarks.robustness --seeds 0 1 --variants --levels hard --out FILE        some of them
    python -m benchmarks.robustness --timing COMMIT --out benchmarks/results/robustness.json    times against a build

Each chain runs in a workspace of its own, below `--work` or a temporary folder: data from its seed, every stage from
warm-up to evaluation, and a PRM from oracle labels to compare with. Chains that the result holds already, or that are
finished in their workspace, are not run again unless the code has changed, so that a result grows from call to call.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import robustness_bars, robustness_timing
from benchmarks.report import arguments, write
from benchmarks.robustness_chains import AVX2, ChainFailed, Run, check_variant, code_of, run_chain
from benchmarks.robustness_figures import Record
from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store

SEEDS = (0, 1, 2, 3, 4)
LEVELS = ("default", "hard")
VARIANTS = ("perturbed-1", "perturbed-2", "perturbed-3", "threads-2", AVX2)
# Of --quick: the smallest chain of all.
QUICK = "smoke"


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--levels", nargs="+", choices=configuration.profile_names(), default=LEVELS, help="profiles")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--variants", nargs="*", default=VARIANTS,
                        help="stand-ins for other processors, on the first level and seed 0: perturbed-K (weights of "
                             "the warm-up moved by rounding), threads-N, avx2")
    parser.add_argument("--jobs", type=int, default=2, help="chains beside each other")
    parser.add_argument("--threads", type=int, default=1, help="of each chain")
    parser.add_argument("--work", type=Path, help="folder for the workspaces, to go on in after a stop; a temporary "
                                                  "one when left out")
    parser.add_argument("--any-code", action="store_true", help="chains that other code ran count as run")
    parser.add_argument("--timing", metavar="BASE", help="time this build against a commit or checkout; run no chain")
    parser.add_argument("--what", nargs="+", choices=list(robustness_timing.SHARES),
                        default=list(robustness_timing.SHARES), help="with --timing: what is timed")


class Result:
    """The result file: chains and times of earlier calls stay in it.

    Args:
        file: JSON, made when it is not there.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        before = store.read_json(file) if file.exists() else {}
        self.runs: dict[str, Record] = {run["name"]: run for run in before.get("runs", [])}
        self.timing: dict[str, Any] = before.get("timing", {})
        self.commands: dict[str, str] = before.get("commands", {})

    def keep(self) -> None:
        """Writes what there is so far, without bars: nothing that was measured is lost when the rest is stopped."""
        store.write_json(self.file, {"commands": self.commands, "timing": self.timing, "runs": [*self.runs.values()]})

    def write(self, kind: str, given: argparse.Namespace) -> None:
        """Bars, summary and plot anew; prints them."""
        self.commands[kind] = given.command
        runs = sorted(self.runs.values(), key=lambda run: run["name"])
        rows = robustness_bars.summary(runs)
        if rows:
            robustness_bars.plot(rows, self.file.with_suffix(".png"))
            print_summary(rows)
        write(given, [*robustness_bars.bars(runs), *robustness_timing.bars(self.timing)], commands=self.commands,
              stage_seconds=robustness_bars.stage_seconds(runs), summary=rows, timing=self.timing, runs=runs)


def print_summary(rows: Sequence[Record]) -> None:
    """Every figure, on standard output."""
    table = Table("level", "figure", "median", "worst", "best", "runs")
    for row in rows:
        table.add_row(row["level"], row["name"], *(f"{row[key]:.4g}" for key in ("median", "worst", "best")),
                      str(len(row["runs"])))
    Console().print(table)


def plan(levels: Sequence[str], seeds: Sequence[int], variants: Sequence[str]) -> list[Run]:
    """The chains, plain ones first: a perturbed one takes over the warm-up of its plain one."""
    return [*(Run(level, seed) for level in levels for seed in seeds), *(Run(levels[0], 0, name) for name in variants)]


def run_all(given: argparse.Namespace, result: Result, work: Path) -> None:
    """Runs the chains of the plan that are not done, some beside each other, and adds them to the result."""
    runs = plan(given.levels, given.seeds, given.variants)
    console = Console(stderr=True)

    def one(run: Run) -> tuple[Run, Record]:
        try:
            return run, run_chain(run, work, given.threads, any_code=given.any_code)
        except ChainFailed as error:
            return run, {"name": run.name, "level": run.level, "seed": run.seed, "variant": run.variant,
                         "failed": str(error)}

    def is_done(run: Run) -> bool:
        kept = result.runs.get(run.name, {"failed": ""})
        # A workspace that is there is read again: what is collected of it may have grown.
        return "failed" not in kept and not (work / run.name).exists() and (
            given.any_code or kept["code"] == code_of(run, given.threads))

    with ThreadPoolExecutor(given.jobs) as pool:
        for future in as_completed([pool.submit(one, run) for run in runs if not is_done(run)]):
            run, record = future.result()
            result.runs[run.name] = record
            result.keep()
            console.log(f"{run.name}: {record.get('failed', 'done')}", _stack_offset=2)


def main() -> None:
    """Runs chains or times builds; writes and prints the result."""
    given = arguments("robustness", _more)
    if given.quick:
        given.levels, given.seeds, given.variants = (QUICK,), given.seeds[:2], given.variants[:1]
    result = Result(given.out)
    try:
        if given.timing:
            time_builds(given, result)
        else:
            run_chains(given, result)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def run_chains(given: argparse.Namespace, result: Result) -> None:
    """Runs the chains asked for, in the folder given or a temporary one."""
    for name in given.variants:
        check_variant(name)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
        run_all(given, result, given.work.resolve())
    else:
        with tempfile.TemporaryDirectory() as name:
            run_all(given, result, Path(name))
    result.write("chains", given)


def time_builds(given: argparse.Namespace, result: Result) -> None:
    """Times this build and the one named."""
    def keep(what: str, record: Record) -> None:
        result.timing[what] = record
        result.keep()

    robustness_timing.measure(given.timing, given.what, 1 if given.quick else given.repeats, keep)
    result.write("timing", given)


if __name__ == "__main__":
    main()
