"""Rounds on disk: a folder each, in which every part of the work leaves a file that is whole or not there. A round that
was killed goes on after the last of them, and what a part does follows from those before it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prm_core.config import Config
from prm_core.platform import store
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import Outcome
from prm_core.serving.drift.samples import Sample
from prm_core.serving.drift.withdrawn import read_withdrawn, without
from prm_core.types import StepLabel

# In `drift.folder`: rounds, what was undone, and a workspace for `prm review`.
FOLDER, ROUNDS, UNDONE, REVIEW = "adapt", "rounds", "undone.json", "review"


@dataclass(frozen=True, slots=True)
class Opened:
    """How a round began.

    Attributes:
        parent: the champion then, `models:/NAME/VERSION`, from which it trains.
        until: its window's end, seconds since 1970.
        retrain: whether it is there to leave out what was withdrawn, and not for new trajectories.
    """

    parent: str
    until: float
    retrain: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """A round. Attributes: number: from 1 on; folder: of its files."""

    number: int
    folder: Path

    @property
    def window(self) -> Path:
        """Its new trajectories."""
        return self.folder / "window.parquet"

    @property
    def opened(self) -> Path:
        """How it began; written last of what opens it, so that a round without it is none."""
        return self.folder / "opened.json"

    @property
    def queue(self) -> Path:
        """The steps that people are asked about."""
        return self.folder / "queue.jsonl"

    @property
    def known(self) -> Path:
        """People's labels and outcomes as they were when its training began, of all rounds."""
        return self.folder / "known.json"

    @property
    def model(self) -> Path:
        """The challenger, until the round is over."""
        return self.folder / "model"

    @property
    def lineage(self) -> Path:
        """What the challenger was made of."""
        return self.folder / "lineage.json"

    @property
    def figures(self) -> Path:
        """What was measured of champion and challenger."""
        return self.folder / "figures.json"

    @property
    def version(self) -> Path:
        """The registered version."""
        return self.folder / "version.json"

    @property
    def decision(self) -> Path:
        """What the gate said; a round that has it is over."""
        return self.folder / "decision.json"

    @property
    def over(self) -> bool:
        return self.decision.exists()

    def beginning(self) -> Opened:
        """How it began."""
        return Opened(**store.read_json(self.opened))

    def samples(self, folder: Path) -> list[Sample]:
        """Its new trajectories, without what was withdrawn since.

        Args:
            folder: `drift.folder` in the workspace.
        """
        return without(files.read(self.window)[0], read_withdrawn(folder)) if self.window.exists() else []

    def evidence(self) -> tuple[list[StepLabel], list[Outcome]]:
        """What `freeze` wrote."""
        found = store.read_json(self.known)
        return ([store.from_record(StepLabel, row, str(self.known)) for row in found["labels"]],
                [Outcome(**row) for row in found["outcomes"]])

    def freeze(self, labels: Sequence[StepLabel], outcomes: Sequence[Outcome]) -> None:
        """Notes what is known when training begins: from here on the round depends on nothing that may change."""
        store.write_json(self.known, {"labels": [store.to_record(row) for row in labels],
                                      "outcomes": [asdict(one) for one in outcomes]})


def home(workspace: Path, config: Config) -> Path:
    """The loop's folder in a workspace."""
    return workspace / config.drift.folder / FOLDER


def rounds(workspace: Path, config: Config) -> list[Round]:
    """All rounds that were opened, in order."""
    folder = home(workspace, config) / ROUNDS
    found = [Round(int(path.name), path) for path in sorted(folder.glob("[0-9]*")) if path.name.isdecimal()]
    return [one for one in found if one.opened.exists()]


def open_round(
    workspace: Path, config: Config, number: int, beginning: Opened, window: Sequence[Sample]
) -> Round:
    """A new round with its trajectories."""
    one = Round(number, home(workspace, config) / ROUNDS / f"{number:04d}")
    one.folder.mkdir(parents=True, exist_ok=True)
    files.write(one.window, window)
    store.write_json(one.opened, asdict(beginning))
    return one


def undone(workspace: Path, config: Config) -> list[dict[str, Any]]:
    """The versions that were undone: `version`, `round`, `because`, `recipe` and `trajectories` each."""
    path = home(workspace, config) / UNDONE
    return store.read_json(path) if path.exists() else []
