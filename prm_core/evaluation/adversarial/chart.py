"""The adversarial suite's bar chart: accuracy lost under each perturbation, model beside model, with 95 % intervals."""

from __future__ import annotations

from pathlib import Path

from prm_core.evaluation.adversarial.perturbations import PERTURBATIONS
from prm_core.evaluation.adversarial.suite import GROUPS, AdversarialResult
from prm_core.platform import store

# Okabe and Ito's palette, told apart by everybody: models that score steps are blue, outcome models orange.
COLOURS = {False: ("#0072b2", "#56b4e9", "#004b76"), True: ("#e69f00", "#d55e00", "#8c6100")}


def bars(result: AdversarialResult) -> list[str]:
    """What the chart has a group of bars for: the perturbations, damaging ones first, then the means."""
    measured = [name for name in PERTURBATIONS if result.numbers.get(f"{name}/n_chains")]
    ordered = sorted(measured, key=lambda name: not PERTURBATIONS[name].damaging)
    name = next(iter(result.models))
    return [*ordered, *(group for group in GROUPS if f"{name}/{group}/accuracy_lost" in result.figures)]


def draw(result: AdversarialResult, path: Path) -> None:
    """Writes the chart as PNG, in place of a file of that name."""
    from matplotlib.figure import Figure

    groups = bars(result)
    means = sum(group in GROUPS for group in groups)
    figure = Figure(figsize=(max(7.0, 1.1 * len(groups) + 1.5), 4.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(result.models)
    used = dict.fromkeys(COLOURS, 0)
    for index, (name, facts) in enumerate(result.models.items()):
        outcome = facts["kind"] == "outcome"
        colour = COLOURS[outcome][used[outcome] % len(COLOURS[outcome])]
        used[outcome] += 1
        estimates = [result.figures[f"{name}/{group}/accuracy_lost"] for group in groups]
        # A little room before the means, which are no perturbation.
        at = [i + 0.35 * (i >= len(groups) - means) + width * (index - (len(result.models) - 1) / 2)
              for i in range(len(groups))]
        values = [100 * e.value for e in estimates]
        spread = [[100 * (e.value - e.low) for e in estimates], [100 * (e.high - e.value) for e in estimates]]
        drawn = axes.bar(at, values, width * 0.92, color=colour, label=f"{name} ({facts['kind']})", yerr=spread,
                         error_kw={"elinewidth": 0.8, "capsize": 2, "ecolor": "0.25"})
        ends = [(100 * e.high if e.value >= 0 else 100 * e.low, e.value >= 0) for e in estimates]
        for bar, value, (end, up) in zip(drawn, values, ends, strict=True):
            axes.annotate(f"{value:.0f}", (bar.get_x() + bar.get_width() / 2, end), xytext=(0, 2 if up else -2),
                          textcoords="offset points", ha="center", va="bottom" if up else "top", fontsize=7)
    axes.set_xticks([i + 0.35 * (i >= len(groups) - means) for i in range(len(groups))],
                    [f"mean of\n{group}" if group in GROUPS else group for group in groups])
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.margins(y=0.12)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("accuracy lost, points")
    axes.set_title(f"Accuracy lost under perturbation ({result.numbers['n_problems']:.0f} problems, 95 % intervals)",
                   fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.whole(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
