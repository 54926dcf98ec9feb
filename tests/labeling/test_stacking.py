"""prm_core/labeling/stacking.py: whom the stack believes, what silence means, and what is kept of it as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.labeling.stacking import EDGE, Stack, fit_stack
from prm_core.scoring.calibration import brier_score, expected_calibration_error

NAN = np.nan
said = st.one_of(st.floats(0, 1), st.just(NAN))


def verdicts(truth, accuracy, rng, confidence=0.9, speaks=1.0):
    """P(right) of a strategy whose verdict is right with the given accuracy, NaN where it abstains."""
    agrees = rng.random(truth.size) < accuracy
    p = np.where(agrees == truth, confidence, 1 - confidence)
    return np.where(rng.random(truth.size) < speaks, p, NAN)


def test_the_sum_by_hand():
    stack = Stack(("merged", "a"), weights=(1.0, 2.0), silence=(0.0, -1.0), intercept=0.5, labels=9)
    # logit(0.8) = log 4, logit(0.2) = -log 4
    expected = [0.5 + np.log(4) - 2 * np.log(4), 0.5 + np.log(4) - 1.0, 0.5 - 1.0]
    result = stack.apply(np.array([[0.8, 0.2], [0.8, NAN], [0.5, NAN]]))
    assert result == pytest.approx(1 / (1 + np.exp(-np.array(expected))))


def test_no_strategy_is_surer_than_the_edge():
    stack = Stack(("a",), (1.0,), (0.0,), 0.0, 9)
    assert stack.apply(np.array([[1.0], [1 - EDGE], [0.0], [EDGE]])) == pytest.approx([1 - EDGE] * 2 + [EDGE] * 2)


@given(st.lists(st.tuples(said, said, said), min_size=1, max_size=20),
       st.lists(st.floats(-20, 20), min_size=7, max_size=7))
def test_every_answer_is_a_probability(rows, numbers):
    stack = Stack(("a", "b", "c"), tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], 1)
    result = stack.apply(np.array(rows))
    assert result.shape == (len(rows),)
    assert np.all((result >= 0) & (result <= 1))


def test_one_that_is_always_right_is_believed_against_two_that_are_wrong_together():
    rng = np.random.default_rng(0)
    truth = rng.random(120) < 0.6
    right = verdicts(truth, 1.0, rng)
    pair = verdicts(truth, 0.5, rng)
    # The vote says what the pair says.
    table = np.stack([0.9 * (pair > 0.5) + 0.05, right, pair, pair], axis=1)
    stack = fit_stack(table, truth, ("merged", "always", "one", "other"))
    assert stack.weights[1] > 2 * max(map(abs, (stack.weights[0], *stack.weights[2:])))
    assert np.array_equal(stack.apply(table) >= 0.5, truth)
    against = stack.apply(np.array([[0.95, 0.1, 0.9, 0.9], [0.05, 0.9, 0.1, 0.1]]))
    assert against[0] < 0.2
    assert against[1] > 0.8


def test_two_that_copy_each_other_do_not_count_twice():
    rng = np.random.default_rng(1)
    truth = rng.random(4000) < 0.5
    one, other = verdicts(truth, 0.8, rng, 0.8), verdicts(truth, 0.8, rng, 0.8)
    independent = fit_stack(np.stack([one, other], axis=1), truth, ("a", "b"))
    copied = fit_stack(np.stack([one, one], axis=1), truth, ("a", "b"))
    both = np.array([[0.8, 0.8]])
    # 0.8 · 0.8 / (0.8 · 0.8 + 0.2 · 0.2), against 0.8 of the one witness there is.
    assert independent.apply(both) == pytest.approx([0.64 / 0.68], abs=0.02)
    assert copied.apply(both) == pytest.approx([0.8], abs=0.02)


def test_abstention_speaks_where_it_goes_with_the_truth():
    # The strategy is silent on wrong steps only, as a parser that finds no equation in nonsense.
    rng = np.random.default_rng(2)
    truth = rng.random(400) < 0.5
    table = np.where(truth, 0.6, NAN)[:, None]
    stack = fit_stack(table, truth, ("parser",))
    assert stack.silence[0] < -1
    assert stack.apply(np.array([[0.6], [NAN]])) == pytest.approx([1.0, 0.0], abs=0.1)


def test_abstention_at_random_adds_nothing():
    rng = np.random.default_rng(3)
    truth = rng.random(20_000) < 0.7
    stack = fit_stack(verdicts(truth, 0.9, rng, speaks=0.5)[:, None], truth, ("a",))
    assert stack.apply(np.array([[NAN]])) == pytest.approx([0.7], abs=0.02)


def test_a_source_that_never_speaks_changes_nothing():
    rng = np.random.default_rng(4)
    truth = rng.random(300) < 0.5
    spoken = verdicts(truth, 0.8, rng)[:, None]
    silent = np.concatenate([spoken, np.full((300, 1), NAN)], axis=1)
    alone, beside = (fit_stack(table, truth, ("a", "b")[: table.shape[1]]) for table in (spoken, silent))
    assert beside.weights[1] == 0
    assert beside.apply(silent) == pytest.approx(alone.apply(spoken), abs=0.01)


def test_what_it_says_is_calibrated_on_steps_it_did_not_see():
    rng = np.random.default_rng(5)
    truth = rng.random(6000) < 0.7
    # Each says 0.99 and is right far less often.
    table = np.stack([verdicts(truth, accuracy, rng, 0.99, 0.8) for accuracy in (0.75, 0.8, 0.6)], axis=1)
    stack = fit_stack(table[:1000], truth[:1000], ("a", "b", "c"))
    result = stack.apply(table[1000:])
    assert expected_calibration_error(result, truth[1000:], 10) < 0.03
    best = np.where(np.isnan(table[1000:, 1]), 0.5, table[1000:, 1])
    assert brier_score(result, truth[1000:]) < 0.75 * brier_score(best, truth[1000:])


def test_it_minimises_the_cross_entropy_with_a_ridge_around_the_merged_probability():
    from scipy.optimize import minimize

    rng = np.random.default_rng(6)
    truth = rng.random(150) < 0.6
    table = np.stack([verdicts(truth, 0.8, rng, 0.7), verdicts(truth, 0.6, rng, 0.9, 0.7)], axis=1)
    silent = np.isnan(table)
    p = np.where(silent, 0.5, table)
    x = np.log(p / (1 - p))

    def loss(parameters):
        weights, silence, intercept = parameters[:2], parameters[2:4], parameters[4]
        score = x @ weights + silent @ silence + intercept
        likelihood = np.where(truth, 1 / (1 + np.exp(-score)), 1 / (1 + np.exp(score)))
        return -np.log(likelihood).sum() + 0.5 * (np.sum((weights - [1, 0]) ** 2) + np.sum(silence**2))

    best = minimize(loss, [1.0, 0, 0, 0, 0], tol=1e-10).x
    stack = fit_stack(table, truth, ("merged", "a"))
    assert (*stack.weights, *stack.silence, stack.intercept) == pytest.approx(tuple(best), abs=1e-3)
    assert stack.labels == 150


def test_few_labels_leave_the_merged_probability_nearly_as_it_is():
    # Four answers, as the merged probability has them; an unlucky strategy is not condemned for them.
    table = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.7], [0.1, 0.9]])
    stack = fit_stack(table, np.array([True, True, False, False]), ("merged", "a"))
    assert stack.weights[0] == pytest.approx(1, abs=0.5)
    assert abs(stack.weights[1]) < 0.5
    assert stack.apply(np.array([[0.85, NAN]]))[0] > 0.8


def test_labels_that_agree_with_the_merge_change_nothing():
    # Each probability comes with just as many right steps as it says, and the strategy knows nothing.
    p = np.repeat([0.2, 0.5, 0.8], 100)
    truth = np.tile(np.arange(100), 3) < 100 * p
    table = np.stack([p, np.full(300, 0.5)], axis=1)
    assert fit_stack(table, truth, ("merged", "a")).apply(table) == pytest.approx(p, abs=1e-3)


def test_the_odds_of_a_skewed_sample_are_those_of_its_evidence():
    # People see ten times as many unsure steps: given the evidence, how often a step came does not matter.
    rng = np.random.default_rng(8)
    p = rng.uniform(0.05, 0.95, 40_000)
    truth = rng.random(p.size) < 1 / (1 + np.exp(-0.5 * np.log(p / (1 - p))))
    picked = rng.random(p.size) < np.where(np.abs(p - 0.5) < 0.25, 0.5, 0.05)
    probes = np.linspace(0.05, 0.95, 10)[:, None]
    whole, part = (fit_stack(p[rows, None], truth[rows], ("merged",)) for rows in (slice(None), picked))
    assert part.apply(probes) == pytest.approx(whole.apply(probes), abs=0.03)


def test_separable_labels_stay_finite():
    p = np.concatenate([np.full(30, 0.1), np.full(30, 0.9)])
    stack = fit_stack(p[:, None], p > 0.5, ("a",))
    low, high = stack.apply(np.array([[0.1], [0.9]]))
    assert 0.001 < low < 0.1
    assert 0.9 < high < 0.999


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=4), st.floats(allow_nan=False, allow_infinity=False),
                          st.floats(allow_nan=False, allow_infinity=False)), max_size=4),
       st.floats(allow_nan=False, allow_infinity=False), st.integers(0))
def test_json_round_trip_is_exact(columns, intercept, labels):
    stack = Stack(tuple(c[0] for c in columns), tuple(c[1] for c in columns), tuple(c[2] for c in columns), intercept,
                  labels)
    assert Stack.from_dict(json.loads(json.dumps(stack.to_dict()))) == stack


def test_a_fitted_stack_survives_json_and_needs_no_sklearn(monkeypatch):
    rng = np.random.default_rng(7)
    truth = rng.random(80) < 0.5
    table = np.stack([verdicts(truth, 0.9, rng), verdicts(truth, 0.7, rng, speaks=0.5)], axis=1)
    stack = fit_stack(table, truth, ("merged", "rollout"))
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    restored = Stack.from_dict(json.loads(json.dumps(stack.to_dict())))
    assert np.array_equal(restored.apply(table), stack.apply(table))
