"""Human labels: what several reviewers say, the files of data/human, and the join with the strategies' evidence."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.calibrate import LabelMap, calibrated_labels, fit_map, join_human, tabulate
from prm_core.labeling.human.labels import all_trajectories, chain_digest, human_verdicts, read_human
from prm_core.platform import store
from prm_core.review.importing import durable_id
from prm_core.scoring.calibration import Calibrator
from prm_core.types import Step
from tests.builders.quality import STEPS, human, label, make_config, read_lines, trajectory
from tests.builders.review import bring_in, write_queue

NAN = np.nan


def picked(row, chance):
    """A human label on a step that was picked with a chance."""
    return dataclasses.replace(row, lineage=json.dumps({"chance": chance}))


# --- the join ---------------------------------------------------------------------------------------------------------


def test_the_table_has_a_column_for_the_merge_and_each_strategy():
    merged = [label("a", 0, True, 0.8), label("a", 1, None, 0.0, value=0.4), label("b", 0, None, 0.0)]
    labels = [label("a", 1, False, 0.9, strategy="rollout"), label("a", 0, True, 0.7, strategy="mcts"),
              # Without a verdict, and of a step that did not pass validation.
              label("b", 0, None, 0.0, strategy="mcts", value=0.2), label("c", 0, True, strategy="mcts")]
    table = tabulate(merged, labels)
    assert table.sources == ("merged", "mcts", "rollout")
    assert table.rows == {("a", 0): 0, ("a", 1): 1, ("b", 0): 2}
    expected = np.array([[0.8, 0.7, NAN], [0.4, NAN, 0.1], [NAN, NAN, NAN]])
    assert table.probabilities == pytest.approx(expected, nan_ok=True)


def test_a_table_of_nothing_is_empty():
    table = tabulate([], [])
    assert (table.sources, table.probabilities.shape) == (("merged",), (0, 1))
    joined = join_human(table, [human("a", 0, True)])
    assert (joined.probabilities.shape, joined.counts["human_unmatched"]) == ((0, 1), 1)
    assert calibrated_labels([], table, LabelMap(Calibrator("identity", labels=0))) == []


def test_join_is_by_key_not_by_position():
    # The guide zips a list of confidences with a differently filtered list of agreements. METHODS 1.
    merged = [label(f"t{i}", 0, True, i / 100) for i in range(40)]
    votes = [label(f"t{i}", 0, True, 1 - i / 100, strategy="rollout") for i in range(40)]
    labels = [human(f"t{i}", 0, i >= 20) for i in range(10, 40)]
    rng = random.Random(0)
    for _ in range(5):
        for rows in (merged, votes, labels):
            rng.shuffle(rows)
        joined = join_human(tabulate(merged, votes), labels)
        assert joined.probabilities[:, 0].tolist() == [i / 100 for i in range(10, 40)]
        assert joined.probabilities[:, 1].tolist() == [1 - i / 100 for i in range(10, 40)]
        assert joined.outcomes.tolist() == [i >= 20 for i in range(10, 40)]
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
    joined = join_human(tabulate(merged, []), labels)
    pairs = dict(zip(joined.trajectory_ids, zip(joined.probabilities[:, 0], joined.outcomes, strict=True), strict=True))
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


def test_steps_that_no_source_says_anything_of_count_as_unscored():
    merged = [label("a", 0, None, 0.0), label("b", 0, None, 0.0, value=0.3), label("c", 0, None, 0.0)]
    votes = [label("c", 0, True, 0.8, strategy="rollout")]
    joined = join_human(tabulate(merged, votes), [human(t, 0, True) for t in "abc"])
    assert joined.probabilities == pytest.approx(np.array([[0.3, NAN], [NAN, 0.8]]), nan_ok=True)
    assert (joined.counts["human_labels"], joined.counts["human_unscored"]) == (2, 1)
    rollout = joined.of(1)
    assert (rollout.sources, rollout.trajectory_ids, rollout.probabilities.tolist()) == (("rollout",), ["c"], [[0.8]])


def test_a_human_label_weighs_one_over_its_chance():
    table = tabulate([label(t, 0) for t in "abcd"], [])
    joined = join_human(table, [picked(human("a", 0, True), 0.25), picked(human("b", 0, True), 0.05),
                                picked(human("c", 0, True), 1), picked(human("c", 0, True, "bob"), 1)])
    assert joined.weights.tolist() == [4, 20, 1]
    assert joined.of(0).weights.tolist() == [4, 20, 1]


def test_a_human_label_without_a_chance_weighs_as_much_as_the_others_do_on_average():
    table = tabulate([label(t, 0) for t in "abcd"], [])
    assert join_human(table, [human(t, 0, True) for t in "ab"]).weights.tolist() == [1, 1]
    mixed = [human("a", 0, True), picked(human("b", 0, True), 0.1), picked(human("c", 0, True), 0.02),
             dataclasses.replace(human("d", 0, True), lineage='{"tool": "elsewhere"}')]
    assert join_human(table, mixed).weights.tolist() == [30, 10, 50, 30]


def test_a_few_picked_steps_do_not_drown_the_labels_there_were():
    # 200 labels of unknown chance say 0.7 throughout; then a reviewer answers four of the queue, all "wrong".
    merged = [label(f"t{i}", 0, True, 0.9) for i in range(204)]
    first = [human(f"t{i}", 0, i % 10 < 7) for i in range(200)]
    few = [picked(human(f"t{i}", 0, False), 0.02) for i in range(200, 204)]
    before, after = (fit_map(join_human(tabulate(merged, []), rows), make_config().calibrate).calibrator.apply([0.9])[0]
                     for rows in (first, first + few))
    assert before == pytest.approx(0.7, abs=0.01)
    assert before - 0.03 < after < before


@pytest.mark.parametrize("lineage", ["picked", "[1]", '{"chance": 0}', '{"chance": -0.5}', '{"chance": 1.5}',
                                     '{"chance": "often"}', '{"chance": NaN}'])
def test_a_chance_that_is_none_is_refused_and_named(lineage):
    rows = [dataclasses.replace(human("a", 1, True), lineage=lineage)]
    with pytest.raises(InputError, match=r"labels\.jsonl: the lineage of the label on step 1 of trajectory 'a' is "):
        join_human(tabulate([label("a", 1)], []), rows)


def test_answers_of_the_review_queue_come_with_their_weight(tmp_path):
    root = write_queue(tmp_path, budget=4)
    queue = read_lines(root / "artifacts/calibrate/review_queue.jsonl")
    file = tmp_path / "answers.jsonl"
    store.write_jsonl(file, [{**row, "is_correct": True} for row in queue])
    bring_in(root, file)
    data = read_human(root / "data/human")
    answers = [row for row in data.labels if row.strategy == "human:ann" and "@" in row.trajectory_id]
    joined = join_human(tabulate([label(row.trajectory_id, row.step_index) for row in answers], []), answers)
    stated = {(durable_id(row["trajectory_id"], row["chain"]), row["step_index"]): 1 / row["chance"] for row in queue}
    assert len(stated) == 4
    assert min(stated.values()) > 1
    assert joined.weights.tolist() == pytest.approx([stated[key] for key in sorted(stated)])


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
