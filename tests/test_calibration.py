"""prm_core/models/calibration.py: exact figures on small cases, and what every calibrator must keep."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.models.calibration import (
    Calibrator,
    brier_score,
    expected_calibration_error,
    fit_calibrator,
    out_of_fold,
    reliability_curve,
)

unit = st.floats(0, 1, allow_nan=False)
predictions = st.lists(st.tuples(unit, st.booleans()), min_size=1, max_size=60)
two_classes = predictions.filter(lambda rows: len({y for _, y in rows}) == 2)


def split(rows):
    return [p for p, _ in rows], [y for _, y in rows]


def overconfident(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions whose true probability is nearer one half than they say."""
    rng = np.random.default_rng(seed)
    p = rng.random(count)
    return p, rng.random(count) < 0.5 + 0.5 * (p - 0.5)


def test_ece_weighs_bins_by_count():
    # The guide takes the plain mean over bins, (0.1 + 0.9) / 2 = 0.5 here. METHODS 1.
    p = [0.9] * 9 + [0.1]
    y = [True] * 9 + [True]
    assert expected_calibration_error(p, y, 10) == pytest.approx(0.9 * 0.1 + 0.1 * 0.9)


def test_ece_of_calibrated_predictions_is_zero():
    p = [0.25] * 4 + [0.75] * 4
    y = [True, False, False, False, True, True, True, False]
    assert expected_calibration_error(p, y, 2) == 0.0


def test_brier_score_by_hand():
    assert brier_score([1.0, 0.5, 0.0], [True, False, True]) == pytest.approx((0 + 0.25 + 1) / 3)


def test_reliability_curve_by_hand():
    curve = reliability_curve([0.0, 0.1, 0.25, 1.0, 0.9], [False, True, True, True, False], bins=4)
    assert [(b.low, b.high, b.count) for b in curve] == [(0.0, 0.25, 2), (0.25, 0.5, 1), (0.75, 1.0, 2)]
    assert [b.observed_share for b in curve] == [0.5, 1.0, 0.5]
    assert [b.mean_probability for b in curve] == pytest.approx([0.05, 0.25, 0.95])


@given(predictions, st.integers(2, 20))
def test_figures_stay_in_range_and_count_every_prediction(rows, bins):
    p, y = split(rows)
    curve = reliability_curve(p, y, bins)
    assert sum(b.count for b in curve) == len(rows)
    assert all(b.low - 1e-12 <= b.mean_probability <= b.high + 1e-12 for b in curve)
    assert 0 <= expected_calibration_error(p, y, bins) <= 1
    assert 0 <= brier_score(p, y) <= 1


@given(predictions, st.randoms())
def test_figures_do_not_depend_on_order(rows, rng):
    shuffled = rows[:]
    rng.shuffle(shuffled)
    for figure in (lambda p, y: expected_calibration_error(p, y, 7), brier_score):
        assert figure(*split(rows)) == pytest.approx(figure(*split(shuffled)))


@pytest.mark.parametrize(
    ("p", "y"),
    [([], []), ([0.5], [True, False]), ([1.2], [True]), ([float("nan")], [True]), ([0.5], [0.3])],
)
def test_bad_input_is_refused(p, y):
    with pytest.raises(ValueError, match=r"predictions|length|probabilities|outcomes"):
        expected_calibration_error(p, y, 10)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
@settings(max_examples=60, deadline=None)
@given(rows=two_classes, probes=st.lists(unit, min_size=2, max_size=30))
def test_calibrators_are_monotone_and_stay_probabilities(method, rows, probes):
    calibrator = fit_calibrator(*split(rows), method, min_labels=1)
    result = calibrator.apply(np.sort(probes))
    assert np.all((result >= 0) & (result <= 1))
    assert np.all(np.diff(result) >= 0)


@settings(max_examples=60, deadline=None)
@given(rows=two_classes)
def test_isotonic_keeps_the_order_of_distinct_scores(rows):
    # Plain isotonic regression is flat inside its blocks: best-of-N would then pick blindly among the best.
    calibrator = fit_calibrator(*split(rows), "isotonic", min_labels=1)
    assert np.all(np.diff(calibrator.apply(np.linspace(0, 1, 50))) > 0)


def test_isotonic_is_isotonic_regression_but_for_one_label():
    p, y = [0.2, 0.4, 0.6, 0.8], [False, True, False, True]
    calibrator = fit_calibrator(p, y, "isotonic", min_labels=1)
    # Pooled: 0, ½, ½, 1; the raw probability counts as a fifth label.
    expected = [(4 * block + raw) / 5 for block, raw in zip([0, 0.5, 0.5, 1], p, strict=True)]
    assert calibrator.apply(p) == pytest.approx(expected)
    assert calibrator.apply([0.0, 1.0]) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibration_helps_on_fresh_predictions(method):
    calibrator = fit_calibrator(*overconfident(600, seed=1), method, min_labels=50)
    p, y = overconfident(3000, seed=2)
    assert expected_calibration_error(p, y, 10) > 0.1
    assert expected_calibration_error(calibrator.apply(p), y, 10) < 0.05
    assert brier_score(calibrator.apply(p), y) < brier_score(p, y)


def test_platt_recovers_the_map_it_assumes():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    true = 1 / (1 + np.exp(-(0.5 * np.log(p / (1 - p)) - 1.0)))
    calibrator = fit_calibrator(p, rng.random(20_000) < true, "platt", min_labels=50)
    assert calibrator.slope == pytest.approx(0.5, abs=0.04)
    assert calibrator.intercept == pytest.approx(-1.0, abs=0.06)


def test_platt_stays_finite_on_separable_labels_and_at_zero_and_one():
    calibrator = fit_calibrator([0.0, 0.1, 0.9, 1.0], [False, False, True, True], "platt", min_labels=1)
    result = calibrator.apply([0.0, 0.5, 1.0])
    assert 0 < result[0] < result[1] < result[2] < 1
    assert result[1] == pytest.approx(0.5, abs=1e-3)


def test_platt_never_turns_the_order_round(caplog):
    calibrator = fit_calibrator([0.1, 0.2, 0.8, 0.9], [True, True, False, False], "platt", min_labels=1)
    assert calibrator.slope == 0.0
    assert calibrator.apply([0.1, 0.9]) == pytest.approx([0.5, 0.5])
    assert "fall as the outcomes rise" in caplog.text


@pytest.mark.parametrize("method", ["identity", "isotonic", "platt"])
def test_json_round_trip_is_exact(method):
    calibrator = fit_calibrator(*overconfident(200), method, min_labels=50)
    restored = Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict())))
    assert restored == calibrator
    probes = np.linspace(0, 1, 101)
    assert np.array_equal(restored.apply(probes), calibrator.apply(probes))


def test_apply_keeps_the_shape_and_needs_no_sklearn(monkeypatch):
    calibrator = fit_calibrator(*overconfident(200), "isotonic", min_labels=50)
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert calibrator.apply(np.full((2, 3), 0.5)).shape == (2, 3)
    assert calibrator.apply(0.5).shape == ()


@pytest.mark.parametrize(
    ("p", "y", "reason"),
    [
        ([0.2] * 49, [True] * 20 + [False] * 29, "49 labels, fewer than the 50 needed"),
        ([], [], "0 labels, fewer than the 50 needed"),
        ([0.2] * 60, [True] * 60, "all 60 labels are of one class"),
    ],
)
def test_too_little_to_fit_gives_the_identity_and_says_so(p, y, reason, caplog):
    with caplog.at_level(logging.WARNING):
        calibrator = fit_calibrator(p, y, "isotonic", min_labels=50)
    assert (calibrator.method, calibrator.labels, calibrator.reason) == ("identity", len(y), reason)
    assert reason in caplog.text
    assert calibrator.apply([0.0, 0.3, 1.0]).tolist() == [0.0, 0.3, 1.0]


def test_unknown_method_and_bad_probability_are_refused():
    with pytest.raises(ValueError, match="unknown calibration method 'spline'"):
        fit_calibrator([0.5], [True], "spline", 1)
    with pytest.raises(ValueError, match="probabilities must lie"):
        Calibrator("identity", labels=0).apply([1.5])


def test_out_of_fold_never_uses_the_own_group():
    # Within each chain outcomes are all alike and the raw probability is its own: a map that saw the chain would
    # reproduce its outcome; one that did not can only give a mix.
    p = np.repeat(np.linspace(0.1, 0.9, 20), 5)
    y = np.repeat(np.arange(20) % 2 == 0, 5)
    groups = [f"t{i // 5}" for i in range(100)]
    honest = out_of_fold(p, y, groups, "isotonic", folds=5, seed=0)
    fitted = fit_calibrator(p, y, "isotonic", 1).apply(p)
    assert brier_score(honest, y) > brier_score(fitted, y)
    flipped = y.copy()
    flipped[:5] = ~flipped[:5]
    again = out_of_fold(p, flipped, groups, "isotonic", folds=5, seed=0)
    assert np.array_equal(honest[:5], again[:5])
    assert not np.array_equal(honest, again)


def test_out_of_fold_is_seeded_and_needs_two_groups():
    p, y = overconfident(60)
    groups = [str(i // 3) for i in range(60)]
    first = out_of_fold(p, y, groups, "platt", folds=5, seed=3)
    assert np.array_equal(first, out_of_fold(p, y, groups, "platt", folds=5, seed=3))
    with pytest.raises(ValueError, match="two groups"):
        out_of_fold(p, y, ["one"] * 60, "platt", folds=5, seed=0)
