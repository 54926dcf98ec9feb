"""SWE-agent's and mini-swe-agent's files: what is a step, what the shell said, and where labels and scores stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused

MESSAGES = [
    {"role": "system", "content": "A shell."}, {"role": "user", "content": "Fix it."},
    {"role": "assistant", "content": "```\nls\n```", "extra": {"actions": [{"command": "ls"}], "cost": 0.1}},
    {"role": "user", "content": "<returncode>0</returncode>", "extra": {"returncode": 0}},
    {"role": "user", "content": "Stop that.", "extra": {"interrupt_type": "UserInterruption"}},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "bash", "arguments": '{"command": "pwd"}'}}]},
    {"role": "tool", "tool_call_id": "a", "content": "/"},
    {"role": "exit", "content": "done", "extra": {"exit_status": "Submitted", "submission": "patch"}}]
MINI = {"info": {"exit_status": "Submitted"}, "messages": MESSAGES, "trajectory_format": "mini-swe-agent-1.1"}
SWE = {
    "environment": "main", "info": {"exit_status": "submitted"},
    "history": [{"role": "system", "content": "A shell.", "agent": "main"},
                {"role": "user", "content": "Watch me.", "is_demo": True},
                {"role": "assistant", "content": "x", "is_demo": True},
                {"role": "user", "content": [{"type": "text", "text": "Fix it."}]},
                {"role": "assistant", "content": "I look.\n```\nls\n```"}, {"role": "user", "content": "a.py"}],
    "trajectory": [
        {"response": "I look.\n```\nls\n```", "thought": "I look.", "action": "ls\n", "observation": "a.py",
         "state": {}, "query": [], "extra_info": {"x": 1}},
        {"response": "I look inside.", "thought": "I look inside.", "action": "cat a.py", "observation": ""},
        {"response": "", "thought": "", "action": "", "observation": "nothing"},
        {"response": "Done.", "action": "", "observation": "ok"}]}


@pytest.fixture
def mini(tmp_path: Path) -> Files:
    return Files("mini_swe_agent", tmp_path)


@pytest.fixture
def swe(tmp_path: Path) -> Files:
    return Files("swe_agent", tmp_path)


@pytest.mark.parametrize("records", [[MINI], MESSAGES], ids=["whole", "messages alone"])
def test_what_the_shell_said_is_an_observation(mini: Files, records: list[Any]) -> None:
    (chain,) = mini.read(*records)
    assert chain.prompt == "A shell.\n\nFix it."
    assert chain.steps == (
        Step("```\nls\n```", "<returncode>0</returncode>", context=(Message("user", "Stop that."),), ref="2"),
        Step("", calls=(Call("bash", '{"command": "pwd"}', "/", id="a"),), ref="5"))
    assert mini.noted == {"messages that end a run left out": 1}
    assert mini.write(chain) == records


@pytest.mark.parametrize("records", [[MINI], MESSAGES], ids=["whole", "messages alone"])
def test_labels_and_scores_stand_in_a_message_s_extra(mini: Files, records: list[Any]) -> None:
    (chain,) = mini.read(*records)
    again = mini.write(replace(chain, labels=(0.0, None), scores=(0.25, 0.75), scorer="v1"))
    (back,) = mini.read(*again)
    assert (back.labels, back.scores, back.scorer) == ((0.0, None), (0.25, 0.75), "v1")
    messages = again[0]["messages"] if len(again) == 1 else again
    assert messages[2]["extra"] == MESSAGES[2]["extra"] | {"prm": {"label": -1, "score": 0.25, "version": "v1"}}
    assert messages[5]["extra"] == {"prm": {"score": 0.75, "version": "v1"}}
    assert mini.write(replace(back, labels=(None, None), scores=(), scorer=""))[0].keys() == records[0].keys()


def test_a_neutral_rating_stays(mini: Files) -> None:
    rated = [*MESSAGES[:2], MESSAGES[2] | {"extra": {"prm": {"label": 0}}}, *MESSAGES[3:]]
    (chain,) = mini.read(*rated, neutral="wrong")
    assert chain.labels == (0.0, None)
    assert mini.write(replace(chain, scores=(0.5, None)))[2]["extra"]["prm"] == {
        "label": 0, "score": 0.5, "version": ""}
    assert mini.write(replace(chain, labels=(1.0, None)))[2]["extra"]["prm"] == {"label": 1}


def test_what_a_model_wrote_holds_its_action_or_calls_it(swe: Files) -> None:
    (chain,) = swe.read(SWE)
    assert chain.prompt == "A shell.\n\nFix it."
    assert chain.steps == (
        Step("I look.\n```\nls\n```", "a.py", ref="0"),
        Step("I look inside.", calls=(Call("action", "cat a.py", ""),), ref="1"), Step("Done.", "ok", ref="3"))
    assert swe.noted == {"messages that demonstrate another run left out": 2,
                         "agent's turns without text or tool call left out": 1}
    assert swe.write(chain) == [SWE]


def test_labels_and_scores_stand_in_a_step_s_extra_info(swe: Files) -> None:
    (chain,) = swe.read(SWE)
    (again,) = swe.write(replace(chain, labels=(1.0, None, 0.5), scores=(0.25, None, 0.75), scorer="v1"))
    assert [item.get("extra_info") for item in again["trajectory"]] == [
        {"x": 1, "prm": {"label": 1, "score": 0.25, "version": "v1"}}, None, None,
        {"prm": {"label": 0.5, "score": 0.75, "version": "v1"}}]
    (back,) = swe.read(again)
    assert (back.labels, back.scores, back.scorer) == ((1.0, None, 0.5), (0.25, None, 0.75), "v1")
    assert swe.write(back) == [again]


@pytest.mark.parametrize(("record", "said"), [
    ({"messages": 3}, "field messages is 3"), ({"info": {}}, "field messages is missing"),
    (MINI | {"messages": MESSAGES[:2]}, "there is no assistant message"),
    (MINI | {"messages": [{"role": "robot", "content": "x"}]}, 'has the role "robot"'),
    (MINI | {"messages": [{"role": "assistant", "content": "x", "extra": {"prm": {"label": 7}}}]},
     "the label of step 0 is 7"),
])
def test_bad_runs_of_mini_swe_agent_are_named(mini: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl.*{said}"):
        mini.read(record)


@pytest.mark.parametrize(("record", "said"), [
    ({"history": []}, "field trajectory is missing"), ({"trajectory": [3]}, "trajectory 0 is 3"),
    ({"trajectory": [{"response": 3}]}, "trajectory 0: field response is 3"),
    ({"trajectory": [], "history": [3]}, "history 0 is 3"),
])
def test_bad_runs_of_swe_agent_are_named(swe: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl.*{said}"):
        swe.read(record)


def test_scores_do_not_take_the_place_of_something_else(mini: Files) -> None:
    (chain,) = mini.read(MINI | {"messages": [{"role": "assistant", "content": "x", "extra": {"prm": [1]}}]})
    with pytest.raises(InputError, match=r"step 0: extra is .*take it out"):
        mini.write(replace(chain, scores=(0.5,)))


def test_a_run_without_steps_is_counted_and_others_are_refused(swe: Files, mini: Files) -> None:
    assert swe.read(SWE | {"trajectory": []}) == []
    assert swe.noted["runs without an agent's step left out"] == 1
    (chain,) = swe.read(SWE)
    for files in (mini, swe):
        with pytest.raises(InputError, match="holds runs in a shell, which only its own chains are"):
            files.write(replace(chain, source="chat"))


@pytest.mark.parametrize(("name", "record"), [("mini_swe_agent", MINI), ("swe_agent", SWE)])
def test_junk_anywhere_is_taken_or_refused_in_words(name: str, record: Any) -> None:
    with_junk_is_taken_or_refused(name, record)
