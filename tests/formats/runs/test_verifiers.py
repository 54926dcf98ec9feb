"""verifiers' graphs of messages: a chain for each leaf, shared steps labelled once, credit for each sampled token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused


def node(parent: int | None, role: str, content: str | None, *, sampled: bool = False, **more: Any) -> dict[str, Any]:
    message = {"role": role, "content": content, **{name: more.pop(name) for name in ("tool_calls", "tool_call_id")
                                                    if name in more}}
    tokens = {"token_ids": [1, 2, 3], "mask": [False, True, True]} if sampled else {}
    return {"parent": parent, "message": message, "sampled": sampled, "advantages": None, **tokens, **more}


RAW = '{"q":"x"'
GRAPH = {"version": 1, "id": "t", "info": {"x": 1}, "nodes": [
    node(None, "user", "Who?", tools=[{"type": "function", "name": "look"}]),
    node(0, "assistant", "I look.", sampled=True, tool_calls=[{"id": "a", "name": "look", "arguments": RAW}]),
    node(1, "tool", "1", tool_call_id="a"),
    node(2, "assistant", "Ann.", sampled=True),
    node(2, "assistant", "As I said.", sampled=False),
    node(4, "user", "Go on."),
    node(5, "assistant", "Bo.", sampled=True, mask=[])]}
LOOKED = Step("I look.", calls=(Call("look", RAW, "1", id="a"),), ref="1")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("verifiers", tmp_path)


def test_each_leaf_ends_a_chain(files: Files) -> None:
    first, second = files.read(GRAPH)
    assert (first.id, second.id, first.prompt, second.prompt) == ("t/3", "t/6", "Who?", "Who?")
    assert (first.parent, second.parent) == ("", "t/3/1")
    assert first.steps == (LOOKED, Step("Ann.", ref="3"))
    # What no model sampled is context.
    assert second.steps == (replace(LOOKED, context=(Message("agent", "As I said."), Message("user", "Go on."))),
                            Step("Bo.", ref="6"))
    assert first.tools == '[{"type": "function", "name": "look"}]'
    assert files.noted == {"agent's messages that no model sampled, read as context": 1}
    assert files.write(first, second) == [GRAPH]


def test_shared_steps_are_labelled_once_and_tokens_get_credit(files: Files) -> None:
    labelled = GRAPH | {"info": {"prm": {"labels": {"1": 0, "3": -1, "6": 0.75}}}}
    first, second = files.read(labelled, neutral="right")
    assert (first.labels, second.labels) == ((1.0, 0.0), (None, 0.75))
    assert files.write(first, second) == [labelled]
    (again,) = files.write(replace(first, labels=(1.0, 1.0)), second)
    assert again["info"] == {"prm": {"labels": {"1": 0, "3": 1, "6": 0.75}}}
    # Of labels where there is no score; the sampled tokens alone.
    assert [one["advantages"] for one in again["nodes"]] == [None, [1.0, 1.0], None, [1.0, 1.0], None, None, None]
    assert files.noted == {"sampled messages without tokens, whose credit has no place": 1}
    scored = files.write(replace(first, scores=(0.75, 0.5), scorer="v1"),
                         replace(second, scores=(0.75, None), scorer="v1"))
    assert scored[0]["info"]["prm"] == {"labels": {"1": 0, "3": -1, "6": 0.75}, "scores": {"1": 0.75, "3": 0.5},
                                        "version": "v1"}
    assert [one["advantages"] for one in scored[0]["nodes"]][1:4] == [[0.5, 0.5], None, [0.0, 0.0]]
    back = files.read(*scored)
    assert [(chain.labels, chain.scores, chain.scorer) for chain in back] == [
        ((1.0, 0.0), (0.75, 0.5), "v1"), ((None, 0.75), (0.75, None), "v1")]
    assert files.write(*back) == scored


def test_a_branch_without_a_step_is_counted(files: Files) -> None:
    assert files.read(GRAPH | {"nodes": GRAPH["nodes"][:1]}) == []
    assert files.noted == {"branches without a sampled message left out": 1}
    (chain,) = files.read(GRAPH | {"nodes": GRAPH["nodes"][:2]})
    assert chain.id == "t"
    with pytest.raises(InputError, match="verifiers holds graphs of tokens, which only its own chains are"):
        files.write(replace(chain, source="chat"))


@pytest.mark.parametrize(("record", "said"), [
    ({"id": "t"}, "field nodes is missing"), ({"nodes": [3]}, "node 0 is 3"),
    ({"nodes": [node(0, "user", "x")]}, "node 0 has the parent 0, expected the index of a node before it"),
    ({"nodes": [node(None, "user", "x"), node(2, "assistant", "x"), node(1, "user", "x")]}, "node 1 has the parent 2"),
    (GRAPH | {"info": {"prm": {"labels": {"1": 7}}}}, "the label of node 1 is 7"),
])
def test_bad_graphs_are_named(files: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:1.*{said}"):
        files.read(record)


def test_scores_do_not_take_the_place_of_something_else(files: Files) -> None:
    (chain,) = files.read(GRAPH | {"nodes": GRAPH["nodes"][:2], "info": {"prm": 3}})
    with pytest.raises(InputError, match=r"trace t: info is .*take it out"):
        files.write(replace(chain, scores=(0.5,)))


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    with_junk_is_taken_or_refused("verifiers", GRAPH)
