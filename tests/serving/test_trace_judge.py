"""Judging MLflow traces: which feedback a trace gets, whose feedback is left alone, and how a pass goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Assessment, AssessmentSource, Feedback
from mlflow.exceptions import MlflowException

from benchmarks.judge import agent_run, place, span
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.rules.constitution import load
from prm_core.rules.verdicts import Overseer
from prm_core.scoring.scorer import ChainScore
from prm_core.serving import model_registry, trace_judge, trace_pass
from prm_core.serving.model_registry import pinned
from prm_core.serving.trace_judge import NAME, Judge, standing
from prm_core.serving.trace_pass import Outcome, Selection, judge_traces
from prm_core.types import Step
from tests.builders.scorer import CONTEXT, FakeScorer, fake_model_folder

OURS = {"step_index": "0", "scored_steps": "1", "model_version": "v"}
HEX = [f"{number:016x}" for number in range(1, 9)]


def feedback(span_id: str, source: str = "m/1", *, by: str = "CODE", id: str = "", overrides: str | None = None,
             edited: bool = False, name: str = NAME, base: dict[str, str] | None = OURS, **meta: str) -> Assessment:
    made = Feedback(name=name, value=0.5, source=AssessmentSource(by, source), span_id=span_id, create_time_ms=1,
                    last_update_time_ms=1 + edited, metadata=base and base | meta, overrides=overrides)
    made.assessment_id = id or f"a-{span_id}-{source}"
    return made


def two(source: str = "m/1", **more: Any) -> list[Assessment]:
    return [feedback(span_id, source, step_index=str(index), scored_steps="2", **more)
            for index, span_id in enumerate("st")]


@pytest.mark.parametrize(("assessments", "given", "stale", "corrected", "whole"), [
    ([], "", {}, "", False),
    (two(), "st", {}, "", True),
    (two()[:1], "s", {}, "", False),
    (two("m/0"), "", {"s": ["a-s-m/0"], "t": ["a-t-m/0"]}, "", False),
    ([*two(), *two("m/0")[:1]], "st", {"s": ["a-s-m/0"]}, "", False),
    ([*two(), feedback("s", id="twice", scored_steps="2")], "st", {"s": ["twice"]}, "", False),
    # People, and programs of others.
    ([*two(), *two(by="HUMAN"), *two(by="LLM_JUDGE"), *two(name="step_label")], "st", {}, "", True),
    (two(base={"mine": "1"}), "", {}, "", False),
    (two(base=None), "", {}, "", False),
    # Overridden by somebody, edited in place; by now under another version too.
    ([*two(), feedback("s", "ann", by="HUMAN", overrides="a-s-m/1")], "t", {}, "s", True),
    ([two()[0], two(edited=True)[1]], "s", {}, "t", True),
    ([two()[0], two("m/0", edited=True)[1]], "s", {}, "t", True),
    (two("m/0", edited=True), "", {}, "st", True),
    # Steps came to the trace when some had their feedback already.
    ([two()[0], feedback("t", step_index="1", scored_steps="3")], "st", {}, "", False),
])
def test_what_a_trace_s_assessments_say(
    assessments: list[Assessment], given: str, stale: dict[str, list[str]], corrected: str, whole: bool
) -> None:
    found = standing(assessments, NAME, "m/1")
    assert ("".join(found.given), found.stale, "".join(found.corrected), found.whole) == (
        given, stale, corrected, whole)


class Scripted(FakeScorer):
    """With a committee, and a text that it does not know."""

    def _score(self, prompt: str, steps: Sequence[Step]) -> ChainScore:
        score = super()._score(prompt, steps)
        strange = "tokens that no training chain held" if "strange" in prompt else ""
        return replace(score, out_of_domain=strange, members=tuple((one - 0.1, one + 0.1) for one in score.step_scores))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judged")


class Place:
    """An experiment of its own in the store, and models whose scores are scripted."""

    def __init__(self, folder: Path, name: str, models: Path) -> None:
        self.folder, self.name, self.models = folder, name, models
        self.client = tracking.connect(folder)
        tracking.use_store(folder)
        self.experiment = self.client.create_experiment(name)
        self.number = int(self.experiment) * 1000
        self.scorer: FakeScorer = Scripted()

    def model(self, name: str = "model") -> str:
        folder = self.models / name
        if not folder.exists():
            fake_model_folder(folder)
            (folder / "model.safetensors").write_bytes(name.encode())
        return str(folder)

    def add(self, *texts: str, spans: list[dict[str, Any]] | None = None, state: str = "OK",
            prompt: str = "What do 3 and 4 make?") -> str:
        self.number += 1
        made = agent_run(texts, len(texts) - 1, prompt) if spans is None else spans
        return place(self.client, self.experiment, self.number, made, state)

    def judge(self, model: str = "model", **selection: Any) -> Outcome:
        return judge_traces(Judge(self.model(model), self.folder), Selection([self.name], **selection), self.folder)

    def given(self, trace_id: str) -> list[Assessment]:
        return sorted(self.client.get_trace(trace_id, display=False).info.assessments, key=lambda one: one.span_id)

    def scores(self, trace_id: str) -> dict[str, float]:
        found = [one for one in self.given(trace_id) if one.name == NAME]
        assert len({one.span_id for one in found}) == len(found)
        return {one.span_id: one.value for one in found}


@pytest.fixture
def here(store: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
         ) -> Place:
    made = Place(store, request.node.name, tmp_path / "models")
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: made.scorer)
    return made


def test_each_step_s_score_is_on_its_span_with_where_it_comes_from(here: Place) -> None:
    trace = here.add("I look.", "It is wrong.", "It is 7.")
    outcome = here.judge()
    assert (outcome.found, outcome.judged, outcome.written, outcome.removed, outcome.failed) == (1, 1, 3, 0, [])
    first, second, third = here.given(trace)
    # The model's calls are the spans 2, 4 and 6; the agent's and its tools' are no steps.
    assert [(one.span_id, one.value) for one in (first, second, third)] == [
        (HEX[1], 0.9), (HEX[3], 0.1), (HEX[5], 0.9)]
    digest = Judge(here.model(), here.folder).source
    assert (second.name, second.source.source_type, second.source.source_id, second.rationale) == (
        "prm_step", "CODE", digest, None)
    assert digest.startswith("model@")
    # The members say 0 and 0.2, 0.1 apart from their mean: 0.1 ± 0.196, cut at 0.
    assert second.metadata == {
        "step_index": "1", "scored_steps": "3", "model_version": "v1", "renderer": "2",
        "calibration": second.metadata["calibration"], "reliability": "0.8", "low": "0", "high": "0.296",
        "in_domain": "true"}
    assert (first.metadata["low"], first.metadata["high"]) == ("0.704", "1")


def test_what_the_model_does_not_know_is_said_with_the_score(here: Place) -> None:
    trace = here.add("I look.", prompt="strange words")
    assert here.judge().strange == 1
    (one,) = here.given(trace)
    assert (one.metadata["in_domain"], one.rationale) == ("false", "tokens that no training chain held")


def test_a_second_pass_writes_nothing_and_loads_neither_spans_nor_model(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [here.add("a", "wrong"), here.add("b")]
    here.judge()
    before = [here.given(trace) for trace in traces]
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: pytest.fail("the model was loaded"))
    monkeypatch.setattr(trace_pass._Pass, "load", lambda self, ids: pytest.fail("spans were loaded"))
    outcome = here.judge()
    assert (outcome.found, outcome.whole, outcome.judged, outcome.written) == (2, 2, 0, 0)
    assert [here.given(trace) for trace in traces] == before


def test_traces_are_scored_in_batches_and_found_page_by_page(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_pass, "PAGE", 2)
    monkeypatch.setattr(trace_pass, "BATCH", 3)
    traces = [here.add(f"step {number}") for number in range(5)]
    assert here.judge(limit=4).written == 4
    # The newest first.
    assert [[steps[0].text for _, steps in call] for call in here.scorer.calls] == [
        ["step 4", "step 3", "step 2"], ["step 1"]]
    assert here.judge(limit=4).written == 1
    assert [len(here.scores(trace)) for trace in traces] == [1] * 5


def test_after_a_promotion_the_scores_are_the_new_version_s(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    name = here.experiment
    here.client.create_registered_model(name)
    for _ in range(2):
        here.client.create_model_version(name, "file:///nowhere")
    asked: list[str] = []

    def folder_of(uri: str, workspace: Path) -> Path:
        asked.append(uri)
        return Path(here.model())

    monkeypatch.setattr(model_registry, "reward_model_folder", folder_of)
    trace = here.add("a", "wrong")
    selection = Selection([here.name])
    for version, (written, removed) in ((1, (2, 0)), (2, (2, 2)), (2, (0, 0))):
        here.client.set_registered_model_alias(name, "champion", str(version))
        outcome = judge_traces(Judge(f"models:/{name}@champion", here.folder), selection, here.folder)
        assert (outcome.written, outcome.removed) == (written, removed)
        assert {one.source.source_id for one in here.given(trace)} == {f"models:/{name}/{version}"}
        assert here.scores(trace) == {HEX[1]: 0.9, HEX[3]: 0.1}
    # A version, never an alias, which might have moved; and not for a pass that had nothing to do.
    assert asked == [f"models:/{name}/1", f"models:/{name}/2"]


def test_what_others_said_stays(here: Place) -> None:
    trace = here.add("a", "wrong")
    human = AssessmentSource("HUMAN", "ann")
    kept = [mlflow.log_expectation(trace_id=trace, span_id=HEX[1], name="step_label", value="fine", source=human),
            mlflow.log_feedback(trace_id=trace, span_id=HEX[1], name=NAME, value=1.0, source=human),
            mlflow.log_feedback(trace_id=trace, span_id=HEX[3], name=NAME, value=0.3,
                                source=AssessmentSource("CODE", "their.py"), metadata={"theirs": "1"})]
    here.judge()
    here.judge("other")
    ids = {one.assessment_id: one for one in here.given(trace)}
    assert [ids.pop(one.assessment_id) for one in kept] == kept
    assert [one.value for one in ids.values()] == [0.9, 0.1]


def test_a_person_s_correction_outlives_a_promotion(here: Place) -> None:
    trace = here.add("a", "wrong")
    here.judge()
    ours = here.given(trace)[1]
    mlflow.override_feedback(trace_id=trace, assessment_id=ours.assessment_id, value=0.8,
                             source=AssessmentSource("HUMAN", "ann"))
    assert here.judge().whole == 1
    outcome = here.judge("other")
    assert (outcome.written, outcome.removed, outcome.corrected) == (1, 1, 1)
    assert sorted((one.span_id, one.value, one.valid) for one in here.given(trace)) == [
        (HEX[1], 0.9, True), (HEX[3], 0.1, False), (HEX[3], 0.8, True)]
    assert here.judge("other").whole == 1


@pytest.mark.parametrize("before", [None, "older"])
def test_a_pass_that_was_killed_goes_on_where_it_was(
    here: Place, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    traces = [here.add("a", "wrong", "c"), here.add("d", "e")]
    if before:
        here.judge(before)
    expected = [{HEX[1]: 0.9, HEX[3]: 0.1, HEX[5]: 0.9}, {HEX[1]: 0.9, HEX[3]: 0.9}]
    log, done = mlflow.log_feedback, []

    def killed(**given: Any) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(log(**given))

    with monkeypatch.context() as patch:
        patch.setattr(mlflow, "log_feedback", killed)
        with pytest.raises(KeyboardInterrupt):
            here.judge()
    outcome = here.judge()
    assert (outcome.whole, outcome.judged, outcome.written) == (1, 1, 2)
    assert [here.scores(trace) for trace in traces] == expected
    # What the first pass wrote is still what it was.
    now = {one.assessment_id for trace in traces for one in here.given(trace)}
    assert {one.assessment_id for one in done} < now
    assert here.judge().whole == 2


def test_scores_written_twice_are_written_once_after_the_next_pass(here: Place) -> None:
    trace = here.add("a")
    here.judge()
    (one,) = here.given(trace)
    mlflow.log_feedback(trace_id=trace, span_id=one.span_id, name=NAME, value=one.value, source=one.source,
                        metadata=one.metadata)
    assert here.judge().removed == 1
    assert here.given(trace) == [one]


def test_steps_that_came_while_it_was_judged_change_the_scores_that_were_there(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = here.add("a", "b")
    here.judge()
    here.number -= 1
    monkeypatch.setattr(type(here.client._tracing_client.store), "start_trace", lambda self, info: None)
    here.add(spans=agent_run(["a", "b", "wrong"], 2)[4:])
    mlflow.delete_assessment(trace, here.given(trace)[0].assessment_id)
    outcome = here.judge()
    assert (outcome.written, outcome.removed) == (3, 1)
    assert {one.metadata["scored_steps"] for one in here.given(trace)} == {"3"}
    assert here.scores(trace) == {HEX[1]: 0.9, HEX[3]: 0.9, HEX[5]: 0.1}


def test_a_trace_that_has_just_ended_may_wait(here: Place) -> None:
    here.add("a")
    # It ends 5 ms after its start.
    assert here.judge(ended=here.number + 4).running == 1
    assert here.judge(ended=here.number + 5).judged == 1


def test_running_traces_wait_and_bad_ones_are_named_and_stop_nothing(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    circle = [span(1, "AGENT", parent=2), span(2, "AGENT", parent=1),
              span(3, "LLM", "hi", "there", parent=2)]
    good = [here.add("a"), here.add("wrong")]
    here.add("a", state="IN_PROGRESS")
    bad = {here.add(spans=circle): "in a circle",
           here.add("refuse"): "step 0 is refused",
           here.add("x" * 2 * CONTEXT): "no room for its first step",
           here.add(spans=[span(1, "LLM", [], "there")]): "no message that asks anything",
           (broken := here.add("b")): "MLflow cannot read its spans",
           (empty := here.add("c")): "MLflow has not all its spans"}
    here.add(spans=[span(1, "CHAIN", "hi", "there")])
    with closing(sqlite3.connect(here.folder / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE spans SET content = '{' WHERE trace_id = ?", (broken,))
        connection.execute("DELETE FROM spans WHERE trace_id = ?", (empty,))
    outcome = here.judge()
    assert (outcome.found, outcome.running, outcome.judged, outcome.written) == (10, 1, 2, 2)
    assert outcome.noted == {"traces without a model's answer left out": 1}
    assert [here.scores(trace) for trace in good] == [{HEX[1]: 0.9}, {HEX[1]: 0.1}]
    for trace, reason in bad.items():
        (line,) = [line for line in outcome.failed if trace in line]
        assert reason in line
        assert line in caplog.text
    assert len(outcome.failed) == len(bad)
    assert str(outcome) == (
        "10 traces match, 0 had their scores, 2 were judged, 2 steps scored; traces not ended, or just, left for "
        "later: 1; traces that could not be judged: 6; traces without a model's answer left out: 1")


def test_steps_beyond_the_context_have_no_score_and_are_not_asked_for_again(here: Place) -> None:
    trace = here.add("a", "x" * CONTEXT)
    outcome = here.judge()
    assert (outcome.beyond, here.scores(trace)) == (1, {HEX[1]: 0.9})
    assert here.judge().whole == 1


def test_a_trace_that_takes_no_feedback_is_named(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = here.add("a"), here.add("b")
    log = mlflow.log_feedback

    def gone_meanwhile(*, trace_id: str, **given: Any) -> None:
        if trace_id == gone:
            raise MlflowException(f"Trace with ID '{gone}' not found.")
        log(trace_id=trace_id, **given)

    monkeypatch.setattr(mlflow, "log_feedback", gone_meanwhile)
    outcome = here.judge()
    assert outcome.failed == [f"trace {gone}: MLflow does not take its scores (Trace with ID '{gone}' not found.)"]
    assert (outcome.judged, here.scores(there)) == (1, {HEX[1]: 0.9})


def test_filter_and_time_choose(here: Place) -> None:
    first, second, third = here.add("a"), here.add("b"), here.add("c")
    here.client.set_trace_tag(first, "team", "x")
    here.client.set_trace_tag(third, "team", "x")
    assert str(here.judge(filter="tags.team = 'y'")) == "no trace matches"
    assert here.judge(filter="tags.team = 'x'", since=here.number).written == 1
    assert [len(here.scores(trace)) for trace in (first, second, third)] == [0, 0, 1]
    # A filter that asks for the scores themselves, which the pass changes.
    assert here.judge(filter=f"feedback.{NAME} IS NULL").written == 2
    wrong = here.add("a", "wrong")
    here.judge()
    found = here.client.search_traces(locations=[here.experiment], filter_string=f"feedback.{NAME} < 0.3")
    assert [trace.info.trace_id for trace in found] == [wrong]


def test_what_cannot_be_asked_for_is_refused(here: Place) -> None:
    with pytest.raises(InputError, match=r"--filter 'colour = 1': MLflow says .*colour"):
        here.judge(filter="colour = 1")
    with pytest.raises(InputError, match=r"--experiment nobody: .* has no such one, but .*"):
        judge_traces(Judge(here.model(), here.folder), Selection(["nobody"]), here.folder)


def test_a_model_that_cannot_be_loaded_is_no_fault_of_the_traces(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    here.add("a")

    def broken(folder: Path) -> FakeScorer:
        raise InputError(f"{folder}: is broken")

    monkeypatch.setattr(trace_judge, "load_any_scorer", broken)
    with pytest.raises(InputError, match="is broken"):
        here.judge()
    here.scorer.kind = "outcome"
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: here.scorer)
    with pytest.raises(InputError, match="no step scores"):
        here.judge()


@pytest.mark.parametrize(("uri", "reason"), [
    ("models:/nobody@champion", "no such model"), ("models:/prm/latest", "is no version"),
])
def test_a_model_of_no_one_version_is_refused(store: Path, uri: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        pinned(uri, store)


@pytest.mark.parametrize("uri", ["models:/prm/3", "runs:/abc/reward_model", "models:/m-0123", "a/folder"])
def test_what_names_one_model_stays_as_it_is(tmp_path: Path, uri: str) -> None:
    assert pinned(uri, tmp_path) == uri


def test_a_span_that_breaks_a_rule_gets_feedback_of_its_own_until_the_rules_change(
    here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "rules: [{id: no-looking, text: No looking., severity: high, predicate: 'contains(text, \"look\")'}]")
    monkeypatch.setattr(trace_judge, "rules_of", lambda workspace: Overseer(load(path)))
    trace = here.add("I look.", "It is wrong.")
    outcome = here.judge()
    assert (outcome.written, outcome.broken) == (2, 1)
    (rule,) = [one for one in here.given(trace) if one.name != NAME]
    assert (rule.name, rule.span_id, rule.value, rule.rationale, rule.metadata["severity"]) == (
        "rule/no-looking", HEX[1], 1.0, 'look({"q": 0}): No looking.', "high")
    assert here.judge().whole == 1
    path.write_text(path.read_text().replace("look", "wrong").replace("no-wronging", "no-wrong"))
    outcome = here.judge()
    assert (outcome.written, outcome.broken, outcome.judged) == (2, 1, 1)
    assert [(one.name, one.span_id) for one in here.given(trace) if one.name != NAME] == [("rule/no-wrong", HEX[3])]
    assert len(here.scores(trace)) == 2
