"""The benchmark of blame reads finished workspaces of a team and holds its bar to the worst."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import blame as benchmark
from prm_core import config as configuration
from prm_core.domains import DOMAINS, arithmetic
from prm_core.errors import InputError
from prm_core.evaluation.blame import Cost
from prm_core.evaluation.judged_chains import Plan, sample_chains, save_scores, score_with_prm
from prm_core.platform import store
from prm_core.types import Trajectory
from tests import ROOT
from tests.builders import errands
from tests.builders.evaluation import FakePolicy, FakeScorer


def finished(workspace, make, policy_of):
    """A workspace whose evaluation is done, as far as the benchmark reads it; and its policy."""
    splits = {name: make(name, count) for name, count in (("dev", 8), ("test", 8), ("shifted", 2))}
    known = [problem for problems in splits.values() for problem in problems]
    policy, scorer = policy_of(known), FakeScorer(known, "process", 8)
    rows, folder = [], workspace / "artifacts/evaluate"
    for name, problems in splits.items():
        store.write_jsonl(workspace / f"data/{name}.jsonl", problems)
        for kind in ("base", "trained"):
            tag = f"{name}-{kind}"
            chains = sample_chains(policy, problems, tag, Plan(3, 1.0, 99, 8, 64, 0), workspace / "work")
            rows += score_with_prm(scorer, chains, problems, "mean", workspace / f"work/{tag}-prm")
    store.write_shard(folder / "trajectories", 0, Trajectory, [chain.trajectory for chain in rows])
    save_scores(folder / "scores.jsonl", rows)
    store.write_text(workspace / "params.yaml", (ROOT / "params.yaml").read_text())
    return policy


def test_finished_workspaces_become_bars(tmp_path, monkeypatch):
    workspace, out = tmp_path / "team-1", tmp_path / "blame.json"
    policy = finished(workspace, lambda name, count: DOMAINS["errands"].levels["team"](name, count, 0, ()),
                      lambda known: errands.TeamPolicy(known, 0.1))
    monkeypatch.setattr(benchmark, "load_policy", lambda path, config: policy)
    monkeypatch.setattr(sys, "argv", ["blame", str(workspace), "--runs", "4", "--rollouts", "2", "--out", str(out)])
    benchmark.main()
    result = json.loads(out.read_text())
    assert result["command"] == "python -m benchmarks.blame team-1 --runs 4 --rollouts 2 --out blame.json"
    [one] = result["workspaces"]
    bars = {bar["name"]: bar for bar in result["bars"]}
    named = bars["first faulty agent named by the PRM, %, worst of 1"]
    assert named["value"] == pytest.approx(100 * one["prm/faulty_agent"]["value"])
    assert named["holds"] is (named["value"] >= 85)
    assert one["random/faulty_agent"]["value"] < one["prm/faulty_agent"]["value"]
    assert 1 <= one["cost_runs"] <= 4
    assert one["cost_rollouts"] % 2 == 0
    assert 0 <= one["costly_is_faulty"]["value"] <= 1


def test_a_run_of_one_agent_is_refused(tmp_path):
    finished(tmp_path, lambda name, count: arithmetic.make_problems(name, count, 0),
             lambda known: FakePolicy(known, 0.2, "base"))
    assert configuration.load(tmp_path).domain == "arithmetic"
    with pytest.raises(InputError, match="no run of named agents failed; name a finished run of the profile agents-te"):
        benchmark.measure(tmp_path, 4, 2)


def test_the_bar_is_held_to_the_worst():
    def found(share):
        return {key: {"value": share, "low": share - 0.1, "high": share + 0.1} for key in (
            "prm/faulty_agent", "random/faulty_agent", "majority/faulty_agent", "costly_is_faulty")} | {
            "costly_is_faulty_where_clear": {"value": None, "low": None, "high": None}}

    made = benchmark.bars([found(0.9), found(0.8), found(0.95)])
    assert (made[0].value, made[0].low, made[0].high, made[0].holds) == pytest.approx((80, 70, 90, False))
    assert (made[1].value, made[1].low, made[1].high) == pytest.approx((90, 80, 95))
    assert len(made) == 5
    assert benchmark.bars([found(0.85)])[0].holds


def test_a_cost_is_clear_beyond_two_standard_errors():
    assert benchmark._is_clear({"a": Cost(0.5, 0.1, 8), "b": Cost(0.2, 0.1, 8)})
    assert not benchmark._is_clear({"a": Cost(0.5, 0.2, 8), "b": Cost(0.2, 0.1, 8)})
    assert benchmark._is_clear({"a": Cost(0.5, 9.0, 8)})
