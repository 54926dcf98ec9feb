"""What a check of served traffic found, as one page of HTML without scripts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from prm_core.evaluation.metrics import Estimate
from prm_core.serving.drift.compare import Comparison, Distance
from prm_core.serving.drift.samples import Sample

STYLE = ("body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
         "table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ccc}"
         "td:first-child,th:first-child{text-align:left}.far{font-weight:bold}svg{max-width:100%;height:auto}")
EXPECTED = {"step_accuracy": "verdicts on steps that are right", "first_error_accuracy": "first errors that are found",
            "wrong": "trajectories with a wrong step"}
# Bars of a chart; the others are in the run's drift.json.
SHOWN = 12


def render(
    model: str, headline: str, comparison: Comparison, estimates: Mapping[str, Estimate], reference: Sequence[Sample],
    window: Sequence[Sample],
) -> str:
    """The page.

    Args:
        reference, window: trajectories in order, for the chart of scores over time.
    """
    rows = Markup("").join(_row(one) for one in comparison.distances)
    expected = Markup("").join(
        Markup("<tr><td>{}</td><td>{:.1%}</td><td>{:.1%} to {:.1%}</td></tr>").format(EXPECTED[name], *_all(value))
        for name, value in estimates.items())
    charts = Markup("").join(Markup("<h3>{}</h3>{}").format(one.feature, _shares(one))
                             for one in comparison.distances if len(one.shares) > 1)
    return str(Markup(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Drift: {}</title><style>{}</style>"
        "<h1>Served traffic against what the model was calibrated on</h1><p>{}</p>"
        "<p>{} trajectories, one a question, against {} of the reference. p is the probability that any feature of a "
        "window without drift lies as far out.</p>"
        "<table><tr><th>feature<th>PSI<th>KS<th>Wasserstein<th>chi2<th>p</tr>{}</table>"
        "<h2>Expected without labels</h2><p>What the scores say of themselves; it holds as long as the calibration "
        "does.</p><table>{}</table><h2>Scores over time</h2>{}<h2>Shares</h2>{}</html>\n",
    ).format(model, Markup(STYLE), headline, comparison.window, comparison.reference, rows, expected,
             _stream(reference, window), charts))


def _all(value: Estimate) -> tuple[float, float, float]:
    return value.value, value.low, value.high


def _row(one: Distance) -> Markup:
    cells = ["" if value is None else f"{value:.3f}" for value in (one.psi, one.ks, one.wasserstein, one.chi2, one.p)]
    kind = Markup(" class=far") if one.p <= 0.01 else ""
    return Markup("<tr{}><td>{}</td>{}</tr>").format(
        kind, one.feature, Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells))


def _shares(one: Distance) -> Markup:
    from matplotlib.figure import Figure

    shown = list(one.shares.items())
    if one.ks is None:
        shown = sorted(shown, key=lambda pair: -max(pair[1]))[:SHOWN]
    figure = Figure(figsize=(7, 2.2))
    axes = figure.subplots()
    at = np.arange(len(shown))
    axes.bar(at - 0.2, [share[0] for _, share in shown], 0.4, label="reference")
    axes.bar(at + 0.2, [share[1] for _, share in shown], 0.4, label="window")
    axes.set_xticks(at, [name[:24] for name, _ in shown], rotation=20, ha="right", fontsize=7)
    axes.set_ylabel("share")
    axes.legend(fontsize=7)
    return _svg(figure)


def _stream(reference: Sequence[Sample], window: Sequence[Sample]) -> Markup:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2))
    axes = figure.subplots()
    hours = (np.array([one.time for one in window]) - window[0].time) / 3600
    axes.plot(hours, [np.mean(one.scores) for one in window], ".", markersize=3, label="trajectories")
    level = float(np.mean([np.mean(one.scores) for one in reference]))
    axes.axhline(level, linewidth=1, color="black", label="mean of the reference")
    axes.set_xlabel("hours since the first")
    axes.set_ylabel("mean score")
    axes.legend(fontsize=7)
    return _svg(figure)


def _svg(figure) -> Markup:
    text = io.StringIO()
    figure.tight_layout()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    # What matplotlib wrote has its own texts escaped.
    return Markup(drawn[drawn.index("<svg"):])


