"""A small training run, in this process or in several, each of which does the jobs of its command line,
`FOLDER:SHARDING:STOP`: STOP is the update after whose record it breaks off, 0 for none. FOLDER/over.json has settings.

Each process writes what it saw to FOLDER/rank-N.json and its final weights to FOLDER/rank-N.safetensors.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from safetensors.torch import save_file

from prm_core import config as configuration
from prm_core.platform import processes, store
from prm_core.training import checkpoint
from prm_core.training.examples import Example, Pair
from prm_core.training.reward.loop import _Best
from prm_core.training.reward.recipe import train_on
from prm_core.types import Step
from tests import ROOT
from tests.builders import warm_python
from tests.builders.training import CHAINS, Interrupted, small_config

# Nine training chains make five rows: updates of three rows and of two, the one dev chain makes one.
SETTINGS = {"epochs": 3, "dev_share": 0.1, "row_tokens": 192, "rows_per_update": 3, "rows_per_pass": 1,
            "learning_rate": 0.003, "class_weights": "balanced", "checkpoint_every": 2}


def launch(module: str, *arguments: str, number: int = 2) -> None:
    """Runs a module in so many processes, over gloo on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert processes.launch(number, [sys.executable, str(warm_python.CLIENT), "-m", module, *arguments])


def in_several(run: Callable[[str], None]) -> None:
    """Does the jobs of the command line as one of several processes."""
    with processes.member():
        processes.meet({}, on_cpu=True)
        for job in sys.argv[1:]:
            run(job)


def run(job: str) -> None:
    """Trains on the language model in FOLDER/lm."""
    name, sharding, stop = job.rsplit(":", 2)
    folder, rank = Path(name), int(os.environ.get("RANK", "0"))
    reported: list[tuple[int, dict[str, float]]] = []
    writes: list[str] = []

    def watched(what: str, function):
        def call(*args):
            writes.append(what)
            return function(*args)

        return call

    def report(figures: dict[str, float], update: int) -> None:
        reported.append((update, figures))
        if update == int(stop):
            raise Interrupted

    examples = [Example(f"p{i}", *CHAINS[i], tuple(float("+" in step.text) for step in CHAINS[i][1]))
                for i in range(10)]
    pairs = [Pair(f"p{i}", CHAINS[i][0], CHAINS[i][1][:1], CHAINS[i][1][1], Step("never")) for i in (0, 3, 5)]
    over = store.read_json(folder / "over.json") if (folder / "over.json").exists() else {}
    config = small_config(**configuration.merge({"train_prm": SETTINGS, "launch": {"sharding": sharding}}, over))
    with (
        mock.patch.object(_Best, "save", watched("best", _Best.save)),
        mock.patch.object(checkpoint, "replace_folder", watched("checkpoint", checkpoint.replace_folder)),
        suppress(Interrupted),
    ):
        trained = train_on("process", str(folder / "lm"), examples, pairs, config, work=folder / "work", report=report)
        save_file(trained.model.state_dict(), folder / f"rank-{rank}.safetensors")
        store.write_json(folder / f"rank-{rank}.json", {
            "processes": processes.count(), "counts": trained.counts, "reported": reported, "history": trained.history,
            "writes": writes})


if __name__ == "__main__":
    in_several(run)
