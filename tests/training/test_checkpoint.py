"""Checkpoints: whole or absent, and everything that decides the next update comes back bit for bit."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from prm_core.training.checkpoint import Checkpoints, Position, replace_folder
from tests.builders.training import Interrupted, assert_same_weights, files, make_encoder, make_lm, weights

ENCODER = make_encoder()
HISTORY = [{"update": 3, "loss": 0.1 + 0.2}]


class Run:
    """A tied model with dropout, trained by Muon and AdamW with schedules, as the warm-up is."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.accelerator = Accelerator(cpu=True)
        self.model = make_lm(ENCODER, seed, attention_dropout=0.2).train()
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        rest = [p for p in self.model.parameters() if not any(p is q for q in matrices)]
        optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]
        schedules = [torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 20) for optimizer in optimizers]
        self.model, *self.parts = self.accelerator.prepare(self.model, *optimizers, *schedules)
        self.checkpoints = Checkpoints(self.accelerator, folder)

    def update(self, count: int = 1) -> None:
        for _ in range(count):
            ids = torch.randint(5, 50, (2, 12))
            self.accelerator.backward(self.model(input_ids=ids, labels=ids).loss)
            for part in self.parts:
                part.step()
            for optimizer in self.parts[:2]:
                optimizer.zero_grad()


def test_going_on_from_a_checkpoint_is_as_if_nothing_had_happened(tmp_path) -> None:
    torch.manual_seed(0)
    run = Run(tmp_path)
    run.update(3)
    run.checkpoints.save(Position(3, HISTORY, [0.3]))
    run.update(3)
    expected, streams = weights(run.model), (random.random(), np.random.rand(), torch.rand(1).item())

    torch.manual_seed(99)
    other = Run(tmp_path, seed=5)
    assert other.checkpoints.restore() == Position(3, HISTORY, [0.3])
    other.update(3)
    assert_same_weights(weights(other.model), expected)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == streams


def test_no_checkpoint_is_the_beginning(tmp_path) -> None:
    run = Run(tmp_path)
    before = weights(run.model)
    assert run.checkpoints.restore() == Position(0, [], [])
    assert_same_weights(weights(run.model), before)


def test_only_the_newest_is_kept_and_restored(tmp_path) -> None:
    run = Run(tmp_path)
    for update in (8, 16, 100):
        run.checkpoints.save(Position(update))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000100"]
    assert run.checkpoints.restore().update == 100


@pytest.mark.parametrize("crash", ["weights", "optimizer", "position", "rename", "cleaning"])
def test_a_crash_while_saving_leaves_a_whole_checkpoint(tmp_path, monkeypatch, crash: str) -> None:
    run = Run(tmp_path)
    run.checkpoints.save(Position(4))
    old = weights(run.model)
    run.update()
    new = weights(run.model)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise Interrupted

    target = {
        "weights": "accelerate.checkpointing.save", "optimizer": "accelerate.optimizer.AcceleratedOptimizer.state_dict",
        "position": "prm_core.platform.store.write_json", "rename": "os.replace",
        "cleaning": "prm_core.training.checkpoint.Checkpoints._all",
    }[crash]
    with monkeypatch.context() as patched:
        patched.setattr(target, fail)
        with pytest.raises(Interrupted):
            run.checkpoints.save(Position(8))

    other = Run(tmp_path, seed=5)
    update = other.checkpoints.restore().update
    assert update == (8 if crash == "cleaning" else 4)
    assert_same_weights(weights(other.model), new if crash == "cleaning" else old)
    other.checkpoints.save(Position(8))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000008"], "leftovers of the crash"


def test_replacing_a_folder_leaves_nothing_of_the_old_one(tmp_path) -> None:
    for name, file in (("old", "a"), ("new", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(name)
    replace_folder(tmp_path / "old", tmp_path / "new")
    assert files(tmp_path) == ["old/b"]
    (tmp_path / "next").mkdir()
    replace_folder(tmp_path / "absent", tmp_path / "next")
    assert (tmp_path / "absent").is_dir()


def test_saving_says_nothing_and_restoring_one_line(tmp_path, caplog, capfd) -> None:
    run = Run(tmp_path)
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.INFO, "prm_core")
    run.checkpoints.save(Position(7))
    assert caplog.messages == []
    run.checkpoints.restore()
    assert caplog.messages == ["resumed from the checkpoint after 7 updates"]
    assert capfd.readouterr().err == ""
