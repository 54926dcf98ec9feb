"""What was withdrawn: ids of trajectories, names of people and of tenants, whose data nothing may keep or learn from.

`prm forget` writes the file, a server and every round of adaptation read it. Digests and names, no texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.serving.drift.samples import PREFIX, Sample

FILE = "withdrawn.json"


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Attributes:
        trajectories: ids, as POST /outcome answers them.
        people: reviewers.
        tenants: names of API keys.
        parts: ids of what the trajectories began with, which a server that was asked after each step has kept too.
    """

    trajectories: frozenset[str] = frozenset()
    people: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def __or__(self, other: Withdrawn) -> Withdrawn:
        return Withdrawn(*(getattr(self, one.name) | getattr(other, one.name) for one in fields(self)))

    def names(self, trajectory: str) -> bool:
        """Whether an id is of what was withdrawn, or of what that began with."""
        return trajectory in self.trajectories or trajectory in self.parts

    def holds(self, sample: Sample) -> bool:
        """Whether a sample is of what was withdrawn: a trajectory, what it began with, or one that went on with it."""
        names = [PREFIX + one for one in sample.prefixes]
        return (sample.tenant in self.tenants or not self.trajectories.isdisjoint(names)
                or not self.parts.isdisjoint(names[-1:]))


def read_withdrawn(folder: Path) -> Withdrawn:
    """What a folder's file says, nothing where there is none. Raises InputError for a file that is none."""
    path = folder / FILE
    if not path.exists():
        return Withdrawn()
    try:
        return Withdrawn(**{name: frozenset(values) for name, values in store.read_json(path).items()})
    except (TypeError, AttributeError):
        raise InputError(f"{path}: is no list of what was withdrawn; put the file back, or forget again what was "
                         "withdrawn (`prm forget`)") from None


def withdraw(folder: Path, more: Withdrawn) -> Withdrawn:
    """Adds to the file; returns all that it holds then. One process at a time."""
    found = read_withdrawn(folder) | more
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(folder / FILE, {name: sorted(values) for name, values in asdict(found).items()})
    return found


def without(samples: Iterable[Sample], withdrawn: Withdrawn) -> list[Sample]:
    """The samples that are of nothing that was withdrawn."""
    return [one for one in samples if not withdrawn.holds(one)]
