"""Workspaces: the folder a run works in, its lock, its dvc.yaml, and a data/ that nobody overwrites by accident.

The default profile works in the repository's root; every other profile, and every problem file, in a folder of its own
under runs/, which is a DVC repository of its own sharing the root's cache. What goes into one is decided in
prm_core/problems/prepare.py; nothing here runs a stage.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import yaml

from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import command_server, store

log = logging.getLogger(__name__)

RUNS = "runs"
LOCK = ".work/run.lock"
# Of a pass of `prm judge`, which may go on beside a run.
JUDGE_LOCK = ".work/judge.lock"
# Held by a check of served traffic.
DRIFT_LOCK = ".work/drift.lock"
# Held by a round of adaptation, and by what withdraws data from it.
ADAPT_LOCK = ".work/adapt.lock"
# Held by the one run that waits for that lock.
QUEUE_LOCK = ".work/queue.lock"
POLL_SECONDS = 2.0
# What data/ of a workspace under runs/ was made from, and its hash then.
DATA_SOURCE = ".data-source.json"
_CODE = ("prm_core/", "flows/")


def locate(root: Path, profile: str, problems: Path | None = None) -> Path:
    """The workspace of a profile and, if any, a problem file. Nothing is created."""
    if profile == "default" and problems is None:
        return root
    name = Path(profile).stem if profile.endswith((".yaml", ".yml")) else profile
    parts = [name] if problems is None else [name, problems.stem]
    return root / RUNS / re.sub(r"[^\w.-]", "_", "-".join(parts))


class InUse(InputError):
    """Another run is at work in a workspace."""


@contextmanager
def exclusive(
    workspace: Path, *, patience: float = 0, say: Callable[[str], None] = log.info, lock: str = LOCK
) -> Iterator[int]:
    """Holds a workspace for one run; yields the lock's file descriptor, to be passed on to child processes.

    The lock goes when the last process that holds it ends, however it ends: after a `kill -9` of the run, a stage it
    started still guards the workspace until it is done.

    Args:
        patience: seconds to wait for a run that holds it. One process waits; a second one would do the same work again.
        say: told what is waited for.
        lock: its path in the workspace.

    Raises InUse when another run holds it (still, or one waits for it already).
    """
    path = workspace / lock
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as held, (workspace / QUEUE_LOCK).open("a+") as queue:
        if not _taken(held):
            holder = _in_use(workspace, held)
            if patience <= 0:
                raise InUse(f"{holder}; wait until it ends, or stop it")
            if not _taken(queue):
                raise InUse(f"{holder}, and one waits for it already, which will do what this one would")
            say(f"{holder}; this one waits until it ends")
            until = time.monotonic() + patience
            while not _taken(held):
                if time.monotonic() >= until:
                    raise InUse(f"{holder}, and was still after {patience / 3600:.3g} hours")
                time.sleep(min(POLL_SECONDS, patience))
            fcntl.flock(queue, fcntl.LOCK_UN)
        held.truncate(0)
        held.write(str(os.getpid()))
        held.flush()
        yield held.fileno()


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use(workspace: Path, lock: IO[str]) -> str:
    lock.seek(0)
    holder = lock.read().strip() or "unknown"
    return f"{workspace}: another run is at work here (process {holder}, or a stage it left behind)"


def is_in_use(workspace: Path) -> bool:
    """Whether a run, or a stage it left behind, is at work in a workspace."""
    path = workspace / LOCK
    if not path.exists():
        return False
    with path.open("r") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def derive_graph(root: Path, workspace: Path) -> str:
    """The root's dvc.yaml for a workspace below it: the same stages, their code found in the root."""
    graph = configuration.read_yaml(root / "dvc.yaml")
    up = os.path.relpath(root, workspace)
    for stage in graph["stages"].values():
        stage["deps"] = [f"{up}/{path}" if path.startswith(_CODE) else path for path in stage["deps"]]
    header = "# Derived from the root's dvc.yaml by `prm run`, which overwrites this file: edit that one instead.\n"
    return header + yaml.safe_dump(graph, sort_keys=False)


def data_hash(folder: Path) -> str:
    """The hash DVC gives a folder: MD5 over the sorted list of its files' MD5s and paths. A file's is its MD5."""
    if folder.is_file():
        return _md5(folder)
    entries = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*") if path.is_file()
    ]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def tracked_hash(folder: Path) -> str | None:
    """The hash that `<folder>.dvc` records, None where there is no such file."""
    path = folder.with_name(f"{folder.name}.dvc")
    return configuration.read_yaml(path)["outs"][0]["md5"] if path.exists() else None


def check_data(workspace: Path) -> None:
    """Raises InputError when data/ is not what data.dvc names, going by bytes, not by times; without one it passes."""
    folder = workspace / "data"
    if folder.is_dir() and tracked_hash(folder) not in (None, data_hash(folder)):
        raise InputError(f"{folder} is not what data.dvc names; record it with `dvc add data`, or bring back what was "
                         "recorded with `dvc checkout --force data.dvc`")


def replace_data(folder: Path, make: Callable[[Path], None], *, force: bool = False) -> None:
    """Writes a data folder anew with `make(folder)`, whole or not at all.

    Raises InputError where the folder holds something else that DVC could not bring back, unless `force`.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    _finish_swap(folder)
    try:
        make(fresh)
        if folder.exists() and not force and data_hash(folder) not in (tracked_hash(folder), data_hash(fresh)):
            raise InputError(f"{folder}: holds other data, which DVC has not recorded; record it with "
                             f"`dvc add {folder.name}`, move it away, or overwrite it with --force")
        _swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    """After a crash between its two renames: what was there is put back, and not thrown away as what was replaced."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def _swap(fresh: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _dvc(workspace: Path, *arguments: str) -> None:
    """Runs dvc quietly. Raises InputError with its own last line when it fails."""
    command = [*command_server.DVC_COMMAND, *arguments, "--quiet"]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        raise InputError(f"{workspace}: `dvc {' '.join(arguments)}` failed: {errors[-1] if errors else said}")


def cached(workspace: Path, content: Iterable[Path]) -> list[Path]:
    """The copies that DVC's cache has of some files as they are."""
    if not (workspace / ".dvc").is_dir():
        return []
    done = subprocess.run([*command_server.DVC_COMMAND, "cache", "dir"], cwd=workspace, capture_output=True, text=True)
    root = Path(done.stdout.strip()) / "files" / "md5"
    return [path for one in content if (path := root / (md5 := _md5(one))[:2] / md5[2:]).exists()]


def record_data(workspace: Path) -> None:
    """Has data.dvc name data/ as it is, where there is one."""
    if tracked_hash(workspace / "data") is not None:
        _dvc(workspace, "add", "data")


def initialise(workspace: Path, root: Path) -> None:
    """Makes a folder a DVC repository of its own, without git, on the root's cache."""
    if not (root / ".dvc").is_dir():
        raise InputError(f"{root}: not a DVC repository (no .dvc folder); run from a checkout, or `dvc init` there")
    workspace.mkdir(parents=True, exist_ok=True)
    if not (workspace / ".dvc").is_dir():
        _dvc(workspace, "init", "--no-scm")
    cache = os.path.relpath(root / ".dvc" / "cache", workspace / ".dvc")
    core = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    plots = "[plots]\n    html_template = plots/page.html\n"
    write_changed(workspace / ".dvc" / "config", f"{core}[cache]\n    dir = {cache}\n{plots}")
    write_changed(workspace / ".dvcignore", "mlruns/\n.work/\n")
    for template in (root / ".dvc" / "plots").glob("*.*"):
        write_changed(workspace / ".dvc" / "plots" / template.name, template.read_text(encoding="utf-8"))


def write_changed(path: Path, text: str) -> None:
    """Writes a text file, unless it holds just that: DVC and people go by its time."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        store.write_text(path, text)


def ensure_data(workspace: Path, source: str, make: Callable[[Path], None]) -> None:
    """data/ of a workspace under runs/: made again when what it is made from has changed, recorded in data.dvc.

    Args:
        source: identifies what `make` makes it from.

    Raises InputError where that has changed and the folder was changed by hand.
    """
    folder, note = workspace / "data", workspace / DATA_SOURCE
    _finish_swap(folder)
    made = store.read_json(note) if note.exists() else {}
    if not folder.exists() or made.get("source") != source:
        if folder.exists() and data_hash(folder) != made.get("content"):
            raise InputError(f"{folder}: was changed by hand, and the problems it was made from have changed since; "
                             "move it away to have it made anew")
        log.info("writing %s", folder)
        replace_data(folder, make, force=True)
        store.write_json(note, {"source": source, "content": data_hash(folder)})
    if tracked_hash(folder) != data_hash(folder):
        _dvc(workspace, "add", "data")


def restore_data(root: Path, make: Callable[[Path], None]) -> None:
    """data/ of the root, where it is not there: from DVC's cache, by `make`, or from a DVC remote.

    What data.dvc names is what comes, never anything else; data that is there is the user's and stays as it is.
    """
    folder, tracked = root / "data", tracked_hash(root / "data")
    _finish_swap(folder)
    if folder.exists():
        return
    if tracked is not None and _fetch(root, "checkout", tracked):
        return
    fresh = root / ".data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        log.info("making data/")
        make(fresh)
        if tracked in (None, data_hash(fresh)):
            _swap(fresh, folder)
            _dvc(root, "add", "data")
            return
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    if not _fetch(root, "pull", tracked):
        raise InputError(
            f"{folder}: is missing; data.dvc names other content ({tracked}) than `prm data make` gives with this "
            "params.yaml, and it is neither in DVC's cache nor in a remote. Put the folder back, or start from made "
            "problems: remove data.dvc and run again"
        )


def _fetch(root: Path, how: str, tracked: str) -> bool:
    """Whether `dvc checkout` or `dvc pull` brought data/ with the recorded hash; nothing half-fetched is left."""
    folder = root / "data"
    try:
        _dvc(root, how, "data.dvc")
    except InputError as error:
        log.debug("%s", error)
    if folder.exists() and data_hash(folder) == tracked:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False
