"""Chat messages with labels: what `chat` holds, and that AgentProcessBench's three values stay three."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.formats import LabelledChain
from prm_core.turns import unnamed
from prm_core.types import Call, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused
from tests.builders.turns import TEXTS, turns

CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "Ann"}, {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "Ann."}]
TOOLS = [{"type": "function", "function": {"name": "look"}}]
CHAT = {"id": "r1", "messages": MESSAGES, "tools": TOOLS, "step_labels": {"1": 0, "4": 0.25},
        "step_scores": {"4": 0.5}, "scored_by": "v0", "cost": 3}
BENCH = {"total_index": 7, "question": "Who?", "messages": MESSAGES, "tools": TOOLS, "step_labels": {"1": 0, "4": -1},
         "final_label": -1}


@pytest.fixture
def chat(tmp_path: Path) -> Files:
    return Files("chat", tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Files:
    return Files("agentprocessbench", tmp_path)


@pytest.mark.parametrize(("neutral", "label"), [("right", 1.0), ("wrong", 0.0)])
def test_chat_messages_with_what_is_known_of_each(chat: Files, neutral: str, label: float) -> None:
    (chain,) = chat.read(CHAT, neutral=neutral)
    assert (chain.prompt, chain.id, chain.tools) == ("Who?", "r1", '[{"name": "look"}]')
    assert chain.steps == (Step("I look.", calls=(Call("look", "{}", "Ann", id="a"),), ref="1"), Step("Ann.", ref="4"))
    assert (chain.labels, chain.scores, chain.scorer) == ((label, 0.25), (None, 0.5), "v0")
    assert chat.noted == {"agent's turns without text or tool call left out": 1}
    assert chat.write(chain) == [CHAT]


def test_items_of_the_responses_api_are_named_by_the_first_of_a_turn(chat: Files) -> None:
    record = {"messages": [
        {"role": "user", "content": "Who?"}, {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Ann"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Ann."}]}],
        "step_labels": {"1": -1}}
    (chain,) = chat.read(record)
    assert ([step.ref for step in chain.steps], chain.labels) == (["1", "4"], (0.0, None))
    assert chat.write(chain) == [record]
    with pytest.raises(InputError, match=r'names message "2", which begins no assistant.s turn; those are 1, 4'):
        chat.read(record | {"step_labels": {"2": 1}})


def test_labels_and_scores_that_change_are_written_by_index(chat: Files) -> None:
    (chain,) = chat.read(CHAT)
    (again,) = chat.write(replace(chain, labels=(1.0, 0.0), scores=(0.75, None), scorer="v1"))
    assert again == CHAT | {"step_labels": {"1": 0, "4": -1}, "step_scores": {"1": 0.75}, "scored_by": "v1"}
    (bare,) = chat.write(replace(chain, labels=(None, None), scores=(), scorer=""))
    assert bare == {name: CHAT[name] for name in ("id", "messages", "tools", "cost")} | {"step_labels": {}}


def test_a_label_of_a_message_that_says_nothing_is_counted_and_comes_back(chat: Files, bench: Files) -> None:
    for files, record in ((chat, CHAT), (bench, BENCH)):
        record = record | {"step_labels": {"3": -1, "4": 1}}
        (chain,) = files.read(record)
        assert chain.labels == (None, 1.0)
        assert files.noted["labels of messages without text or tool call left out"] == 1
        assert files.write(chain) == [record]


@pytest.mark.parametrize("neutral", ["right", "wrong"])
def test_three_values_stay_three(bench: Files, neutral: str) -> None:
    (chain,) = bench.read(BENCH, neutral=neutral)
    assert chain.labels == ({"right": 1.0, "wrong": 0.0}[neutral], 0.0)
    assert bench.write(chain) == [BENCH]
    # A neutral rating stays where the label is still what it was read as, and beside scores.
    (again,) = bench.write(replace(chain, labels=(chain.labels[0], 1.0), scores=(0.25, 0.75), scorer="v1"))
    assert again == BENCH | {"step_labels": {"1": 0, "4": 1}, "step_scores": {"1": 0.25, "4": 0.75}, "scored_by": "v1"}
    (back,) = bench.read(again, neutral=neutral)
    assert (back.id, back.scores, back.scorer) == ("7", (0.25, 0.75), "v1")


LABELS = st.sampled_from([None, 0.0, 1.0])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=TEXTS, steps=st.lists(st.tuples(turns(roles=("user", "system")), LABELS, st.sampled_from([None, 0.25])),
                                    min_size=1, max_size=4))
@pytest.mark.parametrize("name", ["chat", "agentprocessbench"])
def test_chains_from_elsewhere_come_back(name: str, tmp_path: Path, prompt: str, steps: list[Any]) -> None:
    files = Files(name, tmp_path)
    scores = tuple(score for _, _, score in steps)
    chain = LabelledChain(prompt, tuple(step for step, _, _ in steps), tuple(label for _, label, _ in steps),
                          tools='[{"name": "look"}]', scores=scores if any(scores) else (),
                          scorer="v" if any(scores) else "")
    (back,) = files.read(*files.write(chain))
    assert [unnamed(step) for step in back.steps] == [unnamed(step) for step in chain.steps]
    assert (back.prompt, back.labels, back.tools, back.scores, back.scorer) == (
        prompt, chain.labels, chain.tools, chain.scores, chain.scorer)


@pytest.mark.parametrize(("change", "said"), [
    ({"messages": 3}, "field messages is 3"), ({"messages": MESSAGES[:1]}, "there is no assistant message"),
    ({"messages": MESSAGES[:1] + MESSAGES[3:4]}, "no assistant message has text or a tool call"),
    ({"step_labels": {"0": 1}}, 'names message "0", which begins no assistant'),
    ({"step_labels": [1]}, "step_labels is"), ({"step_labels": {"1": 7}}, "step_labels 1 is 7"),
    ({"step_labels": {"1": 1.5}}, "step_labels 1 is 1.5"),
    ({"tools": 3}, "tools is 3")])
def test_bad_records_are_named(chat: Files, change: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:1: .*{said}"):
        chat.read({name: value for name, value in CHAT.items() if name != "step_labels"} | change)


@pytest.mark.parametrize(("name", "record"), [("chat", CHAT), ("agentprocessbench", BENCH)])
def test_junk_anywhere_is_taken_or_refused_in_words(name: str, record: Any) -> None:
    with_junk_is_taken_or_refused(name, record)
