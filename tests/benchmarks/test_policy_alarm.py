"""What the benchmark of alarms calls lost, by hand."""

from __future__ import annotations

import pytest

from benchmarks.policy_alarm import bars_of, lost


def test_lost_is_from_the_best_so_far_and_the_base_policy_counts():
    assert lost(0.5, [(2, 0.6), (4, 0.55)]) == pytest.approx(5.0)
    assert lost(0.5, [(2, 0.45), (4, 0.48)]) == pytest.approx(2.0)
    assert lost(0.5, [(2, 0.55), (4, 0.6)]) == 0


def test_the_bar_holds_where_most_seeds_are_stopped_in_time():
    stopped = {"lost": 2.0, "alarm": "outcomes fell"}
    bars = bars_of({"a": stopped, "b": {"lost": 4.0, "alarm": None}, "c": stopped})
    assert [(bar.value, bar.holds) for bar in bars] == [(2.0, True), (pytest.approx(2 / 3), True)]
    late = {"lost": 3.5, "alarm": "late"}
    assert not bars_of({"a": stopped, "b": late, "c": late})[0].holds
