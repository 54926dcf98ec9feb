"""Which process of a distributed run this is, and which GPU is its."""

from __future__ import annotations

import pytest
import torch

from prm_core.models.loading import pick_device
from prm_core.platform.environment import is_main, local_rank


@pytest.mark.parametrize(("rank", "local", "main"), [(None, 0, True), ("0", 0, True), ("3", 1, False)])
def test_ranks_are_what_the_launcher_says(monkeypatch, rank: str | None, local: int, main: bool) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", None if rank is None else str(local))):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert (is_main(), local_rank()) == (main, local)


def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == torch.device("cuda", 0), "the launcher shows it one"
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
