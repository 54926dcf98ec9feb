"""How long a calibration is relied upon: until it is too old, or until served traffic has drifted from what it was
fitted on.

`prm drift` notes alarms in a file beside the samples, where servers read them, and as a tag of the registered version,
where promotion does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import store

log = logging.getLogger(__name__)

FILE = "alarms.json"
TAG = "calibration_stale"
# Between two looks at the file.
LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a calibration is stale. Attributes: kind: `age` or `drift`; reason: in words."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """That traffic has drifted. Attributes: since: of the check that first found it, ISO 8601; reason: in words."""

    since: str
    reason: str


def read_alarms(folder: Path) -> dict[str, Alarm]:
    """Digest of a model → the alarm that stands. Raises InputError for a file that is none."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return {version: Alarm(**alarm) for version, alarm in store.read_json(path).items()}
    except (TypeError, AttributeError):
        raise InputError(f"{path}: holds no alarms; take it away, and the next `prm drift` writes it anew") from None


def note_alarm(folder: Path, version: str, reason: str | None, when: float) -> Alarm | None:
    """Notes what a check of a model's traffic found: an alarm, which keeps the time of the first of several in a row,
    or with no reason that there is none any more."""
    alarms = read_alarms(folder)
    before = alarms.pop(version, None)
    alarm = None
    if reason is not None:
        since = before.since if before else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")
        alarm = alarms[version] = Alarm(since, reason)
    if alarm != before:
        folder.mkdir(parents=True, exist_ok=True)
        store.write_json(folder / FILE, {name: asdict(one) for name, one in alarms.items()})
    return alarm


def too_old(calibrated: float | None, now: float, max_age_days: float) -> Doubt | None:
    """The doubt about a calibration of some age; none where its age is not known.

    Args:
        calibrated, now: seconds since 1970.
    """
    if calibrated is None or now - calibrated <= 86400 * max_age_days:
        return None
    day = datetime.fromtimestamp(calibrated, UTC).date()
    return Doubt("age", f"calibrated on {day}, more than {max_age_days:g} days ago (drift.max_age_days)")


class Trust:
    """Whether what is served may be relied upon, asked with every answer: it looks at the file of alarms now and then.

    Args:
        folder: of the alarms.
        max_age_days: of a calibration.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, max_age_days: float, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._max_age_days, self._clock = folder, max_age_days, clock
        self._alarms: dict[str, Alarm] = {}
        self._stamp: tuple[int, ...] | None = None
        self._looked = -LOOK_SECONDS

    def doubt(self, version: str, calibrated: float | None) -> Doubt | None:
        """Why a model's calibration is stale, None while it is not.

        Args:
            version: digest of the model.
            calibrated: seconds since 1970, None where that is not known.
        """
        now = self._clock()
        if abs(now - self._looked) >= LOOK_SECONDS:
            self._looked = now
            self._look()
        alarm = self._alarms.get(version)
        if alarm is not None:
            return Doubt("drift", f"traffic has drifted since {alarm.since}: {alarm.reason}")
        return too_old(calibrated, now, self._max_age_days)

    def _look(self) -> None:
        path = self._folder / FILE
        try:
            found = path.stat()
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        try:
            self._alarms, self._stamp = read_alarms(self._folder), stamp
        except InputError as error:
            # What was known goes on to count.
            self._stamp = stamp
            log.warning("%s", error)
