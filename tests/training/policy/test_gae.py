"""Generalised advantages and what goes with them, by hand on small chains, and properties that hold for all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.testing import assert_close

from benchmarks import stopping_bias
from prm_core.config import AdvantageConfig
from prm_core.training.policy.advantages.compose import slot_rewards
from prm_core.training.policy.gae import (
    adapted,
    advantages_and_returns,
    choices,
    explained,
    gae,
    place_rewards,
    value_loss,
    whiten,
)
from tests.builders.advantages import close, make

# Prompt, two tokens of the first step, one that was heard, one of the second step, the choice to stop, padding.
SLOTS = tensor([[-1, 0, 0, 0, 1, 2, -1], [-1, 0, 1, 1, 1, -1, -1]])
SAMPLED = tensor([[False, True, True, False, True, True, False], [False, True, True, True, True, False, False]])
EVERY = torch.ones(1, 3, dtype=torch.bool)


# Rewards on tokens


def test_a_slot_is_paid_on_its_last_sampled_token() -> None:
    rewards = tensor([[0.5, 0.25, 1.0], [0.125, 2.0, 0.0]])
    close(place_rewards(rewards, SLOTS, SAMPLED), [[0, 0, 0.5, 0, 0.25, 1.0, 0], [0, 0.125, 0, 0, 2.0, 0, 0]])


def test_the_reward_of_a_slot_that_nothing_was_sampled_in_is_not_lost() -> None:
    slots = tensor([[0, 1, 2], [0, 1, 2]])
    sampled = tensor([[True, False, True], [False, True, True]])
    # On the token before it; of the first slot, on the first that was sampled.
    close(place_rewards(tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]), slots, sampled), [[3.0, 0.0, 4.0], [0.0, 3.0, 4.0]])


def test_weights_and_gate_say_what_a_slot_earns() -> None:
    rewards = make([[0.9, 0.4], [0.7]], [1.0, 0.0], stops=True)
    settings = AdvantageConfig(outcome_weight=0.3, process_weight=0.5, form="lowest", credit="to_go",
                               baseline="prefix", scale="group", gate=False)
    close(slot_rewards(rewards, settings), [[0.45, -0.25, 0.3], [0.35, 0.0, 0.0]])
    gated = AdvantageConfig(outcome_weight=0.0, process_weight=1.0, form="lowest", credit="to_go", baseline="none",
                            scale="none", gate=True)
    close(slot_rewards(rewards, gated), [[0.0, 0.0, 0.4], [0.0, 0.0, 0.0]])


def test_a_choice_is_a_token_or_a_slot() -> None:
    assert choices(SLOTS, SAMPLED, "tokens").tolist() == SAMPLED.tolist()
    assert [row.nonzero()[:, 0].tolist() for row in choices(SLOTS, SAMPLED, "steps")] == [[1, 4, 5], [1, 2]]


# Advantages

REWARDS, VALUES = tensor([[0.0, 1.0, 2.0]]), tensor([[0.5, 0.25, 1.0]])


def test_with_lambda_1_it_is_the_return_less_the_value() -> None:
    close(gae(REWARDS, VALUES, EVERY, 1.0, 1.0), [[3 - 0.5, 3 - 0.25, 2 - 1.0]])
    # Discounted by a half: 0 + 1/2 + 2/4, 1 + 2/2, 2.
    close(gae(REWARDS, VALUES, EVERY, 0.5, 1.0), [[1 - 0.5, 2 - 0.25, 2 - 1.0]])


def test_with_lambda_0_it_is_the_error_of_the_next_value() -> None:
    close(gae(REWARDS, VALUES, EVERY, 1.0, 0.0), [[0 + 0.25 - 0.5, 1 + 1.0 - 0.25, 2 - 1.0]])
    close(gae(REWARDS, VALUES, EVERY, 0.5, 0.0), [[0.125 - 0.5, 1 + 0.5 - 0.25, 2 - 1.0]])


def test_between_them_errors_are_discounted() -> None:
    # Errors -1/4, 7/4, 1; by gamma·lambda = 0.9 * 0.5 with gamma in the errors too.
    errors = [0.9 * 0.25 - 0.5, 1 + 0.9 * 1.0 - 0.25, 2 - 1.0]
    by = 0.45
    close(gae(REWARDS, VALUES, EVERY, 0.9, 0.5),
          [[errors[0] + by * errors[1] + by**2 * errors[2], errors[1] + by * errors[2], errors[2]]])


def test_values_go_from_one_sampled_token_to_the_next() -> None:
    """Whatever stands at tokens that were not sampled, and in other chains, is not looked at."""
    junk = 99.0
    rewards = tensor([[junk, 0.0, 0.5, junk, 0.25, 1.0, junk], [junk, 0.125, 0.0, 0.0, 2.0, junk, junk]])
    values = tensor([[junk, 0.1, 0.2, junk, 0.3, 0.4, junk], [junk, 0.5, 0.6, 0.7, 0.8, junk, junk]])
    found, returns = advantages_and_returns(rewards, values, SAMPLED, SAMPLED, 1.0, 0.0)
    close(found, [[0, 0.2 - 0.1, 0.5 + 0.3 - 0.2, 0, 0.25 + 0.4 - 0.3, 1.0 - 0.4, 0],
                  [0, 0.125 + 0.6 - 0.5, 0.7 - 0.6, 0.8 - 0.7, 2.0 - 0.8, 0, 0]])
    close(returns, [[0, 0.2, 0.5 + 0.3, 0, 0.25 + 0.4, 1.0, 0], [0, 0.125 + 0.6, 0.7, 0.8, 2.0, 0, 0]])


def test_over_steps_all_tokens_of_a_step_have_its_advantage() -> None:
    """Values are those at the first token of each step, rewards the sum over its tokens, and gamma is a step's."""
    chosen = choices(SLOTS, SAMPLED, "steps")
    rewards = tensor([[9.0, -0.1, 0.5, 9.0, 0.25, 1.0, 9.0], [9.0, 0.125, -0.5, 0.0, 2.0, 9.0, 9.0]])
    values = tensor([[9.0, 0.1, 0.2, 9.0, 0.3, 0.4, 9.0], [9.0, 0.5, 0.6, 0.7, 0.8, 9.0, 9.0]])
    found, returns = advantages_and_returns(rewards, values, chosen, SAMPLED, 0.5, 0.0)
    first, second, third = 0.4 + 0.15 - 0.1, 0.25 + 0.2 - 0.3, 1.0 - 0.4
    other, last = 0.125 + 0.3 - 0.5, 1.5 - 0.6
    close(found, [[0, first, first, 0, second, third, 0], [0, other, last, last, last, 0, 0]])
    close(returns, [[0, first + 0.1, 0, 0, second + 0.3, 1.0, 0], [0, other + 0.5, 1.5, 0, 0, 0, 0]])


@st.composite
def chains(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and places of chains, each with a place at least."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    number = st.floats(-2, 2, width=32)
    rewards, values = (tensor([[draw(number) for _ in range(width)] for _ in range(rows)]) for _ in range(2))
    there = tensor([[draw(st.booleans()) for _ in range(width)] for _ in range(rows)])
    there[:, draw(st.integers(0, width - 1))] = True
    return rewards, values, there


UNIT = st.floats(0, 1)


@given(chains(), UNIT, UNIT)
def test_places_that_are_not_there_change_nothing(given_: tuple[Tensor, Tensor, Tensor], gamma: float,
                                                  lam: float) -> None:
    rewards, values, there = given_
    found = gae(rewards, values, there, gamma, lam)
    assert not found[~there].any()
    for row in range(len(rewards)):
        own = there[row]
        alone = gae(rewards[row : row + 1, own], values[row : row + 1, own], EVERY.new_ones(1, int(own.sum())), gamma,
                    lam)
        assert_close(found[row, own], alone[0])


@given(chains(), UNIT, UNIT)
def test_exact_values_leave_no_advantage(given_: tuple[Tensor, Tensor, Tensor], gamma: float, lam: float) -> None:
    rewards, _, there = given_
    exact = gae(rewards, torch.zeros_like(rewards), there, gamma, 1.0)
    assert_close(gae(rewards, exact, there, gamma, lam), torch.zeros_like(rewards), atol=1e-5, rtol=0)


@given(chains(), UNIT)
def test_the_sum_over_the_first_places_telescopes(given_: tuple[Tensor, Tensor, Tensor], lam: float) -> None:
    """With gamma = 1 the errors of a chain add up to its reward less its first value."""
    rewards, values, there = given_
    errors = gae(rewards, values, there, 1.0, 0.0).sum(1)
    first = values.gather(1, there.long().argmax(1, keepdim=True))[:, 0]
    assert_close(errors, rewards.where(there, 0.0).sum(1) - first, atol=1e-4, rtol=1e-4)


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), min_size=1, max_size=4))
def test_no_reward_is_lost_on_its_way_to_the_tokens(scores: list[list[float]]) -> None:
    rewards = make(scores, stops=True)
    placed = place_rewards(rewards.scores, rewards.token_slots, rewards.token_mask)
    assert_close(placed.sum(1), rewards.scores.sum(1))
    assert not placed[~rewards.token_mask].any()


# Whitening, values, KL


def test_whitening_by_hand() -> None:
    values, mask = tensor([[1.0, 3.0, 50.0], [5.0, 7.0, 50.0]]), tensor([[True, True, False], [True, True, False]])
    by = math.sqrt(5)
    close(whiten(values, mask), [[-3 / by, -1 / by, 0.0], [1 / by, 3 / by, 0.0]])
    close(whiten(torch.full((2, 3), 0.7), mask), [[0.0] * 3] * 2)
    assert not whiten(values, torch.zeros(2, 3, dtype=torch.bool)).any()


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8), st.floats(-3, 3), st.floats(0.5, 4))
def test_what_is_whitened_has_no_place_and_no_scale(values: list[float], shift: float, scale: float) -> None:
    given_, mask = tensor([values]), torch.ones(1, len(values), dtype=torch.bool)
    if given_.std(correction=0) > 1e-2:
        found = whiten(given_, mask)
        assert found.mean().item() == pytest.approx(0, abs=1e-3)
        assert found.std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert_close(whiten(scale * given_ + shift, mask), found, atol=1e-2, rtol=1e-2)


def test_the_value_loss_by_hand() -> None:
    # From 0 towards 1: within the clip; beyond it, where 0.2 is missed by more; away from it; past it.
    values = tensor([0.1, 0.5, -0.5, 1.5])
    loss, cut = value_loss(values, torch.zeros(4), torch.ones(4), 0.2)
    close(loss, [0.81 / 2, 0.64 / 2, 2.25 / 2, 0.64 / 2])
    assert cut.tolist() == [False, True, False, True]


@pytest.mark.parametrize(("value", "moves"), [(0.1, True), (0.5, False), (-0.5, True), (1.5, False)])
def test_a_value_that_went_far_enough_is_not_moved_on(value: float, moves: bool) -> None:
    values = tensor([value], requires_grad=True)
    value_loss(values, torch.zeros(1), torch.ones(1), 0.2)[0].sum().backward()
    close(values.grad, [value - 1.0 if moves else 0.0])


def test_explained_variance() -> None:
    returns, mask = tensor([[0.0, 1.0, 2.0, 77.0]]), tensor([[True, True, True, False]])
    assert explained(returns.clone(), returns, mask) == 1.0
    assert explained(torch.ones(1, 4), returns, mask) == pytest.approx(0.0)
    assert explained(torch.zeros(1, 4), torch.ones(1, 4), mask) == 0.0
    # Errors 0, 0, 1 have 2/9 of variance where 2/3 was.
    assert explained(tensor([[0.0, 1.0, 1.0, 0.0]]), returns, mask) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("kl", "expected"), [(0.1, 1.0), (0.11, 1.01), (9.0, 1.02), (0.095, 0.995), (0.0, 0.98)])
def test_the_coefficient_goes_after_its_target(kl: float, expected: float) -> None:
    assert adapted(0.5, kl, 0.1) == pytest.approx(0.5 * expected)


# Stopping


@pytest.mark.parametrize("game", stopping_bias.GAMES)
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_exact_values_stopping_is_neither_paid_nor_fined(game: str, lam: float) -> None:
    """In a game whose gradient is known; a sum of scores, which pays each step."""
    ways = dict(stopping_bias.ways(AdvantageConfig(
        outcome_weight=0.0, process_weight=1.0, form="sum", credit="to_go", baseline="none", scale="none", gate=False)))
    settings = ways["sum, to_go, none"]
    first, later = stopping_bias.GAMES[game]
    steps, go_on = stopping_bias.STEPS, stopping_bias.GO_ON
    # After k steps: go_on times a further score and what comes after it. Before the first, that one is certain.
    after = [0.0] * (steps + 1)
    for k in reversed(range(1, steps)):
        after[k] = go_on * (later + after[k + 1])
    values = tensor([first + after[1], *after[1:]])
    lengths = stopping_bias.lengths_of(4_000, torch.Generator().manual_seed(0))
    rewards = stopping_bias.play(lengths, torch.zeros(len(lengths)), game)
    paid = place_rewards(slot_rewards(rewards, settings), rewards.token_slots, rewards.token_mask)
    found, _ = advantages_and_returns(paid, values.expand(paid.shape), rewards.token_mask, rewards.token_mask, 1.0, lam)
    gradients = (found * stopping_bias.score_gradients(lengths)).sum(1)
    error = gradients.std().item() / math.sqrt(len(gradients))
    assert gradients.mean().item() == pytest.approx(stopping_bias.exact(settings, game), abs=3.5 * error)
    # An estimate of nothing would pass too.
    assert stopping_bias.exact(settings, game) > 10 * error
