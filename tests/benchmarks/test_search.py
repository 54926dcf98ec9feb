"""benchmarks/search.py: comparisons at equal tokens and equal accuracy by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import search as benchmark
from benchmarks.search import Point, bars, difference, ratio, tokens_for


def point(tokens: float, right: list[float]) -> Point:
    return Point("", np.array(right), np.full(len(right), tokens), {}, 0.0)


# 0.25 right for 100 tokens, 0.75 for 400.
CURVE = [point(100, [1, 0, 0, 0]), point(400, [1, 1, 1, 0])]
EVERY = np.arange(4)


def test_tokens_for_an_accuracy_by_hand():
    assert tokens_for(CURVE, 0.5, EVERY) == pytest.approx(200)
    assert tokens_for(CURVE, 0.9, EVERY) == pytest.approx(400), "it is never reached"
    # A curve that falls is worth what it had reached.
    assert tokens_for([*CURVE, point(900, [0, 0, 0, 0])], 0.75, EVERY) == pytest.approx(400)


def test_difference_at_equal_tokens_by_hand():
    gain, low, high = difference(point(200, [1, 1, 1, 1]), CURVE, 0)
    assert gain == pytest.approx(50)
    assert low < gain < high


def test_ratio_at_equal_accuracy_by_hand():
    value, low, high = ratio(point(80, [1, 1, 0, 0]), CURVE, 0)
    assert value == pytest.approx(0.4)
    assert low <= value <= high


def test_bars_take_the_median_and_the_worst(monkeypatch):
    monkeypatch.setattr(benchmark, "BEST", ("step", 0))
    monkeypatch.setattr(benchmark, "ADAPTIVE", ("adaptive", 0))
    good, poor = point(200, [1, 1, 1, 1]), point(200, [1, 1, 0, 0])
    curves = {name: {"step": [one], "adaptive": [point(80, [1, 1, 0, 0])], "weighted_majority, prm": CURVE,
                     "best_of_n, prm": CURVE} for name, one in (("a", good), ("b", good), ("c", poor))}
    found = bars(curves)
    assert [(round(bar.value, 3), bar.holds) for bar in found] == [
        *[(50, True), (0, False)] * 2, *[(50, True), (0, False)] * 2, (0.4, True), (0.4, True)]
    assert (found[0].low, found[0].high) == (pytest.approx(0), pytest.approx(50))
