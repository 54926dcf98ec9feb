"""What every benchmark writes: bars with their figures, the machine, the commit and the command."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prm_core.platform import store
from prm_core.platform.tracking import code_version


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure beside what is asked of it; `low`…`high` is its 95 % interval or range over runs, None without."""

    name: str
    value: float
    low: float | None
    high: float | None
    bar: str
    holds: bool


def arguments(name: str, more: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.Namespace:
    """`--quick`, `--repeats N`, `--out FILE`, and what `more` adds."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="within five minutes: the same, more noisily")
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median counts, where a bar repeats runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    more(parser)
    return parsed(parser)


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, those of the command line by default, and `command`: what was called, as results record it."""
    given = parser.parse_args(words)
    given.command = command(parser, given)
    return given


def command(parser: argparse.ArgumentParser, given: argparse.Namespace) -> str:
    """The call with every option that has a value, chosen or not: defaults change. Of paths the last part, without the
    folders of this machine; `--out` at the end."""
    found = [parser.prog]
    for action in sorted(parser._actions, key=lambda one: (bool(one.option_strings), one.dest == "out")):
        value = getattr(given, action.dest, None)
        if value is None or value is False or (value in ([], {}) and value == action.default):
            continue
        found += action.option_strings[-1:]
        if value is not True:
            found += map(_told, value if isinstance(value, list | tuple) else [value])
    return " ".join(found)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return shlex.join(f"{key}: {one}" for key, one in value.items())
    text = str(value)
    return shlex.quote(Path(text).name or text if isinstance(value, Path) or text.startswith("/") else text)


def machine() -> str:
    """Processor, cores and GPUs, as far as the system tells."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                               text=True, check=False)
        gpus = asked.stdout.splitlines() if asked.returncode == 0 else []
    return ", ".join([model, f"{os.cpu_count()} cores", *gpus])


def write(given: argparse.Namespace, bars: list[Bar], **more: Any) -> None:
    """Writes the result of a call, whose arguments `parsed` gave, and prints it as a table."""
    from rich.console import Console
    from rich.table import Table

    store.write_json(given.out, {
        "command": given.command,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": code_version(),
        "bars": [asdict(bar) for bar in bars],
        **more,
    })
    table = Table("bar", "asked", "measured", "95 % or range", "holds")
    for bar in bars:
        interval = "" if bar.low is None else f"{bar.low:.3g} to {bar.high:.3g}"
        table.add_row(bar.name, bar.bar, f"{bar.value:.4g}", interval, "yes" if bar.holds else "NO")
    Console(file=sys.stdout).print(table)
