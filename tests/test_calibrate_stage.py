"""Stage calibrate: the join with human labels, honest figures, the training set, the plots."""

from __future__ import annotations

import csv
import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core import store, tracking
from prm_core.errors import GateError, InputError
from prm_core.labeling.calibrate import calibrate, join_human, right_probability, training_set
from prm_core.labeling.human import all_trajectories, chain_digest, human_verdicts, read_human
from prm_core.models.calibration import Calibrator
from prm_core.stages import calibrate as stage
from prm_core.types import Step, StepLabel
from tests.quality_builders import (
    STEPS,
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

IDENTITY = Calibrator("identity", labels=0)


def keys(rows):
    return [(row.trajectory_id, row.step_index) for row in rows]


# --- the join ---------------------------------------------------------------------------------------------------------


def test_right_probability_turns_a_wrong_verdict_round():
    assert right_probability(label("a", 0, True, 0.9)) == 0.9
    assert right_probability(label("a", 0, False, 0.9)) == pytest.approx(0.1)
    assert right_probability(label("a", 0, None, 0.9, value=0.4)) == 0.4
    assert right_probability(label("a", 0, None, 0.9)) is None


def test_join_is_by_key_not_by_position():
    # The guide zips a list of confidences with a differently filtered list of agreements. METHODS 1.
    merged = [label(f"t{i}", 0, True, i / 100) for i in range(40)]
    labels = [human(f"t{i}", 0, i >= 20) for i in range(10, 40)]
    expected = ([i / 100 for i in range(10, 40)], [i >= 20 for i in range(10, 40)])
    rng = random.Random(0)
    for _ in range(5):
        rng.shuffle(merged)
        rng.shuffle(labels)
        joined = join_human(merged, labels)
        assert (joined.probabilities.tolist(), joined.outcomes.tolist()) == expected
        assert joined.trajectory_ids == [f"t{i}" for i in range(10, 40)]
    assert joined.counts == {"human_labels": 30, "human_chains": 30, "human_ties": 0, "human_after_error": 0,
                             "human_unmatched": 0, "human_unscored": 0}


@settings(max_examples=50)
@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)), st.randoms())
def test_join_of_filtered_lists_pairs_the_same_step(kept_merged, kept_human, rng):
    merged = [label(f"t{i}", 0, True, i / 100) for i in kept_merged]
    labels = [human(f"t{i}", 0, i % 2 == 0) for i in kept_human]
    rng.shuffle(merged)
    rng.shuffle(labels)
    joined = join_human(merged, labels)
    pairs = dict(zip(joined.trajectory_ids, zip(joined.probabilities, joined.outcomes, strict=True), strict=True))
    assert pairs == {f"t{i}": (i / 100, i % 2 == 0) for i in kept_merged & kept_human}
    assert joined.counts["human_unmatched"] == len(kept_human - kept_merged)


def test_human_steps_after_the_first_error_are_left_out():
    truth = human_verdicts([human("a", i, i != 1) for i in range(4)] + [human("b", 2, True)])
    assert truth.verdicts == {("a", 0): True, ("a", 1): False, ("b", 2): True}
    assert truth.after_error == 2


def test_reviewers_decide_by_majority_and_ties_leave():
    votes = [human("a", 0, True, "ann"), human("a", 0, False, "bob"), human("a", 0, False, "cy"),
             human("b", 0, True, "ann"), human("b", 0, False, "bob"), human("b", 1, True, "ann")]
    truth = human_verdicts(votes)
    assert truth.verdicts == {("a", 0): False, ("b", 1): True}
    assert truth.ties == 1


def test_undecided_merged_labels_count_as_unscored():
    joined = join_human([label("a", 0, None), label("b", 0, None, value=0.3)],
                        [human("a", 0, True), human("b", 0, True)])
    assert (joined.probabilities.tolist(), joined.counts["human_unscored"]) == ([0.3], 1)


# --- the figures ------------------------------------------------------------------------------------------------------


def noisy_joined(chains: int):
    """Merged labels that say 0.99 where 0.7 is true, on chains of three steps."""
    rng = np.random.default_rng(0)
    merged = [label(f"t{i}", j, bool(rng.random() < 0.5), 0.99) for i in range(chains) for j in range(STEPS)]
    labels = [human(row.trajectory_id, row.step_index, row.is_correct == (rng.random() < 0.7)) for row in merged]
    # Independent verdicts per step: without this the steps after an error would leave.
    merged = [dataclasses.replace(r, trajectory_id=f"{r.trajectory_id}.{r.step_index}") for r in merged]
    labels = [dataclasses.replace(r, trajectory_id=f"{r.trajectory_id}.{r.step_index}") for r in labels]
    return join_human(merged, labels)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_overconfident_labels_are_calibrated(method):
    config = make_config(calibrate={"method": method}).calibrate
    result = calibrate(noisy_joined(100), config, seed=0)
    assert result.calibrator.method == method
    assert result.metrics["ece_before"] == pytest.approx(0.29, abs=0.06)
    assert result.metrics["ece_after"] < 0.08
    assert result.metrics["brier_after"] < result.metrics["brier_before"]
    assert sum(b.count for b in result.curves["after"]) == 300


def test_after_is_measured_on_labels_the_map_did_not_see():
    # Outcomes without any relation to the probability: nothing can be learnt, so "after" must not look better than
    # always saying one half. Fitted and measured on the same labels it would.
    rng = np.random.default_rng(1)
    chains = [f"t{i}" for i in range(30)]
    merged = [label(t, j, True, float(rng.random())) for t in chains for j in range(STEPS)]
    joined = join_human(merged, [human(t, 0, bool(i % 2)) for i, t in enumerate(chains)])
    config = make_config(calibrate={"min_labels": 10}).calibrate
    result = calibrate(joined, config, seed=0)
    fitted = result.calibrator.apply(joined.probabilities)
    assert np.mean((fitted - joined.outcomes) ** 2) < 0.25
    assert result.metrics["brier_after"] > 0.25


def test_too_few_human_labels_leave_the_probabilities_alone(caplog):
    joined = join_human([label(f"t{i}", 0, i % 2 == 0, 0.9) for i in range(20)],
                        [human(f"t{i}", 0, i % 2 == 0) for i in range(20)])
    result = calibrate(joined, make_config().calibrate, seed=0)
    assert (result.calibrator.method, result.calibrator.labels) == ("identity", 20)
    assert "20 labels, fewer than the 50 needed" in caplog.text
    assert result.metrics["ece_before"] == result.metrics["ece_after"] == pytest.approx(0.1)


def test_labels_of_one_chain_cannot_be_checked_so_nothing_is_fitted():
    merged = [label("t", j, True, 0.9) for j in range(60)]
    joined = join_human(merged, [human("t", j, j < 59) for j in range(60)])
    result = calibrate(joined, make_config().calibrate, seed=0)
    assert (result.calibrator.method, result.calibrator.reason[:26]) == ("identity", "all labels are of one chai")


# --- the training set -------------------------------------------------------------------------------------------------


def digests(*ids):
    return {name: f"content of {name}" for name in ids}


def test_steps_after_the_first_wrong_verdict_leave():
    merged = [label("a", 0), label("a", 1, False), label("a", 2), label("a", 3, False)]
    random.Random(1).shuffle(merged)
    rows, lost = training_set(merged, digests("a"), set(), IDENTITY, 0.5)
    assert keys(rows) == [("a", 0), ("a", 1)]
    assert lost == {"lost_human_chain": 0, "lost_after_error": 2, "lost_undecided": 0, "lost_confidence": 0}


def test_undecided_and_unsure_labels_leave_and_each_is_counted_once():
    merged = [label("a", 0, confidence=0.6), label("a", 1, None, value=0.9), label("a", 2, False, confidence=0.4),
              label("a", 3, None)]
    rows, lost = training_set(merged, digests("a"), set(), IDENTITY, 0.5)
    assert keys(rows) == [("a", 0)]
    assert lost == {"lost_human_chain": 0, "lost_after_error": 1, "lost_undecided": 1, "lost_confidence": 1}
    assert len(rows) + sum(lost.values()) == len(merged)


def test_training_labels_carry_the_calibrated_probability():
    calibrator = Calibrator("isotonic", labels=9, knots=((0.0, 0.2), (1.0, 0.8)))
    rows, _ = training_set([label("a", 0, True, 0.9), label("a", 1, False, 0.9)], digests("a"), set(), calibrator, 0.5)
    assert [(r.is_correct, r.value, r.confidence, r.strategy) for r in rows] == [
        (True, pytest.approx(0.74), pytest.approx(0.74), "merged"),
        (False, pytest.approx(0.26), pytest.approx(0.74), "merged"),
    ]


def test_a_verdict_the_calibrator_contradicts_leaves():
    calibrator = Calibrator("isotonic", labels=9, knots=((0.0, 0.6), (1.0, 0.9)))
    rows, lost = training_set([label("a", 0, False, 0.9)], digests("a"), set(), calibrator, 0.5)
    assert (rows, lost["lost_confidence"]) == ([], 1)


def test_human_labelled_chains_never_train_whatever_their_id():
    merged = [label("gen-1", 0), label("gen-2", 0), label("human-1", 0)]
    rows, lost = training_set(merged, {"gen-1": "same", "gen-2": "other"}, {"same"}, IDENTITY, 0.5)
    assert keys(rows) == [("gen-2", 0)]
    assert lost["lost_human_chain"] == 2


# --- data/human -------------------------------------------------------------------------------------------------------


def test_chain_digest_depends_on_prompt_and_steps_not_on_ids():
    chain = trajectory(1)
    moved = dataclasses.replace(chain, id="x", problem_id="y", policy="z")
    assert chain_digest("q", chain) == chain_digest("q", moved)
    assert chain_digest("q", chain) != chain_digest("other", chain)
    observed = dataclasses.replace(chain, steps=(Step("a", observation="b"),))
    assert chain_digest("q", observed) != chain_digest("q", dataclasses.replace(chain, steps=(Step("a"),)))


def test_all_trajectories_joins_by_id_and_refuses_two_chains_of_one_id():
    assert all_trajectories([trajectory(1)], [trajectory(1), trajectory(2)]) == [trajectory(1), trajectory(2)]
    other = dataclasses.replace(trajectory(1), steps=(Step("else"),))
    with pytest.raises(InputError, match="'gen-1' stands for two different chains"):
        all_trajectories([trajectory(1)], [other])


def test_no_human_labels_is_a_normal_state(tmp_path):
    (tmp_path / "labels.jsonl").touch()
    assert read_human(tmp_path).labels == []


def test_a_human_label_without_its_step_is_refused(tmp_path):
    store.write_jsonl(tmp_path / "trajectories.jsonl", [trajectory(1)])
    store.write_jsonl(tmp_path / "labels.jsonl", [human("gen-1", STEPS, True)])
    with pytest.raises(InputError, match=r"labels\.jsonl: a label names step 3 of trajectory 'gen-1'"):
        read_human(tmp_path)


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


def test_the_stage_writes_calibrator_training_set_queue_plots_and_metrics(tmp_path, tracked):
    prepared(tmp_path, chains=30, human_chains=30)
    config = make_config()
    run_stage(stage.STAGE, tmp_path, config)
    out = tmp_path / "artifacts/calibrate"
    metrics = json.loads((out / "metrics.json").read_text())
    # Every third chain goes wrong at its middle step, after which nothing counts.
    assert (metrics["human_labels"], metrics["human_after_error"]) == (30 * STEPS - 10, 10)
    assert (metrics["training_rows"], metrics["training_chains"]) == (30 * STEPS - 10, 30)
    assert (metrics["lost_after_error"], metrics["lost_human_chain"]) == (10, 30 * STEPS)
    assert (metrics["method"], metrics["calibrated"]) == ("isotonic", 1)
    assert metrics["ece_after"] < metrics["ece_before"] == pytest.approx(0.1)
    assert tracked.metrics["ece_after"] == metrics["ece_after"]

    rows = store.read_shards(StepLabel, out / "training_set")
    assert all(row.is_correct == right(int(row.trajectory_id.split("-")[1]), row.step_index) for row in rows)
    assert {row.trajectory_id for row in rows} <= {f"gen-{n}" for n in range(30)}
    calibrator = Calibrator.from_dict(json.loads((out / "calibrator.json").read_text()))
    assert {row.value for row in rows} == set(calibrator.apply([0.9, 1 - 0.9]).tolist())

    with (out / "plots/reliability.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert set(table[0]) == {"series", "mean_probability", "observed_share", "count"}
    assert {row["series"] for row in table} == {"as labelled", "calibrated (held out)"}
    assert sum(int(row["count"]) for row in table) == 2 * metrics["human_labels"]
    assert (out / "plots/reliability.png").read_bytes()[:4] == b"\x89PNG"

    queue = read_lines(out / "review_queue.jsonl")
    assert len(queue) == config.calibrate.review_budget
    assert {row["is_correct"] for row in queue} == {None}


def test_the_stage_gives_the_same_files_again(tmp_path, tracked):
    prepared(tmp_path, chains=12, human_chains=25)
    written = []
    for _ in range(2):
        run_stage(stage.STAGE, tmp_path, make_config())
        files = sorted(p for p in (tmp_path / "artifacts/calibrate").rglob("*") if p.suffix != ".png" and p.is_file())
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
    assert len(written[0]) == 5


def test_the_stage_works_without_any_human_label(tmp_path, tracked, caplog):
    prepared(tmp_path, chains=6)
    run_stage(stage.STAGE, tmp_path, make_config())
    metrics = json.loads((tmp_path / "artifacts/calibrate/metrics.json").read_text())
    assert (metrics["method"], metrics["human_labels"], metrics["training_rows"]) == ("identity", 0, 6 * STEPS - 2)
    assert "ece_before" not in metrics
    assert "0 labels, fewer than the 50 needed" in caplog.text
    assert (tmp_path / "artifacts/calibrate/plots/reliability.png").exists()


def test_a_generated_copy_of_a_human_chain_neither_trains_nor_is_asked_about(tmp_path, tracked):
    prepared(tmp_path, chains=6)
    store.write_jsonl(tmp_path / "data/human/problems.jsonl", [dataclasses.replace(problem(2), id="kept")])
    chain = dataclasses.replace(trajectory(2), id="kept-chain", problem_id="kept")
    store.write_jsonl(tmp_path / "data/human/trajectories.jsonl", [chain])
    store.write_jsonl(tmp_path / "data/human/labels.jsonl", [human("kept-chain", 0, True)])
    run_stage(stage.STAGE, tmp_path, make_config(calibrate={"review_budget": 100}))
    out = tmp_path / "artifacts/calibrate"
    assert "gen-2" not in {row.trajectory_id for row in store.read_shards(StepLabel, out / "training_set")}
    assert {row["trajectory_id"] for row in read_lines(out / "review_queue.jsonl")} == {
        "gen-0", "gen-1", "gen-3", "gen-4", "gen-5"}
    assert json.loads((out / "metrics.json").read_text())["lost_human_chain"] == STEPS


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
