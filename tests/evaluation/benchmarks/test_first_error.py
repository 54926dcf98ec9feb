"""First-error benchmarks: BIG-Bench-Mistake's accuracy, the floors against brute force, and the single-step figures."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.benchmarks.steps import judged
from prm_core.evaluation.benchmarks.suite import BENCHMARKS
from prm_core.evaluation.metrics import Bootstrap
from prm_core.scoring.calibration import expected_calibration_error
from tests.builders import benchmarks as fakes


def row(question, mistake, *steps, answer="1"):
    return {"input": question, "steps": list(steps), "target": "1", "answer": answer, "mistake_index": mistake}


ROWS = [
    row("A", 1, "0.9 a", "0.2 b", "0.9 c", answer="2"),   # named exactly
    row("A", None, "0.9 a", "0.8 b"),                     # rightly silent
    row("B", 0, "0.7 a", "0.3 b", answer="2"),            # the step after
    row("C", None, "0.4 a"),                              # a false alarm
]


def test_bigbench_mistake_by_hand(tmp_path):
    found = fakes.values("bigbench_mistake", fakes.scored("bigbench_mistake", tmp_path / "task.jsonl", ROWS))
    assert (found["prm/accuracy"], found["prm/acc_err"], found["prm/acc_ok"]) == (0.5, 0.5, 0.5)
    assert found["prm/first_error_f1"] == 0.5
    assert found["random/accuracy"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    assert found["silent/accuracy"] == 0.5
    # The middle step of every chain with a wrong answer: step 1 of 3 and of 2.
    assert found["middle/acc_err"] == 0.5


def test_random_floor_is_the_mean_over_all_guesses(tmp_path):
    file = fakes.scored("bigbench_mistake", tmp_path / "task.jsonl", ROWS)
    gold = [chain.label for chain in file.chains]
    guesses = itertools.product(*(range(-1, len(chain.steps)) for chain in file.chains))
    hits = np.array([[guess == label for guess, label in zip(guessed, gold, strict=True)] for guessed in guesses])
    found = fakes.values("bigbench_mistake", file)
    assert found["random/accuracy"] == pytest.approx(hits.mean())
    assert found["random/acc_err"] == pytest.approx(hits[:, [0, 2]].mean())
    assert found["random/acc_ok"] == pytest.approx(hits[:, [1, 3]].mean())


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(-1, 5)), min_size=2, max_size=12))
def test_coin_floor_is_the_best_of_all_coins(chains):
    steps, gold = zip(*[(n, min(label, n - 1)) for n, label in chains], strict=True)
    if min(gold) >= 0 or max(gold) < 0:
        return
    found = Bootstrap(1, 1, 0).draws(metrics.coin_tally(steps, gold, [0] * len(gold), 1).f1)[0]
    for q in (0.05, 0.2, 0.37, 0.5, 0.8):
        # The chance that independent scores below q come first at the gold step, or nowhere.
        err = np.mean([(1 - q) ** label * q for label in gold if label >= 0])
        ok = np.mean([(1 - q) ** n for n, label in zip(steps, gold, strict=True) if label < 0])
        assert found >= 2 * err * ok / (err + ok) - 1e-12


def test_coin_floor_is_what_noise_reaches():
    rng = np.random.default_rng(0)
    steps = rng.integers(2, 8, 400)
    gold = np.where(rng.random(400) < 0.5, -1, (rng.random(400) * steps).astype(int))
    owner = np.arange(400)
    coin = Bootstrap(400, 1, 0).draws(metrics.coin_tally(steps, gold, owner, 400).f1)[0]
    reached = [metrics.choose_threshold([rng.random(n) for n in steps], gold)[1] for _ in range(5)]
    # Chosen in hindsight on as many chains, noise is a little above its expectation.
    assert coin - 0.02 < np.mean(reached) < coin + 0.05


def test_single_step_figures_agree_with_scikit_learn(tmp_path):
    file = fakes.scored("bigbench_mistake", tmp_path / "task.jsonl", ROWS)
    # "0.9 c" and "0.3 b" come after a first error: nobody says whether they are right.
    scores, right = [0.9, 0.2, 0.9, 0.8, 0.7, 0.4], [1, 0, 1, 1, 0, 1]
    steps = judged(file)
    assert (steps.scores.tolist(), steps.right.tolist()) == (scores, [bool(r) for r in right])
    found = fakes.values("bigbench_mistake", file)
    assert found["prm/auroc"] == pytest.approx(roc_auc_score(right, scores))
    assert found["prm/brier"] == pytest.approx(brier_score_loss(right, scores))
    assert found["prm/ece"] == pytest.approx(expected_calibration_error(scores, right, 10))
    assert found["base_rate/brier"] == pytest.approx(brier_score_loss(right, [4 / 6] * 6))
    assert found["random/auroc"] == 0.5


def test_orm_drift_beside_chance(tmp_path):
    found = fakes.values("bigbench_mistake", fakes.scored("bigbench_mistake", tmp_path / "task.jsonl", ROWS))
    # Lowest last in the second and the third chain; the fourth has one step only.
    assert found["prm/lowest_is_last"] == pytest.approx(2 / 3)
    assert found["random/lowest_is_last"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)


def test_chains_cut_short_are_counted_and_not_judged(tmp_path):
    rows = [*ROWS, row("D", 1, "0.9 a", "0.1 cut", "0.1 c", answer="2")]
    file = fakes.scored("bigbench_mistake", tmp_path / "task.jsonl", rows)
    assert (file.truncated, file.unscored) == (1, 2)
    found, whole = fakes.values("bigbench_mistake", file), fakes.values(
        "bigbench_mistake", fakes.scored("bigbench_mistake", tmp_path / "whole.jsonl", ROWS))
    # The error lies beyond the context, so the prediction is "none": a miss.
    assert found["prm/acc_err"] == pytest.approx(1 / 3)
    # Its last step has no score: it says nothing about drift.
    assert found["prm/lowest_is_last"] == whole["prm/lowest_is_last"]


def test_average_is_unweighted(tmp_path):
    files = [fakes.scored("bigbench_mistake", tmp_path / "a.jsonl", ROWS),
             fakes.scored("bigbench_mistake", tmp_path / "b.jsonl", ROWS[:2])]
    each, together = fakes.figures("bigbench_mistake", files)
    assert [row.estimates["prm/accuracy"].value for row in each] == [0.5, 1.0]
    assert together.estimates["prm/accuracy"].value == 0.75
    assert (together.name, together.chains, together.problems) == ("average", 6, 4)
    assert [row.judged_steps for row in each] == [6, 4]


def test_a_mistake_beyond_the_last_step_is_named(tmp_path):
    with pytest.raises(InputError, match=r"t\.jsonl:1: mistake_index 2 of 2 steps"):
        BENCHMARKS["bigbench_mistake"].read(fakes.write(tmp_path / "t.jsonl", [row("A", 2, "a", "b")]))


@pytest.mark.shared
def test_the_real_tasks():
    folder = Path(os.environ.get("PRM_SHARED_DATA") or "", "bigbench_mistake")
    if not os.environ.get("PRM_SHARED_DATA") or not folder.is_dir():
        pytest.skip("PRM_SHARED_DATA names no folder with bigbench_mistake")
    chains = [BENCHMARKS["bigbench_mistake"].read(path) for path in sorted(folder.glob("*.jsonl"))]
    assert [len(rows) for rows in chains] == [986, 300, 300]
    assert [sum(chain.label < 0 for chain in rows) for rows in chains] == [336, 62, 34]
