"""Whoever rings is heard at once, in other processes too."""

from __future__ import annotations

import time

from prm_core.serving.swap.bell import Bell


def test_a_ring_ends_one_wait_whether_it_comes_before_or_during() -> None:
    bell = Bell()
    assert not bell.wait(0)
    bell.ring()
    start = time.monotonic()
    assert bell.wait(60)
    assert time.monotonic() - start < 30
    assert not bell.wait(0.01)


def test_others_hear_it_by_the_file_and_each_ring_once(tmp_path) -> None:
    one, other = Bell(tmp_path / "bell"), Bell(tmp_path / "bell")
    assert not other.wait(0)
    for _ in range(2):
        one.ring()
        assert one.wait(0)
        assert other.wait(0)
        assert not other.wait(0)
    other.wake()
    assert other.wait(0)
    assert not one.wait(0)
    one.ring()
    assert not Bell(tmp_path / "bell").wait(0), "rung before it was there"
