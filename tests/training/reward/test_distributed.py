"""Two processes train as one, over gloo on the CPU: each with the whole model or with a share of it, from the start or
from where another number of processes was.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from prm_core import config as configuration
from prm_core.platform import store
from tests.builders import distributed_run
from tests.builders.training import assert_same_weights, changed, files, make_encoder, reward_model_on, save_lm, weights

# Updates end in a checkpoint every second time.
STOP = 3
# Adapters on a frozen backbone, also one of low precision, where sums are not alike to more; and a backbone that drops.
OWN = {"adapted": {"train_prm": {"lora_rank": 2}}, "dropping": {},
       "low": {"train_prm": {"lora_rank": 2, "precision": "bfloat16"}, "models": {"dtype": "bfloat16"}}}
IN_TWO = {"together": ("none", 0), "sharded": ("full", 0), "alone_then_sharded": ("full", 0),
          "sharded_then_alone": ("full", STOP), "together_then_alone": ("none", STOP)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Of the same run in this process, and in two of their own, and of runs that one of them began."""
    root = tmp_path_factory.mktemp("distributed")
    for name in ("alone", *IN_TWO):
        save_lm(root / name / "lm", make_encoder())
    for name, over in OWN.items():
        for how in ("alone", "sharded"):
            dropout = {"attention_dropout": 0.3} if name == "dropping" else {}
            save_lm(root / f"{name}_{how}/lm", make_encoder(), **dropout)
            store.write_json(root / f"{name}_{how}/over.json", configuration.merge({"train_prm": {"epochs": 1}}, over))
        distributed_run.run(f"{root}/{name}_alone:none:0")
    distributed_run.run(f"{root}/alone:none:0")
    distributed_run.run(f"{root}/alone_then_sharded:none:{STOP}")
    distributed_run.launch("tests.builders.distributed_run", *(
        f"{root}/{name}:{sharding}:{stop}" for name, (sharding, stop) in IN_TWO.items()), *(
        f"{root}/{name}_sharded:full:0" for name in OWN))
    for name in ("sharded_then_alone", "together_then_alone"):
        assert files(root / name / "work/checkpoints"), "there is nothing to go on from"
        distributed_run.run(f"{root}/{name}:none:0")
    return root


def report(folder: Path, rank: int = 0) -> dict:
    return store.read_json(folder / f"rank-{rank}.json")


@pytest.mark.parametrize("name", ["together", "sharded"])
def test_there_were_two_processes_on_the_same_rows(folders: Path, name: str) -> None:
    alone = report(folders / "alone")
    assert alone["processes"] == 1
    assert [report(folders / name, rank)["processes"] for rank in (0, 1)] == [2, 2]
    assert alone["counts"] == report(folders / name, 0)["counts"] == report(folders / name, 1)["counts"]
    # Updates of three rows and of two: in some, one process has a row more than the other.
    assert alone["counts"]["rows"] % 3 == 2


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["together", "sharded"])
def test_the_loss_curve_is_that_of_one_process(folders: Path, name: str, rank: int) -> None:
    alone, together = report(folders / "alone"), report(folders / name, rank)
    for one, other in zip(alone["reported"], together["reported"], strict=True):
        assert one[0] == other[0]
        assert one[1].keys() == other[1].keys()
        assert list(one[1].values()) == pytest.approx(list(other[1].values()), rel=1e-4, abs=1e-5)
    assert len(alone["history"]) == len(together["history"]) == 3
    losses = [figures["process/loss"] for _, figures in alone["reported"] if "process/loss" in figures]
    assert max(losses) - min(losses) > 0.05, "a curve that does not move would show nothing"


@pytest.mark.parametrize("name", list(IN_TWO))
def test_a_run_ends_with_the_curve_and_weights_of_one_process(folders: Path, name: str) -> None:
    alone, other = report(folders / "alone"), report(folders / name)
    assert [record["update"] for record in alone["history"]] == [record["update"] for record in other["history"]]
    assert [record["dev_loss"] for record in alone["history"]] == pytest.approx(
        [record["dev_loss"] for record in other["history"]], rel=1e-4)
    expected, found = (load_file(folders / one / "rank-0.safetensors") for one in ("alone", name))
    assert expected.keys() == found.keys()
    for weight, values in expected.items():
        assert_close(found[weight], values, atol=2e-4, rtol=0, msg=weight)
    assert len(changed(weights(reward_model_on(folders / "alone/lm")), expected)) > 10
    if "then" in name:
        assert other["reported"][0][0] == STOP, "it began anew"


@pytest.mark.parametrize("name", ["together", "sharded", "alone_then_sharded"])
def test_all_processes_end_with_the_same_weights(folders: Path, name: str) -> None:
    assert_same_weights(*(load_file(folders / name / f"rank-{rank}.safetensors") for rank in (0, 1)))


@pytest.mark.parametrize("name", ["together", "sharded"])
def test_only_the_first_process_writes(folders: Path, name: str) -> None:
    alone, together = folders / "alone", folders / name
    assert set(report(alone)["writes"]) == {"best", "checkpoint"}
    assert report(together, 0)["writes"] == report(alone)["writes"]
    assert report(together, 1)["writes"] == []
    # Each process has a random state to go on from; all else is there once.
    own = {name for name in files(together / "work") if "random_states_1" in name}
    assert len(own) == 1
    assert set(files(together / "work")) - own == set(files(alone / "work"))


@pytest.mark.parametrize("name", list(OWN))
def test_adapters_and_dropout_are_those_of_one_process(folders: Path, name: str) -> None:
    alone, sharded = (report(folders / f"{name}_{how}") for how in ("alone", "sharded"))
    apart = 2e-2 if name == "low" else 1e-4
    for one, other in zip(alone["reported"], sharded["reported"], strict=True):
        assert list(one[1].values()) == pytest.approx(list(other[1].values()), rel=apart, abs=apart)
    if name == "dropping":
        plain = report(folders / "alone")
        assert alone["reported"][0] != plain["reported"][0], "nothing was dropped"
    expected, found = (load_file(folders / f"{name}_{how}/rank-0.safetensors") for how in ("alone", "sharded"))
    for weight, values in expected.items():
        assert_close(found[weight], values, atol=2 * apart, rtol=0, msg=weight)
