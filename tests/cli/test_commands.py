"""The command line: help everywhere, exit codes, and the commands of `prm data`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from prm_core import cli
from prm_core.cli.app import app
from prm_core.errors import GateError, InputError
from prm_core.platform import environment, store, workspace
from prm_core.stages import base
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests.builders.checkout import make_checkout


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs `prm` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["prm", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code or 0


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


ALL = list(_commands(typer.main.get_command(app)))


def test_the_commands_of_the_contract_are_there() -> None:
    expected = {("run",), ("stage",), ("score",), ("evaluate",), ("serve",), ("promote",), ("data", "make"),
                ("data", "import"), ("data", "export"), ("review", "export"), ("review", "import"), ("report",)}
    assert expected <= set(ALL)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, *path, "--help") == 0
    shown = capsys.readouterr().out
    assert " ".join(("prm", *path)) in shown
    # A sentence that says what it does, not only its options.
    assert "." in shown.split("Options")[0]


@pytest.mark.parametrize(
    "arguments",
    [("nope",), ("run", "--nope"), ("data", "nope"), ("stage",), ("stage", "nope"), ("run", "--profile"),
     ("data", "import", "/nowhere.jsonl"), ("data", "make", "--workspace", "/nowhere")],
)
def test_bad_command_lines_exit_with_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, *arguments) == 2


def test_unknown_stage_names_the_known_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "stage", "lable")
    assert capsys.readouterr().err == f"error: unknown stage 'lable'; known: {', '.join(base.CHAIN)}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [(InputError("no such file"), 2, "error: no such file\n"), (GateError("too bad"), 1, "stopped: too bad\n")],
)
def test_errors_are_one_line_and_an_exit_code(
    error: Exception, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str, folder: Path) -> None:
        raise error

    monkeypatch.setattr(base, "execute", fail)
    assert call(monkeypatch, "stage", "warmup") == code
    assert capsys.readouterr().err == line


def test_run_becomes_the_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, list[str]]] = []

    def execv(program: str, command: list[str]) -> None:
        started.append((program, command))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execv)
    call(monkeypatch, "run", "--profile", "smoke")
    flow = [sys.executable, "-m", "flows.run", "--profile", "smoke"]
    assert started == [(sys.executable, flow)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--profile", "smok"), "unknown profile 'smok'; known: default, "),
     (("--problems", "/nowhere.jsonl"), "/nowhere.jsonl: no such file")],
)
def test_bad_input_to_run_is_told_before_anything_starts(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    assert call(monkeypatch, "run", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_name_that_no_stage_knows_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("the flow started"))
    profile = tmp_path / "mine.yaml"
    profile.write_text("label: {strategies: [rollout, mc_droput]}\n")
    assert call(monkeypatch, "run", "--profile", str(profile)) == 2
    assert "unknown labelling strategy 'mc_droput'; known: " in capsys.readouterr().err


def test_data_make_is_deterministic_and_spares_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_checkout(tmp_path / "root")
    monkeypatch.chdir(root)
    assert call(monkeypatch, "data", "make") == 0
    first = capsys.readouterr().out
    assert first == f"data: {workspace.data_hash(root / 'data')}\n"
    assert call(monkeypatch, "data", "make", "--out", str(tmp_path / "again")) == 0
    assert capsys.readouterr().out.split(": ")[1] == first.split(": ")[1]
    (root / "data" / "train.jsonl").write_text("mine\n")
    assert call(monkeypatch, "data", "make") == 2
    assert "dvc add data" in capsys.readouterr().err
    assert (root / "data" / "train.jsonl").read_text() == "mine\n"
    assert call(monkeypatch, "data", "make", "--force") == 0
    assert capsys.readouterr().out == first


def test_data_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_checkout(tmp_path / "root")
    monkeypatch.chdir(root)
    file = tmp_path / "mine.jsonl"
    rows = [{"question": f"{n} + 1?", "answer": f"So\n#### {n + 1}"} for n in range(80)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(monkeypatch, "data", "make") == 0
    warmup = (root / "data" / "warmup.jsonl").read_bytes()
    capsys.readouterr()
    assert call(monkeypatch, "data", "import", str(file), "--force") == 0
    shown = capsys.readouterr().out
    assert "80 problems (0 duplicates dropped); now run `dvc add data`" in shown
    assert "set `domain: general` in params.yaml (it is arithmetic)" in shown
    assert len(store.read_jsonl(Problem, root / "data" / "train.jsonl")) > 50
    assert (root / "data" / "warmup.jsonl").read_bytes() == warmup


def test_data_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chain = Trajectory("t", "p", "policy", (Step("1 + 1 = 2"), Step("The answer is 2")), "2", True, 0)
    labels = [StepLabel("t", 0, "merged", 1.0, True, 0.9, 12, "fine"),
              StepLabel("t", 1, "merged", None, None, 0.5, 0, "")]
    store.write_shard(tmp_path / "chains", 0, Trajectory, [chain])
    store.write_shard(tmp_path / "labels", 0, StepLabel, labels)
    assert call(monkeypatch, "data", "export", str(tmp_path / "chains")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(store.to_record(chain)))
    out = tmp_path / "labels.jsonl"
    assert call(monkeypatch, "data", "export", str(tmp_path / "labels"), "--out", str(out)) == 0
    assert store.read_jsonl(StepLabel, out) == labels
    capsys.readouterr()
    assert call(monkeypatch, "data", "export", str(tmp_path)) == 2
    assert "no folder of trajectories or labels" in capsys.readouterr().err


def test_environment_switches_telemetry_off_unless_the_user_says_otherwise() -> None:
    values = {"HF_HUB_OFFLINE": "0", "PATH": "/usr/bin"}
    environment.apply(values)
    assert values["HF_HUB_OFFLINE"] == "0"
    assert values["DO_NOT_TRACK"] == values["DVC_NO_ANALYTICS"] == values["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert values["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert values["GX_ANALYTICS_ENABLED"] == values["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    root = Path(environment.__file__).parents[2]
    assert (values["PREFECT_HOME"], values["PRM_HOME"]) == (str(root / ".prefect"), str(root))
    assert values["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    once = dict(values)
    environment.apply(values)
    assert values == once
