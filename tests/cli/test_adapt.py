"""`prm adapt`, `prm outcome` and `prm forget`: what they say, and how they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prm_core.cli.app import app
from prm_core.errors import InputError
from prm_core.serving.drift.outcomes import read_outcomes, trajectory_id
from prm_core.types import Step
from tests import ROOT


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def run(workspace: Path, *arguments: str):
    return CliRunner().invoke(app, [*arguments, "--workspace", str(workspace)])


def test_outcomes_of_a_file_are_noted_all_or_none(workspace: Path) -> None:
    file = workspace / "ended.jsonl"
    good = {"prompt": "q", "steps": ["a"], "success": True, "reporter": "agent"}
    file.write_text("\n".join(map(json.dumps, [good, {"trajectory_id": f"served-{1:016x}", "success": "yes"}])))
    refused = run(workspace, "outcome", str(file))
    assert isinstance(refused.exception, InputError)
    assert f"{file}:2: `success` must be true or false" in str(refused.exception)
    assert read_outcomes(workspace / "served") == []
    file.write_text(json.dumps(good))
    assert "1 outcomes noted" in run(workspace, "outcome", str(file)).output
    (told,) = read_outcomes(workspace / "served")
    assert (told.trajectory, told.success, told.reporter) == (trajectory_id("q", [Step("a")]), True, "agent")


@pytest.mark.parametrize(("record", "reason"), [
    ({"trajectory_id": "served-1", "success": True}, "must be an id"),
    # More than a float holds, and less than leaves its inverse one.
    ({"prompt": "q", "steps": ["a"], "success": True, "chance": 10**400}, "`chance` must be a number from 1e-06 to 1"),
    ({"prompt": "q", "steps": ["a"], "success": True, "chance": 1e-320}, "`chance` must be a number from 1e-06 to 1"),
    ({"prompt": "q", "steps": ["a"], "success": True, "reporter": "a" * 201}, "at most 200 characters, found 'aaa"),
])
def test_an_outcome_that_is_none_is_named_in_a_line(workspace: Path, record, reason) -> None:
    file = workspace / "ended.jsonl"
    file.write_text(json.dumps(record))
    refused = run(workspace, "outcome", str(file))
    assert isinstance(refused.exception, InputError)
    assert reason in str(refused.exception)
    assert len(str(refused.exception)) < len(str(file)) + 200
    assert not (workspace / "served").exists()


def test_outcomes_of_what_was_withdrawn_are_left_out_and_counted(workspace: Path) -> None:
    gone, other = (f"served-{number:016x}" for number in (1, 2))
    run(workspace, "forget", "--trajectory", gone)
    file = workspace / "ended.jsonl"
    file.write_text("".join(json.dumps({"trajectory_id": one, "success": True}) + "\n" for one in (gone, other)))
    assert "1 outcomes noted; 1 of trajectories that were withdrawn" in run(workspace, "outcome", str(file)).output
    assert [one.trajectory for one in read_outcomes(workspace / "served")] == [other]


def test_without_a_champion_nothing_is_adapted(workspace: Path) -> None:
    refused = run(workspace, "adapt")
    assert isinstance(refused.exception, InputError)
    assert "prm promote" in str(refused.exception)
    assert "no round has registered a version yet" in run(workspace, "adapt", "lineage").output


def test_forgetting_takes_a_name_and_says_what_it_came_to(workspace: Path) -> None:
    nothing = run(workspace, "forget")
    assert isinstance(nothing.exception, InputError)
    assert "--trajectory ID" in str(nothing.exception)
    assert "nothing was kept of it. no version was trained on it" in run(workspace, "forget", "--person", "ann").output
    assert json.loads((workspace / "served/withdrawn.json").read_text())["people"] == ["ann"]
