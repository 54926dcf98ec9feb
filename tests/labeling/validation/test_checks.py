"""Stages validate and validate_gate: expectations, quarantine, data docs and the gate's message."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prm_core import config as configuration
from prm_core.errors import GateError, InputError
from prm_core.labeling.validation.expectations import EXPECTATIONS, dataset_figures, lineage_fault
from prm_core.platform import store, tracking
from prm_core.stages import validate, validate_gate
from prm_core.types import StepLabel
from tests.builders.quality import (
    ROOT,
    STEPS,
    STRATEGIES,
    Tracked,
    label,
    made,
    make_config,
    read_lines,
    run_stage,
    write_workspace,
)


@pytest.fixture
def tracked(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = Tracked()
    monkeypatch.setattr(tracking, "stage_run", run.stage_run)
    return run


def checked(root, config=None):
    """Runs validate; returns result.json, the quarantined rows and the passing rows."""
    run_stage(validate.STAGE, root, config or make_config())
    result = json.loads((root / "artifacts/validate/result.json").read_text())
    quarantine = read_lines(root / "artifacts/validate/quarantine/rows.jsonl")
    return result, quarantine, store.read_shards(StepLabel, root / "artifacts/validate/passed")


def failed(result):
    return {(c["name"], c["table"], c["column"]) for c in result["expectations"] if not c["success"]}


def replaced(table, number, **values):
    """A `change` for write_workspace: one row of one table with other values."""
    return lambda name, rows: [
        dataclasses.replace(row, **values) if name == table and i == number else row for i, row in enumerate(rows)
    ]


def test_good_labels_pass_whole(tmp_path, tracked):
    result, quarantine, passed = checked(write_workspace(tmp_path, human_chains=2))
    assert result["success"]
    assert failed(result) == set()
    assert quarantine == []
    assert passed == store.read_shards(StepLabel, tmp_path / "artifacts/label/merged")
    # Nothing to compare with yet: tests/labeling/validation/test_drift.py.
    assert {c["name"] for c in result["expectations"]} == set(EXPECTATIONS) - {"drift"}
    figures = result["figures"]
    assert (figures["steps"], figures["coverage"], figures["agreement/rollout/mc_dropout"]) == (32 * STEPS, 1.0, 1.0)
    assert tracked.metrics["coverage"] == 1.0
    assert [path.name for path in tracked.artifacts] == ["docs", "label_distribution.json"]
    run_stage(validate_gate.STAGE, tmp_path, make_config())
    passed_file = json.loads((tmp_path / "artifacts/validate_gate/passed.json").read_text())
    assert passed_file["critical_expectations"] == sum(c["critical"] for c in result["expectations"]) > 4


BAD_ROWS = [
    ({"confidence": 1.5}, "values_in_range on confidence"),
    ({"confidence": math.nan}, "values_in_range on confidence"),
    ({"value": -0.1}, "values_in_range on value"),
    ({"value": math.nan}, "values_in_range on value"),
    ({"tokens": -1}, "values_in_range on tokens"),
    ({"step_index": -1}, "values_in_range on step_index"),
    ({"step_index": STEPS}, "known_step on step_index"),
    ({"trajectory_id": "nobody"}, "known_step on step_index"),
    ({"reasoning": None}, "not_null on reasoning"),
    ({"confidence": None}, "not_null on confidence"),
    ({"lineage": ""}, "lineage on lineage: empty"),
    ({"lineage": None}, "lineage on lineage: empty"),
    ({"lineage": "{"}, "lineage on lineage: not JSON"),
    ({"lineage": '{"strategy": "rollout@1", "parameters": {}}'}, "lineage on lineage: lacks model, seed"),
]


@pytest.mark.parametrize("table", ["merged", "labels"])
def test_bad_rows_go_to_the_quarantine_with_their_reasons(tmp_path, tracked, table):
    def spoil(name, rows):
        for number, (values, _) in enumerate(BAD_ROWS):
            if name == table:
                rows[6 * number] = dataclasses.replace(rows[6 * number], **values)
        return rows

    result, quarantine, passed = checked(write_workspace(tmp_path, change=spoil))
    found = [row["reasons"] for row in quarantine if row["table"] == table]
    assert found == [[reason] for _, reason in BAD_ROWS]
    assert {f"{name} on {column}" for name, where, column in failed(result) if where == table} == {
        reason.split(":")[0] for _, reason in BAD_ROWS}
    summary = json.loads((tmp_path / "artifacts/validate/quarantine/summary.json").read_text())
    assert summary["rows"] == len(quarantine)
    assert summary["by_reason"][f"{table}: values_in_range on value"] == 2
    if table == "merged":
        merged = store.read_shards(StepLabel, tmp_path / "artifacts/label/merged")
        assert passed == [row for i, row in enumerate(merged) if i % 6 or i // 6 >= len(BAD_ROWS)]


def test_a_row_of_an_unknown_strategy_fails_by_name_and_by_lineage(tmp_path, tracked):
    _, quarantine, _ = checked(write_workspace(tmp_path, change=replaced("labels", 3, strategy="guess")))
    assert quarantine[0]["reasons"] == ["known_strategy on strategy",
                                        "lineage on lineage: of mc_dropout@1, the row is of guess"]


@pytest.mark.parametrize(("lineage", "fault"), [
    ('{"strategy": "mcts@2", "model": "ab", "parameters": {"k": 8}, "seed": 5}', None),
    ('{"strategy": "mcts@2", "model": "", "parameters": {}, "seed": 0, "cost": 1}', None),
    ('["mcts@2"]', "not a JSON object"),
    ('{"strategy": "mcts", "model": "", "parameters": {}, "seed": 0}', "of mcts, the row is of mcts"),
    ('{"strategy": "rollout@1", "model": "", "parameters": {}, "seed": 0}', "of rollout@1, the row is of mcts"),
    ('{"strategy": "mcts@2", "model": null, "parameters": [], "seed": true}',
     "model, parameters, seed not of type str, dict, int"),
    (float("nan"), "empty"),
    (None, "empty"),
])
def test_what_is_wrong_with_a_lineage(lineage, fault):
    assert lineage_fault(lineage, "mcts") == fault


def test_abstaining_without_a_value_is_no_fault(tmp_path, tracked):
    change = replaced("merged", 4, is_correct=None, value=None, confidence=0.0)
    result, quarantine, passed = checked(write_workspace(tmp_path, change=change))
    assert result["success"]
    assert quarantine == []
    assert passed[4].is_correct is None
    assert passed[4].value is None


def test_a_merged_row_made_from_a_bad_strategy_row_does_not_pass(tmp_path, tracked):
    result, quarantine, passed = checked(write_workspace(tmp_path, change=replaced("labels", 9, confidence=2.0)))
    # Row 9 of the labels is the second strategy's on step 4 // 2 = 4 of all steps: chain 1, step 1.
    assert ("values_in_range", "labels", "confidence") in failed(result)
    assert [(row["table"], row["trajectory_id"], row["step_index"]) for row in quarantine] == [
        ("labels", "gen-1", 1), ("merged", "gen-1", 1)]
    assert quarantine[1]["reasons"] == ["made from a failing row of mc_dropout"]
    assert ("gen-1", 1) not in {(row.trajectory_id, row.step_index) for row in passed}


def test_duplicate_keys_all_leave(tmp_path, tracked):
    def twice(table, rows):
        return [*rows, dataclasses.replace(rows[0], is_correct=False)] if table == "merged" else rows

    result, quarantine, passed = checked(write_workspace(tmp_path, change=twice))
    assert ("unique_keys", "merged", "trajectory_id, step_index, strategy") in failed(result)
    assert len(quarantine) == 2
    assert ("gen-0", 0) not in {(row.trajectory_id, row.step_index) for row in passed}


def test_a_failing_figure_is_not_a_failing_row(tmp_path, tracked):
    def undecided(table, rows):
        return [dataclasses.replace(r, is_correct=None) if table == "merged" and i % 2 else r
                for i, r in enumerate(rows)]

    result, quarantine, passed = checked(write_workspace(tmp_path, change=undecided))
    assert failed(result) == {("coverage", "summary", "coverage")}
    coverage = next(c for c in result["expectations"] if c["name"] == "coverage")
    # Of five wrong chains the second step is undecided, so the third is asked about as well: 85 steps.
    assert coverage["observed"] == pytest.approx(45 / 85)
    assert (coverage["bound"], coverage["critical"]) == ("between 0.8 and 1", True)
    assert quarantine == []
    assert len(passed) == 30 * STEPS


def test_each_dataset_level_figure_is_checked(tmp_path, tracked):
    def change(table, rows):
        if table == "merged":
            return [dataclasses.replace(r, is_correct=True, confidence=0.3) for r in rows if r.step_index]
        rollout = [dataclasses.replace(r, is_correct=None if i % 3 else r.is_correct)
                   for i, r in enumerate(r for r in rows if r.strategy == "rollout")]
        return rollout + [r for r in rows if r.strategy == "mc_dropout" and r.step_index]

    result, _, _ = checked(write_workspace(tmp_path, change=change), make_config(validate={"min_coverage": 0.7}))
    assert failed(result) == {
        ("coverage", "summary", "coverage"),
        ("label_balance", "summary", "correct_share"),
        ("confidence_distribution", "summary", "confidence_mean"),
        ("completeness", "summary", "completeness/merged"),
        ("completeness", "summary", "completeness/mc_dropout"),
        ("abstention", "summary", "abstention/rollout"),
    }


def test_disagreeing_strategies_and_an_absent_one_fail(tmp_path, tracked):
    def change(table, rows):
        return [dataclasses.replace(r, is_correct=not r.is_correct) if r.strategy == "rollout" else r for r in rows]

    config = make_config(label={"strategies": [*STRATEGIES, "mcts"]})
    result, _, _ = checked(write_workspace(tmp_path, change=change), config)
    assert failed(result) == {
        ("agreement", "summary", "agreement/rollout/mc_dropout"), ("completeness", "summary", "completeness/mcts")}
    assert (result["figures"]["abstention/mcts"], result["figures"]["agreement/rollout/mcts"]) == (None, None)


def test_a_strategy_that_takes_up_a_sample_of_the_chains_is_complete_there(tmp_path, tracked):
    def sampled(table, rows):
        return [r for r in rows if r.strategy != "mc_dropout" or r.trajectory_id in ("gen-1", "gen-2")]

    result, _, _ = checked(write_workspace(tmp_path, change=sampled))
    assert failed(result) == set()
    assert result["figures"]["completeness/mc_dropout"] == 1.0
    assert result["figures"]["reach/mc_dropout"] == pytest.approx(2 / 30)


def test_a_verifier_may_abstain_where_others_may_not(tmp_path, tracked):
    def change(table, rows):
        return [dataclasses.replace(r, is_correct=None, confidence=0.0) if table == "labels" and i // 2 % 3 else r
                for i, r in enumerate(rows)]

    write_workspace(tmp_path, change=change)
    result, _, _ = checked(tmp_path)
    assert failed(result) == {("abstention", "summary", "abstention/rollout"),
                              ("abstention", "summary", "abstention/mc_dropout")}
    # A strategy that the mapping does not name has no bound.
    config = make_config(validate={"max_abstention": {"rollout": 0.5, "verifier": 1.0}})
    assert failed(checked(tmp_path, config)[0]) == {("abstention", "summary", "abstention/rollout")}
    assert (config.validate.abstention_of("verifier"), config.validate.abstention_of("rollout")) == (1.0, 0.5)


@pytest.mark.parametrize("bound", [{"rollout": 1.5}, -0.1])
def test_a_wrong_abstention_bound_is_refused(bound):
    with pytest.raises(InputError, match=r"validate\.max_abstention"):
        make_config(validate={"max_abstention": bound})


def test_default_bounds_let_the_verifier_abstain():
    config = configuration.load(ROOT)
    bounds = {name: config.validate.abstention_of(name) for name in config.label.strategies}
    assert bounds.pop("verifier") == 1.0
    assert set(bounds.values()) == {0.5}


def test_dataset_figures_by_hand():
    rows = [label("a", 0, True, 0.9), label("a", 1, None, 0.0), label("b", 0, False, 0.7)]
    # Chain b is wrong from its first step on, so three steps of four are asked about.
    votes = [label("a", 0, True, strategy="rollout"), label("a", 0, True, strategy="mc_dropout"),
             label("a", 1, None, strategy="rollout"), label("a", 1, True, strategy="mc_dropout"),
             label("b", 0, True, strategy="rollout"), label("b", 0, False, strategy="mc_dropout")]
    frames = [pd.DataFrame([dataclasses.asdict(row) for row in table]) for table in (votes, rows)]
    figures = dataset_figures(*frames, {"a": 2, "b": 2}, STRATEGIES)
    assert (figures["steps"], figures["asked_steps"]) == (4, 3)
    assert figures["coverage"] == pytest.approx(2 / 3)
    assert figures["correct_share"] == 0.5
    assert figures["confidence_mean"] == pytest.approx(0.8)
    assert figures["completeness/merged"] == 3 / 4
    assert figures["abstention/rollout"] == pytest.approx(1 / 3)
    assert (figures["coverage/rollout"], figures["coverage/mc_dropout"]) == (pytest.approx(2 / 3), 1.0)
    assert (figures["correct_share/rollout"], figures["correct_share/mc_dropout"]) == (1.0, pytest.approx(2 / 3))
    assert (figures["agreement/rollout/mc_dropout"], figures["agreement_steps/rollout/mc_dropout"]) == (0.5, 2)


def test_nothing_is_asked_after_the_first_wrong_step():
    def votes(name, *verdicts):
        return [label("a", i, verdict, 0.9, name) for i, verdict in enumerate(verdicts)]

    merged = votes("merged", True, False, None, None)
    # One strategy stops at its own first wrong step, the other judges on; where they part after the error is no
    # disagreement.
    labels = [*votes("mcts", True, None, False, None), *votes("verifier", True, None, True, True)]
    figures = dataset_figures(*(pd.DataFrame([dataclasses.asdict(row) for row in table]) for table in (labels, merged)),
                              {"a": 4}, ["mcts", "verifier"])
    assert (figures["asked_steps"], figures["coverage"]) == (2, 1.0)
    assert (figures["coverage/mcts"], figures["coverage/verifier"]) == (0.5, 0.5)
    assert (figures["abstention/mcts"], figures["abstention/verifier"]) == (pytest.approx(1 / 3), 0.25)
    assert (figures["agreement/mcts/verifier"], figures["agreement_steps/mcts/verifier"]) == (1.0, 1)


def test_the_gate_names_expectation_figure_bound_and_file(tmp_path, tracked):
    def mostly_undecided(table, rows):
        return [dataclasses.replace(r, is_correct=None if i % 4 else r.is_correct) if table == "merged" else r
                for i, r in enumerate(rows)]

    change = mostly_undecided
    write_workspace(tmp_path, change=lambda t, rows: replaced("merged", 2, confidence=7.0)(t, list(change(t, rows))))
    checked(tmp_path)
    with pytest.raises(GateError) as caught:
        run_stage(validate_gate.STAGE, tmp_path, make_config())
    message = str(caught.value)
    assert "\n" not in message
    assert "values_in_range on merged.confidence: observed 1 of 90 rows fail, demanded between 0 and 1" in message
    assert "coverage on summary.coverage: observed 0.2614, demanded between 0.8 and 1" in message
    assert "artifacts/validate/quarantine/rows.jsonl" in message
    # What the reader is sent to is there, and the chain cannot go on.
    assert len(read_lines(tmp_path / "artifacts/validate/quarantine/rows.jsonl")) == 1
    assert not (tmp_path / "artifacts/validate_gate/passed.json").exists()


def test_an_advisory_failure_does_not_stop_the_chain(tmp_path, tracked, caplog):
    write_workspace(tmp_path, change=replaced("merged", 4, confidence=3.0))
    config = make_config(validate={"critical": ["coverage"]})
    result, quarantine, _ = checked(tmp_path, config)
    assert not result["success"]
    assert len(quarantine) == 1
    assert "advisory expectation values_in_range fails on merged.confidence" in caplog.text
    run_stage(validate_gate.STAGE, tmp_path, config)
    assert (tmp_path / "artifacts/validate_gate/passed.json").exists()


def test_labels_without_any_verdict_fail_what_cannot_be_computed(tmp_path, tracked):
    def undecided(table, rows):
        return [dataclasses.replace(r, is_correct=None, confidence=0.0) for r in rows]

    result, _, _ = checked(write_workspace(tmp_path, change=undecided))
    assert {name for name, _, _ in failed(result)} == {
        "coverage", "label_balance", "confidence_distribution", "abstention"}
    assert result["figures"]["correct_share"] is None
    assert "agreement/rollout/mc_dropout" not in {column for _, _, column in failed(result)}


def test_an_unknown_critical_expectation_is_refused():
    with pytest.raises(InputError, match=r"validate\.critical: unknown name 'vibes'; known: schema"):
        make_config(validate={"critical": ["coverage", "vibes"]})


def rewrite(root, table, change):
    path = store.shard_path(root / "artifacts/label" / table, 0)
    pq.write_table(change(pq.read_table(path)), path)


def test_a_missing_column_is_an_error_of_its_own(tmp_path):
    write_workspace(tmp_path)
    rewrite(tmp_path, "merged", lambda t: t.drop_columns(["confidence"]))
    with pytest.raises(InputError, match=r"part-00000\.parquet: missing column confidence .* not of the labels"):
        run_stage(validate.STAGE, tmp_path, make_config())
    assert not (tmp_path / "artifacts/validate/result.json").exists()


def test_a_column_of_the_wrong_type_fails_the_schema_and_passes_nothing(tmp_path, tracked):
    write_workspace(tmp_path)
    column = store.schemas()[StepLabel].names.index("confidence")
    rewrite(tmp_path, "merged", lambda t: t.set_column(column, "confidence", t["confidence"].cast(pa.string())))
    # Even when the user's list leaves it out, labels without the schema may not go on.
    config = make_config(validate={"critical": []})
    result, _, passed = checked(tmp_path, config)
    assert ("schema", "merged", "confidence") in failed(result)
    assert passed == []
    with pytest.raises(GateError, match=r"schema on merged\.confidence: observed str, demanded type float64"):
        run_stage(validate_gate.STAGE, tmp_path, config)


def test_an_extra_column_fails_the_schema(tmp_path, tracked):
    write_workspace(tmp_path)
    rewrite(tmp_path, "labels", lambda t: t.append_column("extra", pa.array([1] * t.num_rows)))
    result, _, _ = checked(tmp_path)
    assert failed(result) == {("schema", "labels", "*")}


def test_data_docs_open_offline_and_name_every_expectation(tmp_path, tracked):
    markup = "<b>x</b> & $y 'z'"

    def change(table, rows):
        spoiled = {4: {"confidence": 1.5}} if table == "merged" else {
            3: {"trajectory_id": markup}, 9: {"strategy": markup}, 15: {"lineage": markup}}
        return [dataclasses.replace(row, **spoiled.get(i, {})) for i, row in enumerate(rows)]

    write_workspace(tmp_path, change=change)
    # A table whose schema does not hold shows the columns it has.
    rewrite(tmp_path, "merged", lambda t: t.append_column(markup, pa.array([markup] * t.num_rows)))
    config = make_config()
    strange = dataclasses.replace(config.label, strategies=(*STRATEGIES, "<b>unheard of</b>"))
    checked(tmp_path, dataclasses.replace(config, label=strange))
    docs = tmp_path / "artifacts/validate/docs"
    for path in docs.iterdir():
        page = path.read_text()
        assert "<b>" not in page
        assert not re.search("&amp;(lt|amp|#)|[\ue000-\uf8ff]", page)
        assert "&lt;b&gt;x&lt;/b&gt; &amp; $y &#" in page
    assert "&lt;b&gt;unheard of" in (docs / "labels.html").read_text()

    checked(write_workspace(tmp_path, change=replaced("merged", 4, confidence=1.5)))
    docs = tmp_path / "artifacts/validate/docs"
    pages = {path.name: path.read_text() for path in docs.iterdir()}
    assert set(pages) == {"index.html", "labels.html", "merged.html", "summary.html"}
    for page in pages.values():
        assert not re.search(r"https?://|<script|<img|<link", page)
        for target in re.findall(r'href="([^"#]+)"', page):
            assert target in pages
    assert all(name in pages["index.html"] for name in set(EXPECTATIONS) - {"drift"})
    assert "Not compared: first run" in pages["index.html"]
    assert "coverage" in pages["summary.html"]
    assert "1.5" in pages["merged.html"]
    assert not any("unexpected Exception occurred during data docs" in page for page in pages.values())


def test_index_page_shows_the_agreement_of_every_pair_with_its_steps(tmp_path, tracked):
    def change(table, rows):
        rows = [dataclasses.replace(r, is_correct=not r.is_correct) if r.strategy == "rollout" and i < 18 else r
                for i, r in enumerate(rows)]
        judged = [made(dataclasses.replace(r, strategy="judge")) for r in rows
                  if r.trajectory_id == "gen-5" and r.strategy == "mc_dropout"]
        return [*rows, *judged]

    config = make_config(label={"strategies": [*STRATEGIES, "judge", "verifier"]})
    checked(write_workspace(tmp_path, change=change), config)
    page = (tmp_path / "artifacts/validate/docs/index.html").read_text()
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>.*?</tr>", page)]
    rows = [[cell.strip() for cell in row.split("|") if cell.strip()] for row in rows]
    at = rows.index(["same verdict", *config.label.strategies])
    # Eight of 80 steps up to a first error disagree; the judge saw one chain, the verifier none.
    assert rows[at + 1][:6] == ["rollout", "90.0 %", "of 80 steps", "100.0 %", "of 3 steps", "no step in common"]
    assert rows[at + 2][:3] == ["mc_dropout", "90.0 %", "of 80 steps"]
    assert rows[at + 4] == ["verifier", *["no step in common"] * 3]
