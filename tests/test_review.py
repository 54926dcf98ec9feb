"""Review queue, `prm review export` and `prm review import`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prm_core import store
from prm_core.cli.review import app
from prm_core.errors import InputError
from prm_core.labeling.human import read_human
from prm_core.labeling.review import disagreement, review_queue, select_steps, uncertainty
from prm_core.types import Step, Trajectory
from tests.quality_builders import STEPS, label, problem, read_lines, trajectory
from tests.review_builders import IDENTITY, bring_in, counts, queue_of, write_queue

# --- the queue --------------------------------------------------------------------------------------------------------


def test_disagreement_and_uncertainty():
    assert [disagreement(v) for v in ([], [True], [True, False])] == [0, 0, 1]
    assert disagreement([True, True, False]) == pytest.approx(2 / 3)
    assert [uncertainty(p) for p in (0.0, 1.0, 0.5, None)] == [0, 0, 1, 1]
    assert uncertainty(0.25) == uncertainty(0.75) == 0.5


def test_the_queue_holds_what_a_reviewer_needs():
    votes = [label("gen-1", 1, True, strategy="rollout", reasoning="8 of 8"),
             label("gen-1", 1, False, strategy="mc_dropout", reasoning="spread 2.1"),
             label("gen-1", 0, True, strategy="rollout")]
    [row] = queue_of([label("gen-1", 1, True, 0.6)], votes)
    assert row["prompt"] == "What is 1 + 1?"
    assert (row["steps_before"], row["step"]) == (["step 0 of chain 1"], "step 1 of chain 1")
    assert (row["is_correct"], row["probability"], row["priority"]) == (None, 0.6, pytest.approx(1.8))
    assert [(s["strategy"], s["is_correct"], s["reasoning"]) for s in row["strategies"]] == [
        ("mc_dropout", False, "spread 2.1"), ("rollout", True, "8 of 8")]


def test_observations_are_shown_with_their_step():
    chain = dataclasses.replace(trajectory(1), steps=(Step("look up", "42"), Step("so 42")))
    [row] = review_queue([label("gen-1", 1)], [], [chain], {"p1": problem(1)}, IDENTITY, budget=1, seed=0)
    assert row["steps_before"] == ["look up\n[reply] 42"]


def test_disagreed_and_unsure_steps_come_first():
    merged = [label(f"gen-{n}", 0, True, 0.99) for n in range(6)]
    merged[3] = label("gen-3", 0, True, 0.55)
    votes = [label("gen-4", 0, ok, strategy=name) for name, ok in (("rollout", True), ("mcts", False))]
    queue = queue_of(merged, votes, budget=3)
    assert [row["trajectory_id"] for row in queue[:2]] == ["gen-4", "gen-3"]


def test_steps_after_a_wrong_verdict_and_of_unknown_chains_are_not_asked():
    merged = [label("gen-1", 0), label("gen-1", 1, False), label("gen-1", 2), label("human-7", 0)]
    assert {(row["trajectory_id"], row["step_index"]) for row in queue_of(merged)} == {("gen-1", 0), ("gen-1", 1)}


def test_positions_get_their_share_and_a_tenth_is_random():
    # Only first steps look doubtful; still every position is asked about in proportion.
    priorities = {(f"t{n}", index): 1.0 if index == 0 else 0.1 for n in range(100) for index in range(4)}
    picked = select_steps(priorities, 40, seed=0)
    reasons = Counter(reason for _, reason in picked)
    assert reasons == {"priority": 36, "random": 4}
    assert Counter(key[1] for key, reason in picked if reason == "priority") == {0: 9, 1: 9, 2: 9, 3: 9}


@settings(max_examples=60)
@given(
    st.dictionaries(st.tuples(st.sampled_from("abcdef"), st.integers(0, 4)), st.floats(0, 2), max_size=25),
    st.integers(0, 30), st.integers(0, 5),
)
def test_selection_fills_the_budget_with_distinct_steps_and_is_seeded(priorities, budget, seed):
    picked = select_steps(priorities, budget, seed)
    chosen = [key for key, _ in picked]
    assert len(chosen) == len(set(chosen)) == min(budget, len(priorities))
    assert set(chosen) <= set(priorities)
    values = [priorities[key] for key in chosen]
    assert values == sorted(values, reverse=True)
    assert picked == select_steps(dict(reversed(priorities.items())), budget, seed)


def test_another_seed_breaks_ties_differently():
    priorities = {(f"t{n}", 0): 1.0 for n in range(50)}
    assert select_steps(priorities, 10, 0) != select_steps(priorities, 10, 1)


# --- export and import ------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path):
    return write_queue(tmp_path)


def answered(root, verdicts, name="answers.jsonl", **changes):
    """The queue's first rows with answers, as a JSONL file."""
    queue = read_lines(root / "artifacts/calibrate/review_queue.jsonl")
    rows = [{**row, "is_correct": v, **changes} for row, v in zip(queue, verdicts, strict=False)]
    store.write_jsonl(root / name, rows)
    return root / name


def test_answers_become_human_labels_with_their_chains_and_problems(workspace):
    before = read_human(workspace / "data/human")
    queue = read_lines(workspace / "artifacts/calibrate/review_queue.jsonl")
    report = bring_in(workspace, answered(workspace, [True, False, None], note="looked twice"))
    assert counts(report) == (2, 0, 0, 1)
    data = read_human(workspace / "data/human")
    new = data.labels[len(before.labels):]
    assert [(r.strategy, r.is_correct, r.value, r.confidence, r.step_index, r.reasoning) for r in new] == [
        ("human:ann", True, 1.0, 1.0, queue[0]["step_index"], "looked twice"),
        ("human:ann", False, 0.0, 1.0, queue[1]["step_index"], "looked twice")]
    assert data.labels[:len(before.labels)] == before.labels
    chains, problems = {t.id: t for t in data.trajectories}, {p.id: p for p in data.problems}
    for row, queued in zip(new, queue, strict=False):
        chain = chains[row.trajectory_id]
        assert chain.steps[row.step_index].text == queued["step"]
        assert problems[chain.problem_id].prompt == queued["prompt"]


def test_importing_twice_changes_nothing(workspace):
    file = answered(workspace, [True, False])
    bring_in(workspace, file)
    before = {p.name: p.read_bytes() for p in (workspace / "data/human").iterdir()}
    assert counts(bring_in(workspace, file)) == (0, 0, 2, 0)
    assert {p.name: p.read_bytes() for p in (workspace / "data/human").iterdir()} == before


def test_a_changed_answer_replaces_and_a_second_reviewer_adds(workspace):
    bring_in(workspace, answered(workspace, [True, False]))
    size = len(read_human(workspace / "data/human").labels)
    assert counts(bring_in(workspace, answered(workspace, [False, False]))) == (0, 1, 1, 0)
    assert len(read_human(workspace / "data/human").labels) == size
    report = bring_in(workspace, answered(workspace, [True, False]), reviewer="bob")
    assert (counts(report), report.new_chains) == ((2, 0, 0, 0), 0)
    assert len(read_human(workspace / "data/human").labels) == size + 2


def generate_anew(root):
    """Another run: the same ids, other steps."""
    chains = [dataclasses.replace(trajectory(n), steps=(Step("other"),) * STEPS) for n in range(6)]
    store.write_shard(root / "artifacts/generate/trajectories", 0, Trajectory, chains)
    return chains


def test_reviewed_chains_survive_a_new_generation(workspace):
    file = answered(workspace, [True, False])
    bring_in(workspace, file)
    data = read_human(workspace / "data/human")
    chains = generate_anew(workspace)
    assert not {t.id for t in data.trajectories} & {t.id for t in chains}
    assert not {p.id for p in data.problems} & {f"p{n}" for n in range(6)}
    # The same answers still refer to the kept chains.
    assert counts(bring_in(workspace, file)) == (0, 0, 2, 0)


def test_answers_about_chains_generated_anew_are_refused(workspace):
    file = answered(workspace, [True])
    generate_anew(workspace)
    with pytest.raises(InputError, match=r"answers\.jsonl:1: no trajectory 'gen-\d' with these steps is known"):
        bring_in(workspace, file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_correct": "maybe"}, r"answers\.jsonl:1: is_correct is 'maybe'; write true or false"),
        ({"is_correct": 0.7}, r"answers\.jsonl:1: is_correct is 0\.7"),
        ({"step_index": 17}, r"answers\.jsonl:1: trajectory 'gen-\d' has 3 steps, there is no step 17"),
        ({"step_index": -1}, "there is no step -1"),
        ({"step_index": "one"}, r"answers\.jsonl:1: step_index is 'one', expected a number"),
        ({"trajectory_id": "gen-99"}, r"answers\.jsonl:1: no trajectory 'gen-99'"),
        ({"trajectory_id": None}, "trajectory_id and chain must be texts"),
    ],
)
def test_malformed_answers_are_refused_and_nothing_is_written(workspace, changes, message):
    before = {p.name: p.read_bytes() for p in (workspace / "data/human").iterdir()}
    with pytest.raises(InputError, match=message):
        bring_in(workspace, answered(workspace, [True, True], **changes))
    assert {p.name: p.read_bytes() for p in (workspace / "data/human").iterdir()} == before


def test_a_fault_in_a_later_row_leaves_nothing_half_done(workspace):
    file = answered(workspace, [True, True])
    file.write_text(file.read_text() + '{"trajectory_id": "gen-1", "step_index": 0}\n')
    before = (workspace / "data/human/labels.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"answers\.jsonl:3: missing field chain, is_correct"):
        bring_in(workspace, file)
    assert (workspace / "data/human/labels.jsonl").read_bytes() == before


def test_contradicting_answers_in_one_file_are_refused(workspace):
    file = answered(workspace, [True])
    row = json.loads(file.read_text())
    store.write_jsonl(file, [row, {**row, "is_correct": False}])
    with pytest.raises(InputError, match=r"answers\.jsonl:2: contradicts the answer to the same step at .*:1"):
        bring_in(workspace, file)


@pytest.mark.parametrize("reviewer", ["", "  ", "a:b"])
def test_a_reviewer_has_a_plain_name(workspace, reviewer):
    with pytest.raises(InputError, match="give a name without a colon"):
        bring_in(workspace, answered(workspace, [True]), reviewer=reviewer)


def test_commands_export_and_import(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    runner = CliRunner()
    for name, arguments in (("review.jsonl", []), ("mine.csv", ["--out", "mine.csv"])):
        result = runner.invoke(app, ["export", *arguments])
        assert result.exit_code == 0
        assert f"8 steps in {name}" in result.output
    rows = read_lines(workspace / "review.jsonl")
    store.write_jsonl(workspace / "review.jsonl", [{**rows[0], "is_correct": True}, *rows[1:]])
    result = runner.invoke(app, ["import", "review.jsonl", "--reviewer", "ann"])
    assert "1 answers added, 0 replaced, 0 already there, 7 left empty; 1 chains new" in result.output
    assert "dvc add data" in result.output
    again = runner.invoke(app, ["import", "review.jsonl", "--reviewer", "ann"])
    assert "0 answers added, 0 replaced, 1 already there" in again.output
    assert "dvc add data" not in again.output


def test_export_before_the_chain_has_run_says_so(tmp_path):
    result = CliRunner().invoke(app, ["export", "--workspace", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "no review queue there; run the chain (`prm run`) first" in str(result.exception)
