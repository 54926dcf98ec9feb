"""The process that runs a flow's `prm` commands: same output, same exit code, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prm_core.platform import command_server
from tests.builders import warm_dvc

PRM = [sys.executable, "-m", "prm_core.cli"]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command here needs the heavy libraries."""
    start = command_server.START.replace("command_server.serve", "command_server.MODULES = (); command_server.serve")
    monkeypatch.setattr(command_server, "START", start)
    # DVC itself, where another test has the quick one in its place.
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(one for one in folders if one != str(warm_dvc.CLIENT)))


@pytest.fixture
def running() -> Iterator[Path]:
    with command_server.started():
        yield Path(os.environ[command_server.SOCKET])


def test_without_a_server_nothing_is_forwarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(command_server.SOCKET, raising=False)
    assert command_server.forward() is None
    monkeypatch.setenv(command_server.SOCKET, str(tmp_path / "gone"))
    assert command_server.forward() is None


def test_a_forwarded_command_answers_as_one_run_here(running: Path, tmp_path: Path) -> None:
    def answer(environment: dict[str, str]) -> tuple[int, str, str]:
        command = [*PRM, "stage", "nonsense"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    here = {name: value for name, value in os.environ.items() if name != command_server.SOCKET}
    forwarded = answer(dict(os.environ))
    assert forwarded == answer(here)
    assert forwarded[0] == 2
    assert "unknown stage 'nonsense'" in forwarded[2]


def test_an_inner_block_uses_the_outer_server(running: Path) -> None:
    with command_server.started():
        assert os.environ[command_server.SOCKET] == str(running)
    assert os.environ[command_server.SOCKET] == str(running)


def test_the_server_and_its_folder_go_with_the_block() -> None:
    with command_server.started():
        path = Path(os.environ[command_server.SOCKET])
    assert command_server.SOCKET not in os.environ
    assert not path.parent.exists()


def test_a_command_dies_with_the_process_that_asked_for_it(tmp_path: Path) -> None:
    path = str(tmp_path / "commands")
    sleeper = (
        "import os, sys, time; from prm_core.platform import command_server; command_server.MODULES = ()\n"
        "command_server.serve(sys.argv[1], lambda: (print(os.getpid(), flush=True), time.sleep(60)))"
    )
    ask = "from prm_core.platform import command_server; raise SystemExit(command_server.forward())"
    with subprocess.Popen([sys.executable, "-c", sleeper, path], stdin=subprocess.PIPE) as process:
        while not os.path.exists(path):
            time.sleep(0.05)
        client = subprocess.Popen([sys.executable, "-c", ask], env={**os.environ, command_server.SOCKET: path},
                                  stdout=subprocess.PIPE, text=True)
        worker = int(client.stdout.readline())
        client.send_signal(signal.SIGKILL)
        client.wait()
        client.stdout.close()
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{worker}")
        process.stdin.close()


def test_a_killed_command_counts_as_killed(tmp_path: Path) -> None:
    path = str(tmp_path / "commands")
    script = (
        "import os, signal, sys; from prm_core.platform import command_server; command_server.MODULES = ()\n"
        "command_server.serve(sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGKILL))"
    )
    ask = "from prm_core.platform import command_server; raise SystemExit(command_server.forward())"
    with subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE) as process:
        while not os.path.exists(path):
            time.sleep(0.05)
        done = subprocess.run([sys.executable, "-c", ask], env={**os.environ, command_server.SOCKET: path})
        process.stdin.close()
    assert done.returncode == command_server.KILLED


def test_dvc_runs_in_the_server_and_takes_what_it_started_along(running: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", command_server.__file__]
    here = {name: value for name, value in os.environ.items() if name != command_server.SOCKET}
    version = [subprocess.run([*command, "--version"], env=env, capture_output=True, text=True) for env in
               (dict(os.environ), here)]
    assert version[0].stdout == version[1].stdout != ""
    subprocess.run([*command, "init", "--no-scm", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  one:\n    cmd: sleep 61 & echo $! > left; echo said; exit 3\n")
    done = subprocess.run([*command, "repro"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 255
    assert [line for line in done.stdout.splitlines() if line in ("> sleep 61 & echo $! > left; echo said; exit 3",
                                                                 "said")][-1] == "said"
    left = int((tmp_path / "left").read_text())
    for _ in range(100):
        if not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("a process that DVC's stage left behind lives on")
