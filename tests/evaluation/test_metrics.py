"""Evaluation figures: exact values on hand-made cases, agreement with plain loops, and intervals that behave."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.evaluation import metrics
from prm_core.evaluation.metrics import Bootstrap
from prm_core.scoring import calibration

SCORES = [[0.9, 0.8], [0.9, 0.2, 0.9], [0.7, 0.6, 0.1], [0.4, 0.9]]
GOLD = [-1, 1, 1, -1]
PROBLEM = [0, 0, 1, 1]


def value(statistic, problems=2):
    return Bootstrap(problems, 100, 0).estimate(statistic).value


def test_first_error_is_the_first_step_below_the_threshold():
    assert metrics.first_error([0.9, 0.4, 0.1], 0.5) == 1
    assert metrics.first_error([0.5, 0.9], 0.5) == -1
    assert metrics.first_error([], 0.5) == -1


def test_processbench_accuracies_by_hand():
    tally = metrics.prm_tally(SCORES, GOLD, PROBLEM, 2, 0.5)
    # Erroneous chains: 1 of 2 exact (the third names step 2, not 1). Sound chains: 1 of 2 left alone.
    assert (value(tally.acc_err), value(tally.acc_ok), value(tally.f1)) == (0.5, 0.5, 0.5)
    strict = metrics.prm_tally(SCORES, GOLD, PROBLEM, 2, 0.65)
    assert (value(strict.acc_err), value(strict.acc_ok), value(strict.f1)) == (1.0, 0.5, pytest.approx(2 / 3))


def test_f1_is_zero_when_nothing_is_found_and_undefined_without_both_kinds():
    assert value(metrics.tally([0, 0], [0, -1], [0, 1], 2).f1) == 0
    estimate = Bootstrap(2, 100, 0).estimate(metrics.tally([1, 1], [-1, -1], [0, 1], 2).f1)
    assert not estimate.defined
    assert math.isnan(estimate.low)


def test_random_floor_is_the_exact_expectation_of_a_uniform_guess():
    steps, gold, problem = [1, 2, 3, 5], [0, -1, 2, -1], [0, 1, 2, 3]
    tally = metrics.random_tally(steps, gold, problem, 4)
    assert value(tally.acc_err, 4) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert value(tally.acc_ok, 4) == pytest.approx((1 / 3 + 1 / 6) / 2)
    rng = np.random.default_rng(0)
    guesses = rng.integers(-1, np.array(steps), size=(20_000, 4))
    assert (guesses == np.array(gold)).mean(axis=0) == pytest.approx(1 / (np.array(steps) + 1), abs=0.015)


def test_middle_floor():
    tally = metrics.middle_tally([4, 4, 3], [False, True, False], [2, -1, 0], [0, 1, 2], 3)
    assert (value(tally.acc_err, 3), value(tally.acc_ok, 3)) == (0.5, 1.0)


def test_threshold_is_the_best_on_dev_and_sits_in_the_gap():
    # Every threshold in (0.6, 0.7] names both errors; midpoints of neighbouring scores are the candidates.
    assert metrics.choose_threshold(SCORES, GOLD) == (pytest.approx(0.65), pytest.approx(2 / 3))
    # Well separated: the whole gap (0.1, 0.8) is equally good and its midpoint is taken.
    assert metrics.choose_threshold([[0.9, 0.8], [0.95, 0.1]], [-1, 1]) == (pytest.approx(0.45), 1.0)


def test_threshold_ties_go_to_the_nearest_to_a_half():
    # Midpoints 0.3 and 0.65 both give F1 1 (the score 0.4 comes after the first error); 0.65 is nearer.
    assert metrics.choose_threshold([[0.9], [0.2, 0.4]], [-1, 0])[0] == pytest.approx(0.65)


def test_threshold_needs_both_kinds():
    with pytest.raises(ValueError, match="with an error and chains without"):
        metrics.choose_threshold([[0.5], [0.6]], [-1, -1])


chains = st.lists(
    st.tuples(st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 1.0]), min_size=1, max_size=4), st.integers(-1, 3)),
    min_size=2, max_size=8,
).map(lambda rows: [(s, min(g, len(s) - 1)) for s, g in rows]).filter(
    lambda rows: {g < 0 for _, g in rows} == {True, False})


@given(chains, st.floats(-0.1, 1.1))
def test_no_threshold_beats_the_chosen_one(rows, other):
    scores, gold = [s for s, _ in rows], [g for _, g in rows]
    owners, n = list(range(len(rows))), len(rows)
    threshold, f1 = metrics.choose_threshold(scores, gold)
    assert value(metrics.prm_tally(scores, gold, owners, n, threshold).f1, n) == pytest.approx(f1)
    assert value(metrics.prm_tally(scores, gold, owners, n, other).f1, n) <= f1 + 1e-12


def test_steps_after_the_first_error_are_not_judged():
    steps = metrics.judged_steps(SCORES, GOLD, PROBLEM, 2)
    assert steps.scores.tolist() == [0.9, 0.8, 0.9, 0.2, 0.7, 0.6, 0.4, 0.9]
    assert steps.right.tolist() == [True, True, True, False, True, False, True, True]
    assert steps.problem.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    # At 0.5 the step of score 0.6 (wrong) and that of score 0.4 (right) are misjudged.
    assert value(metrics.step_accuracy(steps, 0.5)) == 6 / 8


def test_auroc_by_hand_and_against_sklearn():
    from sklearn.metrics import roc_auc_score

    steps = metrics.judged_steps(SCORES, GOLD, PROBLEM, 2)
    # Wrong scores .2 and .6; right .9 .8 .9 .7 .4 .9: .2 loses all six pairs, .6 all but one.
    assert value(metrics.auroc(steps.scores, steps.right, steps.problem)) == pytest.approx(11 / 12)
    rng = np.random.default_rng(1)
    scores, right, problem = rng.integers(0, 5, 300) / 5, rng.random(300) < 0.7, rng.integers(0, 20, 300)
    weights = rng.integers(0, 4, (3, 20)).astype(float)
    expected = [roc_auc_score(right, scores, sample_weight=row[problem]) for row in weights]
    assert metrics.auroc(scores, right, problem)(weights) == pytest.approx(expected)


def test_auroc_of_one_class_is_undefined():
    assert math.isnan(value(metrics.auroc([0.1, 0.9], [True, True], [0, 1])))
    assert math.isnan(value(metrics.auroc([], [], [])))


def test_calibration_figures_are_those_of_the_calibration_module():
    steps = metrics.judged_steps(SCORES, GOLD, PROBLEM, 2)
    pairs = (steps.scores, steps.right)
    assert value(metrics.ece(steps, 10)) == calibration.expected_calibration_error(*pairs, 10)
    assert value(metrics.brier(steps)) == calibration.brier_score(*pairs)


def test_orm_drift_counts_chains_whose_lowest_score_is_the_last_alone():
    scores = [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.3]]
    assert value(metrics.lowest_is_last(scores, [0, 0, 1, 1], 2)) == pytest.approx(1 / 3)


def test_length_slope_compares_chains_of_one_problem_only():
    # Within each problem a step more costs 0.1; the second problem is longer and better throughout.
    scores, lengths = [0.3, 0.2, 0.9, 0.8], [2, 3, 6, 7]
    assert value(metrics.length_slope(scores, lengths, [0, 0, 1, 1], 2)) == pytest.approx(-0.1)
    assert math.isnan(value(metrics.length_slope([0.1, 0.9], [3, 3], [0, 0], 1), 1))


@given(st.lists(st.floats(0, 1), min_size=20, max_size=40), st.integers(0, 5))
def test_interval_holds_the_mean_and_repeats_by_seed(values, seed):
    statistic = metrics.mean(values)
    first, again = (Bootstrap(len(values), 200, seed).estimate(statistic) for _ in range(2))
    assert first == again
    assert first.low - 1e-9 <= first.value <= first.high + 1e-9
    assert min(values) - 1e-9 <= first.low <= first.high <= max(values) + 1e-9


def test_interval_width_is_that_of_the_mean_over_problems_not_over_chains():
    rng = np.random.default_rng(0)
    rates = rng.integers(0, 2, 400)
    problem = np.repeat(np.arange(400), 16)
    estimate = Bootstrap(400, 2000, 0).estimate(metrics.share(rates[problem], problem, 400))
    # 16 copies of each problem add no information: 2 · 1.96 · sqrt(p(1-p)/400).
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.08)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_paired_difference_of_equals_is_exactly_zero(seed):
    values = np.random.default_rng(seed).random(12)
    estimate = Bootstrap(12, 100, seed).estimate(metrics.difference(metrics.mean(values), metrics.mean(values)))
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_paired_difference_is_narrower_than_the_two_intervals():
    rng = np.random.default_rng(3)
    hard = rng.random(300)
    better = np.clip(hard + 0.05 + 0.01 * rng.standard_normal(300), 0, 1)
    bootstrap = Bootstrap(300, 500, 0)
    alone = bootstrap.estimate(metrics.mean(hard))
    paired = bootstrap.estimate(metrics.difference(metrics.mean(better), metrics.mean(hard)))
    assert paired.low > 0
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)


def test_centred_interval_holds_a_calibrated_models_ece():
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    steps = metrics.JudgedSteps(p, rng.random(2000) < p, np.repeat(np.arange(200), 10), 200)
    plain = Bootstrap(200, 200, 0).estimate(metrics.ece(steps, 10))
    centred = Bootstrap(200, 200, 0).estimate(metrics.ece(steps, 10), centred=True)
    assert centred.low < centred.value < centred.high
    assert plain.low + plain.high > centred.low + centred.high


def test_a_bootstrap_needs_a_problem():
    with pytest.raises(ValueError, match="at least one problem"):
        Bootstrap(0, 100, 0)
