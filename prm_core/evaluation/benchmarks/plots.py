"""What to look at behind the benchmark figures: reliability curves and score histograms, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.evaluation.benchmarks.base import ScoredFile
from prm_core.evaluation.benchmarks.steps import ECE_BINS, judged
from prm_core.evaluation.metrics import JudgedSteps
from prm_core.platform import store
from prm_core.scoring.calibration import reliability_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from prm_core.scoring.calibration import ReliabilityBin

HISTOGRAM_BINS = 20
RIGHT, WRONG, GRID = "#2b6cb0", "#c05621", "#9aa5b1"


def _draw(curve: Axes, histogram: Axes, name: str, steps: JudgedSteps) -> None:
    bins = reliability_curve(steps.scores, steps.right, ECE_BINS)
    curve.plot([0, 1], [0, 1], color=GRID, linewidth=1, linestyle="--")
    curve.plot([b.mean_probability for b in bins], [b.observed_share for b in bins], color=RIGHT, linewidth=1.5)
    largest = max(b.count for b in bins)
    curve.scatter([b.mean_probability for b in bins], [b.observed_share for b in bins], color=RIGHT,
                  s=[8 + 80 * b.count / largest for b in bins], zorder=3)
    curve.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="step score", ylabel="share of steps that are right",
              title=f"{name}: scores are off by {_error(bins):.3f} on average (dot area: steps)")
    edges = [i / HISTOGRAM_BINS for i in range(HISTOGRAM_BINS + 1)]
    for chosen, label, colour in ((steps.right, "right", RIGHT), (~steps.right, "wrong", WRONG)):
        count = int(chosen.sum())
        if count:
            histogram.hist(steps.scores[chosen], edges, weights=[1 / count] * count, histtype="step", linewidth=1.8,
                           color=colour, label=f"{label} ({count:,})")
    means = [f"{kind} {steps.scores[chosen].mean():.2f}" for kind, chosen in (("right", steps.right),
                                                                              ("wrong", ~steps.right)) if chosen.any()]
    histogram.set(xlim=(0, 1), xlabel="step score", ylabel="share of the steps of its kind",
                  title=f"{name}: mean score of steps: {', '.join(means)}")
    histogram.legend(frameon=False)
    for axes in (curve, histogram):
        axes.spines[["top", "right"]].set_visible(False)


def _error(bins: Sequence[ReliabilityBin]) -> float:
    """The expected calibration error of a curve."""
    return sum(b.count * abs(b.mean_probability - b.observed_share) for b in bins) / sum(b.count for b in bins)


def write_reliability(path: Path, files: Sequence[ScoredFile]) -> None:
    """Draws the files below each other: how often steps of a score are right, and how scores are spread.

    Raises InputError when no file has steps with a gold verdict, or scores are no probabilities.
    """
    from matplotlib.figure import Figure

    drawn = [(file, steps) for file in files if (steps := judged(file)).scores.size]
    if not drawn:
        raise InputError("--reliability: these files say of no step whether it is right; leave the option out")
    if any(steps.scores.min() < 0 or steps.scores.max() > 1 for _, steps in drawn):
        raise InputError("--reliability: this model's scores are not probabilities; leave the option out")
    figure = Figure(figsize=(11, 4.2 * len(drawn)), layout="constrained")
    grid = figure.subplots(len(drawn), 2, squeeze=False)
    for (file, steps), (curve, histogram) in zip(drawn, grid, strict=True):
        _draw(curve, histogram, Path(file.name).stem, steps)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.whole(path) as temporary:
        temporary.write_bytes(image.getvalue())
