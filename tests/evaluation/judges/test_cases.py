"""Cases of labelled files and of a workspace, and which are taken."""

from __future__ import annotations

import json
import logging

import pytest

from prm_core.domains.errands.tools import definitions
from prm_core.errors import InputError
from prm_core.evaluation.judges.cases import TRAJECTORIES, read, some
from prm_core.platform import store
from prm_core.types import Problem, Step, Trajectory
from tests.builders import errands
from tests.builders.judges import case

SAID = Step("4")
MESSAGES = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "4"}, {"role": "assistant", "content": "4"}]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_file_of_agents(tmp_path, caplog) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    rows = [{"messages": MESSAGES, "tools": tools, "step_labels": {"1": 0, "3": -1}, "query_index": 7,
             "data_source": "x", "total_index": 3},
            {"messages": MESSAGES, "tools": [], "step_labels": {}, "query_index": 8}]
    with caplog.at_level(logging.WARNING):
        found = read(write(tmp_path / "a.jsonl", rows), "agentprocessbench", "test-base")
    assert [(one.id, one.problem, one.gold, one.first_error) for one in found] == [("0:3", "x:7", (True, False), 1)]
    # Reward models read the tools with the question; rules and language models get both apart.
    assert found[0].prompt == "How much?"
    assert found[0].asked.startswith("How much?\n\nTools: ")
    assert json.loads(found[0].tools)
    assert "1 chains without any label left out" in caplog.text


def test_soft_labels_and_none(tmp_path) -> None:
    rows = [{"prompt": "Q", "completions": ["a", "b", "c"], "labels": [0.5, -100, 0.4]}]
    found = read(write(tmp_path / "a.jsonl", rows), "trl", "")
    assert (found[0].gold, found[0].first_error) == ((True, None, False), None)


def workspace(root, problems, runs):
    (root / "data").mkdir(parents=True)
    store.write_jsonl(root / "data/test.jsonl", problems)
    store.write_shard(root / TRAJECTORIES, 0, Trajectory, runs)
    return root


def run(name, steps, of):
    return Trajectory(name, of.id, "policy", tuple(steps), None, None, 0, tools=definitions())


def test_a_workspace_is_judged_by_the_oracle_up_to_the_first_error(tmp_path, caplog) -> None:
    of = errands.problem()
    worked = errands.run(of, errands.WORKED)
    wrong = errands.run(of, [errands.ASK, errands.LOOK, errands.SEARCH, errands.IMPOSSIBLE])
    root = workspace(tmp_path / "w", [of], [
        run("test-base/p/0", worked, of), run("test-base/p/1", wrong, of), run("test-base/p/2", [], of),
        run("test-trained/p/0", worked, of)])
    found = read(root, "", "test-base")
    assert [(one.id, one.first_error) for one in found] == [("test-base/p/0", -1), ("test-base/p/1", 1)]
    assert found[1].gold == (True, False, None, None)
    # As the models of the chain were trained: the tools stand apart.
    assert found[0].asked == found[0].prompt == of.prompt
    assert found[0].tools == definitions()
    assert "1 trajectories without a step left out" in caplog.text
    with pytest.raises(InputError, match="no trajectories test-other with a step; there are test-base, test-trained"):
        read(root, "", "test-other")


def test_what_a_workspace_lacks(tmp_path) -> None:
    with pytest.raises(InputError, match=r"has no artifacts/evaluate/trajectories; name a file of labelled chains, or"):
        read(tmp_path, "", "test-base")
    other = Problem("q", "general", "Q?", "1")
    root = workspace(tmp_path / "w", [other], [run("test-base/q/0", [Step("1")], other)])
    with pytest.raises(InputError, match=r"test-base/q/0 is of domain general, whose steps no oracle judges"):
        read(root, "", "test-base")
    store.write_jsonl(root / "data/test.jsonl", [Problem("r", "general", "Q?", "1")])
    with pytest.raises(InputError, match=r"test-base/q/0 is of no problem in data/test.jsonl"):
        read(root, "", "test-base")


def test_the_first_of_each_problem_comes_before_any_second() -> None:
    cases = [case([SAID], id=name, problem=name[0]) for name in ("a0", "a1", "a2", "b0", "b1", "c0")]

    def taken(*args):
        return " ".join(one.id for one in some(cases, *args))

    assert taken(0) == "a0 a1 a2 b0 b1 c0"
    assert taken(4) == "a0 a1 b0 c0"
    assert taken(0, 2) == "a0 a1 b0 b1 c0"
    assert taken(2, 1) == "a0 b0"
