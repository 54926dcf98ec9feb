"""Inspect's logs: a chain for each sample, long texts in their places, labels and scores as intermediate events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused

CALL = {"id": "a", "function": "look", "arguments": {"q": "x"}, "type": "function"}
SAMPLE = {
    "id": "s", "epoch": 2, "input": "Who?", "target": "Ann", "attachments": {"f00": "A very long text."},
    "messages": [
        {"id": "m0", "role": "user", "content": "attachment://f00"},
        {"id": "m1", "role": "assistant", "content": [{"type": "reasoning", "reasoning": "hm"},
                                                      {"type": "text", "text": "I look."}], "tool_calls": [CALL]},
        {"id": "m2", "role": "tool", "tool_call_id": "a", "function": "look", "content": "down",
         "error": {"type": "timeout", "message": "down"}},
        {"id": "m3", "role": "assistant", "content": "Ann."}],
    "scores": {"match": {"value": "C"}},
    "events": [{"event": "model", "tools": [{"name": "look"}]},
               {"event": "score", "intermediate": True, "scorer": "other", "score": {"value": 1}}]}
BRIEF = {"id": 1, "epoch": 1, "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
         "transcript": {"events": [], "content": {}}, "scores": {"a": {"value": "I"}, "b": {"value": 1}}}
LOG = {"version": 2, "status": "success", "eval": {"task": "t"}, "samples": [SAMPLE, BRIEF]}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("inspect", tmp_path)


def test_each_sample_is_a_chain(files: Files) -> None:
    first, second = files.read(LOG)
    assert (first.id, first.prompt, first.answer, first.outcome, first.tools) == (
        "s/2", "A very long text.", "Ann", True, '[{"name": "look"}]')
    assert first.steps == (
        Step("I look.", reasoning="hm", calls=(Call("look", '{"q": "x"}', "down", True, "a"),), ref="m1"),
        Step("Ann.", ref="m3"))
    # Messages of older logs have no ids, and two scorers may say two things.
    assert (second.id, second.steps, second.answer, second.outcome) == ("1/1", (Step("A", ref="1"),), None, None)
    assert not files.noted
    assert files.write(first, second) == [LOG]


def test_labels_and_scores_are_intermediate_score_events(files: Files) -> None:
    first, second = files.read(LOG)
    (again,) = files.write(replace(first, labels=(None, 0.0), scores=(0.25, 0.75), scorer="v1"),
                           replace(second, scores=(0.5,), scorer="v1"))
    assert again["samples"][0]["events"] == [
        *SAMPLE["events"],
        {"event": "score", "intermediate": True, "scorer": "step_label",
         "score": {"value": 0.0, "metadata": {"message": "m3"}}},
        *({"event": "score", "intermediate": True, "scorer": "prm_step",
           "score": {"value": value, "metadata": {"message": ref, "version": "v1"}}}
          for ref, value in (("m1", 0.25), ("m3", 0.75)))]
    assert len(again["samples"][1]["transcript"]["events"]) == 1
    back = files.read(again)
    assert [(chain.labels, chain.scores, chain.scorer) for chain in back] == [
        ((None, 0.0), (0.25, 0.75), "v1"), ((None,), (0.5,), "v1")]
    assert files.write(*back) == [again]
    bare = [replace(chain, labels=(None,) * len(chain.steps), scores=(), scorer="") for chain in back]
    assert files.write(*bare) == [LOG]


def test_what_is_left_out_is_counted(files: Files) -> None:
    empty = SAMPLE | {"messages": SAMPLE["messages"][:1], "attachments": {}}
    assert files.read({"eval": {}, "samples": None}, {"eval": {}, "samples": [empty]}) == []
    assert files.noted == {"logs without samples left out": 1, "texts that the log names and does not hold": 1,
                           "samples without an answer of the model left out": 1}


@pytest.mark.parametrize(("record", "said"), [
    ({"samples": []}, "field eval is missing"), (LOG | {"samples": 3}, "field samples is 3"),
    (LOG | {"samples": [3]}, "sample 0 is 3"),
    (LOG | {"samples": [SAMPLE | {"messages": [{"role": "x"}]}]}, 'sample 0: message 0 has the role "x"'),
    (LOG | {"samples": [SAMPLE | {"events": [{"event": "score", "intermediate": True, "scorer": "step_label", "score": {
        "value": 7, "metadata": {"message": "m1"}}}]}]}, "sample 0: the label of message m1 is 7"),
])
def test_bad_logs_are_named(files: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:1.*{said}"):
        files.read(record)


def test_other_chains_are_no_log(files: Files) -> None:
    first, _ = files.read(LOG)
    with pytest.raises(InputError, match="inspect is a log, which only its own chains have"):
        files.write(replace(first, source="atif"))


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    with_junk_is_taken_or_refused("inspect", LOG)
