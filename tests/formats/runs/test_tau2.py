"""tau2-bench: what the agent heard and did not, and a review's errors as labels of its turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.types import Call, Message, Step
from tests.builders.formats import Files, with_junk_is_taken_or_refused


def message(turn: int, role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, "turn_idx": turn, "cost": 0.1, **more}


def calls(*ids: str, by: str = "assistant") -> dict[str, Any]:
    return {"tool_calls": [{"id": id, "name": "look", "arguments": {"q": id}, "requestor": by} for id in ids]}


def back(turn: int, id: str, said: str | None, by: str = "assistant", *, error: bool = False) -> dict[str, Any]:
    return {"id": id, "role": "tool", "content": said, "requestor": by, "error": error, "turn_idx": turn}


def error(source: str, turn: int | None, severity: str | None = "critical") -> dict[str, Any]:
    return {"source": source, "turn_idx": turn, "severity": severity, "error_tags": ["x"], "reasoning": "why"}


RUN = {
    "id": "s1", "task_id": "7", "reward_info": {"reward": 1.0}, "review": None,
    "messages": [
        message(0, "assistant", "Hello!"), message(1, "user", "Fix it."),
        message(2, "assistant", None, **calls("a", "b")),
        {"role": "tool", "tool_messages": [back(3, "b", "2", error=True), back(4, "a", None)]},
        message(5, "assistant", "Restart it."), message(6, "user", None, **calls("u", by="user")),
        back(7, "u", "restarted", by="user"), message(8, "user", "Done."), message(9, "assistant", "Good.")]}
RESULTS = {"info": {"environment_info": {"policy": "Be kind."}}, "tasks": [], "simulations": [RUN]}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("tau2", tmp_path)


def test_what_the_agent_said_and_heard(files: Files) -> None:
    (chain,) = files.read(RESULTS)
    assert (chain.prompt, chain.id, chain.outcome, chain.labels) == ("Be kind.", "s1", True, (None,) * 4)
    assert chain.steps == (
        Step("Hello!", context=(Message("user", "Fix it."),), ref="0"),
        Step("", calls=(Call("look", '{"q": "a"}', "", id="a"), Call("look", '{"q": "b"}', "2", True, "b")), ref="2"),
        Step("Restart it.", context=(Message("user", "Done."),), ref="4"), Step("Good.", ref="8"))
    assert files.noted == {"calls of the user's own tools left out": 1, "results of the user's own tools left out": 1}
    assert files.write(chain) == [RESULTS]
    (alone,) = files.read(RUN)
    assert (alone.prompt, alone.steps) == ("", chain.steps)
    assert files.write(alone) == [RUN]


@pytest.mark.parametrize(("errors", "labels", "noted"), [
    ([], (1.0, 1.0, 1.0, 1.0), {}),
    # Messages are named by their turn, not their index.
    ([error("agent", 5)], (1.0, 1.0, 0.0, 1.0), {}),
    ([error("agent", 5, "minor"), error("agent", 9, None)], (1.0, 1.0, 0.5, 0.0), {}),
    ([error("agent", 5), error("agent", 5, "minor")], (1.0, 1.0, 0.0, 1.0), {}),
    ([error("user", 8)], (1.0, 1.0, 1.0, 1.0), {"errors of the user left out": 1}),
    ([error("unknown", 9)], (1.0, 1.0, 1.0, None), {}),
    ([error("agent", None), error("agent", 5)], (None, None, 0.0, None),
     {"errors that name no turn of the agent's left out": 1}),
])
def test_errors_of_a_review_are_labels(files: Files, errors: list[Any], labels: Any, noted: Any) -> None:
    record = RUN | {"review": {"errors": errors}}
    (chain,) = files.read(record, neutral="right")
    assert chain.labels == tuple(1.0 if label == 0.5 else label for label in labels)
    assert {name: count for name, count in files.noted.items() if "own tools" not in name} == noted
    (chain,) = files.read(record, neutral="wrong")
    assert chain.labels == tuple(0.0 if label == 0.5 else label for label in labels)


def test_scores_stand_beside_the_messages(files: Files) -> None:
    for record in (RESULTS, RUN):
        (chain,) = files.read(record)
        (again,) = files.write(replace(chain, scores=(None, 0.25, 0.5, 0.75), scorer="v1"))
        run = again.get("simulations", [again])[0]
        assert run == RUN | {"step_scores": {"2": 0.25, "4": 0.5, "8": 0.75}, "scored_by": "v1"}
        (back,) = files.read(again)
        assert (back.scores, back.scorer) == ((None, 0.25, 0.5, 0.75), "v1")
        assert files.write(replace(back, scores=(), scorer="")) == [record]


def test_labels_are_the_reviewer_s(files: Files) -> None:
    (chain,) = files.read(RUN)
    with pytest.raises(InputError, match="labels as its reviewer gave them; write chat or atif"):
        files.write(replace(chain, labels=(1.0,) * 4))


def test_speech_is_counted(files: Files) -> None:
    assert files.read(RUN | {"messages": None, "ticks": [{}]}) == []
    assert files.noted == {"runs without an agent's message, as of speech, left out": 1}


@pytest.mark.parametrize(("record", "said"), [
    ({"task_id": "7"}, "field messages is missing"), ({"simulations": 3}, "field simulations is 3"),
    ({"simulations": [3]}, "simulation 0 is 3"), (RUN | {"messages": [3]}, "message 0 is 3"),
    (RUN | {"review": {"errors": [error("judge", 1)]}}, "review: an error is"),
    (RUN | {"review": 3}, "field review is 3"),
])
def test_bad_runs_are_named(files: Files, record: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"in\.jsonl:1.*{said}"):
        files.read(record)


def test_junk_anywhere_is_taken_or_refused_in_words() -> None:
    reviewed = RUN | {"review": {"errors": [error("agent", 5)]}}
    with_junk_is_taken_or_refused("tau2", RESULTS | {"simulations": [reviewed]})
