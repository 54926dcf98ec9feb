"""The flow that deletes what is old, and its deployment."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import retention as flow
from prm_core.cli.app import app
from prm_core.config import read_yaml
from prm_core.platform import tracking, workspace
from tests import ROOT


def test_the_flow_and_the_command_say_what_would_go_and_delete_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(flow.environment, "project_root", lambda: tmp_path)
    folder = workspace.locate(tmp_path, "smoke")
    client = tracking.connect(folder)
    experiment = tracking.experiment_id(client, folder)
    old = [client.create_run(experiment, 1_000_000_000_000 + n).info.run_id for n in range(3)]
    for run_id in old:
        client.set_terminated(run_id, "FINISHED", 1_000_000_000_000)
    (folder / "served").mkdir()
    state = flow.retention.fn(newest=2, dry_run=True, profile="smoke")
    assert state.message.startswith("would go: 1 runs, 0 traces, 0 files of traffic")
    done = CliRunner().invoke(app, ["retention", "--newest", "2", "--dry-run", "--workspace", str(folder)])
    assert done.output.splitlines()[1:] == [state.message]
    gone = done.output.splitlines()[0].removeprefix("run ")
    assert gone in old
    assert len(client.search_runs([experiment])) == 3
    assert flow.retention.fn(newest=2, profile="smoke").message.startswith("deleted: 1 runs")
    assert {run.info.run_id for run in client.search_runs([experiment])} == set(old) - {gone}
    # Ninety days, twenty runs: nothing of these two.
    assert CliRunner().invoke(app, ["retention", "--workspace", str(folder)]).output.startswith("deleted: 0 runs")
    state = flow.retention.fn(experiments=["nobody"], profile="smoke")
    assert (state.type.value, state.name) == ("FAILED", "Bad input")


def test_the_deployment_gives_parameters_that_there_are_and_deletes_nothing_yet() -> None:
    (found,) = [one for one in read_yaml(ROOT / "prefect.yaml")["deployments"] if one["name"] == "retention"]
    assert set(found["parameters"]) == set(inspect.signature(flow.retention.fn).parameters)
    assert found["parameters"]["dry_run"] is True
