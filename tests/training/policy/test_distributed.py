"""Two processes train a policy as one does: `accelerate launch` over gloo on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from prm_core.platform import store
from tests.builders import distributed_policy, distributed_run
from tests.builders.training import assert_same_weights, changed, make_encoder, make_policy, weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Of the same run in this process, and in two of their own."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    distributed_policy.run(alone)
    distributed_run.launch("tests.builders.distributed_policy", together)
    return alone, together


def report(folder: Path, rank: int = 0) -> dict:
    return store.read_json(folder / f"rank-{rank}.json")


def test_two_processes_share_out_what_one_does(folders) -> None:
    alone, together = folders
    one, others = report(alone), [report(together, rank) for rank in (0, 1)]
    assert [one["processes"], *(other["processes"] for other in others)] == [1, 2, 2]
    asked = [other["asked"] for other in others]
    assert sum(asked) == one["asked"]
    assert min(asked) > one["asked"] / 4
    assert (set(others[0]["written"]), others[1]["written"]) == ({"best", "checkpoint"}, [])


@pytest.mark.parametrize("rank", [0, 1])
def test_the_curves_are_those_of_one_process(folders, rank: int) -> None:
    alone, together = report(folders[0]), report(folders[1], rank)
    assert len(alone["history"]) == len(together["history"]) == 4
    for one, other in zip(alone["history"], together["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert alone["kept"] == together["kept"] == 2
    assert alone["history"][-1]["kl"] > 1e-3, "a policy that does not move would show nothing"


def test_all_processes_end_with_the_weights_of_one(folders) -> None:
    alone, together = folders
    first, second = (load_file(together / f"rank-{rank}.safetensors") for rank in (0, 1))
    assert_same_weights(first, second)
    expected = load_file(alone / "rank-0.safetensors")
    for name, value in expected.items():
        assert_close(first[name], value, atol=2e-4, rtol=0)
    before = weights(make_policy(make_encoder()).model)
    assert len(changed({name: before[name] for name in expected}, expected)) == len(expected)
