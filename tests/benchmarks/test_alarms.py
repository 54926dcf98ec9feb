"""The benchmark of alarms reads finished workspaces, holds bars to the worst, and its peers are what they say."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import alarms as benchmark
from prm_core.domains import arithmetic
from prm_core.evaluation.judged_chains import Plan, sample_chains, save_scores, score_with_prm
from prm_core.evaluation.stopping import Runs
from prm_core.platform import store
from prm_core.types import Trajectory
from tests.builders.evaluation import FakePolicy, FakeScorer


def finished(workspace, seed):
    """A workspace whose evaluation is done, as far as the benchmark reads it."""
    splits = {name: arithmetic.make_problems(name, count, seed)
              for name, count in (("dev", 150), ("test", 60), ("shifted", 20))}
    known = [problem for problems in splits.values() for problem in problems]
    scorer, rows, folder = FakeScorer(known, "process", 4), [], workspace / "artifacts/evaluate"
    for name, problems in splits.items():
        store.write_jsonl(workspace / f"data/{name}.jsonl", problems)
        for policy in ("base", "trained"):
            tag = f"{name}-{policy}"
            chains = sample_chains(FakePolicy(known, 0.2, policy), problems, tag, Plan(2, 1.0, 99, 8, 64, seed),
                                   workspace / "work")
            rows += score_with_prm(scorer, chains, problems, "mean", workspace / f"work/{tag}-prm")
    store.write_shard(folder / "trajectories", 0, Trajectory, [chain.trajectory for chain in rows])
    save_scores(folder / "scores.jsonl", rows)
    return workspace


def test_finished_workspaces_become_bars(tmp_path, monkeypatch):
    workspace, out = str(finished(tmp_path / "seed-1", 1)), tmp_path / "alarms.json"
    monkeypatch.setattr(sys, "argv", ["alarms", workspace, "--beside", workspace, "--out", str(out)])
    benchmark.main()
    result = json.loads(out.read_text())
    assert result["command"] == "python -m benchmarks.alarms seed-1 --beside seed-1 --out alarms.json"
    assert result["beside"] == result["workspaces"]
    one, = result["workspaces"]
    assert one["runs"] + one["left_out"] == 120
    assert one["alarm"]["runs"] >= 45
    assert one["prefix"]["runs"] == 150
    rows = {bar["name"]: bar for bar in result["bars"]}
    early = rows["failing runs stopped before their last third, %, worst of 1"]
    assert [early[key] for key in ("value", "low", "high")] == pytest.approx(
        [100 * one["test"]["stopped_early"][key] for key in ("value", "low", "high")])


def test_a_bar_holds_by_the_worst_interval():
    good, bad = ({"test": {
        "stopped_early": {"value": early, "low": 0, "high": 1}, "false_alarms": {"value": rate, "low": low, "high": 1},
        "broken_promises": {"value": 0, "low": 0, "high": 1}, "broken": {"value": 0, "low": 0, "high": 1}}}
        for early, rate, low in ((0.9, 0.0, 0.0), (0.5, 0.2, 0.06)))
    holds = {bar.name: bar.holds for bar in benchmark.bars([good, good, bad])}
    assert holds["false alarms, %, median of 3"]
    assert not holds["false alarms, %, worst of 3"]
    assert not holds["failing runs stopped before their last third, %, worst of 3"]
    assert all(bar.holds for bar in benchmark.bars([good, good]))


def test_the_estimated_ratio_is_large_where_it_is_truly_so():
    rng = np.random.default_rng(0)
    # Steps of failing runs score Beta(1, 2) and of sound ones Beta(2, 1): each multiplies the ratio by (1 - p) / p.
    fails = rng.random(3000) < 0.4
    scores = [rng.beta(*((1, 2) if failing else (2, 1)), 4).tolist() for failing in fails]
    evidence = benchmark.likelihood_ratio(Runs(scores, np.where(fails, 0, -1).tolist(), range(3000)))
    found = np.concatenate([evidence(run) for run in scores[:300]])
    true = np.concatenate([(np.log(run) - np.log1p(-np.array(run))).cumsum() for run in scores[:300]])
    assert np.corrcoef(found, true)[0, 1] > 0.9
    assert abs(np.median(found - true)) < 0.5
