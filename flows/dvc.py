"""Asking DVC what is up to date, and having it run a stage: subprocesses whose lines are passed on as they come.

Nothing here knows Prefect.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prm_core.platform import command_server

# What DVC says to someone at a prompt and a flow's log need not repeat.
_CHATTER = re.compile(
    r"(To track the changes with git|\s+git add |To enable auto staging|\s+dvc config core.autostage|"
    r"Use `dvc push`|(Updating|Generating) lock file|Running stage |> prm stage )"
)
_EXITED = re.compile(r"ERROR: failed to reproduce '.*exited with (-?\d+)")
_STOP_SECONDS = 20
# How `prm` begins its one line when a gate said no, and when the input is bad (with exit code 2).
GATE = "stopped: "
ERROR = "error: "


class CommandFailed(Exception):
    """A command of the chain failed.

    Attributes:
        code: what the stage's own process exited with (2: bad input), negative or above 128 when a signal ended it.
        reason: one line.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @property
    def killed(self) -> bool:
        """Whether a signal ended it, as when memory runs out."""
        return self.code < 0 or self.code > 128

    @property
    def bad_input(self) -> bool:
        """Whether `prm` refused its input."""
        return self.code == 2

    @property
    def gate(self) -> bool:
        """Whether a gate said no. Python exits with 1 on any error; a gate's answer begins in its own way."""
        return self.code == 1 and self.reason.startswith(GATE)


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where and how commands run.

    Attributes:
        folder: the workspace.
        lock: file descriptor of the workspace's lock, which commands hold on to as long as they live.
        environment: added to this process's.
    """

    folder: Path
    lock: int
    environment: Mapping[str, str]


def changed(folder: Path) -> set[str]:
    """Names of the stages, and of .dvc files, that are not up to date as things stand. One DVC call for the graph.

    A stage behind a changed one is named only if it differs itself; it may change when the first has run.
    """
    done = subprocess.run(
        [*command_server.DVC_COMMAND, "status", "--json"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise CommandFailed(done.returncode, _reason(done.stderr.splitlines()) or "dvc status failed")
    return set(json.loads(done.stdout))


def reproduce(name: str, workplace: Workplace, say: Callable[[str], None]) -> str:
    """`dvc repro --single-item NAME`; returns "ran", "restored" (outputs known from before) or "up to date".

    Raises CommandFailed with the stage's own exit code and last line.
    """
    command = [*command_server.DVC_COMMAND, "repro", "--single-item", name]
    code, lines = run(command, workplace, lambda line: None if _CHATTER.match(line) else say(line))
    if code:
        exited = next((match for line in lines if (match := _EXITED.match(line))), None)
        failed = CommandFailed(int(exited[1]) if exited else 1, _reason(lines) or f"dvc exited with {code}")
        if failed.killed:
            failed.reason = f"ended by signal {failed.code % 128 if failed.code > 0 else -failed.code} (out of memory?)"
        raise failed
    if any(line == f"Stage '{name}' didn't change, skipping" for line in lines):
        return "up to date"
    return "restored" if any(line.startswith(f"Stage '{name}' is cached") for line in lines) else "ran"


def run(command: Sequence[str], workplace: Workplace, say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Runs a command, passing its lines on as they come; returns its exit code and last 200 lines.

    The command gets a process group of its own, which is ended with this call, whatever ends it.
    """
    environment = {**os.environ, **workplace.environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        list(command), cwd=workplace.folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(workplace.lock,),
    )
    # A process that the command leaves behind would keep the pipe open, and this call waiting.
    threading.Thread(target=_sweep, args=(process,), daemon=True).start()
    lines: deque[str] = deque(maxlen=200)
    try:
        for line in _lines(process.stdout):
            lines.append(line)
            say(line)
        return process.wait(), list(lines)
    finally:
        _end(process)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines as they come. A progress bar writes "\\r" and its text: that text is passed on at once, as a line."""
    pending = b""
    while chunk := stream.read1(65536):
        *whole, pending = re.split(rb"([\r\n])", pending + chunk)
        if whole and whole[-1] == b"\r":
            whole, pending = [*whole, pending], b""
        yield from (part.decode(errors="replace").rstrip() for part in whole if part.strip())
    if pending.strip():
        yield pending.decode(errors="replace").rstrip()


def _sweep(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _reason(lines: Sequence[str]) -> str:
    """The line that says why: the stage's last one where a stage failed, else DVC's error with what follows it."""
    for index, line in enumerate(lines):
        if line.startswith("ERROR: "):
            own = [before for before in lines[:index] if not _CHATTER.match(before)]
            if _EXITED.match(line) and own:
                return own[-1]
            return " ".join(part.strip() for part in lines[index : index + 2]).removeprefix("ERROR: ")
    return lines[-1] if lines else ""
