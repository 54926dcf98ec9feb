"""The bar chart of a comparison: how right each judge is, and what time it takes, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prm_core.platform import store

# Okabe and Ito's palette, told apart by everybody; floors are grey.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
FLOORS = ("#8c8c8c", "#c4c4c4")
GROUPS = {"step_accuracy": "steps right", "balanced_accuracy": "balanced\n(right and wrong)",
          "first_error_accuracy": "first error,\nor none", "first_error_f1": "first error, F1"}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Writes the chart as PNG, in place of a file of that name."""
    from matplotlib.figure import Figure

    figures = {name: one["figures"] for name, one in found["judges"].items()}
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(figures)}
    floors = dict(zip(found["floors"], FLOORS, strict=True))
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.8, 1))
    rows = {**figures, **found["floors"]}
    groups = [key for key in GROUPS if any(key in row for row in rows.values())]
    width = 0.84 / len(rows)
    for index, (name, row) in enumerate(rows.items()):
        for group, key in enumerate(groups):
            if key not in row:
                continue
            value, low, high = (100 * row[key][part] for part in ("value", "low", "high"))
            at = group + width * (index - (len(rows) - 1) / 2)
            left.bar(at, value, width * 0.92, color={**colours, **floors}[name], label="" if group else name,
                     yerr=[[value - low], [high - value]], error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"})
            left.annotate(f"{value:.0f}", (at, high), xytext=(0, 2), textcoords="offset points", ha="center",
                          fontsize=7)
    left.set_xticks(range(len(groups)), [GROUPS[key] for key in groups])
    left.set_ylim(0, 112)
    left.set_yticks(range(0, 101, 20))
    left.set_ylabel("per cent")
    left.set_title(f"How right: {found['trajectories']} trajectories of {found['problems']} problems, 95 % intervals",
                   fontsize=10, loc="left")
    left.legend(frameon=False, fontsize=8, ncols=len(rows), loc="upper left")
    for index, (name, one) in enumerate(found["judges"].items()):
        median, slow = one["latency"]["median"], one["latency"]["p95"]
        right.plot([1000 * median["value"], 1000 * slow["value"]], [index, index], color=colours[name], linewidth=2)
        right.plot(1000 * median["value"], index, "o", color=colours[name])
        right.plot(1000 * slow["value"], index, "|", color=colours[name], markersize=12)
        right.annotate(f"{1000 * median['value']:.3g}", (1000 * median["value"], index), xytext=(0, 7),
                       textcoords="offset points", ha="center", fontsize=7)
    right.set_xscale("log")
    times = [1000 * one["latency"][what]["value"] for one in found["judges"].values() for what in ("median", "p95")]
    # Whole decades: there is a labelled tick at either end.
    right.set_xlim(10 ** math.floor(math.log10(0.8 * max(min(times), 1e-6))),
                   10 ** math.ceil(math.log10(1.25 * max(*times, 1e-6))))
    right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_ylim(len(found["judges"]) - 0.4, -0.6)
    right.set_yticks(range(len(found["judges"])), list(found["judges"]))
    right.set_xlabel("ms a trajectory")
    right.set_title("How fast: median, 95th percentile", fontsize=10, loc="left")
    for axes, way in ((left, "y"), (right, "x")):
        axes.grid(axis=way, alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
