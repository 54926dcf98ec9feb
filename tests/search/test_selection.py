"""Selection among N chains: hand-computed cases, agreement with brute force, and properties of any sample."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.search.selection import best_of_n, group_answers, majority_of_n, oracle_at_n


def by_value(answers: Sequence[str]) -> list[int]:
    values = [Fraction(answer) for answer in answers]
    return [values.index(value) for value in values]


def test_answers_are_grouped_by_value_never_by_substring():
    groups = group_answers(["1/2", "0.5", "1", "11", None, "1.0"], by_value)
    assert groups.tolist() == [0, 0, 2, 3, -1, 2]


def test_best_of_n_by_hand():
    # Ranks: .9 (wrong), .8 (right), .1 (wrong). Of the three pairs, {.8, .1} alone has a right best.
    assert best_of_n([0.8, 0.1, 0.9], [True, False, False], 2) == pytest.approx(1 / 3)
    assert best_of_n([0.8, 0.1, 0.9], [True, False, False], 1) == pytest.approx(1 / 3)
    assert best_of_n([0.8, 0.1, 0.9], [True, False, False], 3) == 0


def test_equal_scores_are_shared_evenly():
    assert best_of_n([0.7, 0.7, 0.1], [True, False, False], 3) == pytest.approx(0.5)
    assert best_of_n([0.5] * 4, [True, True, True, False], 4) == pytest.approx(0.75)


def test_oracle_by_hand():
    assert oracle_at_n([True, False, False, False], 2) == pytest.approx(0.5)
    assert oracle_at_n([False] * 4, 4) == 0
    assert oracle_at_n([True, False], 2) == 1


def test_majority_by_hand():
    groups, right = [0, 0, 1, 1, 2], [True, True, False, False, False]
    # All five vote: groups 0 and 1 tie at two votes.
    assert majority_of_n(groups, right, 5) == pytest.approx(0.5)
    # The weights break the tie, for either side.
    assert majority_of_n(groups, right, 5, weights=[0.9, 0.9, 0.8, 0.8, 1.0]) == 1
    assert majority_of_n(groups, right, 5, weights=[0.1, 0.1, 0.3, 0.3, 0.5]) == 0


def test_chains_without_an_answer_do_not_vote():
    assert majority_of_n([-1, -1, 0], [False, False, True], 3) == 1
    assert majority_of_n([-1, -1, 0], [False, False, True], 2) == pytest.approx(2 / 3)
    assert majority_of_n([-1, -1], [False, False], 2) == 0


def test_an_answer_nobody_gave_cannot_win_with_zero_weights():
    # Of two subsets of one, each has a single voter of weight 0: one is right.
    assert majority_of_n([0, 1], [True, False], 1, weights=[0.0, 0.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("n", [0, 4])
def test_n_outside_the_samples_is_an_error(n):
    for call in (lambda: best_of_n([1, 2, 3], [1, 0, 0], n), lambda: oracle_at_n([1, 0, 0], n),
                 lambda: majority_of_n([0, 1, 1], [1, 0, 0], n)):
        with pytest.raises(ValueError, match=f"N = {n} of 3 samples"):
            call()


def brute_best(scores, right, n):
    credits = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[i] for i in subset)
        best = [right[i] for i in subset if scores[i] == top]
        credits.append(sum(best) / len(best))
    return np.mean(credits)


samples = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 3)), min_size=1, max_size=7)


@given(samples, st.data())
def test_best_of_n_equals_brute_force_over_subsets(rows, data):
    scores, right = [r[0] for r in rows], [r[1] == 0 for r in rows]
    n = data.draw(st.integers(1, len(rows)))
    assert best_of_n(scores, right, n) == pytest.approx(brute_best(scores, right, n))


@given(samples)
def test_one_chain_is_pass_at_1_for_every_method(rows):
    scores, groups, right = [r[0] for r in rows], [r[1] for r in rows], [r[1] == 0 for r in rows]
    expected = pytest.approx(np.mean(right))
    assert best_of_n(scores, right, 1) == expected
    assert oracle_at_n(right, 1) == expected
    assert majority_of_n(groups, right, 1) == expected
    assert majority_of_n(groups, right, 1, weights=scores) == expected


@given(samples, st.data())
def test_nothing_beats_the_oracle_and_the_oracle_never_falls(rows, data):
    scores, groups, right = [r[0] for r in rows], [r[1] for r in rows], [r[1] == 0 for r in rows]
    n = data.draw(st.integers(1, len(rows)))
    bound = oracle_at_n(right, n) + 1e-12
    assert best_of_n(scores, right, n) <= bound
    assert majority_of_n(groups, right, n) <= bound
    assert majority_of_n(groups, right, n, weights=scores) <= bound
    assert oracle_at_n(right, max(n - 1, 1)) <= bound


@given(samples, st.data())
def test_equal_weights_are_a_plain_majority(rows, data):
    groups, right = [r[1] for r in rows], [r[1] == 0 for r in rows]
    n = data.draw(st.integers(1, len(rows)))
    weighted = majority_of_n(groups, right, n, weights=[0.3] * len(rows))
    assert weighted == pytest.approx(majority_of_n(groups, right, n))


@settings(max_examples=20)
@given(st.integers(0, 100))
def test_random_subsets_agree_with_the_exact_mean_and_repeat_by_seed(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, 14)
    exact = majority_of_n(groups, groups == 0, 6)
    drawn = majority_of_n(groups, groups == 0, 6, seed=seed, limit=1500)
    assert drawn == pytest.approx(exact, abs=0.07)
    assert drawn == majority_of_n(groups, groups == 0, 6, seed=seed, limit=1500)
