"""Two processes train as one: `accelerate launch` over gloo on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prm_core.platform import store
from tests.builders import distributed_run
from tests.builders.training import assert_same_weights, changed, files, make_encoder, reward_model_on, save_lm, weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Of the same run in this process, and in two of their own."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    for folder in (alone, together):
        save_lm(folder / "lm", make_encoder())
    distributed_run.run(alone)
    distributed_run.launch("tests.builders.distributed_run", together)
    return alone, together


def report(folder: Path, rank: int = 0) -> dict:
    return store.read_json(folder / f"rank-{rank}.json")


def test_there_were_two_processes_on_the_same_rows(folders) -> None:
    alone, together = folders
    assert report(alone)["processes"] == 1
    assert [report(together, rank)["processes"] for rank in (0, 1)] == [2, 2]
    assert report(alone)["counts"] == report(together, 0)["counts"] == report(together, 1)["counts"]
    # Updates of three rows and of two: in some, one process has a row more than the other.
    assert report(alone)["counts"]["rows"] % 3 == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_the_loss_curve_is_that_of_one_process(folders, rank: int) -> None:
    alone, together = report(folders[0]), report(folders[1], rank)
    for one, other in zip(alone["reported"], together["reported"], strict=True):
        assert one[0] == other[0]
        assert one[1].keys() == other[1].keys()
        assert list(one[1].values()) == pytest.approx(list(other[1].values()), rel=1e-4, abs=1e-5)
    assert len(alone["history"]) == len(together["history"]) == 3
    for one, other in zip(alone["history"], together["history"], strict=True):
        assert one["dev_loss"] == pytest.approx(other["dev_loss"], rel=1e-4)
    losses = [figures["process/loss"] for _, figures in alone["reported"] if "process/loss" in figures]
    assert max(losses) - min(losses) > 0.05, "a curve that does not move would show nothing"


def test_all_processes_end_with_the_weights_of_one(folders) -> None:
    alone, together = folders
    first, second = (load_file(together / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert_same_weights(first, second)
    expected = load_file(alone / "rank-0.safetensors")
    assert expected.keys() == first.keys()
    for name, value in expected.items():
        assert torch.allclose(value, first[name], atol=2e-4), name
    assert len(changed(weights(reward_model_on(alone / "lm")), expected)) > 10


def test_only_the_first_process_writes(folders) -> None:
    alone, together = folders
    assert set(report(alone)["writes"]) == {"best", "checkpoint"}
    assert report(together, 0)["writes"] == report(alone)["writes"]
    assert report(together, 1)["writes"] == []
    # Each process has a random state to go on from; all else is there once.
    own = {name for name in files(together / "work") if "random_states_1" in name}
    assert len(own) == 1
    assert set(files(together / "work")) - own == set(files(alone / "work"))
