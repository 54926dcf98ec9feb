"""What stops a policy's training, and what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from prm_core.config import GuardConfig
from prm_core.training.policy.guards import alarm, windows

SETTINGS = GuardConfig(window=2, max_fall=0.05, max_stretch=0.3, max_filler=0.1)
PLAIN = {"reward/outcome": 0.5, "reward/outcome_error": 0.0,
         "reward/process": 0.8, "chain/steps": 4.0, "chain/tokens": 40.0,
         "chain/repeated_share": 0.0, "chain/nothing_new_share": 0.1}


def history(key: str, values: Sequence[float], **others: Sequence[float]) -> list[dict[str, float]]:
    curves = {key: values, **{name.replace("__", "/"): curve for name, curve in others.items()}}
    return [PLAIN | {name: curve[at] for name, curve in curves.items()} for at in range(len(values))]


def test_windows_are_means_of_updates_in_a_row() -> None:
    found = windows([{"a": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 5.0, "note": "x"}], 2)
    assert found == [{"a": 2.0}, {"a": 4.0}]
    assert windows([], 2) == []


@pytest.mark.parametrize(("given", "said"), [
    (history("reward/outcome", [0.5, 0.6, 0.6, 0.5, 0.5], reward__process=[0.8, 0.8, 0.8, 0.9, 0.9]),
     "outcomes fell from 0.600 to 0.500 while the process reward went from 0.800 to 0.900"),
    (history("chain/steps", [4.0, 4.0, 5.0, 6.0]), "chains went from 4.0 to 5.5 steps while outcomes stayed at 0.500"),
    (history("chain/tokens", [40.0, 40.0, 20.0, 20.0]), "chains went from 40.0 to 20.0 tokens"),
    (history("chain/repeated_share", [0.0, 0.0, 0.2, 0.2]), "steps that repeat another went from 0.0% to 20.0%"),
    (history("chain/nothing_new_share", [0.1, 0.1, 0.3, 0.3]), "steps that say nothing new went from 10.0% to 30.0%"),
])
def test_what_stops_it(given: list[dict[str, float]], said: str) -> None:
    assert said in (alarm(given, SETTINGS) or "")
    assert alarm(given, dataclasses.replace(SETTINGS, window=0)) is None


@pytest.mark.parametrize("given", [
    [],
    # Too few to compare.
    history("chain/steps", [4.0, 9.0, 9.0]),
    # A fall within what is allowed, and one in which the process reward falls too.
    history("reward/outcome", [0.6, 0.6, 0.56, 0.56]),
    history("reward/outcome", [0.6, 0.6, 0.4, 0.4], reward__process=[0.8, 0.8, 0.7, 0.7]),
    # A fall that other questions explain: 2 · √2 · 0.04 / √2 on top of what is allowed.
    history("reward/outcome", [0.6, 0.6, 0.48, 0.48], reward__outcome_error=[0.04] * 4),
    # Longer chains that are right more often, and a drift within what is allowed.
    history("chain/steps", [4.0, 4.0, 6.0, 6.0], reward__outcome=[0.4, 0.4, 0.6, 0.6]),
    history("chain/tokens", [40.0, 40.0, 50.0, 50.0]),
])
def test_what_does_not(given: list[dict[str, float]]) -> None:
    assert alarm(given, SETTINGS) is None
