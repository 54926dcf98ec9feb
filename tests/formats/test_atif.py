"""ATIF: what is a step and what is context, calls and their results, labels as agentpile has them, and bad input."""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from prm_core.turns import unnamed
from prm_core.types import Call, Message, Step
from tests.builders.formats import with_junk_is_taken_or_refused
from tests.builders.turns import TEXTS, turns

ATIF = FORMATS["atif"]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool_call_id": name, "function_name": "look", "arguments": arguments}


def result(text: Any, of: str | None = None) -> dict[str, Any]:
    return {"content": text} | ({} if of is None else {"source_call_id": of})


def run(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    numbered = [{"step_id": number, **step} for number, step in enumerate(steps, 1)]
    return {"schema_version": "ATIF-v1.8", "trajectory_id": "t", "agent": {"name": "a", "version": "1"},
            "steps": numbered, **more}


def label(step: int, value: Any, name: str = "step_label", trajectory: str | None = "t") -> dict[str, Any]:
    address = {"trajectory": trajectory, "step": step}
    return {"name": name, "target": {"kind": "step", "address": address}, "value": value, "label_source": "x"}


ASKED = {"source": "user", "message": "Who?"}
SAID = {"source": "agent", "message": "Ann."}
LOOKED = {"source": "agent", "message": "I look.", "tool_calls": [call("a", q="x"), call("b", q="ü")],
          "observation": {"results": [result("from b", "b"), result("unasked"), result("from a", "a")]}}
CALLS = (Call("look", '{"q": "x"}', "from a", id="a"), Call("look", '{"q": "ü"}', "from b", id="b"))


def read(tmp_path: Path, *records: Any, neutral: str | None = None) -> tuple[list[LabelledChain], Counter[str]]:
    path, noted = tmp_path / "in.jsonl", Counter[str]()
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return list(ATIF.read(path, noted=noted, neutral=neutral)), noted


def write(tmp_path: Path, chains: list[LabelledChain]) -> list[dict[str, Any]]:
    ATIF.write(tmp_path / "out.jsonl", chains)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").split("\n") if line]


def test_results_are_paired_with_their_calls(tmp_path: Path) -> None:
    (chain,), noted = read(tmp_path, run({"source": "system", "message": "Be brief."}, ASKED, LOOKED, SAID))
    assert chain.prompt == "Be brief.\n\nWho?"
    assert chain.steps == (Step("I look.", "unasked", calls=CALLS, ref="3"), Step("Ann.", ref="4"))
    assert chain.id == "t"
    assert (chain.labels, chain.outcome, noted) == ((None, None), None, Counter())


def test_what_no_model_wrote_is_context(tmp_path: Path) -> None:
    copied = {**SAID, "is_copied_context": True}
    ruled = {"source": "agent", "message": "", "llm_call_count": 0, "tool_calls": [call("r")],
             "observation": {"results": [result("by rule", "r")]}}
    (chain,), noted = read(tmp_path, run(ASKED, copied, LOOKED, ASKED, ruled, {**SAID, "reasoning_content": "hm"}))
    assert chain.prompt == "Who?\n\nAnn."
    assert chain.steps == (
        Step("I look.", "unasked", calls=CALLS, ref="3", context=(
            Message("user", "Who?"), Message("agent", '<tool_call>{"name": "look", "arguments": {}}</tool_call>'),
            Message("agent", "by rule"))),
        Step("Ann.", reasoning="hm", ref="6"))
    assert noted == {"agent's steps that no model wrote, or without text and call, read as context": 2}


def test_what_is_lost_is_counted(tmp_path: Path) -> None:
    shown = [{"type": "text", "text": "see"}, {"type": "image", "source": {"path": "i.png", "media_type": "image/png"}}]
    once = {**LOOKED, "observation": {"results": [result(shown, "a")]}}
    (chain,), noted = read(tmp_path, run(ASKED, once), run(ASKED))
    assert [call.result for call in chain.steps[0].calls] == ["see", None]
    assert noted == {"images and sounds left out": 1, "calls without a result": 1,
                     "runs without an agent's step left out": 1}


def test_runs_of_sub_agents_are_chains_of_their_own(tmp_path: Path) -> None:
    inner = {**run({"source": "user", "message": "Find Ann."}, SAID), "trajectory_id": "sub"}
    asked = {**LOOKED, "observation": {"results": [
        {"source_call_id": "a", "subagent_trajectory_ref": [{"trajectory_id": "sub"}]}]}}
    given_labels = {"agentpile": {"labels": [label(2, -1, trajectory="sub"), label(3, 1), label(2, 1)]}}
    outer = run(ASKED, asked, SAID, subagent_trajectories=[inner], extra=given_labels)
    chains, _ = read(tmp_path, outer)
    assert [(chain.prompt, chain.labels) for chain in chains] == [("Who?", (1.0, 1.0)), ("Find Ann.", (0.0,))]
    assert [call.result for call in chains[0].steps[0].calls] == ["[sub-agent sub]", None]
    assert [(chain.id, chain.parent) for chain in chains] == [("t", ""), ("sub", "t/2")]
    with pytest.raises(InputError, match=r'in\.jsonl:1: two runs are called "t"; give each a trajectory_id of its own'):
        read(tmp_path, {**outer, "subagent_trajectories": [{**inner, "trajectory_id": "t"}]})
    # Nothing says which step started it.
    assert read(tmp_path, run(ASKED, SAID, subagent_trajectories=[inner]))[0][1].parent == "t"
    assert write(tmp_path, chains) == [outer]


def test_who_and_when_s_mistake_is_the_first_error(tmp_path: Path) -> None:
    labels = {"agentpile": {"labels": [label(4, True, "mistake_step"), label(4, "why", "mistake_reason")],
                            "outcome": {"success": False}}}
    (chain,), _ = read(tmp_path, run(ASKED, SAID, SAID, SAID, SAID, extra=labels))
    assert (chain.labels, chain.first_error, chain.outcome) == ((1.0, 1.0, 0.0, None), 2, False)


def test_agents_have_the_name_that_agentpile_gives_them(tmp_path: Path) -> None:
    def by(name: Any) -> dict[str, Any]:
        return {**SAID, "extra": {"agentpile": {"actor": name}}}

    record = run(ASKED, by("WebSurfer"), by("Orchestrator"), by("WebSurfer"), by(3), SAID)
    (chain,), noted = read(tmp_path, record)
    assert [step.agent for step in chain.steps] == ["WebSurfer", "Orchestrator", "WebSurfer", "", ""]
    assert (write(tmp_path, [chain]), noted) == ([record], Counter())


def test_a_sub_agent_that_names_the_run_it_lies_in_starts_nothing(tmp_path: Path) -> None:
    def refers(name: str) -> dict[str, Any]:
        return {**LOOKED, "observation": {"results": [
            {"source_call_id": "a", "subagent_trajectory_ref": [{"trajectory_id": name}]}]}}

    inner = {**run({"source": "user", "message": "Find Ann."}, refers("t")), "trajectory_id": "sub"}
    chains, _ = read(tmp_path, run(ASKED, refers("sub"), SAID, subagent_trajectories=[inner]))
    assert [(chain.id, chain.parent) for chain in chains] == [("t", ""), ("sub", "t/2")]


def test_ratings_and_probabilities(tmp_path: Path) -> None:
    labels = {"agentpile": {"labels": [label(2, 1), label(3, 0), label(4, -1), label(5, 0.25), label(1, 1)]}}
    record = run(ASKED, SAID, SAID, SAID, SAID, SAID, extra=labels)
    (chain,), noted = read(tmp_path, record, neutral="wrong")
    assert chain.labels == (1.0, 0.0, 0.0, 0.25, None)
    assert noted == {"labels of steps that are no agent's left out": 1}
    assert read(tmp_path, record)[0][0].labels[1] == 1.0


def test_a_record_is_written_as_it_was_but_for_labels_that_changed(tmp_path: Path) -> None:
    kept = [label(2, True, "mistake_step"), label(2, "why", "mistake_reason")]
    record = run(ASKED, SAID, SAID, extra={"agentpile": {"labels": kept, "x": 1}, "y": 2}, notes="n")
    (chain,), _ = read(tmp_path, record)
    before = copy.deepcopy(record)
    assert write(tmp_path, [chain]) == [record]
    changed = LabelledChain(chain.prompt, chain.steps, (1.0, 0.5), source="atif", meta=chain.meta)
    (again,) = write(tmp_path, [changed])
    assert record == before
    assert again["extra"].pop("agentpile")["labels"] == [
        kept[1], *({**label(number, value), "label_source": "prm"} for number, value in ((2, 1), (3, 0.5)))]
    assert again | {"extra": record["extra"]} == record
    (read_again,), _ = read(tmp_path, write(tmp_path, [changed])[0])
    assert read_again.labels == (1.0, 0.5)


@given(prompt=TEXTS, steps=st.lists(st.tuples(turns(), st.sampled_from([None, 0.0, 0.5, 1.0]),
                                              st.sampled_from([None, 0.0, 0.25])), min_size=1, max_size=4),
       outcome=st.sampled_from([None, True, False]), answer=st.one_of(st.none(), TEXTS))
def test_chains_from_elsewhere_come_back(tmp_path_factory, prompt, steps, outcome, answer) -> None:
    scores = tuple(score for _, _, score in steps)
    chain = LabelledChain(prompt, tuple(step for step, _, _ in steps), tuple(label for _, label, _ in steps), answer,
                          outcome, id="x", tools='[{"name": "look"}]',
                          scores=scores if any(score is not None for score in scores) else (), scorer="v")
    folder = tmp_path_factory.mktemp("atif")
    (found,), noted = read(folder, *write(folder, [chain]))
    assert (found.prompt, found.labels, found.answer, found.outcome, found.id, found.tools, found.scores) == (
        chain.prompt, chain.labels, answer, outcome, "x", chain.tools, chain.scores)
    assert [unnamed(step) for step in found.steps] == [unnamed(step) for step in chain.steps]
    assert set(noted) <= {"calls without a result"}


def test_a_model_s_scores_stand_in_each_step_s_extra(tmp_path: Path) -> None:
    before = {"prm": {"score": 0.5, "version": "old", "calibrated": True, "agent": "b"}, "x": 1}
    record = run(ASKED, {**SAID, "extra": before}, SAID, {**SAID, "extra": {"prm": {"score": 2}}})
    (chain,), _ = read(tmp_path, record)
    assert (chain.scores, chain.scorer, chain.labels) == ((0.5, None, None), "old", (None, None, None))
    assert write(tmp_path, [chain]) == [record]
    (again,) = write(tmp_path, [replace(chain, scores=(0.25, 0.75, None), scorer="new")])
    assert [step.get("extra") for step in again["steps"]] == [
        None, {"x": 1, "prm": {"agent": "b", "score": 0.25, "version": "new"}},
        {"prm": {"score": 0.75, "version": "new"}}, None]
    (read_again,), _ = read(tmp_path, again)
    assert (read_again.scores, read_again.scorer) == ((0.25, 0.75, None), "new")
    (chain,), _ = read(tmp_path, run({**SAID, "extra": {"prm": 1}}))
    with pytest.raises(InputError, match=r"step 1: extra is .*take it out"):
        write(tmp_path, [replace(chain, scores=(0.5,))])


@pytest.mark.parametrize(("record", "said"), [
    ({"steps": []}, "schema_version is null"),
    (run() | {"schema_version": "ATIF-v2.0"}, 'schema_version is "ATIF-v2.0", expected ATIF-v1.0'),
    (run() | {"steps": {}}, "field steps is {}"),
    (run() | {"steps": [{**ASKED, "step_id": 0}]}, "step 1 has the step_id 0, and steps are numbered from 1"),
    (run() | {"steps": [3]}, "step 1 has the step_id 3"),
    (run({"source": "tool", "message": "x"}), 'source is "tool"'),
    (run({**SAID, "message": 3}), "message is 3"),
    (run({**SAID, "tool_calls": [{"tool_call_id": "a"}]}), "a tool call is"),
    (run({**LOOKED, "observation": {"results": [result("x", "c")]}}), 'answers the call "c", and the step\'s calls are '
                                                                     "a, b"),
    (run({**SAID, "observation": {"results": [result("x", "c")]}}), "calls are none"),
    (run({**SAID, "observation": {}}, {**SAID, "observation": []}, {**SAID, "observation": [1]}), "observation is [1]"),
    (run(SAID, subagent_trajectories=[3]), "subagent_trajectories 0 is 3"),
    (run(SAID, extra=[]), "field extra is []"),
    (run({**SAID, "tool_calls": 3}), "field tool_calls is 3"),
    (run(SAID, extra={"agentpile": {"labels": [label(1, 7)]}}), "the label of step 1 is 7"),
    (run(SAID, extra={"agentpile": {"labels": [label(1, 1.5)]}}), "the label of step 1 is 1.5"),
    (run(SAID, extra={"agentpile": {"labels": [label(1, "no")]}}), 'the label of step 1 is "no"'),
])
def test_bad_records_are_named(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, record)
    assert said in str(error.value)
    assert "in.jsonl" in str(error.value)


@pytest.mark.parametrize("extra", [None, {"prm": {"agent": 3, "answer": [1]}}, {"agentpile": []}, {"prm": 1},
                                   {"agentpile": {"labels": 3}},
                                   {"agentpile": {"labels": [3, {}, {"target": {"kind": "step", "address": [1]}},
                                                             label([1], 1), label(1, "x", "other")],
                                                  "outcome": [True]}}])
def test_extras_of_others_are_theirs(tmp_path: Path, extra: Any) -> None:
    record = run(SAID, extra=extra)
    chains, _ = read(tmp_path, record)
    assert (chains[0].labels, chains[0].outcome, chains[0].answer) == ((None,), None, None)
    assert write(tmp_path, chains) == [record]


@pytest.mark.parametrize("theirs", [[], {"labels": 3}])
def test_labels_do_not_take_the_place_of_something_else(tmp_path: Path, theirs: Any) -> None:
    (chain,), _ = read(tmp_path, run(SAID, extra={"agentpile": theirs}))
    with pytest.raises(InputError, match=r"extra\.agentpile is"):
        write(tmp_path, [LabelledChain(chain.prompt, chain.steps, (1.0,), source="atif", meta=chain.meta)])


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    inner = {**run({"source": "user", "message": "F"}, SAID), "trajectory_id": "sub"}
    labels = {"agentpile": {"labels": [label(2, 1), label(3, True, "mistake_step")], "outcome": {"success": True}}}
    scored = {**SAID, "extra": {"prm": {"score": 0.5, "version": "v"}}}
    with_junk_is_taken_or_refused("atif", run(ASKED, LOOKED, scored, subagent_trajectories=[inner], extra=labels))
