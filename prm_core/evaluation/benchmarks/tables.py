"""Benchmark figures as tables for a terminal: each figure above its interval and its floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.evaluation.benchmarks.base import Benchmark, Column
from prm_core.evaluation.benchmarks.suite import Figures
from prm_core.evaluation.metrics import Estimate

if TYPE_CHECKING:
    from rich.table import Table


def _cell(estimates: Mapping[str, Estimate], column: Column, kind: str = "") -> str:
    estimate = estimates.get(column.figure.format(kind))
    if estimate is None:
        return "-"
    lines = [f"{100 * estimate.value:.1f}", f"{100 * estimate.low:.1f}-{100 * estimate.high:.1f}"]
    floor = estimates.get(column.floor.format(kind)) if column.floor else None
    if column.floor and floor is not None:
        name = column.floor.partition("/")[0].replace("_", " ")
        lines.append(f"{name} {100 * floor.value:.1f}")
    return "\n".join(lines)


def _table(title: str, head: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column(head[0], overflow="fold")
    for name in (*head[1:], *(column.header for column in columns)):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _kinds(figures: Figures, columns: Sequence[Column]) -> list[str]:
    """What stands for {} in the figures there are, in their order."""
    kinds: dict[str, None] = {}
    for column in columns:
        start, _, end = column.figure.partition("{}")
        kinds |= {key[len(start) : len(key) - len(end)]: None for key in figures.estimates if key.startswith(start)
                  and key.endswith(end)}
    return list(kinds)


def _names(rows: Sequence[Figures]) -> list[str]:
    """File names without their folders where that still tells them apart."""
    short = [Path(row.name).name for row in rows]
    return short if len(set(short)) == len(short) else [row.name for row in rows]


def tables(benchmark: Benchmark, each: Sequence[Figures], together: Figures | None) -> list[Table]:
    """A row for each file and one for all together; then, for benchmarks with kinds of chains, a row for each kind.

    Figures are times 100. Columns without a figure in any row are left out.
    """
    rows = [*each, *([together] if together else [])]
    names = _names(rows)
    found = []
    for columns in benchmark.tables:
        shown = [column for column in columns if any(column.figure in row.estimates for row in rows)]
        if shown:
            found.append(_table("", ("file", "chains"), shown, [
                (name, str(row.chains), *(_cell(row.estimates, column) for column in shown))
                for name, row in zip(names, rows, strict=True)]))
    for name, row in [(names[-1], together)] if together else zip(names, each, strict=True):
        kinds = _kinds(row, benchmark.by_kind)
        shown = [column for column in benchmark.by_kind
                 if any(column.figure.format(kind) in row.estimates for kind in kinds)]
        if kinds:
            found.append(_table(name, (benchmark.kinds,), shown, [
                (kind, *(_cell(row.estimates, column, kind) for column in shown)) for kind in kinds]))
    return found
