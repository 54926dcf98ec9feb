"""prm_core/models/calibration.py: exact figures on small cases, and what every calibrator must keep."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.scoring.calibration import (
    Calibrator,
    brier_score,
    expected_calibration_error,
    fit_calibrator,
    folds_of_groups,
    reliability_curve,
)

FITTED = ["isotonic", "platt", "temperature"]
unit = st.floats(0, 1, allow_nan=False)
predictions = st.lists(st.tuples(unit, st.booleans()), min_size=1, max_size=60)
two_classes = predictions.filter(lambda rows: len({y for _, y in rows}) == 2)
weighted = st.lists(st.tuples(unit, st.booleans(), st.integers(1, 5)), min_size=1, max_size=40)


def split(rows):
    return [p for p, _ in rows], [y for _, y in rows]


def repeated(rows):
    """Probabilities, outcomes and weights of weighted rows; the same as unweighted rows, each as often as it weighs."""
    p, y, w = (np.array(column) for column in zip(*rows, strict=True))
    return (p, y, w), (np.repeat(p, w), np.repeat(y, w))


def logit(p):
    return np.log(p) - np.log1p(-p)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


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


def test_weighted_figures_by_hand():
    p, y, w = [0.1, 0.3, 0.9, 0.7], [False, True, True, False], [1, 3, 2, 2]
    low, high = reliability_curve(p, y, 2, w)
    assert (low.mean_probability, low.observed_share) == (pytest.approx((0.1 + 3 * 0.3) / 4), pytest.approx(3 / 4))
    assert (high.mean_probability, high.observed_share) == (pytest.approx(0.8), pytest.approx(0.5))
    assert [(b.count, b.weight) for b in (low, high)] == [(2, 4), (2, 4)]
    assert expected_calibration_error(p, y, 2, w) == pytest.approx((4 * 0.5 + 4 * 0.3) / 8)
    assert brier_score(p, y, w) == pytest.approx((0.01 + 3 * 0.49 + 2 * 0.01 + 2 * 0.49) / 8)


@given(weighted, st.integers(2, 12))
def test_a_whole_weight_is_as_many_predictions(rows, bins):
    (p, y, w), (many_p, many_y) = repeated(rows)
    assert expected_calibration_error(p, y, bins, w) == pytest.approx(
        expected_calibration_error(many_p, many_y, bins), abs=1e-12)
    assert brier_score(p, y, w) == pytest.approx(brier_score(many_p, many_y), abs=1e-12)
    once, many = reliability_curve(p, y, bins, w), reliability_curve(many_p, many_y, bins)
    assert [(b.low, b.high, b.weight) for b in once] == [(b.low, b.high, b.count) for b in many]
    for field in ("mean_probability", "observed_share"):
        assert [getattr(b, field) for b in once] == pytest.approx([getattr(b, field) for b in many])


@given(weighted, st.floats(0.01, 100))
def test_only_the_proportions_of_weights_count(rows, factor):
    (p, y, w), _ = repeated(rows)
    assert expected_calibration_error(p, y, 5, w * factor) == pytest.approx(expected_calibration_error(p, y, 5, w))
    assert brier_score(p, y, w * factor) == pytest.approx(brier_score(p, y, w))
    equal = np.full(len(p), factor)
    assert expected_calibration_error(p, y, 5, equal) == pytest.approx(expected_calibration_error(p, y, 5))


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_are_positive_numbers_one_each(weights):
    for figure in (lambda w: brier_score([0.1, 0.2], [True, False], w),
                   lambda w: fit_calibrator([0.1, 0.2], [True, False], "isotonic", 1, w)):
        with pytest.raises(ValueError, match="weights must be positive, one for each"):
            figure(weights)


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


@pytest.mark.parametrize("method", FITTED)
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


@pytest.mark.parametrize("method", FITTED)
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


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_temperature_recovers_the_one_it_assumes(temperature):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.001, 0.999, 40_000)
    calibrator = fit_calibrator(p, rng.random(p.size) < sigmoid(logit(p) / temperature), "temperature", 50)
    assert 1 / calibrator.slope == pytest.approx(temperature, rel=0.05)
    assert calibrator.intercept == 0
    assert calibrator.apply([0.5]) == pytest.approx([0.5])


def test_temperature_keeps_the_order_even_of_scores_that_are_wrong_way_round():
    calibrator = fit_calibrator([0.1, 0.2, 0.8, 0.9] * 20, [True, True, False, False] * 20, "temperature", 50)
    result = calibrator.apply([0.1, 0.2, 0.8, 0.9])
    assert np.all(np.diff(result) > 0)
    # The best it may do is to say next to nothing.
    assert result == pytest.approx([0.5] * 4, abs=0.02)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("count", [40, 2000])
def test_no_calibrator_takes_separable_labels_for_certainty(method, count):
    # Right answers in a row are no proof: a probability of 1 would be an infinite loss at the first wrong one.
    p = np.concatenate([np.linspace(0.05, 0.45, count // 2), np.linspace(0.55, 0.95, count // 2)])
    calibrator = fit_calibrator(p, p > 0.5, method, min_labels=1)
    result = calibrator.apply(p)
    assert np.all(np.isfinite([calibrator.slope, calibrator.intercept]))
    assert result.min() > 0
    assert result.max() < 1
    assert brier_score(result, p > 0.5) < brier_score(p, p > 0.5)


@settings(max_examples=40, deadline=None)
@given(weighted.filter(lambda rows: len({y for _, y, _ in rows}) == 2))
def test_isotonic_with_weights_is_isotonic_on_repeated_labels(rows):
    (p, y, w), (many_p, many_y) = repeated(rows)
    raw = np.unique(p)

    def regression(calibrator):
        # Without the raw probability that counts as one label more.
        return ((calibrator.labels + 1) * calibrator.apply(raw) - raw) / calibrator.labels

    once = fit_calibrator(p, y, "isotonic", 1, w)
    many = fit_calibrator(many_p, many_y, "isotonic", 1)
    assert (once.labels, many.labels) == (len(p), sum(w))
    assert regression(once) == pytest.approx(regression(many), abs=1e-9)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_weights_are_as_many_labels_but_no_more_evidence(method):
    rng = np.random.default_rng(3)
    p, y = overconfident(600, seed=3)
    w = rng.integers(1, 6, 600)
    once = fit_calibrator(p, y, method, 50, w)
    many = fit_calibrator(np.repeat(p, w), np.repeat(y, w), method, 50)
    plain = fit_calibrator(p, y, method, 50)
    probes = np.linspace(0.01, 0.99, 30)
    gap = np.abs(once.apply(probes) - many.apply(probes)).max()
    # The smoothed targets alone tell them apart: they know that there are 600 labels, not 1800.
    assert gap < 0.005 < np.abs(once.apply(probes) - plain.apply(probes)).max()
    scaled = fit_calibrator(p, y, method, 50, w * 37.0)
    assert (scaled.slope, scaled.intercept) == pytest.approx((once.slope, once.intercept), rel=1e-4, abs=1e-5)
    assert scaled.labels == once.labels == 600


def test_platt_minimises_the_weighted_cross_entropy_to_smoothed_targets():
    from scipy.optimize import minimize

    p, y = overconfident(200, seed=4)
    w = np.random.default_rng(4).uniform(0.2, 5, 200)
    right = int(y.sum())
    targets = np.where(y, (right + 1) / (right + 2), 1 / (200 - right + 2))

    def loss(parameters):
        x = parameters[0] * logit(p) + parameters[1]
        return np.average(targets * np.logaddexp(0, -x) + (1 - targets) * np.logaddexp(0, x), weights=w)

    calibrator = fit_calibrator(p, y, "platt", 50, w)
    best = minimize(loss, [1.0, 0.0], tol=1e-10).x
    assert (calibrator.slope, calibrator.intercept) == pytest.approx(tuple(best), abs=2e-3)


@pytest.mark.parametrize("method", FITTED)
def test_weights_bring_a_skewed_sample_back(method):
    # Steps of the kind whose score says too much were asked about ten times as often as the others.
    rng = np.random.default_rng(5)
    p = rng.uniform(0.02, 0.98, 60_000)
    odd = rng.random(p.size) < 0.5
    y = rng.random(p.size) < np.where(odd, 0.5 + (p - 0.5) / 3, p)
    chance = np.where(odd, 0.1, 0.01)
    picked = rng.random(p.size) < chance
    whole = fit_calibrator(p, y, method, 50)
    weighed = fit_calibrator(p[picked], y[picked], method, 50, 1 / chance[picked])
    naive = fit_calibrator(p[picked], y[picked], method, 50)
    probes = np.linspace(0.1, 0.9, 9)
    gaps = {name: np.abs(one.apply(probes) - whole.apply(probes)).mean()
            for name, one in {"weighed": weighed, "naive": naive}.items()}
    assert gaps["weighed"] < 0.04 < gaps["naive"]


def test_platt_is_finite_at_zero_and_one():
    calibrator = fit_calibrator([0.0, 0.1, 0.9, 1.0], [False, False, True, True], "platt", min_labels=1)
    result = calibrator.apply([0.0, 0.5, 1.0])
    assert 0 < result[0] < result[1] < result[2] < 1
    assert result[1] == pytest.approx(0.5, abs=1e-3)


def test_platt_never_turns_the_order_round(caplog):
    calibrator = fit_calibrator([0.1, 0.2, 0.8, 0.9], [True, True, False, False], "platt", min_labels=1)
    assert calibrator.slope == 0.0
    assert calibrator.apply([0.1, 0.9]) == pytest.approx([0.5, 0.5])
    assert "fall as the outcomes rise" in caplog.text


@pytest.mark.parametrize("method", ["identity", *FITTED])
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


@pytest.mark.parametrize("method", FITTED)
def test_a_probable_outcome_is_a_true_and_a_false_one_that_share_its_weight(method):
    p, sure = overconfident(60)
    true = np.where(np.arange(60) % 3 == 0, 0.8, sure)
    soft = true == 0.8
    weights = np.random.default_rng(1).uniform(0.5, 2, 60)
    parts = np.concatenate([np.where(soft, 0.8, 1.0) * weights, 0.2 * weights[soft]])
    rows = fit_calibrator(np.concatenate([p, p[soft]]), np.concatenate([true > 0.5, np.zeros(soft.sum())]), method, 50,
                          parts)
    found = fit_calibrator(p, true, method, 50, weights)
    assert (found.labels, rows.labels) == (60, 80)
    grid = np.linspace(0, 1, 21)
    assert found.apply(grid) == pytest.approx(rows.apply(grid))
    # Two rows are one label still.
    assert fit_calibrator(p, true, method, 61).reason == "60 labels, fewer than the 61 needed"
    # Sure of none of them, and of one mind: there is something to fit.
    assert fit_calibrator(p, np.full(60, 0.9), method, 50).method == method
    with pytest.raises(ValueError, match="the probability of true"):
        fit_calibrator(p, np.full(60, np.nan), method, 50)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=60).filter(lambda g: len(set(g)) > 1), st.integers(2, 8),
       st.integers(0, 3))
def test_folds_keep_groups_whole_and_hold_each_row_out_once(numbers, folds, seed):
    groups = [str(number) for number in numbers]
    parts = folds_of_groups(groups, folds, seed)
    assert len(parts) == min(folds, len(set(groups)))
    assert sorted(np.concatenate([held for _, held in parts]).tolist()) == list(range(len(groups)))
    for fitted, held in parts:
        assert sorted([*fitted, *held]) == list(range(len(groups)))
        assert not {groups[row] for row in fitted} & {groups[row] for row in held}


def test_folds_are_seeded_and_need_two_groups():
    groups = [str(i // 3) for i in range(60)]
    first, again, other = ([held.tolist() for _, held in folds_of_groups(groups, 5, seed)] for seed in (3, 3, 4))
    assert first == again != other
    with pytest.raises(ValueError, match="two groups"):
        folds_of_groups(["one"] * 60, 5, seed=0)
