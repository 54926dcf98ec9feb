"""The map over shards: what is missing is worked on, kept one by one, by whoever the config names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core import config as configuration
from prm_core.config import WorkersConfig
from prm_core.errors import InputError
from prm_core.platform import shards, store
from prm_core.platform.shards import mapping
from tests import ROOT


class Backwards:
    """A runner that does the last shard first, and fails before one."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails = fails
        self.asked: list[list[int]] = []

    def __call__(self, work, todo, config) -> Iterator[tuple[int, object]]:
        self.asked.append(list(todo))
        for shard in reversed(todo):
            if shard == self.fails:
                raise OSError("the cluster is gone")
            yield shard, work(shard)


@pytest.fixture
def runner(monkeypatch) -> Backwards:
    found = Backwards()
    monkeypatch.setitem(mapping.RUNNERS._entries, "backwards", found)
    return found


def fill(folder: Path, count: int, runner: str, **more) -> None:
    shards.fill([folder / str(shard) for shard in range(count)], lambda shard: f"{shard * shard}",
                lambda shard, text: store.write_text(folder / str(shard), text), WorkersConfig(runner=runner), "",
                **more)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["local", "backwards"])
def test_missing_shards_are_worked_on_and_the_others_left(tmp_path, runner, name) -> None:
    store.write_text(tmp_path / "1", "from before")
    fill(tmp_path, 4, name)
    assert contents(tmp_path) == {"0": "0", "1": "from before", "2": "4", "3": "9"}
    fill(tmp_path, 4, name)
    assert runner.asked == ([[0, 2, 3]] if name == "backwards" else []), "with nothing to do nobody is asked"


def test_what_was_done_before_a_failure_is_kept_and_not_done_again(tmp_path, runner) -> None:
    runner.fails = 1
    with pytest.raises(OSError, match="gone"):
        fill(tmp_path, 4, "backwards")
    assert contents(tmp_path) == {"2": "4", "3": "9"}
    runner.fails = None
    fill(tmp_path, 4, "backwards")
    assert runner.asked == [[0, 1, 2, 3], [0, 1]]
    assert contents(tmp_path) == {"0": "0", "1": "1", "2": "4", "3": "9"}


def test_work_that_waits_for_others_stays_in_this_process(tmp_path, runner, monkeypatch) -> None:
    monkeypatch.setattr("prm_core.platform.workers.cores", lambda: 2)
    found = dict(shards.run(lambda _: os.getpid(), 3, WorkersConfig(runner="backwards"), "", alone=True))
    assert found == dict.fromkeys(range(3), os.getpid())
    assert runner.asked == []
    forked = dict(shards.run(lambda _: os.getpid(), 3, WorkersConfig(), ""))
    assert os.getpid() not in forked.values()


@given(st.integers(0, 9), st.sets(st.integers(0, 8)))
def test_each_shard_is_done_once(count: int, wanted: set[int]) -> None:
    todo = sorted(shard for shard in wanted if shard < count)
    assert list(shards.run(lambda shard: -shard, count, shards.HERE, "", todo=todo, alone=True)) == [
        (shard, -shard) for shard in todo]


def test_a_runner_that_is_not_there_is_a_fault_of_the_config() -> None:
    raw = configuration.read_yaml(ROOT / "params.yaml")
    assert configuration.parse(raw, "p").workers == shards.HERE
    with pytest.raises(InputError, match=r"workers\.runner: unknown runner of shards 'spark'; known: local, ray"):
        configuration.parse({**raw, "workers": {"runner": "spark"}}, "p")
