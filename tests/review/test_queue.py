"""Review queue, `prm review export` and `prm review import`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from prm_core.cli.review import app
from prm_core.errors import InputError
from prm_core.labeling.human.active import chances
from prm_core.labeling.human.labels import read_human
from prm_core.platform import store
from prm_core.review.queue import review_queue
from prm_core.types import Step, Trajectory
from tests.builders.quality import STEPS, label, problem, read_lines, trajectory
from tests.builders.review import bring_in, counts, queue_of, write_queue

# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_holds_what_a_reviewer_needs():
    votes = [label("gen-1", 1, True, strategy="rollout", reasoning="8 of 8"),
             label("gen-1", 1, False, strategy="mc_dropout", reasoning="spread 2.1"),
             label("gen-1", 0, True, strategy="rollout")]
    [row] = queue_of([label("gen-1", 1, True, 0.9, value=0.9)], votes)
    assert row["prompt"] == "What is 1 + 1?"
    assert (row["steps_before"], row["step"]) == (["step 0 of chain 1"], "step 1 of chain 1")
    assert (row["is_correct"], row["probability"], row["priority"]) == (None, 0.9, pytest.approx((0.8 + 0.6) ** 2))
    assert row["chance"] == 1
    assert [(s["strategy"], s["is_correct"], s["reasoning"]) for s in row["strategies"]] == [
        ("mc_dropout", False, "spread 2.1"), ("rollout", True, "8 of 8")]


def test_observations_are_shown_with_their_step():
    chain = dataclasses.replace(trajectory(1), steps=(Step("look up", "42"), Step("so 42")))
    [row] = review_queue([label("gen-1", 1)], [], [chain], {"p1": problem(1)}, budget=1, seed=0)
    assert row["steps_before"] == ["look up\n[reply] 42"]


def test_disagreed_and_unsure_steps_come_first():
    merged = [label(f"gen-{n}", 0, True, 0.99, value=0.99) for n in range(6)]
    merged[3] = label("gen-3", 0, True, 0.55, value=0.55)
    votes = [label("gen-4", 0, ok, strategy=name) for name, ok in (("rollout", True), ("mcts", False))]
    rows = {row["trajectory_id"]: row for row in queue_of(merged, votes)}
    assert sorted(rows, key=lambda name: -rows[name]["priority"])[:2] == ["gen-4", "gen-3"]
    queues = [queue_of(merged, votes, budget=2, seed=seed) for seed in range(200)]
    picked = Counter(row["trajectory_id"] for queue in queues for row in queue)
    assert {name for name, _ in picked.most_common(2)} == {"gen-3", "gen-4"}
    # … but any step may come.
    assert len(picked) == 6


def test_the_order_of_the_queue_tells_nothing_of_the_priority():
    votes = [label("gen-4", 0, ok, strategy=name) for name, ok in (("rollout", True), ("mcts", False))]
    queues = [queue_of([label(f"gen-{n}", 0, value=0.9) for n in range(6)], votes, seed=seed) for seed in range(300)]
    first = Counter(queue[0]["trajectory_id"] for queue in queues)
    # 50 each are expected.
    assert len(first) == 6
    assert max(first.values()) < 85
    assert queues[0] == queue_of([label(f"gen-{n}", 0, value=0.9) for n in range(6)], votes, seed=0)


def test_steps_after_a_wrong_verdict_and_of_unknown_chains_are_not_asked():
    merged = [label("gen-1", 0), label("gen-1", 1, False), label("gen-1", 2), label("human-7", 0)]
    assert {(row["trajectory_id"], row["step_index"]) for row in queue_of(merged)} == {("gen-1", 0), ("gen-1", 1)}


def test_rows_carry_the_chance_their_step_was_picked_with():
    merged = [label(f"gen-{n}", i, True, 0.9, value=0.5 + n / 12) for n in range(6) for i in range(STEPS)]
    priorities = {(row["trajectory_id"], row["step_index"]): row["priority"] for row in queue_of(merged)}
    keys = sorted(priorities)
    stated = dict(zip(keys, chances([priorities[key] for key in keys], 5), strict=True))
    for seed in range(20):
        queue = queue_of(merged, budget=5, seed=seed)
        assert len(queue) == 5
        for row in queue:
            # Priorities in the queue are rounded.
            assert row["chance"] == pytest.approx(stated[row["trajectory_id"], row["step_index"]], rel=1e-3)


def test_abstentions_do_not_disagree_and_how_sure_a_verdict_is_counts():
    merged = [label("gen-1", 0, True, 0.9, value=1.0)]
    quiet = [label("gen-1", 0, True, 0.9, strategy="rollout"),
             label("gen-1", 0, None, 0.0, strategy="mcts", value=0.1),
             label("gen-1", 0, None, 0.0, strategy="verifier")]
    assert [row["priority"] for row in queue_of(merged, quiet)] == [0]
    # Two strategies of one verdict differ by how sure they are: P(right) 0.1 against 0.4.
    apart = [label("gen-1", 0, False, 0.9, strategy="rollout"), label("gen-1", 0, False, 0.6, strategy="mcts")]
    assert [row["priority"] for row in queue_of(merged, apart)] == pytest.approx([0.09])


def test_a_step_nothing_is_known_of_is_asked_first():
    merged = [label("gen-1", 0, True, 0.9, value=0.9), label("gen-2", 0, None, 0.0)]
    rows = {row["trajectory_id"]: row for row in queue_of(merged)}
    assert (rows["gen-2"]["priority"], rows["gen-2"]["probability"]) == (1, None)
    assert rows["gen-1"]["priority"] < 1


def test_no_budget_or_nothing_to_ask_is_an_empty_queue():
    assert queue_of(budget=0) == []
    assert queue_of([label("human-7", 0)]) == []


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


def test_the_chance_a_step_was_picked_with_stays_with_the_answer(workspace):
    bring_in(workspace, answered(workspace, [True], chance=0.125))
    bring_in(workspace, answered(workspace, [True], chance=None), "cem")
    assert [r.lineage for r in read_human(workspace / "data/human").labels[-2:]] == ['{"chance": 0.125}', ""]


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
        ({"chance": 0}, r"answers\.jsonl:1: chance is 0, expected a number above 0"),
        ({"chance": "often"}, "chance is 'often'"),
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


def test_of_several_answers_to_a_step_in_one_file_the_later_counts(workspace):
    file = answered(workspace, [True])
    row = json.loads(file.read_text())
    store.write_jsonl(file, [row, {**row, "is_correct": None}, {**row, "is_correct": False, "note": "no"}])
    report = bring_in(workspace, file)
    assert (counts(report), report.superseded) == ((1, 0, 0, 1), 1)
    assert (read_human(workspace / "data/human").labels[-1].is_correct) is False
    again = bring_in(workspace, file)
    assert (counts(again), again.superseded) == ((0, 0, 1, 1), 1)


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
    # Answers are never overwritten without a word, nor is anything else; an export that nobody has touched is.
    (workspace / "notes.jsonl").write_text("mine\n")
    for name in ("review.jsonl", "notes.jsonl"):
        before = (workspace / name).read_bytes()
        refused = runner.invoke(app, ["export", "--out", name])
        assert f"{name}: holds answers, or is no file of this command" in str(refused.exception)
        assert (workspace / name).read_bytes() == before
    for name in ("mine.csv", "tasks.json", "tasks.json"):
        assert runner.invoke(app, ["export", "--out", name]).exit_code == 0
    again = runner.invoke(app, ["import", "review.jsonl", "--reviewer", "ann"])
    assert "0 answers added, 0 replaced, 1 already there" in again.output
    assert "dvc add data" not in again.output
    assert runner.invoke(app, ["export", "--out", "review.jsonl", "--force"]).exit_code == 0
    assert read_lines(workspace / "review.jsonl") == rows


def test_export_before_the_chain_has_run_says_so(tmp_path):
    result = CliRunner().invoke(app, ["export", "--workspace", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert "no review queue there; run the chain (`prm run`) first" in str(result.exception)
