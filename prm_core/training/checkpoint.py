"""Atomic checkpoints with exact resume: weights, optimiser, scheduler, random state and position."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core import store

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class Checkpoints:
    """The newest checkpoint of a training run, in a folder that survives a crash.

    Args:
        accelerator: holds the prepared models, optimisers and schedulers.
        folder: of this run alone.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator = accelerator
        self.folder = folder

    def save(self, update: int, history: list[dict[str, Any]]) -> None:
        """Writes the state after `update` updates; a crash leaves the previous checkpoint or this one, whole."""
        target = self.folder / f"update-{update:06d}"
        temporary = self.folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.save_state(str(temporary))
        if self.accelerator.is_main_process:
            store.write_json(temporary / "position.json", {"update": update, "history": history})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
            for older in self._all():
                if older != target:
                    shutil.rmtree(older)
        self.accelerator.wait_for_everyone()

    def restore(self) -> tuple[int, list[dict[str, Any]]]:
        """Loads the newest checkpoint: (updates done, history), or (0, []) when there is none."""
        found = self._all()
        if not found:
            return 0, []
        self.accelerator.load_state(str(found[-1]))
        position = store.read_json(found[-1] / "position.json")
        log.info("resumed from the checkpoint after %d updates", position["update"])
        return position["update"], position["history"]

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("update-*"))
