"""Advantages, by hand on small groups, and properties that hold for every group and way."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor
from torch.testing import assert_close

from prm_core.config import AdvantageConfig
from prm_core.errors import InputError
from prm_core.training.policy.advantages import BASELINES, CREDITS, FILTERS, FORMS, GroupRewards, advantages
from prm_core.training.policy.advantages.compose import among_equal_states, clean_before, process_rewards, process_sets
from tests.builders.advantages import close, make

PLAIN = AdvantageConfig(outcome_weight=0.0, process_weight=1.0, form="sum", credit="to_go", baseline="leave_one_out",
                        scale="none", gate=False)
# Those that change no expected gradient, or shrink all alike.
FAIR = ("none", "group", "leave_one_out", "prefix")


def way(**values: Any) -> AdvantageConfig:
    return dataclasses.replace(PLAIN, **values)


def found(rewards: GroupRewards, settings: AdvantageConfig) -> Tensor:
    kept = FILTERS[settings.chain_filter](rewards, settings)
    return advantages(rewards, kept, settings)


# Baselines and credits


def test_the_process_form_of_grpo() -> None:
    """Rewards 1, 0, 1 | 0: mean and deviation a half; each is normalised, then those to come are summed."""
    rewards = make([[1.0, 0.0, 1.0], [0.0]])
    close(found(rewards, way(baseline="step", scale="group")), [[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]])


def test_outcomes_and_process_rewards_are_scaled_apart() -> None:
    settings = way(outcome_weight=0.3, process_weight=0.7, baseline="step", scale="group")
    for scale in (1.0, 0.1):
        close(found(make([[0.2 * scale], [0.9 * scale]], [1.0, 0.0]), settings), [[0.3 - 0.7], [-0.3 + 0.7]])


@pytest.mark.parametrize(("credit", "own", "other"), [
    ("to_go", [1.5, 0.5], [0.25]), ("chain", [1.5, 1.5], [0.25]), ("step", [1.0, 0.5], [0.25])])
def test_credits(credit: str, own: list[float], other: list[float]) -> None:
    close(found(make([[1.0, 0.5], [0.25]]), way(credit=credit, baseline="none")), [own, [*other, 0.0]])


def test_leave_one_out_compares_with_the_others_at_the_same_slot() -> None:
    # To go: 3, 2, 1 | 1 | 4, 2. At the third slot nobody else is: the others' slots are worth 1, 4 and 2, 7/3 each.
    rewards = make([[1.0, 1.0, 1.0], [1.0], [2.0, 2.0]])
    close(found(rewards, PLAIN), [[3 - 2.5, 0.0, 1 - 7 / 3], [1 - 3.5, 0.0, 0.0], [4 - 2.0, 0.0, 0.0]])


def test_the_group_mean_counts_the_own_chain() -> None:
    rewards = make([[1.0, 1.0, 1.0], [1.0], [2.0, 2.0]])
    close(found(rewards, way(baseline="group")), [[3 - 8 / 3, 0.0, 0.0], [1 - 8 / 3, 0.0, 0.0], [4 - 8 / 3, 0.0, 0.0]])


def test_by_prefix_beginnings_alike_are_compared() -> None:
    # Right | wrong by its first step | wrong by its second; outcomes 1, 0, 0.
    rewards = make([[1.0, 1.0], [0.1, 1.0], [1.0, 0.1]], [1.0, 0.0, 0.0])
    settings = way(outcome_weight=1.0, process_weight=0.0, baseline="prefix")
    close(clean_before(rewards), [[1.0, 1.0], [1.0, 0.1], [1.0, 1.0]])
    # First slot: the others' mean outcome. Second: chains alike count 1.02, others e^-9 + 0.02 of that.
    far = math.exp(-9) + 0.02
    close(found(rewards, settings), [[1.0, 1.0], [-0.5, -0.5], [-0.5, -1.02 / (1.02 + far)]])


def test_a_baseline_per_token_of_the_others() -> None:
    # The others earn 1 a token | (3 + 0.5) / 4 a token.
    rewards = make([[1.0, 1.0, 1.0], [0.5]])
    close(found(rewards, way(baseline="token")), [[3 - 1.5, 2 - 1.0, 1 - 0.5], [0.5 - 1.0, 0.0, 0.0]])


def test_the_choice_to_stop_is_compared_as_the_choice_to_go_on() -> None:
    # After the first step one goes on and earns 1, one stops and earns nothing. Nobody else stops after the second: the
    # other chain's slots earned 1 and 0.
    rewards = make([[1.0, 1.0], [1.0]], stops=True)
    close(found(rewards, PLAIN), [[1.0, 1.0, -0.5], [-1.0, -1.0, 0.0]])


def test_a_batch_has_one_scale_and_each_group_its_own() -> None:
    # Two groups of two, worth 0, 2 and 0, 6: deviations 1 and 3.
    rewards = make([[0.0], [2.0], [0.0], [6.0]], group_size=2)
    close(found(rewards, way(baseline="group", scale="group")), [[-1.0], [1.0], [-1.0], [1.0]])
    deviation = tensor([0.0, 2.0, 0.0, 6.0]).std(correction=0).item()
    close(found(rewards, way(baseline="group", scale="batch")),
          [[-1 / deviation], [1 / deviation], [-3 / deviation], [3 / deviation]])


def test_what_was_not_judged_enters_no_statistic_and_is_never_scored_0() -> None:
    rewards = make([[0.8], [0.6], [0.0]], [1.0, 0.0, 1.0])
    rewards = dataclasses.replace(rewards, judged=tensor([True, True, False]))
    for baseline in BASELINES:
        both = found(rewards, way(baseline=baseline))
        alone = found(make([[0.8], [0.6]], [1.0, 0.0]), way(baseline=baseline))
        assert both[2].item() == 0.0, baseline
        assert_close(both[:2], alone, atol=1e-5, rtol=1e-5)
    # Its outcome counts.
    assert found(rewards, way(outcome_weight=1.0, process_weight=0.0))[2].item() == pytest.approx(0.5)


def test_each_agent_has_its_own_rewards() -> None:
    # Agents 0 1 0 | 0 1: agent 0 earns 0.9 + 0.5 | 0.1, agent 1 earns 0.2 | 0.8.
    rewards = make([[0.9, 0.2, 0.5], [0.1, 0.8]], agents=[[0, 1, 0], [0, 1]])
    close(found(rewards, way(per_agent=True)), [[1.4 - 0.1, 0.2 - 0.8, 0.5 - 0.1], [0.1 - 1.4, 0.8 - 0.2, 0.0]])


def test_equal_states_are_compared_among_themselves() -> None:
    states = tensor([[1, 2], [1, 3], [9, 2]])
    credit = tensor([[4.0, 1.0], [2.0, 7.0], [5.0, 3.0]])
    every = torch.ones(3, 2, dtype=torch.bool)
    close(among_equal_states(credit, states, every), [[1.0, -1.0], [-1.0, 0.0], [0.0, 1.0]])
    # The last is not known: nobody is left to compare the first of its state with.
    known = tensor([[True, True], [True, True], [True, False]])
    close(among_equal_states(credit, states, known), [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    rewards = dataclasses.replace(make([[4.0], [2.0]], [1.0, 0.0]), states=tensor([[1], [1]]))
    close(found(rewards, way(turn_weight=0.5)), [[2.0 + 0.5], [-2.0 - 0.5]])


def test_process_sets_are_the_chains_that_share_a_prefix() -> None:
    ids = tensor([[5, 1, 2], [5, 1, 3], [5, 2, 2], [5, 1, 2], [7, 1, 2], [7, 1, 2]])
    assert process_sets(ids[:3], 3).tolist() == [[3, 2, 1], [3, 2, 1], [3, 1, 1]]
    assert process_sets(ids, 3)[3:].tolist() == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
    rewards = make([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [1.0, 0.0, 0.0], ids=ids[:3])
    settings = way(outcome_weight=1.0, process_weight=0.0, process_sets=True)
    close(found(rewards, settings), [[1 / 3, 1 / 2, 1.0], [-0.5 / 3, -0.5 / 2, -0.5], [-0.5 / 3, -0.5, -0.5]])


# Forms


@pytest.mark.parametrize(("form", "expected"), [
    ("sum", [0.9, 0.4, 0.6]), ("mean", [0.3, 0.4 / 3, 0.2]), ("lowest", [0.9, -0.5, 0.0]),
    ("prod", [0.9, 0.36 - 0.9, 0.216 - 0.36]), ("delta", [0.9, -0.5, 0.2])])
def test_forms_by_hand(form: str, expected: list[float]) -> None:
    close(process_rewards(make([[0.9, 0.4, 0.6], []]), way(form=form)), [expected, [0.0] * 3])


def test_min_form_by_hand() -> None:
    # At temperature 0.1 scores 0.5 and 0.6 weigh as e to 1.
    found_ = process_rewards(make([[0.5, 0.6]]), way(form="min", min_temperature=0.1))
    close(found_, [[0.5 * math.e / (1 + math.e), 0.6 / (1 + math.e)]])


def test_prover_advantages_by_hand() -> None:
    # Values 0.5, 0.5, 1: the best of two succeeds with 0.75, 0.75, 1.
    rewards = make([[0.5, 1.0]], starts=[0.5])
    close(process_rewards(rewards, way(form="pav", pav_alpha=3.0, pav_samples=2)), [[0.0, 0.75]])
    with pytest.raises(InputError, match=r"form pav needs the values .* set train_policy.reward_model to pav"):
        process_rewards(make([[0.5]]), way(form="pav"))


def test_a_model_that_scores_the_question_begins_there() -> None:
    close(process_rewards(make([[0.5, 1.0]], starts=[0.4]), way(form="delta")), [[0.1, 0.5]])


def test_the_guide_s_weights_and_bonus() -> None:
    rewards = make([[0.4, 0.6, 0.8], [0.4]], [1.0, 0.0])
    close(process_rewards(rewards, way(form="mean", late_weights=(0.5, 1.5), right_bonus=0.3)),
          [[0.7 * 0.5 / 3, 0.9 / 3, 1.1 * 1.5 / 3], [0.4 * 0.5, 0.0, 0.0]])


def test_gated_rewards_are_paid_at_the_end_of_right_chains() -> None:
    rewards = make([[0.9, 0.4], [0.7], [0.2]], [1.0, 0.0, 1.0], stops=True)
    close(process_rewards(rewards, way(form="lowest", gate=True)), [[0.0, 0.0, 0.4], [0.0] * 3, [0.0, 0.2, 0.0]])
    # What is not paid until the end is still credited to all that led there.
    close(found(rewards, way(form="lowest", gate=True, baseline="none")), [[0.4] * 3, [0.0] * 3, [0.2, 0.2, 0.0]])


# Filters


def test_prof_keeps_sound_right_chains_and_unsound_wrong_ones() -> None:
    rewards = make([[0.9], [0.2], [0.8], [0.7], [0.1]], [1.0, 1.0, 1.0, 0.0, 0.0])
    # Of three right ones the lowest goes; of two and two, one more of the right ones.
    assert FILTERS["prof"](rewards, way(left_out=1)).tolist() == [True, False, True, True, True]
    assert FILTERS["prof"](rewards, way(left_out=2)).tolist() == [True, False, False, True, True]
    assert FILTERS["prof"](rewards, way(left_out=3)).tolist() == [True, False, False, False, True]


def test_rejected_chains_are_left_out_of_the_statistics_too() -> None:
    rewards = make([[0.9], [0.1], [0.5]], [1.0, 0.0, 0.0])
    settings = way(chain_filter="top_k_rejected", left_out=1, process_weight=1.0)
    assert FILTERS["top_k_rejected"](rewards, settings).tolist() == [True, False, True]
    close(found(rewards, settings), [[0.4], [0.0], [-0.4]])


# Properties


@st.composite
def groups(draw: Any) -> tuple[list[list[float]], list[float]]:
    score = st.floats(0, 1, width=32)
    chains = draw(st.lists(st.lists(score, min_size=1, max_size=4), min_size=2, max_size=5))
    return chains, draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(chains), max_size=len(chains)))


WAYS = [way(outcome_weight=0.5, form=form, credit=credit, baseline=baseline, gate=gate)
        for form in FORMS if form != "pav" for credit in CREDITS for baseline in BASELINES for gate in (False, True)]
FAIR_WAYS = [one for one in WAYS if one.baseline in ("group", "leave_one_out", "prefix")]


@given(groups(), st.sampled_from(WAYS), st.data())
def test_the_order_of_a_group_changes_nothing(group, settings: AdvantageConfig, data) -> None:
    scores, outcomes = group
    order = data.draw(st.permutations(range(len(scores))))
    plain = found(make(scores, outcomes, stops=True), settings)
    moved = found(make([scores[i] for i in order], [outcomes[i] for i in order], stops=True), settings)
    assert_close(moved, plain[order], atol=1e-4, rtol=1e-4)


@given(groups(), st.sampled_from(WAYS))
def test_one_group_does_not_see_another(group, settings: AdvantageConfig) -> None:
    scores, outcomes = group
    width = max(map(len, scores))
    others = [[0.3] * width] * len(scores)
    alone = found(make(scores, outcomes), settings)
    both = found(make([*scores, *others], [*outcomes, *outcomes], group_size=len(scores)), settings)
    assert_close(both[: len(scores)], alone, atol=1e-5, rtol=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), st.integers(2, 5), st.sampled_from(FAIR_WAYS),
       st.sampled_from([0.0, 1.0]))
def test_equal_chains_prefer_nothing(scores: list[float], count: int, settings: AdvantageConfig, right: float) -> None:
    assert not found(make([scores] * count, [right] * count), settings).any()


@given(groups(), st.floats(-2, 2), st.sampled_from(["group", "leave_one_out"]))
def test_a_constant_on_every_chain_changes_nothing(group, shift: float, baseline: str) -> None:
    scores, outcomes = group
    settings = way(outcome_weight=1.0, process_weight=0.0, baseline=baseline)
    plain, moved = (found(make(scores, [value + by for value in outcomes]), settings) for by in (0.0, shift))
    # At a slot that no other chain has the mean is over other slots, whose credit is the same.
    assert_close(moved, plain, atol=1e-4, rtol=1e-4)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6))
def test_increments_telescope(scores: list[float]) -> None:
    for form, total in (("delta", scores[-1]), ("lowest", min(scores)), ("prod", math.prod(scores))):
        assert process_rewards(make([scores]), way(form=form)).sum().item() == pytest.approx(total, abs=1e-5)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), st.floats(0, 1, width=32))
def test_padding_above_the_lowest_score_earns_nothing(scores: list[float], padding: float) -> None:
    padded = [*scores, max(padding, min(scores))]
    one, other = (process_rewards(make([chain]), way(form="lowest")).sum().item() for chain in (scores, padded))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("baseline", FAIR)
def test_a_group_of_one_has_a_number(baseline: str) -> None:
    assert torch.isfinite(found(make([[0.4, 0.6]], [1.0]), way(baseline=baseline, outcome_weight=1.0))).all()


def test_prompts_and_padding_have_no_advantage() -> None:
    rewards = make([[1.0], [0.0]], [1.0, 0.0])
    token_slots = tensor([[-1, 0, 0, -1], [-1, 0, -1, -1]])
    rewards = dataclasses.replace(rewards, token_slots=token_slots, token_mask=token_slots >= 0, ids=torch.zeros(2, 4))
    close(found(rewards, PLAIN), [[0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 0.0, 0.0]])
