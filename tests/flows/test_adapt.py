"""The flow that adapts the served model on a schedule, and its deployment."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from flows import adapt as flow
from prm_core.adaptation.loop import PROMOTED, REFUSED, WAITING, Done
from prm_core.config import read_yaml
from prm_core.errors import InputError
from prm_core.platform import workspace
from tests import ROOT


@pytest.mark.parametrize(("found", "type", "name", "message"), [
    (Done(WAITING, "3 of 9"), "COMPLETED", "Waits", "3 of 9"),
    (Done(PROMOTED, "better", 1, "models:/prm/2"), "COMPLETED", "Promoted", "models:/prm/2"),
    (Done(REFUSED, "worse", 1, "models:/prm/2"), "COMPLETED", "Refused", "worse"),
    (workspace.InUse("another one"), "COMPLETED", "Skipped", "another one"),
    (InputError("no champion"), "FAILED", "Bad input", "no champion")])
def test_a_run_says_what_was_done(monkeypatch, tmp_path: Path, found, type, name, message) -> None:
    def one_round(where: Path, go: bool, retrain: bool) -> Done:
        assert (where, go, retrain) == (workspace.locate(tmp_path, "smoke"), True, False)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(flow, "one_round", one_round)
    monkeypatch.setattr(flow.environment, "project_root", lambda: tmp_path)
    with disable_run_logger():
        state = flow.adapt.fn(True, "smoke")
    assert (state.type.value, state.name) == (type, name)
    assert message in state.message


def test_the_deployment_names_the_flow_and_parameters_it_has_and_starts_off() -> None:
    (deployment,) = [one for one in read_yaml(ROOT / "prefect.yaml")["deployments"] if one["name"] == "adapt"]
    assert deployment["entrypoint"] == "flows/adapt.py:adapt"
    given = inspect.signature(flow.adapt.fn).parameters
    assert {name: given[name].default for name in given} == deployment["parameters"]
    assert [one["active"] for one in deployment["schedules"]] == [False]
