"""Stage calibrate: the training set, and the files of the stage."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import GateError, InputError
from prm_core.labeling.calibrate import LabelMap, training_set
from prm_core.labeling.stacking import Stack
from prm_core.platform import store, tracking
from prm_core.scoring.calibration import Calibrator
from prm_core.stages import calibrate as stage
from prm_core.types import StepLabel
from tests.builders.quality import (
    STEPS,
    STRATEGIES,
    Tracked,
    human,
    label,
    make_config,
    problem,
    read_lines,
    right,
    run_stage,
    trajectory,
    write_workspace,
)


def keys(rows):
    return [(row.trajectory_id, row.step_index) for row in rows]


# --- the training set -------------------------------------------------------------------------------------------------


def digests(*ids):
    return {name: f"content of {name}" for name in ids}


def test_steps_after_the_first_wrong_verdict_leave():
    rows = [label("a", 0), label("a", 1, False), label("a", 2), label("a", 3, False)]
    random.Random(1).shuffle(rows)
    kept, lost = training_set(rows, digests("a"), set(), 0.5)
    assert keys(kept) == [("a", 0), ("a", 1)]
    assert lost == {"lost_human_chain": 0, "lost_after_error": 2, "lost_undecided": 0, "lost_confidence": 0}


def test_undecided_and_unsure_labels_leave_and_each_is_counted_once():
    rows = [label("a", 0, confidence=0.6), label("a", 1, None, 0.0, value=0.9), label("a", 2, False, confidence=0.4),
            label("a", 3, None, 0.0), label("b", 0, None, 0.0), label("b", 1, confidence=0.5)]
    kept, lost = training_set(rows, digests("a", "b"), set(), 0.5)
    assert keys(kept) == [("a", 0), ("b", 1)]
    assert lost == {"lost_human_chain": 0, "lost_after_error": 1, "lost_undecided": 2, "lost_confidence": 1}
    assert len(kept) + sum(lost.values()) == len(rows)


def test_human_labelled_chains_never_train_whatever_their_id():
    rows = [label("gen-1", 0), label("gen-2", 0), label("human-1", 0)]
    kept, lost = training_set(rows, {"gen-1": "same", "gen-2": "other"}, {"same"}, 0.5)
    assert keys(kept) == [("gen-2", 0)]
    assert lost["lost_human_chain"] == 2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), unique=True, max_size=12).flatmap(
    lambda found: st.tuples(st.just(found), st.lists(st.sampled_from([True, False, None]), min_size=len(found),
                                                     max_size=len(found)))))
def test_every_label_is_kept_or_counted(drawn):
    rows = [label(*key, verdict, 0.0 if verdict is None else 0.3 + 0.15 * key[1])
            for key, verdict in zip(*drawn, strict=True)]
    kept, lost = training_set(rows, digests("a", "b"), {"content of b"}, 0.5)
    assert len(kept) + sum(lost.values()) == len(rows)
    assert keys(kept) == sorted(keys(kept))
    for row in kept:
        assert row.trajectory_id == "a"
        assert row.is_correct is not None
        assert row.confidence >= 0.5
        assert not any(r.trajectory_id == "a" and r.is_correct is False and r.step_index < row.step_index for r in rows)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(monkeypatch):
    run = Tracked()
    monkeypatch.setattr(tracking, "stage_run", run.stage_run)
    return run


def prepared(root, **options):
    """A workspace in which all labels passed validation."""
    write_workspace(root, **options)
    store.write_shard(root / "artifacts/validate/passed", 0, StepLabel,
                      store.read_shards(StepLabel, root / "artifacts/label/merged"))
    store.write_json(root / "artifacts/validate_gate/passed.json", {})
    return root


@pytest.mark.parametrize("stack", [False, True])
def test_the_stage_writes_calibrator_training_set_queue_plots_and_metrics(tmp_path, tracked, stack):
    prepared(tmp_path, chains=30, human_chains=30)
    config = make_config(calibrate={"stack": stack})
    run_stage(stage.STAGE, tmp_path, config)
    out = tmp_path / "artifacts/calibrate"
    metrics = json.loads((out / "metrics.json").read_text())
    # Every third chain goes wrong at its middle step, after which nothing counts.
    assert (metrics["human_labels"], metrics["human_after_error"]) == (30 * STEPS - 10, 10)
    assert (metrics["training_rows"], metrics["training_chains"]) == (30 * STEPS - 10, 30)
    assert (metrics["lost_after_error"], metrics["lost_human_chain"]) == (10, 30 * STEPS)
    assert (metrics["method"], metrics["calibrated"]) == ("stacked" if stack else "isotonic", 1)
    assert metrics["policy/ece_after"] < metrics["policy/ece_before"] == pytest.approx(0.1)
    for name in STRATEGIES:
        assert metrics[f"policy/ece_after/{name}"] < metrics[f"policy/ece_before/{name}"] == pytest.approx(0.1)
        assert metrics[f"policy/brier_after/{name}"] < metrics[f"policy/brier_before/{name}"] == pytest.approx(0.01)
    assert tracked.metrics.items() <= metrics.items()
    assert {"policy/ece_after", "policy/ece_after/rollout", "human_labels", "lost_confidence"} <= set(tracked.metrics)

    rows = store.read_shards(StepLabel, out / "training_set")
    assert all(row.is_correct == right(int(row.trajectory_id.split("-")[1]), row.step_index) for row in rows)
    assert {row.trajectory_id for row in rows} <= {f"gen-{n}" for n in range(30)}
    written = json.loads((out / "calibrator.json").read_text())
    assert set(written) == {"merged", "stack", "strategies"}
    assert set(written["strategies"]) == set(STRATEGIES)
    assert {Calibrator.from_dict(one).method for one in (written["merged"], *written["strategies"].values())} == {
        "isotonic"}
    assert (written["stack"] is not None) == stack
    # What is written is all that is needed to give the training labels again: right steps and wrong ones.
    label_map = LabelMap(Calibrator.from_dict(written["merged"]), Stack.from_dict(written["stack"]) if stack else None)
    assert {row.value for row in rows} == set(label_map.apply(np.array([[0.9] * 3, [1 - 0.9] * 3])).tolist())

    with (out / "plots/reliability.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert set(table[0]) == {"series", "mean_probability", "observed_share", "count"}
    assert {row["series"] for row in table} == {"policy: as labelled", "policy: calibrated (held out)"}
    assert sum(int(row["count"]) for row in table) == 2 * metrics["human_labels"]
    assert (out / "plots/reliability.png").read_bytes()[:4] == b"\x89PNG"

    queue = read_lines(out / "review_queue.jsonl")
    assert len(queue) == metrics["review_queue"] == round(0.25 * 30 * STEPS)
    assert all(0 < row["chance"] <= 1 for row in queue)
    assert {row["is_correct"] for row in queue} == {None}


def test_the_stage_gives_the_same_files_again(tmp_path, tracked):
    prepared(tmp_path, chains=12, human_chains=25)
    written = []
    for _ in range(2):
        run_stage(stage.STAGE, tmp_path, make_config(calibrate={"stack": True}))
        files = sorted(p for p in (tmp_path / "artifacts/calibrate").rglob("*") if p.suffix != ".png" and p.is_file())
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
    assert len(written[0]) == 5


def test_the_stage_works_without_any_human_label(tmp_path, tracked, caplog):
    prepared(tmp_path, chains=6)
    # Not every merge makes an estimate of its own error.
    store.write_json(tmp_path / "artifacts/label/metrics.json", {})
    run_stage(stage.STAGE, tmp_path, make_config())
    metrics = json.loads((tmp_path / "artifacts/calibrate/metrics.json").read_text())
    assert (metrics["method"], metrics["human_labels"], metrics["training_rows"]) == ("identity", 0, 6 * STEPS - 2)
    assert not any("ece" in name or "label_error" in name for name in metrics)
    assert "0 labels, fewer than the 50 needed" in caplog.text
    assert (tmp_path / "artifacts/calibrate/plots/reliability.png").exists()


def test_labels_of_corrupted_solutions_are_measured_and_change_nothing(tmp_path, tracked, caplog):
    prepared(tmp_path, chains=6, human_chains=30, author="corrupted-solution")
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"stack": True}))
    out = tmp_path / "artifacts/calibrate"
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["method"], metrics["calibrated"]) == ("identity", 0)
    assert metrics["identity_reason"] == (
        "no human labels on the policy's own chains (50 needed); 80 labels are on another population, "
        "corrupted-solution, and only measured")
    assert (metrics["policy/human_labels"], metrics["other/human_labels"]) == (0, 80)
    assert metrics["other/ece_before"] == metrics["other/ece_after"] == pytest.approx(0.1)
    assert not any(name.startswith(("policy/ece", "policy/brier", "policy/label_error_human")) for name in metrics)
    # What the merge says of itself needs nobody.
    assert [metrics[f"policy/label_error{end}"] for end in ("", "_low", "_high")] == [0.04, 0.01, 0.09]
    assert {row.confidence for row in store.read_shards(StepLabel, out / "training_set")} == {0.9}
    with (out / "plots/reliability.csv").open() as lines:
        assert {row["series"] for row in csv.DictReader(lines)} == {"other: as labelled",
                                                                    "other: calibrated (held out)"}
    queue = read_lines(out / "review_queue.jsonl")
    assert len(queue) == metrics["review_queue"] > 0
    assert all(row["trajectory_id"].startswith("gen-") for row in queue)


def test_people_say_how_wrong_the_labels_of_the_policys_chains_are(tmp_path, tracked, caplog):
    caplog.set_level("INFO")

    def careless(table, rows):
        # Of the thirty reviewed chains, the merge takes one right first step for wrong.
        for row in rows:
            hit = table == "merged" and (row.trajectory_id, row.step_index) == ("human-1000", 0)
            yield dataclasses.replace(row, is_correct=False) if hit else row

    prepared(tmp_path, chains=6, human_chains=30, change=careless)
    run_stage(stage.STAGE, tmp_path, make_config())
    metrics = json.loads((tmp_path / "artifacts/calibrate/metrics.json").read_text())
    share, low, high = (metrics[f"policy/label_error_human{end}"] for end in ("", "_low", "_high"))
    assert (metrics["policy/label_error_human_labels"], share) == (80, pytest.approx(1 / 80))
    assert 0 == low < share < high < 0.07
    said = re.search(r"labels on the policy's own chains: (.*)", caplog.text)[1].split("; ")
    assert said[0] == "80 human labels"
    assert re.fullmatch(r"calibration error 0\.\d{4} as labelled, 0\.\d{4} calibrated", said[1])
    assert said[2] == "4.0% of the chains wrong by the merge's own estimate (95 % interval 1.0% to 9.0%)"
    assert said[3].startswith("1.2% of the steps wrong by people (95 % interval 0.0% to ")
    assert "labels on another population: 0 human labels\n" in caplog.text


def test_the_stack_trusts_the_strategy_people_agree_with(tmp_path, tracked):
    def deceived(table, rows):
        # The merge and MC dropout call every step right; the rollouts know.
        for row in rows:
            blind = table == "merged" or row.strategy == "mc_dropout"
            yield dataclasses.replace(row, is_correct=True) if blind else row

    prepared(tmp_path, chains=30, human_chains=40, change=deceived)
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"stack": True}))
    out = tmp_path / "artifacts/calibrate"
    rows = store.read_shards(StepLabel, out / "training_set")
    assert len(rows) == 30 * STEPS - 10
    assert all(row.is_correct == right(int(row.trajectory_id.split("-")[1]), row.step_index) for row in rows)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["policy/ece_after/rollout"] < metrics["policy/ece_after/mc_dropout"] + 0.05
    assert metrics["policy/brier_after"] < 0.3 * metrics["policy/brier_before"]


@pytest.mark.parametrize(("share", "asked"), [(0.0, 0), (0.05, 2), (0.5, 18), (1.0, 32)])
def test_the_queue_is_a_share_of_the_generated_steps(tmp_path, tracked, share, asked):
    # 12 chains of 3 steps; four of them have one step after their first error, which is not asked about.
    prepared(tmp_path, chains=12, human_chains=5)
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"review_share": share}))
    out = tmp_path / "artifacts/calibrate"
    queue = read_lines(out / "review_queue.jsonl") if asked else []
    assert len(queue) == json.loads((out / "metrics.json").read_text())["review_queue"] == asked
    assert (out / "review_queue.jsonl").exists()
    if share == 1.0:
        assert {row["chance"] for row in queue} == {1.0}


def test_a_generated_copy_of_a_human_chain_neither_trains_nor_is_asked_about(tmp_path, tracked):
    prepared(tmp_path, chains=6)
    store.write_jsonl(tmp_path / "data/human/problems.jsonl", [dataclasses.replace(problem(2), id="kept")])
    chain = dataclasses.replace(trajectory(2), id="kept-chain", problem_id="kept", policy="ann")
    for table in ("label/merged", "validate/passed"):
        rows = store.read_shards(StepLabel, tmp_path / "artifacts" / table)
        store.write_shard(tmp_path / "artifacts" / table, 0, StepLabel, [*rows, label("kept-chain", 0)])
    store.write_jsonl(tmp_path / "data/human/trajectories.jsonl", [chain])
    store.write_jsonl(tmp_path / "data/human/labels.jsonl", [human("kept-chain", 0, True)])
    out = tmp_path / "artifacts/calibrate"
    # The share is of all 18 generated steps, not of the 15 that are left to ask about; one of it is answered.
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"review_share": 0.5}))
    assert len(read_lines(out / "review_queue.jsonl")) == 8
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"review_share": 1.0}))
    assert "gen-2" not in {row.trajectory_id for row in store.read_shards(StepLabel, out / "training_set")}
    assert {row["trajectory_id"] for row in read_lines(out / "review_queue.jsonl")} == {
        "gen-0", "gen-1", "gen-3", "gen-4", "gen-5"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["lost_human_chain"] == STEPS + 1
    # Whoever is said to have written it: it is the policy's own.
    assert (metrics["policy/human_labels"], metrics["other/human_labels"]) == (1, 0)


def test_chains_of_replaced_problems_are_refused(tmp_path, tracked):
    prepared(tmp_path, chains=3)
    store.write_jsonl(tmp_path / "data/train.jsonl", [problem(0)])
    with pytest.raises(InputError, match=r"'gen-1' answers problem 'p1', which is neither in data/train\.jsonl"):
        run_stage(stage.STAGE, tmp_path, make_config())
    assert not (tmp_path / "artifacts/calibrate/metrics.json").exists()


def test_an_empty_training_set_stops_the_chain_and_says_why(tmp_path, tracked):
    prepared(tmp_path, chains=3)
    with pytest.raises(GateError, match=r"no label is left to train on; of 9 .*'lost_confidence': 8"):
        run_stage(stage.STAGE, tmp_path, make_config(calibrate={"min_confidence": 0.95}))
    assert not (tmp_path / "artifacts/calibrate/training_set").exists()
