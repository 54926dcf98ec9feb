"""Where the rewards of tokens are paid: worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import tensor

from prm_core.training.policy.advantages import GroupRewards, advantages, placed
from prm_core.training.policy.advantages.constraint import Limit
from tests.builders.advantages import close
from tests.builders.training import small_config

SETTINGS = dataclasses.replace(
    small_config().train_policy.advantages, outcome_weight=0.0, process_weight=1.0, form="sum", credit="to_go",
    baseline="leave_one_out", scale="none", gate=False)
YES, NO = True, False


def rewards() -> GroupRewards:
    """A question of one token and two chains: two steps of two tokens and one, of which one is heard, and the end; one
    step of one token and the end."""
    return GroupRewards(
        tensor([1.0, 0.0]), torch.zeros(2, 3), tensor([float("nan")] * 2),
        tensor([[YES, YES, NO], [YES, NO, NO]]), tensor([[YES, YES, YES], [YES, YES, NO]]), tensor([NO, NO]),
        tensor([[0, 1, 0], [0, 0, 0]]), torch.zeros(2, 3, dtype=torch.long),
        tensor([[5, 1, 2, 9, 3, 0], [5, 1, 0, 7, 7, 7]]), tensor([[-1, 0, 0, 0, 1, 2], [-1, 0, 1, -1, -1, -1]]),
        tensor([[NO, YES, YES, NO, YES, YES], [NO, YES, YES, NO, NO, NO]]), 2)


OF_TOKENS = tensor([[0.0, 1.0, 2.0, 0.0, 3.0, 4.0], [0.0, 5.0, 6.0, 0.0, 0.0, 0.0]])


def test_a_step_is_paid_what_its_tokens_are() -> None:
    found = placed(rewards(), OF_TOKENS, "step")
    close(found.scores, [[3.0, 3.0, 4.0], [5.0, 6.0, 0.0]])
    # What ends a chain is paid as well, and a chain that the scorer of steps would not know is known.
    assert found.steps.tolist() == found.slots.tolist() == rewards().slots.tolist()
    assert found.judged.tolist() == [YES, YES]
    # To go 10, 7, 4 | 11, 6; the third slot is in one chain alone: against the mean of the other's.
    close(advantages(found, tensor([YES, YES]), SETTINGS), [
        [0.0, -1.0, -1.0, 0.0, 1.0, 4.0 - 8.5], [0.0, 1.0, -1.0, 0.0, 0.0, 0.0]])


def test_each_token_is_paid_its_own() -> None:
    found = placed(rewards(), OF_TOKENS, "token")
    close(found.scores, [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 0.0, 0.0]])
    assert found.slots.tolist() == found.steps.tolist() == [[YES] * 4, [YES, YES, NO, NO]]
    assert found.token_slots.tolist() == [[-1, 0, 1, -1, 2, 3], [-1, 0, 1, -1, -1, -1]]
    assert found.agents.tolist() == [[0, 0, 1, 0], [0] * 4]
    # The chains read alike up to their second token, and differ from it on.
    states = found.states.tolist()
    assert states[0][:2] == states[1][:2]
    assert len({*states[0], *states[1][:2]}) == 4
    # To go 10, 9, 7, 4 | 11, 6; the last two against the mean of the other's.
    close(advantages(found, tensor([YES, YES]), SETTINGS), [
        [0.0, -1.0, 3.0, 0.0, 7.0 - 8.5, 4.0 - 8.5], [0.0, 1.0, -3.0, 0.0, 0.0, 0.0]])


@pytest.mark.parametrize("placement", ["step", "token"])
def test_the_outcome_is_the_chain_s_wherever_rewards_are_placed(placement: str) -> None:
    """Right against wrong: 1 and -1, whatever the slots are, and the process rewards come on top."""
    of_outcomes = dataclasses.replace(SETTINGS, outcome_weight=2.0, process_weight=0.0)
    of_both = dataclasses.replace(of_outcomes, process_weight=1.0)
    given, kept = placed(rewards(), OF_TOKENS, placement), tensor([YES, YES])
    alone = advantages(given, kept, of_outcomes)
    close(alone, [[0.0, 2.0, 2.0, 0.0, 2.0, 2.0], [0.0, -2.0, -2.0, 0.0, 0.0, 0.0]])
    close(advantages(given, kept, of_both) - advantages(given, kept, SETTINGS), alone.tolist())


def test_each_token_of_a_step_that_breaks_a_rule_answers_for_it() -> None:
    found = placed(dataclasses.replace(rewards(), costs=tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])), OF_TOKENS, "token")
    assert found.costs.tolist() == [[1.0, 1.0, 0.0, 0.0], [0.0] * 4]
    least = advantages(found, tensor([YES, YES]), SETTINGS, Limit("lexicographic", 0.0, True))
    assert [least[0, 1].item(), least[0, 2].item()] == [-least.abs().max().item()] * 2
