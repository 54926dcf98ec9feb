"""What a search chooses by: hand-computed cases, and properties of any scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.search import choosing

scores = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_the_first_of_equal_scores_is_best():
    assert choosing.first_best([0.2, 0.7, 0.7, 0.1]) == 1
    with pytest.raises(ValueError, match="empty"):
        choosing.first_best([])


def test_votes_by_hand():
    # Two votes of 0.3 beat one of 0.5; a chain without an answer has none.
    assert choosing.vote([4, 7, 4, -1], [0.3, 0.5, 0.3, 9.0]) == 4
    assert choosing.vote([4, 7, 7, 4], [1.0] * 4) == 4, "of equal sums the one that voted first"
    assert choosing.vote([-1, -1], [1.0, 1.0]) is None


def test_support_by_hand():
    # Three chains of one answer at 0.4, one of another at 0.9, one without.
    assert choosing.supported([0, 1, 0, -1, 0], [0.4, 0.9, 0.3, 1.0, 0.2]) == pytest.approx([1.2, 0.9, 0.9, 0.0, 0.6])


def test_expected_gain_by_hand():
    assert choosing.expected_gain(0.8, 1) == pytest.approx(0.1)
    assert choosing.expected_gain(0.8, 3) == pytest.approx(0.05)
    assert choosing.expected_gain(-1.0, 1) == 0.5, "nothing chosen yet: all may be gained"


def test_caution_by_hand():
    # Members at 0.6 and 1.0 are 0.2 from their mean.
    assert choosing.cautious([0.8, 0.5], [(0.6, 1.0), (0.5, 0.5)]) == pytest.approx([0.6, 0.5])
    assert choosing.cautious([0.8], ()) == [0.8]


def test_kept_by_hand():
    assert choosing.keep_best([0.2, 0.9, 0.9, 0.5], ["a", "b", "b", "c"], 2) == [1, 3], "alike ones are one"
    assert choosing.keep_best([0.2, 0.9], ["a", "b"], 5) == [1, 0]


@given(scores, st.randoms())
def test_the_winning_sum_does_not_depend_on_the_order(values, random):
    groups = [index % 3 for index in range(len(values))]
    order = random.sample(range(len(values)), len(values))

    def winning(rows):
        chosen = choosing.vote([groups[row] for row in rows], [values[row] for row in rows])
        return sum(value for group, value in zip(groups, values, strict=True) if group == chosen)

    assert winning(order) == pytest.approx(winning(range(len(values))))


@given(scores)
def test_equal_votes_are_a_majority(values):
    groups = [round(value * 3) for value in values]
    winner = choosing.vote(groups, [0.5] * len(groups))
    assert groups.count(winner) == max(map(groups.count, groups))


@given(scores, st.integers(1, 8))
def test_the_kept_are_the_highest(values, width):
    kept = choosing.keep_best(values, range(len(values)), width)
    assert sorted((values[place] for place in kept), reverse=True) == sorted(values, reverse=True)[:width]


@given(st.floats(0, 1), st.integers(1, 50))
def test_more_chains_and_surer_ones_leave_less_to_gain(surety, drawn):
    assert choosing.expected_gain(surety, drawn) >= choosing.expected_gain(surety, drawn + 1) >= 0
    assert choosing.expected_gain(surety, drawn) >= choosing.expected_gain(min(1.0, surety + 0.1), drawn)
