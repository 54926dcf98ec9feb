"""From the figures of many chains to bars, a summary and a plot. Pure but for the plot's file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.report import Bar
from benchmarks.robustness_figures import ORACLE

Figures = Mapping[str, float]
Of = Callable[[Figures], float | None]
LEVELS = ("default", "hard", "agents")
# Sums in another order differ by less; what lies below is no figure.
SLACK, DIGITS = 1e-9, 8
HELD = 0.9
COLOURS = {"default": "tab:blue", "hard": "tab:orange", "agents": "tab:green", "smoke": "tab:gray"}


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a chain.

    Attributes:
        name: with its unit.
        of: it, from a chain's flat figures; None where one of these is not there.
        worst: of several, `min` or `max`.
        bars: level → what each chain is asked for, from … to …; a level without is reported.
        medians: level → what the median over seeds is asked for.
        spreads: level → the largest difference between the best and the worst seed.
    """

    name: str
    of: Of
    worst: Callable[[Sequence[float]], float] = min
    bars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    medians: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)


def value(name: str) -> Of:
    """A flat figure as it is."""
    return lambda figures: figures.get(name)


def difference(left: str, right: str) -> Of:
    """The first of two flat figures less the second."""
    return lambda figures: figures[left] - figures[right] if {left, right} <= figures.keys() else None


def share(part: str, whole: str) -> Of:
    """The first of two flat figures, in percent of the second."""
    return lambda figures: 100 * figures[part] / figures[whole] if figures.get(whole) and part in figures else None


def merged_less_best(figures: Figures) -> float | None:
    """First-error F1 of the merged labels less that of the best single annotator."""
    others = [found for name, found in figures.items() if name.startswith("labels/") and name != "labels/merged/f1"]
    return figures["labels/merged/f1"] - max(others) if others and "labels/merged/f1" in figures else None


def by_n(figures: Figures, split: str, way: str) -> list[float]:
    """Accuracies of a way to choose among N chains, N rising."""
    start = f"{split}/{way}_at_"
    found = {int(name.removeprefix(start)): accuracy for name, accuracy in figures.items() if name.startswith(start)}
    return [found[n] for n in sorted(found)]


def smallest_rise(split: str) -> Of:
    """The smallest step of best-of-N as promoted from one N to the next."""
    return lambda figures: min((after - before for before, after in pairwise(by_n(figures, split, "promoted"))),
                               default=None)


def less_better_of_both(split: str) -> Of:
    """Best-of-N as promoted less the better of PRM and ORM, at the N where that is least."""
    def of(figures: Figures) -> float | None:
        ways = (by_n(figures, split, way) for way in ("promoted", "prm", "orm"))
        return min((promoted - max(rivals) for promoted, *rivals in zip(*ways, strict=False)), default=None)
    return of


def _both(low: float = -math.inf, high: float = math.inf) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(("default", "hard"), (low, high))


def _default(low: float) -> dict[str, tuple[float, float]]:
    return {"default": (low, math.inf)}


FIGURES = (
    Figure("PRM first-error F1, %", value("test/prm_f1"), bars={**_default(97), "agents": (85, math.inf)},
           medians=_default(98.5), spreads={"default": 2}),
    Figure("PRM first-error F1, shifted, %", value("shifted/prm_f1")),
    Figure("PRM F1 in % of the F1 with oracle labels", share("test/prm_f1", "test/oracle_f1"),
           bars={"hard": (90, math.inf)}),
    Figure("PRM F1 - F1 with oracle labels, points", difference("test/prm_f1", "test/oracle_f1"),
           bars={"agents": (-3, math.inf)}),
    Figure("PRM F1 in % of the F1 with oracle labels, shifted", share("shifted/prm_f1", "shifted/oracle_f1"),
           bars=_both(90)),
    Figure("best-of-8: PRM - PRM with oracle labels, points", difference("test/prm_at_8", "test/oracle_at_8"),
           bars=_default(-1)),
    Figure("best-of-8 as promoted - the same with oracle labels, points",
           difference("test/promoted_at_8", "test/oracle_promoted_at_8")),
    Figure("merged labels - best annotator, F1, points", merged_less_best, bars=_both(-0.5)),
    Figure("best-of-N as promoted: smallest rise, points", smallest_rise("test"), bars=_default(0)),
    Figure("best-of-8 as promoted - ORM, points", difference("test/promoted_at_8", "test/orm_at_8"), bars=_default(0)),
    Figure("best-of-8 as promoted - majority, points", difference("test/promoted_at_8", "test/majority_at_8"),
           bars=_default(8)),
    Figure("best-of-N as promoted - better of PRM and ORM, points", less_better_of_both("test")),
    Figure("best-of-N as promoted: smallest rise, shifted, points", smallest_rise("shifted")),
    Figure("best-of-8 as promoted - majority, shifted, points",
           difference("shifted/promoted_at_8", "shifted/majority_at_8")),
    Figure("best-of-8 as promoted, %", value("test/promoted_at_8")),
    Figure("best-of-8 by the PRM, %", value("test/prm_at_8")),
    Figure("best-of-8 by the ORM, %", value("test/orm_at_8")),
    Figure("policy pass@1: trained - base, points", difference("test/trained_pass_at_1", "test/base_pass_at_1"),
           bars=_default(15), medians=_default(20)),
    Figure("ECE", value("test/ece"), max, bars=_both(high=0.03)),
    Figure("ECE, shifted", value("shifted/ece"), max, bars=_both(high=0.06)),
    Figure("backbone pass@1, dev, %", value("backbone_pass_at_1"), bars={"hard": (70, 85)}),
    Figure("labels of MC dropout alone, F1, %", value("labels/mc_dropout/f1"), max, bars={"hard": (-math.inf, 90)}),
    Figure("merged labels, F1, %", value("labels/merged/f1")),
    Figure("label error, truth, %", value("label_error_true"), max),
    Figure("base policy pass@1, %", value("test/base_pass_at_1"), bars={"agents": (30, 60)}),
    Figure("base policy: right answers with a wrong step, %", value("test/base_lucky"), bars={"agents": (5, math.inf)}),
    Figure("lucky right answers: trained - base, points", difference("test/trained_lucky", "test/base_lucky"), max),
    Figure("calls that are right: base policy, %", value("test/base_calls_right")),
    Figure("calls that are right: trained - base, points", difference("test/trained_calls_right",
                                                                      "test/base_calls_right")),
    Figure("label error, the chain's own estimate - truth, points", difference("label_error", "label_error_true")),
    Figure("the chain, processor seconds", value("cpu_seconds"), max),
)


def holds(limits: tuple[float, float], found: float) -> bool:
    """Whether a figure lies within its bar."""
    return limits[0] - SLACK <= found <= limits[1] + SLACK


def asked(limits: tuple[float, float]) -> str:
    """A bar in words."""
    low, high = limits
    if math.isinf(high):
        return f">= {low:g}"
    return f"<= {high:g}" if math.isinf(low) else f"{low:g} to {high:g}"


def figures_of(run: Mapping[str, Any]) -> dict[str, float]:
    """Name → figure of a chain's record, without those that are not defined in it."""
    flat = dict(run["figures"])
    seconds = [one["cpu"] for stage, one in run["seconds"].items() if stage != ORACLE]
    # A warm-up that was taken over took none.
    if all(seconds):
        flat["cpu_seconds"] = sum(seconds)
    return {figure.name: round(found, DIGITS) for figure in FIGURES if (found := figure.of(flat)) is not None}


def bars(runs: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """The bars, of the chains of both levels: worst, median and spread over seeds, then the stand-ins for other
    processors. A figure that a chain lacks is a bar missed; one that all lack has no bar.

    Args:
        runs: records of `run_chain`, and `{"failed": why}` with the names of those that did not end.
    """
    ended = [run for run in runs if "failed" not in run]
    found = []
    if len(ended) < len(runs):
        found.append(Bar("chains that ran to their end", len(ended), None, None, f"{len(runs)}", False))
    for level in LEVELS:
        plain, others = ([run for run in ended if run["level"] == level and bool(run["variant"]) == varied]
                         for varied in (False, True))
        for figure in FIGURES:
            if level in figure.bars:
                found += _worst(f"{level}: {figure.name}, worst of {{}} seeds", figure, level, plain)
            if level in figure.medians and (values := _values(figure, plain)):
                middle = statistics.median(values)
                found.append(Bar(f"{level}: {figure.name}, median", middle, min(values), max(values),
                                 asked(figure.medians[level]), holds(figure.medians[level], middle)))
            if level in figure.spreads and (values := _values(figure, plain)):
                spread = max(values) - min(values)
                found.append(Bar(f"{level}: {figure.name}, best - worst", spread, None, None,
                                 f"<= {figure.spreads[level]:g}", spread <= figure.spreads[level] + SLACK))
        for figure in FIGURES:
            if level in figure.bars:
                found += _worst(f"{level}: {figure.name}, worst of {{}} stand-ins for other processors", figure, level,
                                others)
    return [*found, *_intervals([run for run in ended if run["level"] in LEVELS and not run["variant"]])]


def _values(figure: Figure, runs: Sequence[Mapping[str, Any]]) -> list[float]:
    return [found[figure.name] for run in runs if figure.name in (found := figures_of(run))]


def _worst(name: str, figure: Figure, level: str, runs: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """One bar; none without a chain that has the figure."""
    values = _values(figure, runs)
    if not values:
        return []
    limits = figure.bars[level]
    # Of a bar with two sides the value that is the furthest outside.
    worst = min(values, key=lambda found: min(found - limits[0], limits[1] - found))
    return [Bar(name.format(len(values)), worst, min(values), max(values), asked(limits),
                len(values) == len(runs) and holds(limits, worst))]


def _intervals(runs: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """How often the interval of the label error that a chain reports holds the truth."""
    stated = [run["figures"] for run in runs if "label_error_low" in run["figures"]]
    if not stated:
        return []
    inside = sum(one["label_error_low"] - SLACK <= one["label_error_true"] <= one["label_error_high"] + SLACK
                 for one in stated)
    held = inside / len(stated)
    return [Bar(f"label error: its 95 % interval holds the truth, share of {len(stated)} (level x seed)", held, None,
                None, f">= {HELD:g}", len(stated) == len(runs) and held >= HELD - SLACK)]


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each figure of each level over the plain chains: median, worst, best, and every chain's value by its name."""
    rows = []
    for level in dict.fromkeys(run["level"] for run in runs):
        ended = [run for run in runs if run["level"] == level and "failed" not in run]
        for figure in FIGURES:
            plain = _values(figure, [run for run in ended if not run["variant"]])
            if plain:
                best = max if figure.worst is min else min
                rows.append({
                    "level": level, "name": figure.name, "median": statistics.median(plain),
                    "worst": figure.worst(plain), "best": best(plain),
                    "runs": {run["name"]: found[figure.name] for run in ended
                             if figure.name in (found := figures_of(run))},
                })
    return rows


def stage_seconds(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Level → stage → median processor and wall seconds of the plain chains, run beside each other as they were."""
    table: dict[str, dict[str, list[Mapping[str, float]]]] = {}
    for run in runs:
        if "failed" not in run and not run["variant"]:
            for stage, took in run["seconds"].items():
                table.setdefault(run["level"], {}).setdefault(stage, []).append(took)
    return {level: {stage: {kind: statistics.median(took[kind] for took in all_took) for kind in ("cpu", "wall")}
                    for stage, all_took in stages.items()} for level, stages in table.items()}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A row of dots for each figure, on a scale of its own: seeds filled, stand-ins for other processors hollow, the
    median a tick, the bar of the worst dashed, that of the median dotted; levels by colour.

    Args:
        rows: of `summary`.
        path: image to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    names = [figure for figure in FIGURES if any(row["name"] == figure.name for row in rows)]
    levels = list(dict.fromkeys(row["level"] for row in rows))
    columns = 2
    height = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(height, columns, figsize=(12, 0.5 + 0.85 * height), layout="constrained", squeeze=False)
    for axes, one in zip(grid.flat, names, strict=False):
        axes.set_title(one.name, fontsize=8, loc="left", pad=3)
        axes.set(yticks=[], ylim=(-len(levels) + 0.4, 0.6))
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", alpha=0.25)
        for place, level in enumerate(levels):
            colour = COLOURS.get(level)
            for row in rows:
                if (row["level"], row["name"]) == (level, one.name):
                    _dots(axes, row, -place, colour)
            for limits, style in ((one.bars, "--"), (one.medians, ":")):
                for limit in filter(math.isfinite, limits.get(level, ())):
                    axes.plot([limit] * 2, [-place - 0.4, -place + 0.4], color=colour, linestyle=style, linewidth=1.5)
    for axes in grid.flat[len(names):]:
        axes.axis("off")
    legend = [
        *(Line2D([], [], color=COLOURS.get(level), marker="o", linestyle="", label=f"{level}, a seed")
          for level in levels),
        Line2D([], [], color="0.3", marker="D", fillstyle="none", linestyle="", label="stand-in for another processor"),
        Line2D([], [], color="black", marker="|", markersize=12, linestyle="", label="median of the seeds"),
        Line2D([], [], color="0.3", linestyle="--", label="bar, for the worst"),
        Line2D([], [], color="0.3", linestyle=":", label="bar, for the median"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _dots(axes: Any, row: Mapping[str, Any], height: float, colour: str | None) -> None:
    for name, found in row["runs"].items():
        # Of a plain chain the name is level and seed.
        plain = name.count("-") == 1
        axes.plot([found], [height + (0.12 if plain else -0.18)], marker="o" if plain else "D", color=colour, alpha=0.7,
                  markersize=6 if plain else 5, fillstyle="full" if plain else "none")
    axes.plot([row["median"]] * 2, [height - 0.08, height + 0.36], color="black", linewidth=1.2, zorder=3)
