"""Speed of policies' updates beside a peer: what is compared, that the neighbour goes, who is no peer."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import policy_peer
from benchmarks.policy_speed import OURS, PEER, bars, busy_neighbour
from prm_core.errors import InputError


def found(*updates: float) -> dict[str, list[float]]:
    """A measurement of updates of 100 tokens after one that is not counted."""
    return {"seconds": [99.0, *updates], "tokens": [1.0, *[100.0] * len(updates)]}


def test_bars_compare_round_by_round_without_the_first_update() -> None:
    alone = {OURS: [found(1.0, 3.0), found(1.0, 1.0), found(2.0, 2.0)], PEER: [found(8.0, 8.0)] * 3}
    beside = {OURS: [found(2.0, 2.0, 9.0), found(4.0, 4.0), found(2.0, 2.0)], PEER: []}
    faster, slower = bars(alone, beside)
    # 400 tokens in 4, 2 and 4 seconds against 16.
    assert (faster.value, faster.low, faster.high, faster.holds) == (4.0, 4.0, 8.0, True)
    # Medians of an update: 2, 4, 2 seconds beside a neighbour, 2, 1, 2 alone.
    assert (slower.value, slower.low, slower.high, slower.holds) == (1.0, 1.0, 4.0, True)
    assert not bars({OURS: alone[OURS], PEER: [found(5.9, 5.9)] * 3}, beside)[0].holds


def test_the_neighbour_is_busy_on_one_core_and_gone_afterwards() -> None:
    with busy_neighbour():
        (neighbour,) = [child for child in psutil.Process().children() if "while True" in " ".join(child.cmdline())]
        assert len(neighbour.cpu_affinity()) == 1
    assert not neighbour.is_running()


@pytest.mark.parametrize(("python", "reason"), [
    (sys.executable, "no GRPOTrainer there"), ("/nowhere/python", "does not run")])
def test_a_python_without_trl_is_refused_with_the_way_to_one(python: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"--peer .*{reason}.*make an environment for it: .*trl==1.16.0"):
        policy_peer.check(Path(python))
