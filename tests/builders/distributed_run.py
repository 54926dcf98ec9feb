"""A small training run, alone or under `accelerate launch -m tests.builders.distributed_run FOLDER`.

Each process writes what it saw to FOLDER/rank-N.json and its final weights to FOLDER/rank-N.safetensors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

from safetensors.torch import save_file

from prm_core.platform import store
from prm_core.training import checkpoint
from prm_core.training.examples import Example, Pair
from prm_core.training.reward.loop import _Best
from prm_core.training.reward.recipe import train_on
from prm_core.types import Step
from tests import ROOT
from tests.builders import warm_python
from tests.builders.training import CHAINS, small_config

# Nine training chains make five rows: updates of three rows and of two, the one dev chain makes one.
SETTINGS = {"epochs": 3, "dev_share": 0.1, "row_tokens": 192, "rows_per_update": 3, "rows_per_pass": 1,
            "learning_rate": 0.003, "class_weights": "balanced", "checkpoint_every": 2}


def launch(module: str, folder: Path) -> None:
    """Runs a module on a folder in two processes, over gloo on the CPU."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Without --multi_gpu accelerate starts one process where there is no GPU. Port 0: any that is free.
    result = warm_python.run(
        "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python", sys.executable,
        str(warm_python.CLIENT), "-m", module, str(folder), cwd=folder, env=environment,
    )
    assert result.returncode == 0, result.stderr


def run(folder: Path) -> None:
    """Trains on the language model in FOLDER/lm."""
    rank = int(os.environ.get("RANK", "0"))
    reported: list[tuple[int, dict[str, float]]] = []
    writes: list[str] = []

    def watched(what: str, function):
        def call(*args):
            writes.append(what)
            return function(*args)

        return call

    examples = [Example(f"p{i}", *CHAINS[i], tuple(float("+" in step.text) for step in CHAINS[i][1]))
                for i in range(10)]
    pairs = [Pair(f"p{i}", CHAINS[i][0], CHAINS[i][1][:1], CHAINS[i][1][1], Step("never")) for i in (0, 3, 5)]
    with (
        mock.patch.object(_Best, "save", watched("best", _Best.save)),
        mock.patch.object(checkpoint, "replace_folder", watched("checkpoint", checkpoint.replace_folder)),
    ):
        trained = train_on("process", str(folder / "lm"), examples, pairs, small_config(train_prm=SETTINGS),
                           work=folder / "work", report=lambda figures, update: reported.append((update, figures)))
    save_file(trained.model.state_dict(), folder / f"rank-{rank}.safetensors")
    store.write_json(folder / f"rank-{rank}.json", {
        "processes": int(os.environ.get("WORLD_SIZE", "1")), "counts": trained.counts, "reported": reported,
        "history": trained.history, "writes": writes,
    })


if __name__ == "__main__":
    run(Path(sys.argv[1]))
