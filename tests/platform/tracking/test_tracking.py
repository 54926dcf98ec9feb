"""prm_core/tracking.py: what a stage's MLflow run holds after success, failure and interruption."""

from __future__ import annotations

import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from prm_core import config as configuration
from prm_core.platform import tracking
from prm_core.platform.tracking import open_runs, reachable
from tests import ROOT
from tests.builders import tracking_store


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for the module."""
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(tracking.PARENT_RUN, raising=False)


@pytest.fixture(scope="module")
def config() -> configuration.Config:
    return configuration.load(ROOT)


def test_run_holds_tags_params_metrics_and_artifacts(workspace, config, monkeypatch, tmp_path):
    monkeypatch.setenv(tracking.PARENT_RUN, "f" * 32)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.csv").write_text("x\n1\n")
    (tmp_path / "report.html").write_text("<p>")
    with tracking.stage_run(workspace, "label", config) as run:
        run.log_metrics({"loss": 0.5}, step=1)
        run.log_metrics({"loss": 0.25, "lr": 1e-3}, step=2)
        run.log_artifact(tmp_path / "plots")
        run.log_artifact(tmp_path / "report.html")

    client = tracking.connect(workspace)
    record = client.get_run(run.run_id)
    assert record.info.status == "FINISHED"
    assert record.data.tags["stage"] == "label"
    assert record.data.tags["profile"] == config.profile
    assert record.data.tags["git_commit"] == tracking.code_version()
    assert record.data.tags["mlflow.parentRunId"] == "f" * 32
    assert record.data.params["label.rollout.rollouts"] == str(config.label.rollout.rollouts)
    assert record.data.params["seed"] == str(config.seed)
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    assert {f.path for f in client.list_artifacts(run.run_id)} == {"plots", "report.html"}
    assert [f.path for f in client.list_artifacts(run.run_id, "plots")] == ["plots/a.csv"]
    assert (workspace / "mlflow.db").is_file()
    assert record.info.artifact_uri.startswith((workspace / "mlruns").as_uri())


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_error_passes_through_and_the_run_keeps_its_metrics(workspace, config, error, status):
    runs = []

    def stage() -> None:
        with tracking.stage_run(workspace, "label", config) as run:
            runs.append(run)
            run.log_metrics({"loss": 0.5})
            raise error("stop")

    with pytest.raises(error):
        stage()
    record = tracking.connect(workspace).get_run(runs[0].run_id)
    assert record.info.status == status
    assert record.data.metrics == {"loss": 0.5}


def test_a_store_that_fails_while_closing_does_not_hide_the_stage_error(workspace, config, monkeypatch, caplog):
    runs = []

    def stage() -> None:
        with tracking.stage_run(workspace, "label", config) as run:
            runs.append(run)
            monkeypatch.setattr(run, "flush", lambda: 1 / 0)
            raise ValueError("the stage's own")

    with pytest.raises(ValueError, match="the stage's own"):
        stage()
    assert "could not be closed" in caplog.text
    assert tracking.connect(workspace).get_run(runs[0].run_id).info.status == "FAILED"


def test_what_a_dead_process_left_open_is_closed_at_the_next_start_and_nothing_else(workspace, config):
    left = tracking_store.abandon(workspace, "left")
    with tracking.stage_run(workspace, "label", config) as run:
        client = tracking.connect(workspace)
        assert client.get_run(left).info.status == "KILLED"
        assert client.get_run(run.run_id).info.status == "RUNNING"
    # Once closed it says no more of locks, and nobody looks for it again.
    assert tracking.LOCK_TAG not in client.get_run(run.run_id).data.tags
    assert list((workspace / open_runs.FOLDER).iterdir()) == []


def test_a_run_that_was_never_made_leaves_no_lock(workspace, monkeypatch):
    monkeypatch.setattr(tracking, "user", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracking.start_run(workspace, "x", {})
    assert list((workspace / open_runs.FOLDER).iterdir()) == []


def test_the_maker_of_an_output_is_the_last_finished_run_that_wrote_these_contents(workspace, config, tmp_path):
    output, client = tmp_path / "model", tracking.connect(workspace)
    (output / "deep").mkdir(parents=True)
    (output / "deep" / "weights").write_text("1")
    made = []
    for error in (None, None, ValueError):
        with suppress(ValueError), tracking.stage_run(workspace, "train_prm", config) as run:
            run.note_output(output)
            run.tag("precision", "float32")
            made.append(run.run_id)
            if error:
                raise error
    assert tracking.find_maker(client, workspace, output) == made[1]
    assert client.get_run(made[1]).data.tags["precision"] == "float32"
    (output / "deep" / "weights").write_text("2")
    assert tracking.find_maker(client, workspace, output) is None


def test_a_server_that_goes_meanwhile_is_one_line_and_not_asked_on_and_on(workspace, config, monkeypatch):
    from mlflow.exceptions import MlflowException

    def stage() -> None:
        with tracking.stage_run(workspace, "label", config) as run:
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = server.getsockname()[1]
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
            monkeypatch.setattr(run, "flush", lambda: pytest.fail("asked in vain"))
            raise MlflowException("API request failed")

    with pytest.raises(reachable.Unreachable, match="Connection refused"):
        stage()


def test_metrics_are_written_in_batches(workspace, config, monkeypatch):
    with tracking.stage_run(workspace, "label", config) as run:
        sizes: list[int] = []
        write = run._client.log_batch

        def counted(run_id, metrics):
            sizes.append(len(metrics))
            write(run_id, metrics=metrics)

        monkeypatch.setattr(run._client, "log_batch", counted)
        for step in range(tracking.BATCH + 1):
            run.log_metrics({"a": step, "b": step}, step=step)
    assert sizes == [tracking.BATCH, tracking.BATCH, 2]
    assert len(tracking.connect(workspace).get_metric_history(run.run_id, "a")) == tracking.BATCH + 1


def test_environment_names_another_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking.tracking_uri(tmp_path) == "http://tracking:5000"


def test_code_version_names_the_commit_and_says_when_the_code_differs(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    package = tmp_path / "prm_core"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "dvc.lock").write_text("1")
    monkeypatch.setattr(tracking, "__file__", str(package / "platform" / "tracking" / "__init__.py"))
    assert tracking.code_version() == "unknown"
    git("init", "-q")
    assert tracking.code_version() == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert tracking.code_version() == commit
    (tmp_path / "dvc.lock").write_text("2")
    assert tracking.code_version() == commit
    (package / "new.py").write_text("")
    assert tracking.code_version() == f"{commit}-dirty"


def test_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking, "_create_database", tracking_store.create)
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "create_experiment", killed)
        with pytest.raises(KeyboardInterrupt):
            tracking.connect(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    found = tracking.connect(tmp_path / "new").search_experiments()
    beside = (tmp_path / "new/mlruns").as_uri()
    assert {one.artifact_location for one in found} == {beside, f"{beside}/0"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


def test_database_another_process_made_meanwhile_stays(workspace, config):
    with tracking.stage_run(workspace, "label", config) as run:
        pass
    tracking_store.create(workspace / "mlflow.db")
    assert tracking.connect(workspace).get_run(run.run_id).info.status == "FINISHED"
