"""Answers in files: CSV and JSONL as exported, Label Studio's tasks and exports, and reviewers' agreement."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prm_core.cli.review import app
from prm_core.errors import InputError
from prm_core.labeling.human.agreement import PairAgreement, agreement, describe
from prm_core.labeling.human.labels import read_human
from prm_core.platform import store
from prm_core.review import label_studio
from prm_core.review.files import queue_as_csv, read_answers
from tests.builders.quality import human, read_lines
from tests.builders.review import bring_in, counts, queue_of, write_queue


@pytest.fixture
def workspace(tmp_path):
    return write_queue(tmp_path)


def queue_in(root):
    return read_lines(root / "artifacts/calibrate/review_queue.jsonl")


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_answers_are_the_same_answers(workspace):
    queue = queue_in(workspace)
    rows = list(csv.DictReader(io.StringIO(queue_as_csv(queue))))
    assert [row["is_correct"] for row in rows] == [""] * len(queue)
    for row, verdict in zip(rows, ["TRUE", "no", "1", " "], strict=False):
        row["is_correct"] = verdict
    file = workspace / "answers.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as out:
        writer = csv.DictWriter(out, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert counts(bring_in(workspace, file)) == (3, 0, 0, len(queue) - 3)
    assert [r.is_correct for r in read_human(workspace / "data/human").labels[-3:]] == [True, False, True]


def test_a_csv_row_at_fault_is_named_by_the_line_it_starts_on(workspace):
    file = workspace / "answers.csv"
    file.write_text('trajectory_id,step_index,chain,is_correct,note\ngen-1,0,x,,"two\nlines"\ngen-1,0,x,true,\n')
    with pytest.raises(InputError, match=r"answers\.csv:2: no trajectory 'gen-1'"):
        bring_in(workspace, file)
    file.write_text(file.read_text().replace("gen-1,0,x", "gen-1,,x"))
    with pytest.raises(InputError, match=r"answers\.csv:2: step_index is None"):
        bring_in(workspace, file)
    first = queue_in(workspace)[0]
    good = f"{first['trajectory_id']},{first['step_index']},{first['chain']}"
    file.write_text(f'trajectory_id,step_index,chain,is_correct,note\n{good},,"two\nlines"\n{good[:-1]},true,\n')
    with pytest.raises(InputError, match=r"answers\.csv:4: no trajectory"):
        bring_in(workspace, file)


def saved(rows, *, encoding="utf-8", before="", **how):
    """A table as a tool writes it, as bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **how)
    writer.writeheader()
    writer.writerows(rows)
    return (before + text.getvalue()).encode(encoding)


def german(rows):
    """Decimal commas, and the words a German spreadsheet writes."""
    words = {"true": "WAHR", "false": "FALSCH", "": ""}
    return [{**row, "is_correct": words[row["is_correct"]], "step_index": f"{row['step_index']},0",
             "chance": row["chance"].replace(".", ",")} for row in rows]


def columns(rows):
    return {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}


SAVED = {
    "semicolons.csv": lambda rows, _: saved(german(rows), delimiter=";", encoding="utf-8-sig"),
    "tabs.csv": lambda rows, _: saved(rows, delimiter="\t"),
    "tabs.tsv": lambda rows, _: saved(rows, delimiter="\t"),
    "utf16.csv": lambda rows, _: saved(rows, delimiter="\t", encoding="utf-16"),
    "unicode.txt": lambda rows, _: saved(rows, delimiter="\t", encoding="utf-16"),
    "pipes.csv": lambda rows, _: saved(rows, delimiter="|"),
    "lines.txt": lambda _, rows: "\n".join(map(json.dumps, rows)).encode(),
    "ansi.csv": lambda rows, _: saved([{**row, "note": "café"} for row in rows], encoding="cp1252"),
    "named.csv": lambda rows, _: saved(rows, delimiter=";", before="sep=;\r\n"),
    "quoted.csv": lambda rows, _: saved(rows, quoting=csv.QUOTE_ALL, lineterminator="\n"),
    "floats.csv": lambda rows, _: saved([{**row, "step_index": f"{row['step_index']}.0",
                                         "is_correct": {"true": "1.0", "false": "0.0", "": "nan"}[row["is_correct"]]}
                                        for row in rows]),
    "short.csv": lambda rows, _: saved([{name: row[name] for name in (
        "trajectory_id", "step_index", "chain", "is_correct", "note")} for row in rows]).replace(b",\r\n", b"\r\n"),
    "index.csv": lambda rows, _: saved([*({"": n, **row} for n, row in enumerate(rows)),
                                        dict.fromkeys(["", *rows[0]])]),
    "titles.csv": lambda rows, _: saved([{f" {name.title()} ": value for name, value in row.items()} for row in rows]),
    "cells.csv": lambda rows, _: saved([{**row, "is_correct": row["is_correct"] and json.dumps(
        {"choices": [row["is_correct"]]})} for row in rows]),
    "nan.jsonl": lambda _, rows: "\n".join(json.dumps(row | {
        "is_correct": float("nan") if row["is_correct"] is None else float(row["is_correct"]),
        "step_index": float(row["step_index"]), "note": float("nan")}) for row in rows).encode(),
    "texts.jsonl": lambda _, rows: "\n".join(json.dumps(row | {
        "is_correct": {True: "1", False: "0", None: "None"}[row["is_correct"]], "step_index": str(row["step_index"]),
        "chance": str(row["chance"])}) for row in rows).encode(),
    "array.json": lambda _, rows: json.dumps(rows).encode(),
    "columns.json": lambda _, rows: json.dumps(columns(rows)).encode(),
    "flat.json": lambda _, rows: json.dumps([row | {
        "annotator": 1, "is_correct": {True: "right", False: "wrong", None: None}[row["is_correct"]]}
        for row in rows]).encode(),
}


@pytest.mark.parametrize("name", SAVED)
def test_the_file_as_peoples_tools_save_it_has_the_same_answers(workspace, name):
    verdicts = [True, False, True, False, None, None]
    queue = queue_in(workspace)[:6]
    rows = list(csv.DictReader(io.StringIO(queue_as_csv(queue))))
    cells = [{**row, "is_correct": "" if v is None else str(v).lower()} for row, v in zip(rows, verdicts, strict=True)]
    file = workspace / name
    file.write_bytes(SAVED[name](cells, [row | {"is_correct": v} for row, v in zip(queue, verdicts, strict=True)]))
    found = list(read_answers(file, "ann"))
    assert [(a.trajectory_id, a.step_index, a.chain, a.verdict) for a in found] == [
        (row["trajectory_id"], row["step_index"], row["chain"], v) for row, v in zip(queue, verdicts, strict=True)]
    assert {a.note for a in found} == {"café" if name == "ansi.csv" else ""}
    if name != "short.csv":
        assert [a.chance for a in found] == [row["chance"] for row in queue]
    if file.suffix == ".json":
        assert not label_studio.is_export(file)


def test_numbers_made_of_identifiers_are_texts_again(workspace):
    row = {"trajectory_id": 12.0, "step_index": 0, "chain": 1234567890, "is_correct": True}
    store.write_jsonl(workspace / "a.jsonl", [row])
    [answer] = read_answers(workspace / "a.jsonl", "ann")
    assert (answer.trajectory_id, answer.chain) == ("12", "001234567890")


@pytest.mark.parametrize(("change", "message"), [
    ({"step_index": 1.5}, "step_index is 1.5, expected a number"), ({"step_index": True}, "step_index is True"),
    ({"is_correct": 2}, "is_correct is 2; write true or false"), ({"is_correct": ["right", "wrong"]}, "is_correct is"),
    ({"chance": "often"}, "chance is 'often'"), ({"chain": ["x"]}, "trajectory_id and chain must")])
def test_what_no_tool_makes_of_an_answer_is_refused(workspace, change, message):
    row = {"trajectory_id": "t", "step_index": 0, "chain": "x", "is_correct": True}
    store.write_jsonl(workspace / "a.jsonl", [row | change])
    with pytest.raises(InputError, match=rf"a\.jsonl:1: {message}"):
        list(read_answers(workspace / "a.jsonl", "ann"))


def test_a_flat_export_by_several_annotators_does_not_say_whose_answers_they_are(workspace):
    rows = [row | {"is_correct": "right", "annotator": n} for n, row in enumerate(queue_in(workspace)[:2])]
    store.write_json(workspace / "a.json", rows)
    with pytest.raises(InputError, match=r"record 1: answers by several annotators \(0, 1\); choose Export, JSON"):
        list(read_answers(workspace / "a.json", "ann"))


TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)


@settings(max_examples=200)
@given(st.one_of(TEXTS, st.builds(str.__add__, st.sampled_from([*"=+-@\t\r'", "''=", "'12", "1e5", "007"]), TEXTS)))
def test_no_cell_of_the_export_is_a_formula_and_each_comes_back(text):
    row = queue_of(budget=1)[0] | {"step": text, "prompt": text, "note": text, "steps_before": [text, "b"],
                                   "trajectory_id": text or "t", "chain": text or "c", "is_correct": True}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        file.write_text(queue_as_csv([row]), encoding="utf-8", newline="")
        [cells] = csv.DictReader(io.StringIO(queue_as_csv([row]), newline=""))
        assert not any(cell[:1] in tuple("=+-@\t\r") for cell in cells.values() if cell)
        assert not re.fullmatch(r"\d+([.,]\d+)?([eE][+-]?\d+)?", cells["chain"], re.ASCII)
        # A cell of blanks alone is an empty one.
        if text.strip():
            [answer] = read_answers(file, "ann")
            chain = text.zfill(12) if text.isdigit() else text
            assert (answer.trajectory_id, answer.chain) == (text, chain)
            assert answer.note == ("" if text.strip().lower() in ("nan", "na", "n/a", "<na>", "none", "null") else text)


def test_an_empty_queue_exports_as_an_empty_table():
    assert queue_as_csv([]) == "trajectory_id,step_index,chain,is_correct\r\n"


# --- Label Studio -----------------------------------------------------------------------------------------------------


def annotation(choice, by=1, note=None, cancelled=False):
    """As Label Studio 1.23 exports it."""
    result = [] if choice is None else [
        {"from_name": "is_correct", "to_name": "step", "type": "choices", "value": {"choices": [choice]}}]
    if note:
        result.append({"from_name": "note", "to_name": "step", "type": "textarea", "value": {"text": [note]}})
    return {"id": 1, "completed_by": by, "result": result, "was_cancelled": cancelled, "ground_truth": False}


def export(root, *annotations):
    """The workspace's queue annotated: one list of annotations per task, as a JSON export."""
    tasks = label_studio.tasks(queue_in(root))
    rows = [{"id": n, "data": task["data"], "annotations": given, "predictions": []}
            for n, (task, given) in enumerate(zip(tasks, annotations, strict=False), 1)]
    store.write_json(root / "export.json", rows)
    return root / "export.json"


def test_the_interface_asks_for_what_the_tasks_hold():
    [task] = label_studio.tasks(queue_of(budget=1))
    interface = ElementTree.fromstring(label_studio.LABELING_CONFIG)
    texts = {element.get("value")[1:]: element.get("name") for element in interface.iter("Text")}
    assert set(texts) <= set(task["data"])
    assert all(isinstance(task["data"][name], str) and task["data"][name] for name in texts)
    [choices] = interface.iter("Choices")
    assert (choices.get("name"), choices.get("toName")) == ("is_correct", "step")
    assert [choice.get("value") for choice in choices] == ["right", "wrong"]


def test_label_studio_round_trip(workspace, caplog):
    caplog.set_level(logging.INFO)
    file = export(workspace, [annotation("right", note="fine"), annotation("wrong", by=2)], [annotation("wrong")],
                  [annotation("right", cancelled=True)], [], [annotation(None)])
    before = len(read_human(workspace / "data/human").labels)
    runner = CliRunner()
    done = runner.invoke(app, ["import", str(file), "--workspace", str(workspace), "--reviewer", "2=bob"])
    assert "3 answers added, 0 replaced, 0 already there, 1 left empty" in done.output
    queue = queue_in(workspace)
    steps = [(f"{row['trajectory_id']}@{row['chain']}", row["step_index"]) for row in queue[:2]]
    new = read_human(workspace / "data/human").labels[before:]
    assert [(r.trajectory_id, r.step_index, r.strategy, r.is_correct, r.reasoning) for r in new] == [
        (*steps[0], "human:label-studio-1", True, "fine"), (*steps[0], "human:bob", False, ""),
        (*steps[1], "human:label-studio-1", False, "")]
    assert {"1 cancelled", "1 without annotation", "1 without a choice"} == {
        record.getMessage().partition(": ")[2] for record in caplog.records}


def test_label_studio_and_jsonl_answers_are_the_same(workspace):
    file = export(workspace, [annotation("right", note="fine")], [annotation("wrong")])
    label_studio_answers = list(label_studio.read_export(file, {}, "ann"))
    rows = [{**row, "is_correct": ok, "note": note}
            for row, ok, note in zip(queue_in(workspace), (True, False), ("fine", ""), strict=False)]
    store.write_jsonl(workspace / "answers.jsonl", rows)
    fields = ("trajectory_id", "step_index", "chain", "verdict", "note", "reviewer")
    assert [[getattr(a, f) for f in fields] for a in label_studio_answers] == [
        [getattr(a, f) for f in fields] for a in read_answers(workspace / "answers.jsonl", "ann")]


def test_annotators_by_mail_address(workspace):
    people = [{"id": 4, "email": "ann@example.org"}, {"id": 5, "email": "bob@example.org"}]
    file = export(workspace, [annotation("right", by=by) for by in people])
    assert [a.reviewer for a in label_studio.read_export(file, {"bob@example.org": "bob"})] == [
        "ann@example.org", "bob"]


@pytest.mark.parametrize(
    ("names", "only", "message"),
    [
        ({"7": "ann"}, None, "no annotation by label-studio-7; there are some by label-studio-1, label-studio-2"),
        ({}, "ann", "annotations by label-studio-1, label-studio-2; name each"),
        ({"1": "a:b"}, None, "give a name without a colon"),
    ],
)
def test_annotators_who_are_not_there_or_too_many(workspace, names, only, message):
    file = export(workspace, [annotation("right"), annotation("right", by=2)])
    with pytest.raises(InputError, match=message):
        list(label_studio.read_export(file, names, only))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task: task.pop("annotations"), "not a Label Studio export in the format JSON"),
        (lambda task: task["data"].pop("chain"), r"export\.json: task 1 by label-studio-1: missing field chain"),
        (lambda task: task["annotations"][0]["result"][0]["value"].update(choices=["right", "wrong"]),
         "there must be one, right or wrong"),
        (lambda task: task["annotations"][0]["result"][0]["value"].update(choices=["perhaps"]),
         "is_correct is 'perhaps'"),
    ],
)
def test_exports_that_are_none_of_ours(workspace, change, message):
    file = export(workspace, [annotation("right")])
    raw = json.loads(file.read_text())
    change(raw[0])
    store.write_json(file, raw)
    with pytest.raises(InputError, match=message):
        list(label_studio.read_export(file, {}))


@pytest.mark.parametrize(("first", "second", "right"), [
    ({}, {}, False),
    ({"updated_at": "2026-03-02T09:00:00Z"}, {"updated_at": "2026-03-01T09:00:00Z"}, True),
    ({"created_at": "2026-03-01T09:00:00Z"}, {"created_at": "2026-03-01T10:00:00Z"}, False)])
def test_of_two_annotations_by_one_person_the_later_counts(workspace, first, second, right):
    file = export(workspace, [annotation("right") | first, annotation("wrong") | second, annotation("right", by=2)])
    done = CliRunner().invoke(app, ["import", str(file), "--workspace", str(workspace)])
    assert "2 answers added" in done.output
    assert "1 answers were given anew further on; the later ones count." in done.output
    assert {r.strategy: r.is_correct for r in read_human(workspace / "data/human").labels[-2:]} == {
        "human:label-studio-1": right, "human:label-studio-2": True}


def test_results_may_be_json_text(workspace):
    given = annotation("wrong", note="no", by={"id": 4, "email": "ann@example.org"})
    [result, _] = given["result"]
    result["value"] = json.dumps({"choices": "wrong"})
    for text in (given["result"], json.dumps(given["result"])):
        file = export(workspace, [given | {"result": text, "completed_by": json.dumps(given["completed_by"])}])
        [answer] = label_studio.read_export(file, {})
        assert (answer.verdict, answer.note, answer.reviewer) == (False, "no", "ann@example.org")
    raw = json.loads(file.read_text())
    store.write_json(file, [{**task, **{name: json.dumps(task[name]) for name in ("annotations", "data")}}
                            for task in raw])
    assert [a.verdict for a in label_studio.read_export(file, {})] == [False]


@pytest.mark.parametrize(("file", "reviewers"), [("a.jsonl", []), ("a.csv", ["1=ann"]), ("a.jsonl", ["ann", "bob"]),
                                                 ("a.json", ["ann", "1=bob"])])
def test_it_must_be_clear_whose_answers_they_are(workspace, file, reviewers):
    names = [part for name in reviewers for part in ("--reviewer", name)]
    result = CliRunner().invoke(app, ["import", file, "--workspace", str(workspace), *names])
    assert isinstance(result.exception, InputError)
    assert "--reviewer" in str(result.exception)


# --- agreement --------------------------------------------------------------------------------------------------------


def test_kappa_by_hand():
    # 10 steps: both right 4, both wrong 3, ann right and bob wrong 2, the other way round 1.
    # observed (4 + 3) / 10 = 0.7; by chance 0.6 · 0.5 + 0.4 · 0.5 = 0.5; kappa = (0.7 - 0.5) / (1 - 0.5) = 0.4
    ann = [True] * 4 + [False] * 3 + [True] * 2 + [False]
    bob = [True] * 4 + [False] * 3 + [False] * 2 + [True]
    labels = [human("t", n, ok, who) for who, given in (("bob", bob), ("ann", ann)) for n, ok in enumerate(given)]
    labels.append(human("t", 99, True, "ann"))
    [pair] = agreement(labels)
    assert (pair.first, pair.second, pair.steps, pair.agreed) == ("ann", "bob", 10, 0.7)
    assert pair.kappa == pytest.approx(0.4)
    assert pair.disagreed == ((("t", 7), True), (("t", 8), True), (("t", 9), False))
    assert describe(pair) == "ann and bob: 10 steps judged by both, 70% alike, Cohen's kappa 0.40"


def test_agreement_without_what_it_takes():
    assert agreement([human("t", 0, True, "ann")]) == []
    [pair] = agreement([human("t", 0, True, "ann"), human("t", 1, True, "bob")])
    assert pair == PairAgreement("ann", "bob", 0, None, None, ())
    [pair] = agreement([human("t", 0, True, "ann"), human("t", 0, True, "bob")])
    assert (pair.agreed, pair.kappa) == (1.0, None)
    assert "undefined" in describe(pair)


def test_every_pair_of_three():
    labels = [human("t", 0, who != "cem", who) for who in ("cem", "bob", "ann")]
    assert [(p.first, p.second, p.agreed) for p in agreement(labels)] == [
        ("ann", "bob", 1.0), ("ann", "cem", 0.0), ("bob", "cem", 0.0)]


def test_the_command_lists_the_steps_in_dispute(workspace):
    def say(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--workspace", str(workspace)])
        assert result.exit_code == 0, result.exception
        return result.output

    # The seed labels are by ann.
    assert "Agreement takes two reviewers" in say("agreement")
    rows = queue_in(workspace)
    for reviewer, verdicts in (("bob", (True, True)), ("cem", (True, False))):
        file = workspace / "answers.jsonl"
        store.write_jsonl(file, [{**row, "is_correct": ok} for row, ok in zip(rows, verdicts, strict=False)])
        bring_in(workspace, file, reviewer)
    shown = say("agreement")
    assert "bob and cem: 2 steps judged by both, 50% alike, Cohen's kappa 0.00" in shown
    assert "ann and bob: no step judged by both" in shown
    assert "right says bob, wrong says cem" in shown
    assert f"→ {rows[1]['step']}" in shown
