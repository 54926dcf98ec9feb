"""prm_core/labeling/active.py: the chances, the draw that keeps to them, and estimates weighed by them."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.labeling.human.active import RANDOM_SHARE, chances, priority, select_steps

values_of = st.one_of(st.floats(0, 4), st.sampled_from([0.0, 1e-300, 1.0, 4.0]))
priority_lists = st.lists(values_of, min_size=1, max_size=40)
steps = st.dictionaries(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 4)), values_of, max_size=30)


def by_number(priorities):
    """Priorities of steps in several chains and positions."""
    return {(f"t{n // 4}", n % 4): value for n, value in enumerate(priorities)}


# --- priorities -------------------------------------------------------------------------------------------------------


def test_priorities_by_hand():
    assert [priority([], 1.0), priority([0.9], 0.0), priority([0.3, 0.3], 1.0)] == [0, 0, 0]
    # Width: 1 at even odds and where nothing is known, 2 · sqrt(0.1 · 0.9) = 0.6.
    assert [priority([0.5], 0.5), priority([], None)] == [1, 1]
    assert [priority([0.9], p) for p in (0.1, 0.9)] == pytest.approx([0.36, 0.36])
    # Range of what the strategies state: 0.9 - 0.2.
    assert priority([0.2, 0.5, 0.9], 1.0) == pytest.approx(0.49)
    assert priority([0.9, 0.2], 0.9) == pytest.approx((0.7 + 0.6) ** 2)


@given(st.lists(st.floats(0, 1), max_size=5), st.none() | st.floats(0, 1), st.floats(0, 1))
def test_priorities_lie_between_0_and_4_and_one_voice_more_never_lowers_them(stated, merged, voice):
    assert 0 <= priority(stated, merged) <= 4
    assert priority([*stated, voice], merged) >= priority(stated, merged)
    if merged is not None:
        assert priority(stated, merged) == pytest.approx(priority([1 - p for p in stated], 1 - merged))


# --- chances ----------------------------------------------------------------------------------------------------------


def test_chances_by_hand():
    # 0.2 · 2 / 4 each, and 0.8 · 2 in proportion to 4, 3, 2, 1 of 10.
    assert chances([0.4, 0.3, 0.2, 0.1], 2) == pytest.approx([0.74, 0.58, 0.42, 0.26])


def test_what_a_sure_step_does_not_need_goes_to_the_others():
    # Uncapped the first had 0.2 · 2 / 4 + 0.8 · 2 = 1.7; the others then share the other pick.
    assert chances([1.0, 0.0, 0.0, 0.0], 2) == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])


@given(priority_lists, st.integers(0, 50))
def test_chances_fill_the_budget_none_above_one_none_below_the_random_part(priorities, budget):
    own, wanted = chances(priorities, budget), min(budget, len(priorities))
    assert sum(own) == pytest.approx(wanted)
    assert all(RANDOM_SHARE * wanted / len(priorities) * (1 - 1e-12) <= chance <= 1 for chance in own)


@given(priority_lists, st.integers(1, 39))
def test_chances_below_one_are_in_proportion_to_what_is_due(priorities, budget):
    own, count, total = chances(priorities, budget), len(priorities), sum(priorities)
    due = [RANDOM_SHARE / count + (1 - RANDOM_SHARE) * (value / total if total else 1 / count) for value in priorities]
    ratios = [chance / share for chance, share in zip(own, due, strict=True) if chance < 1] or [math.inf]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    # A step is sure only where what is due to it asks for that.
    assert all(share * ratios[0] >= 1 - 1e-9 for chance, share in zip(own, due, strict=True) if chance == 1)


@given(priority_lists, st.integers(0, 40))
def test_more_priority_is_never_less_chance(priorities, budget):
    own = [chance for _, chance in sorted(zip(priorities, chances(priorities, budget), strict=True))]
    assert all(low <= high + 1e-12 for low, high in pairwise(own))


def test_without_any_priority_all_have_the_same_chance():
    assert chances([0.0] * 8, 2) == pytest.approx([0.25] * 8)
    assert chances([], 3) == []
    assert chances([0.5, 0.0], 0) == [0, 0]
    assert chances([0.5, 0.0], 2) == chances([0.5, 0.0], 7) == [1, 1]


# --- the draw ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(steps, st.integers(0, 35), st.integers(0, 5))
def test_the_budget_is_spent_on_distinct_steps_and_the_draw_is_seeded(priorities, budget, seed):
    picked = select_steps(priorities, budget, seed)
    chosen = [pick.key for pick in picked]
    assert len(chosen) == len(set(chosen)) == min(budget, len(priorities))
    assert set(chosen) <= set(priorities)
    values = [priorities[key] for key in chosen]
    assert values == sorted(values, reverse=True)
    assert picked == select_steps(dict(reversed(priorities.items())), budget, seed)


@settings(max_examples=100)
@given(steps, st.integers(1, 29), st.integers(0, 5))
def test_each_pick_states_the_chance_it_had(priorities, budget, seed):
    order = sorted(priorities)
    stated = dict(zip(order, chances([priorities[key] for key in order], budget), strict=True))
    for pick in select_steps(priorities, budget, seed):
        assert pick.chance == pytest.approx(stated[pick.key])


@settings(max_examples=150)
@given(steps, st.integers(1, 29), st.integers(0, 20))
def test_every_position_gets_what_its_chances_add_up_to_within_one(priorities, budget, seed):
    order = sorted(priorities)
    own = chances([priorities[key] for key in order], budget)
    got = Counter(pick.key[1] for pick in select_steps(priorities, budget, seed))
    for position in {key[1] for key in order}:
        due = sum(chance for key, chance in zip(order, own, strict=True) if key[1] == position)
        assert abs(got[position] - due) < 1 + 1e-9


def test_positions_by_hand():
    # First steps look ten times as doubtful.
    priorities = {(f"t{n}", index): 1.0 if index == 0 else 0.1 for n in range(100) for index in range(4)}
    picks = select_steps(priorities, 40, seed=0)
    # 0.2 · 40 / 4 for each position, 0.8 · 40 by priority: 100 of 130 to the first, 10 to each of the others.
    due = {0: 2 + 32 * 100 / 130, 1: 2 + 32 * 10 / 130, 2: 2 + 32 * 10 / 130, 3: 2 + 32 * 10 / 130}
    got = Counter(pick.key[1] for pick in picks)
    assert len(picks) == 40
    assert all(abs(got[index] - value) < 1 for index, value in due.items())


@pytest.mark.parametrize("values", [
    [0.0] * 24,
    [n / 24 for n in range(24)],
    [0.0] * 20 + [2.0] * 4,
    [5.0] + [0.01] * 23,
])
def test_steps_come_as_often_as_their_chances_say(values):
    priorities, draws, budget = by_number(values), 4000, 7
    came = Counter(pick.key for seed in range(draws) for pick in select_steps(priorities, budget, seed))
    stated = dict(zip(priorities, chances(values, budget), strict=True))
    for key, chance in stated.items():
        # Four and a half standard errors; the seeds are fixed.
        assert came[key] / draws == pytest.approx(chance, abs=4.5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-12)


def test_within_a_position_any_two_steps_can_come_together():
    # Systematic sampling along a fixed order would never pick neighbours.
    priorities = {(f"t{n}", 0): 1.0 for n in range(6)}
    pairs = Counter(tuple(sorted(pick.key[0] for pick in select_steps(priorities, 2, seed))) for seed in range(1500))
    assert len(pairs) == 15
    # 100 each are expected.
    assert 60 < min(pairs.values()) <= max(pairs.values()) < 145


def test_another_seed_draws_others():
    priorities = {(f"t{n}", 0): 1.0 for n in range(50)}
    assert select_steps(priorities, 10, 0) != select_steps(priorities, 10, 1)


# --- estimates --------------------------------------------------------------------------------------------------------


def test_weighed_answers_give_the_mean_of_all_steps():
    # Wrong steps look doubtful, so most picks are wrong ones; weighed by one over the chance they are a fair sample.
    rng = random.Random(0)
    priorities = {(f"t{n}", n % 5): rng.random() ** 3 for n in range(200)}
    wrong = {key: float(rng.random() < value) for key, value in priorities.items()}
    truth = sum(wrong.values()) / len(wrong)
    weighed, naive = [], []
    for seed in range(3000):
        picks = select_steps(priorities, 20, seed)
        weighed.append(sum(wrong[pick.key] / pick.chance for pick in picks) / len(priorities))
        naive.append(np.mean([wrong[pick.key] for pick in picks]))
    error = np.std(weighed) / len(weighed) ** 0.5
    assert error < 0.0025
    assert np.mean(weighed) == pytest.approx(truth, abs=4 * error)
    assert np.mean(naive) > truth + 0.1


def test_weights_are_bounded_by_the_random_part():
    priorities = by_number([0.0] * 170 + [2.0] * 30)
    heaviest = max(1 / pick.chance for seed in range(300) for pick in select_steps(priorities, 20, seed))
    # Nothing speaks for those steps but the random part.
    assert heaviest == pytest.approx(200 / (RANDOM_SHARE * 20))


def test_priorities_pay_where_they_point_at_the_variance():
    # Doubtful steps vary, the others are all right: the same budget spent on the former estimates the mean better.
    doubtful = {key: float(n < 40) for n, key in enumerate(by_number([0.0] * 200))}
    wrong = {key: float(value and n % 2) for n, (key, value) in enumerate(doubtful.items())}

    def spread(priorities):
        estimates = [sum(wrong[pick.key] / pick.chance for pick in select_steps(priorities, 20, seed)) / 200
                     for seed in range(600)]
        return np.std(estimates)

    assert spread(doubtful) < 0.7 * spread(dict.fromkeys(doubtful, 1.0))
