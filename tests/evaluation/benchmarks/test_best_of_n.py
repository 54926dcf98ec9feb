"""Best-of-N from files: accuracies by hand and by brute force, outcome models, majority, workspaces, faults."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from prm_core.errors import InputError
from prm_core.evaluation.benchmarks.best_of_n import sizes
from prm_core.evaluation.benchmarks.suite import BENCHMARKS
from prm_core.platform import store
from prm_core.types import Problem, Step, Trajectory
from tests.builders import benchmarks as fakes


def candidate(outcome, answer, *texts):
    return {"steps": list(texts), "outcome": outcome, "answer": answer}


ROWS = [
    {"prompt": "A", "candidates": [
        candidate(True, "1/2", "0.6 a", "0.9 b"), candidate(False, "3", "0.5 a", "0.95 b"),
        candidate(True, "0.5", "0.7 a", "0.7 b")]},
    {"prompt": "A", "candidates": [
        candidate(False, None, "0.8 a", "0.8 b"), candidate(True, "2", "0.9 a", "0.3 b"),
        candidate(False, "4", "0.1 a", "0.1 b")]},
]


def test_every_aggregation_by_hand(tmp_path):
    found = fakes.values("best_of_n", fakes.scored("best_of_n", tmp_path / "t.jsonl", ROWS))
    assert found["random/accuracy_at_3"] == found["min/accuracy_at_1"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found["oracle/accuracy_at_3"] == 1
    # min: 0.7 (right) and 0.8 (wrong); prod: 0.54 (right) and 0.64; mean: 0.75 (right) and 0.8; last: 0.95, 0.8.
    assert [found[f"{name}/accuracy_at_3"] for name in ("min", "prod", "mean", "last")] == [0.5, 0.5, 0.5, 0]
    # 1/2 and 0.5 are one answer; the second problem's two answers tie.
    assert found["majority/accuracy_at_3"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["min_minus_random/accuracy_at_3"] == pytest.approx(0)
    assert found["min/outcome_auroc"] == pytest.approx((2 + 2 + 1) / 9)


def test_accuracy_at_two_is_the_mean_over_all_pairs(tmp_path):
    file = fakes.scored("best_of_n", tmp_path / "t.jsonl", ROWS)
    found = fakes.values("best_of_n", file)
    hits = []
    for rows in ((0, 1, 2), (3, 4, 5)):
        best = [max(pair, key=lambda i: min(file.scores[i])) for pair in combinations(rows, 2)]
        hits.append(np.mean([file.chains[i].outcome for i in best]))
    assert found["min/accuracy_at_2"] == pytest.approx(np.mean(hits))


def test_an_outcome_model_ranks_whole_chains(tmp_path):
    file = fakes.scored("best_of_n", tmp_path / "t.jsonl", ROWS, kind="outcome")
    found = fakes.values("best_of_n", file)
    assert found["outcome/accuracy_at_3"] == 0
    assert not {"min/accuracy_at_3", "prm/lowest_is_last"} & set(found)


def test_orm_drift_is_measured_without_step_labels(tmp_path):
    found = fakes.values("best_of_n", fakes.scored("best_of_n", tmp_path / "t.jsonl", ROWS))
    # Lowest last in the chain 0.9, 0.3 alone; ties are not.
    assert (found["prm/lowest_is_last"], found["random/lowest_is_last"]) == (pytest.approx(1 / 6), 0.5)
    assert "prm/auroc" not in found


@pytest.mark.parametrize(("candidates", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]),
                                                      (12, [1, 2, 4, 8, 12])])
def test_sizes(candidates, expected):
    assert sizes(candidates) == expected


def test_records_with_one_prompt_are_problems_of_their_own(tmp_path):
    file = fakes.scored("best_of_n", tmp_path / "t.jsonl", ROWS)
    assert (file.problems, len(file.chains)) == (2, 6)


@pytest.mark.parametrize(("change", "message"), [
    ({"candidates": []}, r"t\.jsonl:1: field candidates is empty"),
    ({"candidates": ["x"]}, r"candidate 0 is str, expected an object"),
    ({"candidates": [{"steps": ["0.5"]}]}, r"candidate 0: field outcome is missing, expected bool"),
    ({"candidates": [{"steps": [], "outcome": True}]}, r"candidate 0: `steps` must be a non-empty list"),
    ({"domain": "poetry"}, r"unknown domain 'poetry'; known: arithmetic, .*general"),
])
def test_a_bad_record_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        BENCHMARKS["best_of_n"].read(fakes.write(tmp_path / "t.jsonl", [ROWS[0] | change]))


def test_a_workspace_is_read_as_it_is(tmp_path):
    problem = Problem("test-0", "general", "Q", "1")
    store.write_jsonl(tmp_path / "data" / "test.jsonl", [problem])
    folder = tmp_path / "artifacts" / "evaluate" / "trajectories"
    with pytest.raises(InputError, match=r"no artifacts/evaluate/trajectories in it; run the stage evaluate"):
        BENCHMARKS["best_of_n"].read(tmp_path)
    rows = [Trajectory(f"{tag}/test-0/{i}", "test-0", "p", (Step("0.9 a"),), "1", i == 0, 0)
            for tag in ("dev-base", "test-base", "test-trained") for i in range(2)]
    store.write_shard(folder, 0, Trajectory, rows)
    chains = BENCHMARKS["best_of_n"].read(tmp_path)
    # The base policy's on the test split; the other chains are of other problems or another policy.
    assert [(chain.prompt, chain.outcome, chain.problem, chain.answer) for chain in chains] == [
        ("Q", True, "test-0", "1"), ("Q", False, "test-0", "1")]
    store.write_jsonl(tmp_path / "data" / "test.jsonl", [Problem("other", "general", "Q", "1")])
    with pytest.raises(InputError, match=r"problem test-0 is not in data/test\.jsonl"):
        BENCHMARKS["best_of_n"].read(tmp_path)
