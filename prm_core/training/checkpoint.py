"""Atomic checkpoints with exact resume: weights, optimiser, scheduler, random state and position; those of one process
and of several are alike, so that another number of them goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.training.sharding import load_whole, whole_state

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor, nn

log = logging.getLogger(__name__)
# Tied weights are stored once, of which accelerate warns at every checkpoint; loading ties them again.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


@dataclasses.dataclass(slots=True)
class Position:
    """How far a training run is.

    Attributes:
        update: updates done.
        history: the run's records so far.
        losses: of the updates since the last record, where a record is their mean.
    """

    update: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)


def replace_folder(folder: Path, written: Path) -> None:
    """Puts `written`, on the same disk, where `folder` is: a crash leaves the old one, none or the new one, whole."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(written, folder)


class Checkpoints:
    """The newest checkpoint of a training run, in a folder that survives a crash.

    Args:
        accelerator: holds the prepared models, optimisers and schedulers.
        folder: of this run alone.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator = accelerator
        self.folder = folder
        accelerator.register_save_state_pre_hook(_put_together)
        accelerator.register_load_state_pre_hook(_share_out)

    def save(self, position: Position) -> None:
        """Writes the state; a crash leaves the previous checkpoint or this one, whole."""
        target = self.folder / f"update-{position.update:06d}"
        temporary = self.folder / f".{target.name}"
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            store.write_json(temporary / "position.json", dataclasses.asdict(position))
            replace_folder(target, temporary)
            for older in self._all():
                if older != target:
                    shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def restore(self) -> Position:
        """Loads the newest checkpoint and returns its position, that of a run not begun when there is none.

        Raises InputError where the processes of a launcher do not find the same one.
        """
        from accelerate.utils import gather_object

        found = self._all()
        names = gather_object([found[-1].name if found else "none"])
        if len(set(names)) > 1:
            raise InputError(f"the processes find different checkpoints in {self.folder} ({', '.join(names)}); put the "
                             "workspace on a disk that all of them share")
        if not found:
            return Position()
        self.accelerator.load_state(str(found[-1]))
        position = Position(**store.read_json(found[-1] / "position.json"))
        log.info("resumed from the checkpoint after %d updates", position.update)
        return position

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("update-*"))


def _put_together(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
    weights[:] = [whole_state(model) for model in models]


def _share_out(models: list[nn.Module], folder: str) -> None:
    for number, model in enumerate(models):
        load_whole(model, Path(folder, f"model_{number}.safetensors" if number else "model.safetensors"))
    # Nothing is left for accelerate to load.
    models.clear()
