"""How trajectories ended, told after they were scored: by whoever ran them, over HTTP, by `prm outcome` or as feedback
in MLflow. Digests and verdicts, no texts."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.serving.drift.samples import DIGITS, PREFIX, digest
from prm_core.serving.drift.withdrawn import read_withdrawn
from prm_core.turns import identity
from prm_core.types import Step

FILE = "outcomes.jsonl"
ID = re.compile(f"{PREFIX}[0-9a-f]{{{DIGITS}}}")
# Whoever counts one over less would count for all others.
LEAST_CHANCE = 1e-6
# Characters of a reporter's name.
LONGEST_NAME = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
        trajectory: id of the trajectory, see `trajectory_id`.
        success: whether its task succeeded.
        reporter: who says so, empty where that is not known; how far it can be relied upon is found out by reporter.
        chance: that this trajectory was carried out, among those that were scored for its question; from LEAST_CHANCE
            to 1.
        time: when it was told, seconds since 1970.
    """

    trajectory: str
    success: bool
    reporter: str = ""
    chance: float = 1.0
    time: float = 0.0


def trajectory_id(prompt: str, steps: Sequence[Step]) -> str:
    """The id of a served trajectory: a digest of its question and steps, as samples of traffic hold it."""
    found = digest(prompt)
    for step in steps:
        found = digest(found, identity([step]))
    return PREFIX + found


def parse_outcome(record: Any, where: str, time: float, trajectory: str | None = None) -> Outcome:
    """An outcome from JSON values.

    Args:
        time: when it is told.
        trajectory: id, where the record names its trajectory by texts.

    Raises InputError naming `where` and the field at fault.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with `trajectory_id` and `success`")
    name, success = trajectory or record.get("trajectory_id"), record.get("success")
    if not isinstance(name, str) or not ID.fullmatch(name):
        raise InputError(f"{where}: `trajectory_id` must be an id as POST /outcome answers it ({PREFIX}… with {DIGITS} "
                         "hex digits); or give the trajectory's `prompt` and `steps`")
    if not isinstance(success, bool):
        raise InputError(f"{where}: `success` must be true or false, found {_shown(success)}")
    reporter, chance = record.get("reporter", ""), record.get("chance", 1.0)
    if not isinstance(reporter, str) or len(reporter) > LONGEST_NAME:
        raise InputError(f"{where}: `reporter` must be a text of at most {LONGEST_NAME} characters, found "
                         f"{_shown(reporter)}")
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not LEAST_CHANCE <= chance <= 1:
        raise InputError(f"{where}: `chance` must be a number from {LEAST_CHANCE:g} to 1, found {_shown(chance)}")
    return Outcome(name, success, reporter, float(chance), time)


def _shown(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}…"


def tell(folder: Path, outcomes: Sequence[Outcome]) -> int:
    """Adds outcomes to a folder's file; returns how many: of what was withdrawn nothing is noted. Several processes may
    at once; a line is whole or not there.

    Raises InputError as `read_withdrawn` does, OSError where there is no room for all of them; none are noted then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / FILE) as file:
        # While nobody else writes: what is withdrawn from now on is taken out of the file after this.
        gone = read_withdrawn(folder)
        kept = [one for one in outcomes if not gone.names(one.trajectory)]
        end = file.seek(0, os.SEEK_END)
        # A process that was killed here may have left half a line.
        begin = "\n" if end and os.pread(file.fileno(), 1, end - 1) != b"\n" else ""
        left = memoryview("".join([begin, *(json.dumps(asdict(one)) + "\n" for one in kept)]).encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(end)
            raise
    return len(kept)


@contextmanager
def _alone(path: Path) -> Iterator[FileIO]:
    """A file to add to, made where it is not there, that nobody else writes during the block."""
    while True:
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who had it before may have put another in its place.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def read_outcomes(folder: Path) -> list[Outcome]:
    """What was told, of each reporter and trajectory the last; in the order of trajectory and reporter."""
    path = folder / FILE
    latest: dict[tuple[str, str], Outcome] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            one = Outcome(**json.loads(line))
        except (ValueError, TypeError):
            # Half a line of a process that was killed, which `tell` ends.
            continue
        latest[one.trajectory, one.reporter] = one
    return [latest[key] for key in sorted(latest)]


def keep_only(folder: Path, keep: Callable[[Outcome], bool]) -> int:
    """Writes the file anew without what is not to be kept; returns how many that were. Who tells waits meanwhile."""
    path = folder / FILE
    if not path.is_file():
        return 0
    with _alone(path):
        told = read_outcomes(folder)
        kept = [one for one in told if keep(one)]
        store.write_jsonl(path, [asdict(one) for one in kept])
    return len(told) - len(kept)
