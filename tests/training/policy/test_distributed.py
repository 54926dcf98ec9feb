"""Several processes train a policy as one does, over gloo on the CPU, whatever their number."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from prm_core.platform import store
from tests.builders import distributed_policy, distributed_run
from tests.builders.training import assert_same_weights, changed, make_encoder, make_policy, weights

STOP = 3
SEVERAL = {"two": 2, "sharded": 2, "three": 3, "sharded_then_alone": 1, "alone_then_sharded": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Of the same run in this process, in several of their own, and begun in one and ended in the other."""
    root = tmp_path_factory.mktemp("policies")
    low = [f"{name}{distributed_policy.BFLOAT16}" for name in ("alone", "sharded")]
    for name in ("alone", *SEVERAL, *low):
        (root / name).mkdir()
    distributed_policy.run(f"{root}/alone:none:0")
    distributed_policy.run(f"{root}/{low[0]}:none:0")
    distributed_policy.run(f"{root}/alone_then_sharded:none:{STOP}")
    module = "tests.builders.distributed_policy"
    distributed_run.launch(module, f"{root}/two:none:0", f"{root}/sharded:full:0",
                           f"{root}/sharded_then_alone:full:{STOP}", f"{root}/alone_then_sharded:full:0",
                           f"{root}/{low[1]}:full:0")
    distributed_run.launch(module, f"{root}/three:none:0", number=3)
    distributed_policy.run(f"{root}/sharded_then_alone:none:0")
    return root


def report(folder: Path, rank: int = 0) -> dict:
    return store.read_json(folder / f"rank-{rank}.json")


@pytest.mark.parametrize("name", ["two", "sharded", "three"])
def test_several_processes_share_out_what_one_does(folders: Path, name: str) -> None:
    count = SEVERAL[name]
    one, others = report(folders / "alone"), [report(folders / name, rank) for rank in range(count)]
    assert [one["processes"], *(other["processes"] for other in others)] == [1, *[count] * count]
    asked = [other["asked"] for other in others]
    assert sum(asked) == one["asked"]
    assert min(asked) > one["asked"] / count / 2
    assert [set(other["written"]) for other in others] == [{"best", "checkpoint"}, *[set()] * (count - 1)]


@pytest.mark.parametrize("name", list(SEVERAL))
def test_the_curves_are_those_of_one_process(folders: Path, name: str) -> None:
    alone = report(folders / "alone")
    for rank in range(SEVERAL[name]):
        together = report(folders / name, rank)
        assert len(alone["history"]) == len(together["history"]) == 4
        for one, other in zip(alone["history"], together["history"], strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
        assert alone["kept"] == together["kept"] == 2
        assert together["reported"][0] == (STOP if "then" in name else 1), "it began anew"
    assert alone["history"][-1]["kl"] > 1e-3, "a policy that does not move would show nothing"


@pytest.mark.parametrize("name", list(SEVERAL))
def test_all_processes_end_with_the_weights_of_one(folders: Path, name: str) -> None:
    first, *others = (load_file(folders / name / f"rank-{rank}.safetensors") for rank in range(SEVERAL[name]))
    for other in others:
        assert_same_weights(first, other)
    expected = load_file(folders / "alone/rank-0.safetensors")
    for weight, value in expected.items():
        assert_close(first[weight], value, atol=2e-4, rtol=0)
    before = weights(make_policy(make_encoder()).model)
    assert len(changed({weight: before[weight] for weight in expected}, expected)) == len(expected)


def test_weights_of_16_bits_are_trained_alike_by_one_process_and_shared_masters(folders: Path) -> None:
    alone, (first, other) = load_file(folders / "alone-bfloat16/rank-0.safetensors"), [
        load_file(folders / f"sharded-bfloat16/rank-{rank}.safetensors") for rank in range(2)]
    assert_same_weights(first, other)
    before = weights(make_policy(make_encoder()).model.bfloat16())
    assert len(changed({weight: before[weight] for weight in alone}, alone)) == len(alone)
    for weight, value in alone.items():
        # A last digit of a gradient may turn a rounding.
        assert_close(first[weight], value, atol=4e-3, rtol=1e-2)
