"""The flow that checks served traffic on a schedule, and its deployment."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.logging import disable_run_logger
from prefect.states import State

from flows import drift as flow
from prm_core.config import read_yaml
from prm_core.errors import InputError
from prm_core.platform import workspace
from tests import ROOT


class Found(SimpleNamespace):
    def __str__(self) -> str:
        return "what was found"


def run(monkeypatch: pytest.MonkeyPatch, root: Path, found: Found | Exception) -> State:
    def check(where: Path, model: str, since: str | None):
        assert (where, model, since) == (workspace.locate(root, "smoke"), "models:/prm/3", "1h")
        if isinstance(found, Exception):
            raise found
        return found, 0

    monkeypatch.setattr(flow, "check_window", check)
    monkeypatch.setattr(flow.environment, "project_root", lambda: root)
    with disable_run_logger():
        return flow.drift.fn("models:/prm/3", "1h", "smoke")


@pytest.mark.parametrize(("found", "type", "name", "message"), [
    (Found(alarm=None), "COMPLETED", "Completed", "what was found"),
    (Found(alarm="tools"), "FAILED", "Drifted", "what was found"),
    (workspace.InUse("another one"), "COMPLETED", "Skipped", "another one"),
    (InputError("no such model"), "FAILED", "Bad input", "no such model")])
def test_a_run_says_what_was_found(monkeypatch, tmp_path, found, type, name, message) -> None:
    state = run(monkeypatch, tmp_path, found)
    assert (state.type.value, state.name, state.message) == (type, name, message)


def test_the_deployment_names_the_flow_and_parameters_it_has_and_starts_off() -> None:
    (deployment,) = [one for one in read_yaml(ROOT / "prefect.yaml")["deployments"] if one["name"] == "drift"]
    assert deployment["entrypoint"] == "flows/drift.py:drift"
    given = inspect.signature(flow.drift.fn).parameters
    assert {name: given[name].default for name in given} == deployment["parameters"]
    assert [one["active"] for one in deployment["schedules"]] == [False]
