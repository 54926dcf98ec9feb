"""The report's charts as inline SVG: no library, no script, colours from the page's style sheet (light and dark).

Every text goes through escaping; what these functions return may be put into HTML as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from prm_core.evaluation.metrics import Estimate
from prm_core.scoring.calibration import ReliabilityBin

LINE = 15


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: as labelled.
        style: CSS class that gives its colour (`s-prm`, `s-orm`, …).
        points: (x, estimate) by increasing x.
    """

    name: str
    style: str
    points: Sequence[tuple[float, Estimate]]


@dataclass(frozen=True, slots=True)
class Curve:
    """A training curve.

    Attributes:
        name: of the figure.
        points: (update, value) by increasing update.
        kept: the point whose weights were kept.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kept: tuple[float, float]

    @property
    def title(self) -> str:
        """What became of the figure, up to the weights that were kept."""
        (_, start), (update, end) = self.points[0], self.kept
        if self.kept == self.points[0]:
            return f"best at the start, {end:.3g}: kept from update {update:g}"
        way = "rises" if end > start else "falls" if end < start else "stays"
        span = f"from {start:.3g} to {end:.3g}" if end != start else f"at {end:.3g}"
        return f"{way} {span}, kept at update {update:g}"


def percent(value: float) -> str:
    """0.931 → "93.1 %"."""
    return f"{100 * value:.1f} %"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from within [low, high], about `count` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Canvas:
    """An SVG of one plot area with margins; collects elements and knows where data lie."""

    def __init__(
        self, width: int, height: int, x: tuple[float, float], y: tuple[float, float], *, left: int = 46,
        right: int = 16, top: int = 28, bottom: int = 40,
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self._x, self._y = x, y
        self.elements: list[Markup] = []

    def px(self, x: float) -> float:
        low, high = self._x
        return round(self.left + (x - low) / ((high - low) or 1) * (self.right - self.left), 2)

    def py(self, y: float) -> float:
        low, high = self._y
        return round(self.bottom - (y - low) / ((high - low) or 1) * (self.bottom - self.top), 2)

    def add(self, template: str, *values: object) -> None:
        self.elements.append(Markup(template).format(*values))

    def text(self, x: float, y: float, text: str, style: str = "tick", anchor: str = "middle") -> None:
        self.add('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>', x, y, style, anchor, text)

    def axes(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str,
        x_text: Callable[[float], str], y_text: Callable[[float], str],
    ) -> None:
        for value in y_ticks:
            at = self.py(value)
            self.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', self.left, self.right, at, at)
            self.text(self.left - 6, at + 4, y_text(value), anchor="end")
        for value in x_ticks:
            self.text(self.px(value), self.bottom + 16, x_text(value))
        ground = self.bottom
        self.add('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>', self.left, self.right, ground, ground)
        self.text((self.left + self.right) / 2, self.height - 6, x_label, "label")
        if y_label:
            self.text(2, self.top - 12, y_label, "label", "start")

    def svg(self, description: str) -> Markup:
        head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" style="max-width:{}px">').format(
            self.width, self.height, description, self.width)
        return head + Markup("").join(self.elements) + Markup("</svg>")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in points)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions as near to `wanted` as they go without overlapping, in the given order of items."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    at = low - gap
    for i in order:
        at = max(at + gap, wanted[i])
        placed[i] = at
    at = high + gap
    for i in reversed(order):
        at = min(at - gap, placed[i])
        placed[i] = at
    return placed


def best_of_n_chart(series: Sequence[Series], ns: Sequence[int]) -> Markup:
    """Accuracy against N (evenly spaced), a band for each interval, lines named at their right end."""
    where = {n: float(i) for i, n in enumerate(ns)}
    estimates = [estimate for line in series for _, estimate in line.points]
    low = max(0.0, math.floor(20 * min(e.low for e in estimates)) / 20)
    high = min(1.0, math.ceil(20 * max(e.high for e in estimates)) / 20)
    canvas = _Canvas(960, 420, (0, max(len(ns) - 1, 1)), (low, high), right=206)
    canvas.axes([where[n] for n in ns], ticks(low, high), "N chains to choose from", "answered right",
                lambda x: str(ns[round(x)]), lambda y: f"{100 * y:.0f} %")
    for line in series:
        upper = [(canvas.px(where[n]), canvas.py(e.high)) for n, e in line.points]
        lower = [(canvas.px(where[n]), canvas.py(e.low)) for n, e in reversed(line.points)]
        canvas.add('<path class="band {}" d="{}Z"/>', line.style, _path(upper + lower))
    for line in series:
        middle = [(canvas.px(where[n]), canvas.py(e.value)) for n, e in line.points]
        canvas.add('<path class="line {}" d="{}"/>', line.style, _path(middle))
        for (n, e), (x, y) in zip(line.points, middle, strict=True):
            canvas.add('<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>', line.style, x, y,
                       f"{line.name}, N = {n}: {percent(e.value)} ({percent(e.low)} to {percent(e.high)})")
    ends = [canvas.py(line.points[-1][1].value) for line in series]
    for line, at in zip(series, _spread(ends, LINE, canvas.top, canvas.bottom), strict=True):
        canvas.add('<text class="name {}" x="{}" y="{}">{} {}</text>', line.style, canvas.right + 8, at + 4, line.name,
                   f"{100 * line.points[-1][1].value:.1f}")
    return canvas.svg("Accuracy against the number of chains, for each way to choose among them")


def cost_chart(lines: Sequence[Series], points: Sequence[Series]) -> Markup:
    """Accuracy against tokens, which grow by factors.

    Args:
        lines: methods that were tried at several costs, the first of them the one that others are held against: with
            its band, dashed.
        points: methods that were tried at one, each with its interval.
    """
    estimates = [estimate for series in (*lines, *points) for _, estimate in series.points]
    costs = [math.log(cost) for series in (*lines, *points) for cost, _ in series.points]
    low = max(0.0, math.floor(20 * min(e.low for e in estimates)) / 20)
    high = min(1.0, math.ceil(20 * max(e.high for e in estimates)) / 20)
    canvas = _Canvas(960, 420, (min(costs) - 0.1, max(costs) + 0.1), (low, high), right=206)
    doublings = [math.log(100 * 2.0**power) for power in range(-6, 20)]
    canvas.axes([cost for cost in doublings if min(costs) <= cost <= max(costs)], ticks(low, high),
                "tokens a problem, of policy and reward models together", "answered right",
                lambda x: f"{math.exp(x):.0f}", lambda y: f"{100 * y:.0f} %")

    def at(series: Series) -> list[tuple[float, float]]:
        return [(canvas.px(math.log(cost)), canvas.py(e.value)) for cost, e in series.points]

    rival = lines[0]
    band = [[(canvas.px(math.log(cost)), canvas.py(getattr(e, end))) for cost, e in rival.points]
            for end in ("high", "low")]
    canvas.add('<path class="band {}" d="{}Z"/>', rival.style, _path(band[0] + band[1][::-1]))
    for series in lines:
        canvas.add('<path class="line {}{}" d="{}"/>', series.style, " rival" if series is rival else "",
                   _path(at(series)))
    for series in points:
        [(x, _)], [(_, e)] = at(series), series.points
        canvas.add('<line class="line {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', series.style, x, x, canvas.py(e.low),
                   canvas.py(e.high))
    for series in (*lines, *points):
        for (cost, e), (x, y) in zip(series.points, at(series), strict=True):
            canvas.add('<circle class="dot {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>', series.style, x, y,
                       3.5 if series in lines else 5,
                       f"{series.name}, {cost:.0f} tokens: {percent(e.value)} ({percent(e.low)} to {percent(e.high)})")
    for series in points:
        [(x, y)] = at(series)
        left = x > canvas.right - 140
        canvas.text(x + (-9 if left else 9), y + 4, series.name, "name haloed", "end" if left else "start")
    ends = [at(series)[-1][1] for series in lines]
    for series, y in zip(lines, _spread(ends, LINE, canvas.top, canvas.bottom), strict=True):
        canvas.add('<text class="name {}" x="{}" y="{}">{} {}</text>', series.style, canvas.right + 8, y + 4,
                   series.name, f"{100 * series.points[-1][1].value:.1f}")
    return canvas.svg("Accuracy against tokens, for each way to choose")


def interval_chart(rows: Sequence[tuple[str, str, Estimate]]) -> Markup:
    """One dot and whisker a row.

    Args:
        rows: (label, CSS class, estimate), top to bottom.
    """
    canvas = _Canvas(520, 26 * len(rows) + 44, (0, 1), (len(rows), 0), left=178, right=64, top=6, bottom=34)
    canvas.axes([0, 0.25, 0.5, 0.75, 1], [], "", "", lambda x: f"{100 * x:.0f} %", str)
    for x in (0, 0.25, 0.5, 0.75, 1):
        at = canvas.px(x)
        canvas.add('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>', at, at, canvas.top, canvas.bottom)
    for index, (label, style, e) in enumerate(rows):
        y = canvas.top + 26 * index + 15
        canvas.text(canvas.left - 10, y + 4, label, "name", "end")
        ends = canvas.px(e.low), canvas.px(e.high)
        canvas.add('<line class="line {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', style, *ends, y, y)
        for end in ends:
            canvas.add('<line class="line {}" x1="{}" x2="{}" y1="{}" y2="{}"/>', style, end, end, y - 4, y + 4)
        canvas.add('<circle class="dot {}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>', style,
                   canvas.px(e.value), y, f"{label}: {percent(e.value)} ({percent(e.low)} to {percent(e.high)})")
        canvas.text(canvas.right + 10, y + 4, percent(e.value), "name", "start")
    return canvas.svg("; ".join(f"{label}: {percent(e.value)}" for label, _, e in rows))


def reliability_chart(curve: Sequence[ReliabilityBin]) -> Markup:
    """Observed share of right steps against their score; a dot's area grows with the steps in it."""
    canvas = _Canvas(420, 400, (0, 1), (0, 1), left=52)
    grid = [0, 0.2, 0.4, 0.6, 0.8, 1]
    canvas.axes(grid, grid, "score of the step", "share of steps that are right", "{:.1f}".format, "{:.1f}".format)
    canvas.add('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>', canvas.px(0), canvas.py(0), canvas.px(1),
               canvas.py(1))
    points = [(canvas.px(b.mean_probability), canvas.py(b.observed_share)) for b in curve]
    canvas.add('<path class="line s-prm" d="{}"/>', _path(points))
    total = sum(b.count for b in curve)
    for b, (x, y) in zip(curve, points, strict=True):
        canvas.add('<circle class="dot s-prm" cx="{}" cy="{}" r="{}" fill-opacity="0.75"><title>{}</title></circle>',
                   x, y, round(3 + 11 * math.sqrt(b.count / total), 1),
                   f"{b.count} steps: mean score {b.mean_probability:.3f}, {percent(b.observed_share)} right")
    return canvas.svg("Share of right steps against the score they got")


def score_chart(scores: np.ndarray, right: np.ndarray, threshold: float, bins: int = 20) -> Markup:
    """How the scores of right and of wrong steps are spread, each as shares of its own number."""
    edges = np.linspace(0, 1, bins + 1)
    shares = {}
    for name, style, chosen in (("right", "s-prm", right), ("wrong", "s-bad", ~right)):
        counted, _ = np.histogram(scores[chosen], edges)
        shares[name] = (style, counted, counted / max(counted.sum(), 1))
    top = max(0.1, math.ceil(10 * max(share.max() for _, _, share in shares.values())) / 10)
    canvas = _Canvas(520, 320, (0, 1), (0, top), left=52)
    canvas.axes([0, 0.2, 0.4, 0.6, 0.8, 1], ticks(0, top, 4), "score of the step", "share of the right (wrong) steps",
                lambda x: f"{x:.1f}", lambda y: f"{100 * y:.0f} %")
    half = (canvas.px(edges[1]) - canvas.px(0)) / 2 - 1
    for side, (name, (style, counted, share)) in enumerate(shares.items()):
        for index in np.flatnonzero(counted):
            x, peak = canvas.px(edges[index]) + 1 + side * half, canvas.py(share[index])
            canvas.add('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>', style,
                       round(x, 2), min(peak, canvas.bottom - 1), round(half, 2),
                       round(max(canvas.bottom - peak, 1), 2),
                       f"{counted[index]} of {counted.sum()} {name} steps score {edges[index]:.2f} to "
                       f"{edges[index + 1]:.2f}")
    at = canvas.px(min(max(threshold, 0), 1))
    canvas.add('<line class="ideal" x1="{}" x2="{}" y1="{}" y2="{}"/>', at, at, canvas.top, canvas.bottom)
    right_of = threshold < 0.7
    canvas.text(at + (5 if right_of else -5), canvas.top - 4, f"threshold {threshold:.4g}", "tick",
                "start" if right_of else "end")
    return canvas.svg("Distribution of scores of right and of wrong steps")


def curve_chart(curve: Curve) -> Markup:
    """A small training curve; a ring marks what was kept."""
    xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - 0.5, high + 0.5
    canvas = _Canvas(300, 170, (min(xs), max(xs)), (low, high), left=56, top=14, bottom=34)
    canvas.axes(ticks(min(xs), max(xs), 4), ticks(low, high, 3), "update", "", lambda x: f"{x:g}", lambda y: f"{y:.4g}")
    canvas.add('<path class="line s-prm thin" d="{}"/>', _path([(canvas.px(x), canvas.py(y)) for x, y in curve.points]))
    x, y = curve.kept
    canvas.add('<circle class="kept" cx="{}" cy="{}" r="5"><title>{}</title></circle>', canvas.px(x), canvas.py(y),
               f"kept: update {x:g}, {y:.4g}")
    return canvas.svg(f"{curve.name} by update: {curve.title}")


def outcome_chart(curves: Sequence[tuple[str, Curve]]) -> Markup:
    """Curves of one training on one scale, named at their right end; a dashed line marks the update that was kept.

    Args:
        curves: (CSS class, curve), of which at least one.
    """
    xs, ys = zip(*(point for _, curve in curves for point in curve.points), strict=True)
    low, high = min(ys), max(ys)
    if low == high:
        low, high = low - 0.5, high + 0.5
    canvas = _Canvas(960, 300, (min(xs), max(xs)), (low, high), right=226)
    canvas.axes(ticks(min(xs), max(xs), 8), ticks(low, high), "update", "", lambda x: f"{x:g}", lambda y: f"{y:.4g}")
    kept = canvas.px(curves[0][1].kept[0])
    canvas.add('<line class="ideal" x1="{}" x2="{}" y1="{}" y2="{}"/>', kept, kept, canvas.top, canvas.bottom)
    canvas.text(kept, canvas.top - 4, "kept")
    for style, curve in curves:
        at = [(canvas.px(x), canvas.py(y)) for x, y in curve.points]
        canvas.add('<path class="line {}" d="{}"/>', style, _path(at))
        for (update, value), (x, y) in zip(curve.points, at, strict=True):
            canvas.add('<circle class="dot {}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>', style, x, y,
                       f"{curve.name}, update {update:g}: {value:.4g}")
    ends = [canvas.py(curve.points[-1][1]) for _, curve in curves]
    for (style, curve), y in zip(curves, _spread(ends, LINE, canvas.top, canvas.bottom), strict=True):
        canvas.add('<text class="name {}" x="{}" y="{}">{}</text>', style, canvas.right + 8, y + 4, curve.name)
    return canvas.svg("; ".join(f"{curve.name} {curve.title}" for _, curve in curves))


def step_colours(score: float) -> tuple[str, str]:
    """(edge, background) of a step: vermilion at 0 over grey at 0.5 to blue at 1, told apart by colour-blind readers.

    The background is transparent enough to be read on a light and on a dark page.
    """
    score = min(max(score, 0.0), 1.0)
    low, middle, high = (213, 94, 0), (140, 140, 140), (0, 114, 178)
    end, weight = (high, 2 * score - 1) if score >= 0.5 else (low, 1 - 2 * score)
    rgb = ",".join(str(round(m + weight * (e - m))) for m, e in zip(middle, end, strict=True))
    return f"rgb({rgb})", f"rgba({rgb},{0.08 + 0.27 * weight:.2f})"
