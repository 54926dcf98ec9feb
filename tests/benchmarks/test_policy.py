"""What the policy benchmark compares, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks import agents, policy
from prm_core.errors import InputError
from tests.builders.training import small_config

PLAIN = policy.Result(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 0.0, None, 100.0, [(4, 0.3), (8, 0.5)], None, 3.0,
                      0.9)


def result(**values) -> policy.Result:
    return dataclasses.replace(PLAIN, **values)


def test_a_gain_is_paired_by_problem_and_seed():
    one, other = np.array([1.0, 1.0, 0.5]), np.array([0.5, 0.5, 0.0])
    assert policy.gain([one, one], [other, other]) == pytest.approx((50.0, 50.0, 50.0))
    value, low, high = policy.gain([one, other], [other, one])
    assert (value, low < 0 < high) == (pytest.approx(0.0), True)


def test_every_way_is_one_of_the_settings():
    config = small_config()
    for way in policy.WAYS:
        settings = policy.settings_of(config, way, 12, guarded=False)
        assert (settings.updates, settings.eval_every, settings.guard.window) == (12, 2, 0)
        assert settings.reward_model == {"prover advantages": "pav", policy.PRIME: "implicit"}.get(way, "prm")
        assert (settings.critic.kind == "none") == (way != policy.PPO)
    assert policy.settings_of(config, policy.CONFIGURED, 12, guarded=True).advantages == config.train_policy.advantages
    with pytest.raises(InputError, match="no way 'luck'; known: configured, outcome only"):
        policy.settings_of(config, "luck", 12, guarded=True)


def test_bars_hold_where_the_gain_does():
    better = result(right=np.array([1.0, 0.5]), sound=np.array([1.0, 0.5]), lucky=0.1, curve=[(4, 0.5), (8, 0.6)])
    worse = result(lucky=0.3)
    found = {policy.CONFIGURED: {"a": better, "b": better}, policy.OUTCOME: {"a": worse, "b": worse}}
    bars = {bar.name: bar for bar in policy.bars_of(found, agents=False)}
    assert bars["right: configured - outcome only, points"].value == pytest.approx(25.0)
    assert bars["process consistency: configured - outcome only, points"].value == pytest.approx(20.0)
    tokens = next(bar for name, bar in bars.items() if name.startswith("sampled tokens"))
    assert (tokens.value, tokens.holds) == (0.5, True)
    assert not any(policy.PPO in name for name in bars)
    bars = {bar.name: bar for bar in policy.bars_of(found | {policy.PPO: {"a": better, "b": worse}}, agents=False)}
    assert bars["right: outcome, PPO - outcome only, points"].holds
    lucky = policy.bars_of(found, agents=True)[1]
    assert (lucky.value, lucky.holds) == (pytest.approx(-20.0), True)
    [fall] = policy.bars_of({policy.CONFIGURED: {"a": result(curve=[(4, 0.5), (8, 0.47)])}}, agents=False)
    assert (fall.value, fall.holds) == (pytest.approx(3.0), False)
    assert policy.bars_of({policy.CONFIGURED: {"a": better}}, agents=True) == []


def test_what_is_never_reached_costs_everything():
    assert policy._tokens_to(result(), result(curve=[(8, 0.9)])) == 1.0


def test_parts_that_need_finished_runs_are_left_out_without():
    assert [name for name, _ in agents.parts(True, [], [])] == ["agent_texts", "judge"]
    assert [name for name, _ in agents.parts(True, ["a"], ["b"])] == [
        "agent_texts", "judge", "agent_search", "alarms", "judges", "blame"]
    assert agents.parts(False, ["a"], [])[-1] == ("policy", ["a", "--ways", "configured", "outcome only"])
