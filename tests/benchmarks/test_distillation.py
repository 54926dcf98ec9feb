"""The bars of the benchmark on models that teach: held to medians, of the workspaces that were measured."""

from __future__ import annotations

from benchmarks.distillation import bars


def test_bars_are_held_to_the_median_of_what_was_measured() -> None:
    runs = {
        "default-1": {"large": {"kept": 96.0}},
        "default-2": {"large": {"kept": 97.5}},
        "default-3": {"large": {"kept": 99.0}},
        "hard-1": {"verifier": {"gain": 4.0, "kept": 96.0, "cheaper": 30.0}},
    }
    found = {bar.bar: (bar.value, bar.low, bar.high, bar.holds) for bar in bars(runs)}
    assert found == {">= 97": (97.5, 96.0, 99.0, True), ">= 5": (4.0, 4.0, 4.0, False),
                     ">= 95": (96.0, 96.0, 96.0, True), ">= 20": (30.0, 30.0, 30.0, True)}
    assert [bar.bar for bar in bars({"default-1": runs["default-1"]})] == [">= 97"]
