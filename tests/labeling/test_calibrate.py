"""From evidence and human verdicts to calibrated labels: the map, its honest figures, what becomes of the labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.labeling.calibrate import (
    Joined,
    LabelMap,
    calibrate,
    calibrated_labels,
    fit_map,
    join_human,
    measure_scores,
    tabulate,
)
from prm_core.labeling.stacking import Stack
from prm_core.scoring.calibration import Calibrator, expected_calibration_error, fit_calibrator
from tests.builders.quality import human, label, make_config

IDENTITY = Calibrator("identity", labels=0)
NAN = np.nan


def keys(rows):
    return [(row.trajectory_id, row.step_index) for row in rows]


def settings_of(**changes):
    return make_config(calibrate=changes).calibrate


# --- the map ----------------------------------------------------------------------------------------------------------


def joined_of(probabilities, outcomes, sources=("merged", "a"), chains=None, weights=None):
    """Human verdicts on steps of chains of their own, unless `chains` says else."""
    table = np.asarray(probabilities, dtype=float)
    count = len(table)
    verdicts = np.where(np.isnan(table[:, 0]), NAN, table[:, 0] >= 0.5)
    return Joined(chains or [f"t{i}" for i in range(count)], sources, table, verdicts,
                  np.asarray(outcomes, dtype=bool),
                  np.ones(count) if weights is None else np.asarray(weights, dtype=float), {})


def strategies_against(count, seed=0):
    """Truth, and what merge, an always right strategy and two that are wrong together say of it."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.6
    pair = np.where(rng.random(count) < 0.5, 0.9, 0.1)
    return truth, np.stack([0.05 + 0.9 * pair, np.where(truth, 0.9, 0.1), pair, pair], axis=1)


FOUR = ("merged", "always", "one", "other")


@pytest.mark.parametrize("method", ["isotonic", "platt", "temperature"])
@pytest.mark.parametrize("stack", [False, True])
def test_below_min_labels_the_map_is_the_identity_and_says_why(method, stack, caplog):
    truth, table = strategies_against(49)
    found = fit_map(joined_of(table, truth, FOUR), settings_of(method=method, stack=stack))
    assert (found.method, found.stack) == ("identity", None)
    assert found.calibrator.reason == "49 labels, fewer than the 50 needed"
    assert "49 labels, fewer than the 50 needed" in caplog.text
    assert np.array_equal(found.apply(table), table[:, 0])


def test_min_labels_counts_what_the_merge_spoke_on():
    truth, table = strategies_against(60)
    table[:11, 0] = NAN
    found = fit_map(joined_of(table, truth, FOUR), settings_of(stack=True))
    assert (found.method, found.calibrator.labels) == ("identity", 49)


def test_labels_of_one_class_give_the_identity():
    _, table = strategies_against(80)
    found = fit_map(joined_of(table, np.ones(80), FOUR), settings_of(stack=True))
    assert (found.method, found.calibrator.reason) == ("identity", "all 80 labels are of one class")


def test_labels_of_one_chain_cannot_be_checked_so_nothing_is_fitted():
    truth, table = strategies_against(60)
    joined = joined_of(table, truth, FOUR, chains=["t"] * 60)
    for stack in (False, True):
        found = fit_map(joined, settings_of(stack=stack))
        assert (found.method, found.calibrator.reason[:26]) == ("identity", "all labels are of one chai")


def test_a_stack_is_fitted_only_when_asked_for():
    truth, table = strategies_against(200)
    joined = joined_of(table, truth, FOUR)
    plain, stacked = (fit_map(joined, settings_of(method="platt", stack=stack)) for stack in (False, True))
    assert (plain.method, plain.stack) == ("platt", None)
    assert (stacked.method, stacked.stack.sources, stacked.stack.labels) == ("stacked", FOUR, 200)
    assert stacked.calibrator == plain.calibrator
    assert np.array_equal(plain.apply(table), plain.calibrator.apply(table[:, 0]))
    assert np.array_equal(stacked.apply(table), stacked.stack.apply(table))


def test_nothing_known_stays_nothing_known():
    table = np.array([[0.9, 0.8], [NAN, 0.8], [NAN, NAN]])
    stack = Stack(("merged", "a"), (1.0, 1.0), (0.0, 0.0), 0.0, 9)
    assert np.isnan(LabelMap(IDENTITY).apply(table)).tolist() == [False, True, True]
    assert np.isnan(LabelMap(IDENTITY, stack).apply(table)).tolist() == [False, False, True]
    assert LabelMap(IDENTITY).apply(np.empty((0, 2))).shape == (0,)


def test_the_map_of_the_merged_probability_heeds_the_weights():
    # Of the unsure steps ten times as many were looked at, and these are more often wrong than they look.
    p = np.repeat([0.3, 0.9, 0.9], 40)
    outcomes = np.concatenate([np.arange(40) < 12, np.arange(40) < 36, np.arange(40) < 4])
    weights = np.repeat([1.0, 10.0, 1.0], 40)
    naive, weighed = (fit_map(joined_of(p[:, None], outcomes, ("merged",), weights=w), settings_of()) for w in
                      (None, weights))
    assert naive.apply(np.array([[0.9]]))[0] == pytest.approx(0.5, abs=0.01)
    # 36 · 10 + 4 of 440
    assert weighed.apply(np.array([[0.9]]))[0] == pytest.approx(364 / 440, abs=0.01)


# --- the figures ------------------------------------------------------------------------------------------------------


def overconfident(chains, seed=0):
    """Merged labels and a strategy's that say 0.99 where 0.7 is true, each step in a chain of its own."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(chains) < 0.5, 0.99, 0.01)
    truth = (said > 0.5) == (rng.random(chains) < 0.7)
    return joined_of(np.stack([said, said], axis=1), truth)


@pytest.mark.parametrize(("method", "stack"), [("isotonic", False), ("platt", False), ("temperature", False),
                                               ("isotonic", True)])
def test_overconfident_labels_are_calibrated(method, stack):
    joined = overconfident(300)
    result = calibrate(joined, settings_of(method=method, stack=stack), seed=0, others={})
    assert result.map.method == ("stacked" if stack else method)
    assert result.metrics["policy/ece_before"] == pytest.approx(0.29, abs=0.06)
    assert result.metrics["policy/ece_after"] < 0.08
    assert result.metrics["policy/brier_after"] < result.metrics["policy/brier_before"]
    assert [sum(b.count for b in result.curves["policy"][series]) for series in ("before", "after")] == [300, 300]
    fresh = overconfident(2000, seed=1)
    assert expected_calibration_error(result.map.apply(fresh.probabilities), fresh.outcomes, 10) < 0.08


@pytest.mark.parametrize("stack", [False, True])
def test_after_is_measured_on_labels_the_map_did_not_see(stack):
    # Outcomes without any relation to what is said: nothing can be learnt, so "after" must not look better than
    # always saying one half. Fitted and measured on the same labels it would.
    rng = np.random.default_rng(1)
    table, outcomes = rng.random((30, 12)), np.arange(30) % 2
    joined = joined_of(table, outcomes, ("merged", *"abcdefghijk"))
    result = calibrate(joined, settings_of(min_labels=10, stack=stack), seed=0, others={})
    assert np.mean((result.map.apply(table) - outcomes) ** 2) < 0.25
    assert result.metrics["policy/brier_after"] > 0.25
    assert all(result.metrics[f"policy/brier_after/{name}"] > 0.25 for name in "abc")


def test_the_steps_of_a_chain_are_held_out_together():
    # Each chain has its own probability and its own truth: whoever saw a step of it knows all.
    rng = np.random.default_rng(2)
    chains = np.repeat(np.arange(12), 8)
    p, truth = np.repeat(rng.permutation(np.linspace(0.1, 0.9, 12)), 8), np.repeat(rng.random(12) < 0.5, 8)
    table = np.stack([p, p], axis=1)
    together = calibrate(joined_of(table, truth, chains=[f"t{n}" for n in chains]), settings_of(), seed=0, others={})
    apart = calibrate(joined_of(table, truth), settings_of(), seed=0, others={})
    for figure in ("policy/brier_after", "policy/brier_after/a"):
        assert together.metrics[figure] > apart.metrics[figure] + 0.1


def test_each_strategy_has_its_own_calibrator_and_figures():
    rng = np.random.default_rng(3)
    truth = rng.random(400) < 0.5
    good = np.where(truth == (rng.random(400) < 0.95), 0.95, 0.05)
    boaster = np.where(truth == (rng.random(400) < 0.6), 0.99, 0.01)
    shy = np.where(np.arange(400) < 30, good, NAN)
    table = np.stack([good, good, boaster, shy, np.full(400, NAN)], axis=1)
    joined = joined_of(table, truth, ("merged", "good", "boaster", "shy", "mute"))
    result = calibrate(joined, settings_of(stack=True), seed=0, others={})
    assert {name: (one.method, one.labels) for name, one in result.strategies.items()} == {
        "good": ("isotonic", 400), "boaster": ("isotonic", 400), "shy": ("identity", 30), "mute": ("identity", 0)}
    assert result.metrics["policy/ece_before/good"] < 0.03
    assert result.metrics["policy/ece_before/boaster"] == pytest.approx(0.39, abs=0.06)
    assert result.metrics["policy/ece_after/boaster"] < 0.1
    assert result.strategies["boaster"].apply([0.99])[0] == pytest.approx(0.6, abs=0.08)
    assert result.metrics["policy/ece_after/shy"] == result.metrics["policy/ece_before/shy"]
    assert not any(name.endswith("/mute") for name in result.metrics)
    assert result.strategies["boaster"] == fit_calibrator(boaster, truth, "isotonic", 50)


def test_figures_are_of_all_steps_not_of_the_picked_ones():
    # Half of the picked steps are of a kind that is one of eleven steps overall.
    p = np.full(200, 0.9)
    outcomes = np.concatenate([np.arange(100) < 90, np.arange(100) < 10])
    weights = np.repeat([10.0, 1.0], 100)
    joined = joined_of(p[:, None], outcomes, ("merged",), weights=weights)
    result = calibrate(joined, settings_of(min_labels=1000), seed=0, others={})
    assert result.metrics["policy/ece_before"] == pytest.approx(0.9 - (90 * 10 + 10) / 1100)
    assert [b.observed_share for b in result.curves["policy"]["before"]] == pytest.approx([910 / 1100])


def test_what_is_held_out_is_mapped_by_weighted_maps():
    # The same sample, only larger: of the steps called 0.9, 364 of 440 are right when weighed back, half when not.
    p = np.repeat([0.3, 0.9, 0.9], 800)
    outcomes = np.concatenate([np.arange(800) < 240, np.arange(800) < 720, np.arange(800) < 80])
    weights = np.repeat([1.0, 10.0, 1.0], 800)
    result = calibrate(joined_of(np.stack([p, p], axis=1), outcomes, weights=weights), settings_of(), seed=0, others={})
    for figure in ("policy/ece_after", "policy/ece_after/a"):
        assert result.metrics[figure] < 0.03 < result.metrics[figure.replace("after", "before")]


def test_too_few_human_labels_leave_the_probabilities_alone(caplog):
    table = tabulate([label(f"t{i}", 0, i % 2 == 0, 0.9) for i in range(20)], [])
    joined = join_human(table, [human(f"t{i}", 0, i % 2 == 0) for i in range(20)])
    result = calibrate(joined, settings_of(stack=True), seed=0, others={})
    assert (result.map.calibrator.method, result.map.calibrator.labels) == ("identity", 20)
    assert "20 labels, fewer than the 50 needed" in caplog.text
    assert result.metrics["policy/ece_before"] == result.metrics["policy/ece_after"] == pytest.approx(0.1)


def test_the_stack_beats_the_merge_where_the_strategies_are_wrong_together():
    truth, table = strategies_against(150)
    plain, stacked = (calibrate(joined_of(table, truth, FOUR), settings_of(stack=stack), 0, {}) for stack in
                      (False, True))
    assert stacked.metrics["policy/brier_after"] < 0.05
    assert plain.metrics["policy/brier_after"] > 0.2


def test_a_merge_that_never_spoke_has_no_figures():
    truth, table = strategies_against(60)
    table[:, 0] = NAN
    result = calibrate(joined_of(table, truth, FOUR), settings_of(stack=True), seed=0, others={})
    assert result.curves == {}
    assert "policy/ece_before" not in result.metrics
    assert "policy/ece_before/always" in result.metrics
    assert result.map.method == "identity"


# --- populations ------------------------------------------------------------------------------------------------------


def two_populations(own, other, seed=0):
    """Steps of the policy's chains p…, where 0.9 is right seven times in ten, and of others o…, where it always is."""
    truth = np.concatenate([np.arange(own) % 10 < 7, np.ones(other)])
    table = np.full((own + other, 2), 0.9)
    chains = [f"p{n}" for n in range(own)] + [f"o{n}" for n in range(other)]
    return joined_of(table, truth, chains=chains), {f"o{n}": "corrupted-solution" for n in range(other)}


@pytest.mark.parametrize("stack", [False, True])
def test_the_map_is_fitted_on_the_policys_chains_alone_and_both_are_measured_apart(stack):
    joined, others = two_populations(100, 40)
    result = calibrate(joined, settings_of(stack=stack), 0, others)
    alone = calibrate(two_populations(100, 0)[0], settings_of(stack=stack), 0, {})
    assert result.map == alone.map
    assert result.strategies == alone.strategies
    assert result.map.apply(np.full((1, 2), 0.9))[0] == pytest.approx(0.7, abs=0.02)
    own = {name: value for name, value in result.metrics.items() if name.startswith("policy/")}
    assert own == {name: value for name, value in alone.metrics.items() if name.startswith("policy/")}
    assert (own["policy/human_labels"], own["policy/ece_before"]) == (100, pytest.approx(0.2))
    assert result.metrics["other/human_labels"] == 40
    assert result.metrics["other/ece_before"] == result.metrics["other/ece_before/a"] == pytest.approx(0.1)
    # The policy's map makes the others worse, and the figure says so.
    assert result.metrics["other/ece_after"] == pytest.approx(0.3, abs=0.02)
    assert {name: sum(b.count for b in curves["after"]) for name, curves in result.curves.items()} == {
        "policy": 100, "other": 40}


@pytest.mark.parametrize(("own", "have"), [(0, "no"), (49, "49")])
@pytest.mark.parametrize("stack", [False, True])
def test_labels_of_another_population_are_never_the_only_evidence(own, have, stack, caplog):
    joined, others = two_populations(own, 205)
    result = calibrate(joined, settings_of(stack=stack), 0, others)
    reason = (f"{have} human labels on the policy's own chains (50 needed); 205 labels are on another population, "
              "corrupted-solution, and only measured")
    assert result.map == LabelMap(Calibrator("identity", labels=own, reason=reason))
    assert f"no calibration: {reason}" in caplog.text
    assert {one.method for one in result.strategies.values()} == {"identity"}
    assert result.metrics["other/ece_before"] == result.metrics["other/ece_after"] == pytest.approx(0.1)
    assert (result.error is None) == (own == 0)
    assert ("policy" in result.curves) == ("policy/ece_before" in result.metrics) == (own > 0)


def test_the_label_error_is_of_decided_steps_of_the_policys_chains_weighed_by_their_chance():
    # The merge calls the first three right; people differ on the second; of the fourth the merge says nothing.
    table = np.array([[0.9], [0.9], [0.9], [NAN], [0.9]])
    joined = joined_of(table, [True, False, True, True, False], ("merged",), ["a", "b", "c", "d", "foreign"],
                       [1, 2, 5, 9, 4])
    error = calibrate(joined, settings_of(), 0, {"foreign": "ann"}).error
    assert (error.labels, error.share) == (3, pytest.approx(2 / 8))
    assert 0 == error.low < error.share < error.high <= 1
    assert calibrate(joined.take(np.array([3, 4])), settings_of(), 0, {"foreign": "ann"}).error is None


def test_a_verdict_counts_as_it_is_said_however_unsure():
    # A lone vote's confidence may be below one half: the verdict is still "right".
    merged = [label("a", 0, True, 0.4), label("b", 0, False, 0.4), label("c", 0, None, 0.0, value=0.9)]
    joined = join_human(tabulate(merged, []), [human("a", 0, True), human("b", 0, True), human("c", 0, False)])
    error = calibrate(joined, settings_of(), 0, {}).error
    assert (error.labels, error.share) == (2, 0.5)


# --- calibrated labels ------------------------------------------------------------------------------------------------

HALVING = Calibrator("isotonic", labels=9, knots=((0.0, 0.2), (1.0, 0.8)))


def test_calibrated_labels_are_one_for_one_and_carry_the_calibrated_probability():
    merged = [label("a", 1, False, 0.9, reasoning="why"), label("a", 0, True, 0.9)]
    rows = calibrated_labels(merged, tabulate(merged, []), LabelMap(HALVING))
    assert keys(rows) == [("a", 1), ("a", 0)]
    assert [(r.is_correct, r.value, r.confidence, r.strategy) for r in rows] == [
        (False, pytest.approx(0.26), pytest.approx(0.74), "merged"),
        (True, pytest.approx(0.74), pytest.approx(0.74), "merged"),
    ]
    assert rows[0].reasoning == "why"


def test_the_verdict_is_what_the_calibrated_probability_says():
    doubtful = Calibrator("isotonic", labels=9, knots=((0.0, 0.0), (1.0, 0.45)))
    merged = [label("a", 0, True, 0.9), label("a", 1, False, 0.9)]
    assert [r.is_correct for r in calibrated_labels(merged, tabulate(merged, []), LabelMap(doubtful))] == [False, False]
    trusting = Calibrator("isotonic", labels=9, knots=((0.0, 0.5), (1.0, 1.0)))
    rows = calibrated_labels([label("a", 0, False, 1.0)], tabulate([label("a", 0, False, 1.0)], []), LabelMap(trusting))
    assert [(r.is_correct, r.confidence) for r in rows] == [(True, 0.5)]


def test_what_the_merge_left_undecided_stays_so_without_a_stack():
    merged = [label("a", 0, None, 0.0, value=1.0), label("a", 1, None, 0.0)]
    votes = [label("a", i, True, 0.9, strategy="rollout") for i in range(2)]
    rows = calibrated_labels(merged, tabulate(merged, votes), LabelMap(HALVING))
    assert [(r.value, r.is_correct, r.confidence) for r in rows] == [(pytest.approx(0.8), None, 0.0), (None, None, 0.0)]


def test_a_stack_decides_what_the_merge_left_undecided_where_a_strategy_spoke():
    merged = [label("a", 0, None, 0.0), label("a", 1, None, 0.0), label("a", 2, True, 0.9)]
    votes = [label("a", 0, False, 0.9, strategy="rollout"), label("a", 2, False, 0.9, strategy="rollout")]
    stack = Stack(("merged", "rollout"), (1.0, 2.0), (0.0, 0.0), 0.0, 9)
    rows = calibrated_labels(merged, tabulate(merged, votes), LabelMap(IDENTITY, stack))
    assert [r.is_correct for r in rows] == [False, None, False]
    # 2 · logit(0.1); nothing known; logit(0.9) + 2 · logit(0.1)
    assert [r.confidence for r in rows] == pytest.approx([81 / 82, 0.0, 0.9])


@settings(max_examples=60)
@given(st.lists(st.tuples(st.none() | st.booleans(), st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=12),
       st.booleans())
def test_calibrated_labels_are_consistent(said, stacked):
    merged = [label("a", i, verdict, confidence if verdict is not None else 0.0, value=value)
              for i, (verdict, confidence, value) in enumerate(said)]
    stack = Stack(("merged",), (0.7,), (0.1,), -0.2, 9) if stacked else None
    rows = calibrated_labels(merged, tabulate(merged, []), LabelMap(HALVING, stack))
    for before, row in zip(merged, rows, strict=True):
        assert (row.is_correct is None) == (row.confidence == 0)
        if row.is_correct is None:
            assert before.is_correct is None
        else:
            assert row.is_correct == (row.value >= 0.5)
            assert row.confidence == max(row.value, 1 - row.value) >= 0.5


def test_scores_are_measured_on_each_population_apart():
    said = [label("own", 0, True), label("own", 1, False), label("their", 0, False), label("unscored", 0, True)]
    scores = {"own": (0.75, 0.5), "their": (0.25, 1.0)}
    figures = measure_scores(scores, said, {"their": "somebody"}, bins=10)
    assert figures == pytest.approx({
        "policy/human_labels": 2, "policy/ece": (0.25 + 0.5) / 2, "policy/brier": (0.25**2 + 0.5**2) / 2,
        "other/human_labels": 1, "other/ece": 0.25, "other/brier": 0.25**2})
    assert measure_scores(scores, [], {}, bins=10) == {}
