"""What stops a policy's training, and what does not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest

from prm_core.config import GuardConfig
from prm_core.training.policy.guards import alarm, parting, windows

SETTINGS = GuardConfig(window=2, max_fall=0.05, max_stretch=0.3, max_filler=0.1)
PLAIN = {"reward/outcome": 0.5, "reward/outcome_error": 0.0, "reward/lowest_error": 0.0, "reward/agreement": 0.0,
         "reward/process": 0.8, "reward/lowest_step": 0.6, "chain/steps": 4.0, "chain/tokens": 40.0,
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
     "outcomes are 0.067 below what the process rewards promise by the updates before: they are at 0.500, after 0.550 "
     "at first, and the mean process reward is at 0.900, after 0.800"),
    # Outcomes stay where the lowest step says that they rise: slope 1 · 0.02 / 0.01.
    (history("reward/lowest_step", [0.6, 0.6, 0.65, 0.65], reward__agreement=[1.0] * 4,
             reward__outcome_error=[0.02] * 4, reward__lowest_error=[0.01] * 4),
     "outcomes are 0.100 below what the process rewards promise"),
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
    # A fall within what is allowed, and one that the process rewards foretell: these questions are harder.
    history("reward/outcome", [0.6, 0.6, 0.56, 0.56]),
    history("reward/outcome", [0.6, 0.6, 0.4, 0.4], reward__lowest_step=[0.6, 0.6, 0.5, 0.5],
            reward__agreement=[1.0] * 4, reward__outcome_error=[0.02] * 4, reward__lowest_error=[0.01] * 4),
    # A fall that other questions explain: 2 · √2 · 0.04 / √2 on top of what is allowed.
    history("reward/outcome", [0.6, 0.6, 0.48, 0.48], reward__outcome_error=[0.04] * 4),
    # Longer chains that are right more often, and a drift within what is allowed.
    history("chain/steps", [4.0, 4.0, 6.0, 6.0], reward__outcome=[0.4, 0.4, 0.6, 0.6]),
    history("chain/tokens", [40.0, 40.0, 50.0, 50.0]),
])
def test_what_does_not(given: list[dict[str, float]]) -> None:
    assert alarm(given, SETTINGS) is None


def test_what_questions_differ_by_is_taken_off_by_hand() -> None:
    """Errors 0.05 and 0.04, correlation 0.8: slope 0.8 · 0.05 / 0.04 = 1; what is left errs by
    √(0.05² + 0.04² - 2 · 0.8 · 0.05 · 0.04) = 0.03 an update."""
    curves = {"reward/lowest_step": [0.6, 0.5, 0.7, 0.6, 0.6, 0.6], "reward/agreement": [0.8] * 6,
              "reward/outcome_error": [0.05] * 6, "reward/lowest_error": [0.04] * 6}
    given = history("reward/outcome", [0.5, 0.4, 0.6, 0.5, 0.4, 0.4], **curves)
    fall, chance = parting(given, 2)
    assert fall == pytest.approx(0.1)
    assert chance == pytest.approx(0.03 * math.sqrt(1 / 4 + 1 / 2))
    # Where the two have nothing in common, or the less the more, outcomes stand alone.
    for agreement in (0.0, -0.8):
        curves["reward/agreement"] = [agreement] * 6
        fall, chance = parting(history("reward/outcome", [0.5, 0.4, 0.6, 0.5, 0.4, 0.4], **curves), 2)
        assert (fall, chance) == (pytest.approx(0.1), pytest.approx(0.05 * math.sqrt(1 / 4 + 1 / 2)))


def simulated(rng: np.random.Generator, updates: int, hacked_from: int) -> tuple[list[dict[str, float]], list[float]]:
    """Records of a training that learns, and from an update on loses a point in each while its scores go on rising; and
    what it has lost. 32 questions an update, of chances spread over [0, 1]; scores know them with some error."""
    records, lost = [], []
    for at in range(updates):
        chance = np.clip(rng.uniform(0, 1, 32) + 0.15 * min(at, hacked_from) / 20, 0, 1)
        known = np.clip(chance + rng.normal(0, 0.15, 32), 0, 1)
        over = max(0, at - hacked_from)
        right = rng.binomial(8, chance * (1 - 0.017 * over)) / 8
        lost.append(0.017 * over * chance.mean())
        lowest = known + (1 - known) * min(0.9, 0.03 * over)
        records.append(PLAIN | {
            "reward/outcome": right.mean(), "reward/outcome_error": right.std(ddof=1) / 32**0.5,
            "reward/lowest_step": lowest.mean(), "reward/lowest_error": lowest.std(ddof=1) / 32**0.5,
            "reward/agreement": np.corrcoef(right, lowest)[0, 1]})
    return records, lost


def test_it_fires_soon_after_scores_and_outcomes_part_and_not_before() -> None:
    settings = GuardConfig(window=4, max_fall=0.03, max_stretch=0.3, max_filler=0.1)
    rng = np.random.default_rng(0)
    at_firing = []
    for _ in range(20):
        records, lost = simulated(rng, 48, 16)
        fired = next(end for end in range(1, 49) if alarm(records[:end], settings))
        assert fired > 16
        at_firing.append(lost[fired - 1])
    assert sorted(at_firing)[10] < 0.08
    healthy = [simulated(rng, 48, 48)[0] for _ in range(20)]
    assert not any(alarm(records[:end], settings) for records in healthy for end in range(1, 49))
