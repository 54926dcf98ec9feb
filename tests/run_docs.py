"""Runs the commands of README.md and docs/ for real, in order, in a scratch clone of this checkout's HEAD: `make docs`.

    python -m tests.run_docs [PAGE …]       all pages, or README and the named ones (docs/serving.md)

A fenced block of language `sh` is run as it stands, in the folder the block before it on its page ended in; a page
begins in the checkout. Words after the language, which no reader sees, say how:

    sh                   run, and expected to end with 0
    sh server: URL       started in the background, waited for until URL answers, stopped when the page ends
    sh server            the same, waited for until it says something
    sh skip: REASON      not run

README comes first, because it makes the smoke run that other pages work with. What a block printed is shown where it
failed. tests/test_docs.py checks the same blocks without running them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.services import answers
from tests import ROOT

# What this interpreter's start has set for the checkout it belongs to; the clone's own start sets it anew.
OURS = ("PRM_HOME", "PREFECT_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "VIRTUAL_ENV")
SECONDS = 1500
POLL = 0.5


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its path from the root.
        line: of its opening fence, from 1.
        language: the first word after the fence.
        info: the rest of that line.
        text: what is between the fences.
    """

    page: str
    line: int
    language: str
    info: str
    text: str

    @property
    def skipped(self) -> str | None:
        """Why it is not run, None where it is."""
        return self.info.removeprefix("skip:").strip() if self.info.startswith("skip:") else None

    @property
    def server(self) -> bool:
        """Whether it goes on until it is stopped."""
        return self.info.split(":")[0] == "server"


def pages() -> list[Path]:
    """README.md, then the pages of docs/ in the order it names them."""
    readme = ROOT / "README.md"
    named = re.findall(r"\]\((docs/[\w-]+\.md)", readme.read_text(encoding="utf-8"))
    return [readme, *(ROOT / name for name in dict.fromkeys(named))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. Raises ValueError for a fence that is not closed."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            inside.append(line)
        elif opened is None:
            opened, inside = (number, line[3:].strip()), []
        else:
            language, _, info = opened[1].partition(" ")
            found.append(Block(page.relative_to(ROOT).as_posix(), opened[0], language, info.strip(),
                               "\n".join(inside) + "\n"))
            opened = None
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: this block is not closed")
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a block: passed, failed or skipped, and why."""

    block: Block
    state: str
    seconds: float = 0.0
    why: str = ""


def make_checkout(folder: Path) -> Path:
    """A clone of HEAD that uses this environment's packages and its own code."""
    clone = folder / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    # Older than what is installed, or make would install it again into the shared environment.
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(clone / name, (0, 0))
    return clone


def environment(clone: Path) -> dict[str, str]:
    """What commands run under: the clone's code before that of the checkout the packages were installed for."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    path = f"{clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "docs"), ("EMAIL", "docs@localhost"))}
    return {**kept, **who, "PATH": path, "PYTHONPATH": str(clone), "COLUMNS": "160"}


class Page:
    """The blocks of a page, run one after the other; servers live until the page ends."""

    def __init__(self, clone: Path, logs: Path) -> None:
        self.folder = clone
        self.environment = environment(clone)
        self.logs = logs
        self.servers: list[tuple[Block, subprocess.Popen[bytes], float]] = []

    def run(self, block: Block) -> Result | None:
        """What became of a block; None for a server that is up, which `close` tells of."""
        if block.skipped is not None:
            return Result(block, "skipped", why=block.skipped)
        started = time.monotonic()
        log = self.logs / f"{block.page.replace('/', '-')}-{block.line}.log"
        process = self._start(block, log)
        if block.server:
            self.servers.append((block, process, started))
            _, _, url = block.info.partition(":")
            while process.poll() is None and time.monotonic() - started < SECONDS:
                if answers(url.strip()) if url else log.stat().st_size:
                    return None
                time.sleep(POLL)
            self.servers.pop()
            _end(process)
            return Result(block, "failed", time.monotonic() - started, _tail(log))
        try:
            code = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        _end(process)
        seconds = time.monotonic() - started
        if code:
            return Result(block, "failed", seconds, f"exit code {code}\n{_tail(log)}")
        if code is None:
            return Result(block, "failed", seconds, f"not done after {SECONDS} s\n{_tail(log)}")
        self.folder = Path(log.with_suffix(".folder").read_text().strip())
        return Result(block, "passed", seconds)

    def _start(self, block: Block, log: Path) -> subprocess.Popen[bytes]:
        end = "" if block.server else f"\npwd > '{log.with_suffix('.folder')}'\n"
        with log.open("wb") as output:
            return subprocess.Popen(
                ["bash", "-e", "-u", "-o", "pipefail", "-c", block.text + end], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def close(self) -> Iterator[Result]:
        """Stops the servers, the last one first."""
        for block, process, started in reversed(self.servers):
            alive = process.poll() is None
            _end(process)
            yield Result(block, "passed" if alive else "failed", time.monotonic() - started,
                         "" if alive else f"ended by itself with {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def show(results: list[Result], console: Console) -> None:
    """A row for each block."""
    table = Table("block", "begins", "result", "seconds", title="Commands of README.md and docs/", title_justify="left")
    table.columns[3].justify = "right"
    for result in results:
        block = result.block
        said = f"skipped: {result.why}" if result.state == "skipped" else result.state
        table.add_row(f"{block.page}:{block.line}", block.text.splitlines()[0][:60], said,
                      f"{result.seconds:.0f}" if result.seconds else "")
    console.print(table)
    counts = {state: sum(result.state == state for result in results) for state in ("passed", "failed", "skipped")}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))


def main() -> int:
    """Runs the pages; returns 1 when a block failed."""
    # A pipe is 80 columns wide to it, which breaks the table's rows.
    console = Console(width=max(Console().width, 140))
    wanted = [page for page in pages() if len(sys.argv) == 1 or page.name == "README.md"
              or page.relative_to(ROOT).as_posix() in sys.argv[1:]]
    results: list[Result] = []
    folder = Path(tempfile.mkdtemp(prefix="prm-docs-"))
    try:
        clone = make_checkout(folder)
        for path in wanted:
            page = Page(clone, folder)
            try:
                for block in blocks(path):
                    if block.language != "sh":
                        continue
                    result = page.run(block)
                    if result is None:
                        continue
                    results.append(result)
                    console.print(f"{block.page}:{block.line} {result.state}", markup=False)
                    if result.state == "failed":
                        console.print(result.why, markup=False)
            finally:
                results += page.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results.sort(key=lambda result: ([p.relative_to(ROOT).as_posix() for p in wanted].index(result.block.page),
                                     result.block.line))
    show(results, console)
    return int(any(result.state == "failed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
