"""The hybrid estimator, by hand on small groups, and properties that hold for every group."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.testing import assert_close

from prm_core.training.policy.estimators import ESTIMATORS, GroupRewards
from prm_core.training.policy.estimators.hybrid import normalise_groups, process_returns
from tests.builders.training import small_config

REWARD = st.floats(0, 1, width=32)


def close(found, expected) -> None:
    assert_close(found, tensor(expected), atol=1e-4, rtol=1e-4)


def advantages(*rewards: Tensor) -> Tensor:
    """Of one group of two chains, outcomes at 0.3 and process rewards at 0.7."""
    settings = dataclasses.replace(small_config().train_policy, outcome_weight=0.3, process_weight=0.7)
    return ESTIMATORS["hybrid"](GroupRewards(*rewards, group_size=2), settings)


def test_groups_are_normalised_each_on_its_own() -> None:
    # Group 1: mean 2, deviation sqrt(2/3). Group 2: mean 5, deviation 3.
    values, known = tensor([[1.0, 2.0, 3.0], [2.0, 8.0, 5.0]]), torch.ones(2, 3, dtype=torch.bool)
    s = math.sqrt(1.5)
    close(normalise_groups(values, known), [[-s, 0.0, s], [-math.sqrt(1.5), math.sqrt(1.5), 0.0]])


def test_what_is_excluded_enters_neither_mean_nor_deviation() -> None:
    values, known = tensor([[1.0, 3.0, 100.0]]), tensor([[True, True, False]])
    close(normalise_groups(values, known), [[-1.0, 1.0, 0.0]])
    close(normalise_groups(tensor([[1.0, 3.0, math.nan]]), known), [[-1.0, 1.0, 0.0]])


@given(st.floats(0, 1, width=32), st.integers(1, 40))
def test_equal_rewards_prefer_nothing(value: float, members: int) -> None:
    known = torch.ones(1, members, dtype=torch.bool)
    assert normalise_groups(torch.full((1, members), value), known).tolist() == [[0.0] * members]


def test_a_group_without_anything_known_is_zero() -> None:
    assert normalise_groups(tensor([[5.0, 7.0]]), tensor([[False, False]])).tolist() == [[0.0, 0.0]]


@given(st.lists(REWARD, min_size=2, max_size=12), st.floats(0.5, 4), st.floats(-3, 3))
def test_normalised_groups_have_mean_0_and_deviation_1_whatever_the_scale(rewards, factor: float, shift: float) -> None:
    values, known = tensor([rewards], dtype=torch.float64), torch.ones(1, len(rewards), dtype=torch.bool)
    found = normalise_groups(values, known)
    assert found.mean().item() == pytest.approx(0, abs=1e-6)
    deviation = values.std(correction=0).item()
    # EPSILON beside the deviation shrinks the result of groups that hardly differ.
    wanted = 1.0 if deviation > 1e-6 else 0.0
    assert found.std(correction=0).item() == pytest.approx(wanted, abs=1.1e-6 / max(deviation, 1e-6))
    if deviation > 1e-2:
        assert_close(normalise_groups(values * factor + shift, known), found, atol=1e-3, rtol=1e-3)


def test_process_returns_sum_the_normalised_rewards_to_come() -> None:
    # One group of two chains, rewards 1, 0, 1 and 0 (the second chain has one step): mean ½, deviation ½.
    rewards = tensor([[1.0, 0.0, 1.0], [0.0, 9.0, 9.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    close(process_returns(rewards, mask, 2), [[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])


def test_process_returns_of_one_group_do_not_see_another() -> None:
    rewards = tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.3], [0.3, 0.3]])
    found = process_returns(rewards, torch.ones(4, 2, dtype=torch.bool), 2)
    close(found, [[0.0, -1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])


def test_hybrid_advantages_by_hand() -> None:
    # Outcomes 1 and 0: normalised +1 and -1. Process rewards 1, 0 | 0, 1: normalised ±1, returns 0, -1 | 0, 1.
    found = advantages(
        tensor([1.0, 0.0]), tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2, dtype=torch.bool),
        # Prompt, two tokens of step 0, one of step 1, the end token, padding.
        tensor([[-1, 0, 0, 1, -1, -1], [-1, 0, 1, 1, 1, -1]]),
        tensor([[False, True, True, True, True, False], [False, True, True, True, True, False]]),
    )
    close(found, [[0.0, 0.3, 0.3, -0.4, 0.3, 0.0], [0.0, -0.3, 0.4, 0.4, 0.4, 0.0]])


def test_outcome_and_process_are_normalised_apart() -> None:
    """The scale of the process rewards is no weight: rewards ten times smaller give the same advantages."""
    steps, mask = tensor([[0], [0]]), torch.ones(2, 1, dtype=torch.bool)
    one, other = (
        advantages(tensor([1.0, 0.0]), scale * tensor([[0.2], [0.9]]), mask, steps, mask)
        for scale in (1.0, 0.1)
    )
    close(one, [[0.3 - 0.7], [-0.3 + 0.7]])
    assert_close(one, other, atol=1e-4, rtol=1e-4)
