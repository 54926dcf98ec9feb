"""Rules as constraints: advantages by hand, and a multiplier that rises while too much is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import tensor

from prm_core.config import ConstraintConfig
from prm_core.training.policy.advantages import advantages
from prm_core.training.policy.advantages.constraint import Limit, less_costs, next_multiplier
from tests.builders.advantages import close, make
from tests.builders.quality import make_config

SETTINGS = replace(make_config().train_policy.advantages, outcome_weight=1.0, process_weight=0.0, baseline="group",
                   scale="none")
# Two chains of two steps; the first breaks a rule at its first step and succeeds, the second fails.
REWARDS = replace(make([[0.5, 0.5], [0.5, 0.5]], [1.0, 0.0]), costs=tensor([[1.0, 0.0], [0.0, 0.0]]))
KEPT = torch.ones(2, dtype=torch.bool)


def found(kind: str, multiplier: float = 0.0, exceeded: bool = True, rewards=REWARDS, alone: bool = False):
    return advantages(rewards, KEPT, SETTINGS, Limit(kind, multiplier, exceeded, alone))


def test_without_a_constraint_costs_change_nothing():
    close(found("none"), [[0.5, 0.5], [-0.5, -0.5]])
    close(found("lagrangian", 0.0), [[0.5, 0.5], [-0.5, -0.5]])


def test_a_multiplier_weighs_costs_against_others_at_the_same_step():
    # Costs less their mean: ½ and -½ at the first step. (½ - 3·½) / 4 and (-½ + 3·½) / 4; (±½ - 0) / 4 at the second.
    close(found("lagrangian", 3.0), [[-0.25, 0.125], [0.25, -0.125]])


def test_what_led_to_a_step_at_which_all_break_a_rule_is_left():
    # Two go on and break a rule, the third ends after its first step; all succeed.
    rewards = replace(make([[0.5, 0.5], [0.5, 0.5], [0.5]], [1.0, 1.0, 1.0]),
                      costs=tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))
    given = advantages(rewards, torch.ones(3, dtype=torch.bool), SETTINGS, Limit("lagrangian", 1.0, True))
    # Costs to go less their mean at the first step, ⅓ and -⅔, by half; at the second all are alike.
    close(given[:, 0], [-1 / 6, -1 / 6, 1 / 3])
    close(given[:2, 1], [0.0, 0.0])


def test_after_an_alarm_nothing_is_paid():
    close(found("lagrangian", 3.0, alone=True), [[-0.375, 0.0], [0.375, 0.0]])
    close(found("lexicographic", alone=True), [[-1.0, 0.0], [0.0, 0.0]])


def test_in_a_lexicographic_order_no_reward_pays_for_a_broken_rule():
    close(found("lexicographic"), [[-1.0, 0.5], [-0.5, -0.5]])
    close(found("lexicographic", exceeded=False), [[0.5, 0.5], [-0.5, -0.5]])
    rich = replace(REWARDS, outcomes=tensor([100.0, 0.0]))
    close(found("lexicographic", rewards=rich), [[-50.0, 50.0], [-50.0, -50.0]])


def test_chains_without_rules_have_no_costs():
    close(found("lexicographic", rewards=replace(REWARDS, costs=None)), [[0.5, 0.5], [-0.5, -0.5]])


def test_less_costs_keeps_its_size():
    close(less_costs(tensor([1.0, 1.0]), tensor([0.0, 1.0]), 1.0), [0.5, 0.0])
    close(less_costs(tensor([1.0]), None, 1.0), [1.0])


def test_the_multiplier_follows_what_is_broken():
    config = ConstraintConfig(kind="lagrangian", limit=0.1, multiplier=1.0, rate=2.0, most=3.0)
    history: list[dict[str, float]] = []
    seen = []
    for broken in (0.6, 0.9, 0.1, 0.0, 0.0, 0.0, 0.0):
        seen.append(next_multiplier(history, config, "broken", "multiplier"))
        history.append({"broken": broken, "multiplier": seen[-1]})
    assert seen == pytest.approx([1.0, 2.0, 3.0, 3.0, 2.8, 2.6, 2.4])
    assert next_multiplier(history, replace(config, kind="lexicographic"), "broken", "multiplier") == 0.0
    assert next_multiplier([{"broken": 0.0, "multiplier": 0.1}], config, "broken", "multiplier") == 0.0
