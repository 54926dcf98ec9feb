"""How trajectories ended, told after they were scored: by whoever ran them, over HTTP, by `prm outcome` or as feedback
in MLflow. Digests and verdicts, no texts."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.serving.drift.samples import digest
from prm_core.turns import identity
from prm_core.types import Step

FILE = "outcomes.jsonl"
PREFIX = "served-"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
        trajectory: id of the trajectory, see `trajectory_id`.
        success: whether its task succeeded.
        reporter: who says so, empty where that is not known; how far it can be relied upon is found out by reporter.
        chance: that this trajectory was carried out, among those that were scored for its question; above 0, at most 1.
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
    if not isinstance(name, str) or not name.startswith(PREFIX):
        raise InputError(f"{where}: `trajectory_id` must be an id as POST /outcome answers it ({PREFIX}…); or give the "
                         "trajectory's `prompt` and `steps`")
    if not isinstance(success, bool):
        raise InputError(f"{where}: `success` must be true or false, found {success!r}")
    reporter, chance = record.get("reporter", ""), record.get("chance", 1.0)
    if not isinstance(reporter, str):
        raise InputError(f"{where}: `reporter` must be a text, found {reporter!r}")
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not (
            math.isfinite(chance) and 0 < chance <= 1):
        raise InputError(f"{where}: `chance` must be a number above 0 and at most 1, found {chance!r}")
    return Outcome(name, success, reporter, float(chance), time)


def tell(folder: Path, outcomes: Iterable[Outcome]) -> None:
    """Adds outcomes to a folder's file. Several processes may at once; a line is whole or not there."""
    lines = "".join(json.dumps(asdict(one)) + "\n" for one in outcomes)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # A process that was killed here may have left half a line.
        if file.seek(0, 2) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.write(b"\n")
        file.write(lines.encode())


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


def keep_only(folder: Path, kept: Iterable[Outcome]) -> None:
    """Writes the file anew with these alone, while nobody tells."""
    path = folder / FILE
    if path.is_file():
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            store.write_jsonl(path, [asdict(one) for one in kept])
