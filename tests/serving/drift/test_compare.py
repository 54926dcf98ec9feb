"""prm_core/serving/drift/compare.py: distances as scipy has them, and a test that keeps its level and finds drift."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, wasserstein_distance

from prm_core.serving.drift.compare import change_in_stream, compare, psi
from prm_core.serving.drift.features import NONE
from tests.builders.drift import served, traffic


def of(comparison, feature):
    return next(one for one in comparison.distances if one.feature == feature)


SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(a=SCORES, b=SCORES, weights=st.lists(st.sampled_from([1.0, 0.5, 0.1]), min_size=12, max_size=12))
def test_distances_of_numbers_are_scipy_s(a, b, weights) -> None:
    reference = [served(f"a{n}", [score]) for n, score in enumerate(a)]
    window = [served(f"b{n}", [score], chance=weights[n]) for n, score in enumerate(b)]
    found = of(compare(reference, window, seed=0, permutations=1), "lowest_score")
    heavy = [1 / one.chance for one in window]
    assert found.wasserstein == pytest.approx(wasserstein_distance(a, b, None, heavy))
    repeated = [score for one, score in zip(heavy, b, strict=True) for _ in range(round(one))]
    assert found.ks == pytest.approx(ks_2samp(a, repeated).statistic)


def test_psi_is_that_of_hand_counted_shares() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    # 100 + 0.5 · 2 of either: shares (50.5, 50.5)/101 and (90.5, 10.5)/101.
    a, b = 90.5 / 101, 10.5 / 101
    assert psi(p, q, np.array([100.0, 100.0])) == pytest.approx(
        (a - 0.5) * np.log(a / 0.5) + (b - 0.5) * np.log(b / 0.5))
    assert psi(p, p, np.array([100.0, 40.0])) == pytest.approx(0, abs=1e-3)


def test_shares_of_names_and_of_the_reference_s_bins() -> None:
    reference = [served(f"a{n}", [n / 10], tools=["add"]) for n in range(10)]
    window = [served(f"b{n}", [0.05], tools=["add", "sub", "sub"]) for n in range(4)] + [served("c", [0.95])]
    found = compare(reference, window, seed=0, permutations=9)
    # Eight of twelve calls are the other tool's; a trajectory without calls counts as one of another kind.
    tools = of(found, "tools").shares
    assert {name: before for name, (before, _) in tools.items()} == pytest.approx({"add": 1, "sub": 0, NONE: 0})
    assert {name: after for name, (_, after) in tools.items()} == pytest.approx(
        {"add": 4 / 13, "sub": 8 / 13, NONE: 1 / 13})
    shares = of(found, "lowest_score").shares
    assert sum(share for share, _ in shares.values()) == pytest.approx(1)
    assert next(iter(shares.values())) == pytest.approx((0.1, 0.0))
    assert list(shares.values())[-1] == pytest.approx((0.1, 0.2))


def test_quiet_windows_raise_no_more_alarms_than_the_level() -> None:
    level, windows = 0.1, 80
    low = sum(compare(traffic(60, 2 * seed), traffic(30, 2 * seed + 1), seed, permutations=99).p <= level
              for seed in range(windows))
    # Binomial(80, 0.1): 99.9 % lie within.
    assert 1 <= low <= 18


def test_trajectories_of_unequal_chances_are_compared_as_what_they_stand_for() -> None:
    # Half of the questions were drawn ten times less often: unweighted they would be a tenth.
    rng = np.random.default_rng(0)
    low, high = ([served(f"{mean}{n:03}", [mean + 0.01 * rng.random()], chance=chance) for n in range(count)]
                 for mean, count, chance in ((0.2, 10, 0.05), (0.8, 100, 0.5)))
    reference = [served(f"{n:06}", [(0.2 if n % 2 else 0.8) + 0.01 * rng.random()]) for n in range(200)]
    found = compare(reference, [*low, *high], seed=0)
    assert found.p > 0.05
    assert found.effective < 45
    unweighted = [dataclasses.replace(one, chance=1.0) for one in (*low, *high)]
    assert compare(reference, unweighted, seed=0).p == pytest.approx(0.001)


@pytest.mark.parametrize(("feature", "changed"), [
    ("mean_score", {"mean": 0.65}), ("step_length", {"length": 30}), ("tools", {"tools": ["new"]}),
    ("agents", {"agent": "bob"}), ("in_domain", {"in_domain": False})])
def test_each_kind_of_drift_is_found_and_named(feature, changed) -> None:
    found = compare(traffic(150, 0), [*traffic(40, 1), *traffic(40, 2, **changed)], seed=0)
    assert found.p <= 0.01
    assert found.distances[0].p == found.p
    assert of(found, feature).p <= 0.01
    assert of(found, "question_length").p > 0.01


def test_the_same_seed_says_the_same() -> None:
    a, b = traffic(40, 0), traffic(30, 1)
    assert compare(a, b, seed=3) == compare(a, b, seed=3)


def test_the_stream_changes_where_its_mean_does() -> None:
    pytest.importorskip("river")
    quiet = traffic(400, 1)
    assert change_in_stream(traffic(300, 0), quiet, seed=0) is None
    found = change_in_stream(traffic(300, 0), [*quiet, *traffic(200, 2, mean=0.5)], seed=0)
    assert 400 <= found < 500
