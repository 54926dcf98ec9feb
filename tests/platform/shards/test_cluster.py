"""The runner `ray`, with a stand-in for Ray: the same rows whoever does them, lost workers, other code, no cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from types import ModuleType

import pytest
import torch

import prm_core
from prm_core.config import WorkersConfig
from prm_core.errors import InputError
from prm_core.platform import shards, workers
from prm_core.platform.shards.packing import environment
from tests.builders import fake_ray

WEIGHTS = torch.arange(4.0)


def square(shard: int) -> float:
    return float(WEIGHTS[shard % 4]) + shard * shard


EXPECTED = {shard: square(shard) for shard in range(7)}


def run(ray: ModuleType | None, work=square, **settings) -> dict[int, float]:
    with fake_ray.installed(ray):
        return dict(shards.run(work, 7, WorkersConfig(runner="ray", **settings), ""))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_the_rows_are_the_same_whatever_the_number_of_workers(count: int, seed: int) -> None:
    ray = fake_ray.FakeRay(seed=seed)
    assert run(ray, count=count) == EXPECTED
    assert len(ray.workers) == min(count, 7)
    assert sorted(shard for _, shard in ray.done) == list(range(7))
    # At most those that had not started when the others were through.
    assert not set(ray.killed) & {worker for worker, _ in ray.done}


def test_a_shard_whose_worker_was_lost_goes_to_another(caplog) -> None:
    died: list[int] = []

    def dies(worker: int, method: str, arguments: tuple) -> bool:
        if method == "do" and arguments[-1] in (2, 5) and died.count(arguments[-1]) < 2:
            died.append(arguments[-1])
            return True
        return False

    ray = fake_ray.FakeRay(dies)
    assert run(ray, count=2, retries=2) == EXPECTED
    assert Counter(died) == {2: 2, 5: 2}
    assert len(ray.workers) == 2 + 4
    assert caplog.text.count("another one takes over: The actor died: out of memory.") == 4


@pytest.mark.parametrize("method", ["do", "environment"])
def test_one_that_is_lost_again_and_again_is_an_error(method: str) -> None:
    ray = fake_ray.FakeRay(lambda _, called, arguments: called == method and arguments[-1:] in ((), (3,)))
    what = "on shard 3" if method == "do" else "as they started"
    with pytest.raises(workers.WorkerDied, match=rf"lost {what}, more than workers.retries 1; the last one because: "
                                                 r"The actor died: out of memory\. Run the same command again"):
        run(ray, count=1, retries=1)
    assert len(ray.workers) == 2
    assert [shard for _, shard in ray.done] == ([0, 1, 2] if method == "do" else [])


def test_an_error_of_the_work_comes_as_itself_and_ends_the_others() -> None:
    def fail(shard: int) -> int:
        if shard == 1:
            raise InputError("no such file")
        return shard

    ray = fake_ray.FakeRay()
    with pytest.raises(InputError, match="no such file"):
        run(ray, fail, count=3)
    assert {shard for _, shard in ray.done} < set(range(7))
    assert ray.killed, "what nobody waits for any more goes on"


def test_workers_stay_for_the_next_work_of_the_process() -> None:
    ray = fake_ray.FakeRay()
    asked = []

    def dies(worker: int, method: str, arguments: tuple) -> bool:
        asked.append((worker, method))
        return len(asked) == 17

    ray._dies = dies
    with fake_ray.installed(ray):
        config = WorkersConfig(runner="ray", count=2)
        first = dict(shards.run(square, 7, config, ""))
        second = dict(shards.run(lambda shard: -shard, 7, config, ""))
        # One of them dies at its first shard of the third work.
        third = dict(shards.run(square, 3, config, ""))
    assert (first, second) == (EXPECTED, {shard: -shard for shard in range(7)})
    assert third == {shard: EXPECTED[shard] for shard in range(3)}
    assert len(ray.joined) == 1
    assert [method for _, method in asked].count("environment") == len(ray.workers) == 3


@pytest.mark.parametrize(("theirs", "sent", "said"), [
    ({"prm_core": "0123"}, True, r"prm_core 0123 instead of \w{16}; install requirements.lock on the cluster"),
    ({"prm_core": "0123", "torch": "1.0"}, False,
     r"prm_core 0123 instead of \w+, torch 1.0 instead of [\w.+]+; install this checkout there, or set "
     "workers.send_code to true"),
])
def test_a_worker_with_other_code_is_an_error_before_it_works(theirs, sent, said) -> None:
    ray = fake_ray.FakeRay(environment={**environment(), **theirs})
    with pytest.raises(InputError, match="another version of the code, or of what that runs on, .*" + said):
        run(ray, send_code=sent)
    assert ray.done == []
    [joined] = ray.joined
    assert joined["address"] == "auto"
    assert joined["runtime_env"].get("py_modules") == ([prm_core.__path__[0]] if sent else None)
    assert joined["runtime_env"]["env_vars"]["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_worker_without_our_code_can_say_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "prm_core.platform.shards.packing", None)
    with pytest.raises(InputError, match=r"prm_core none that knows Ray \(import of .* halted.*\) instead of"):
        run(fake_ray.FakeRay(), send_code=False)


def test_where_ray_is_not_installed_the_way_to_it_is_told() -> None:
    with pytest.raises(InputError, match=r"workers.runner ray: Ray cannot be imported here .*requirements-ray.txt"):
        run(None)


def test_a_cluster_that_cannot_be_joined_is_named_with_the_first_cause() -> None:
    class Gone(fake_ray.FakeRay):
        def init(self, **arguments) -> None:
            try:
                raise fake_ray.RayError("InvalidAuthToken:\n the token is missing")
            except fake_ray.RayError as error:
                raise ConnectionError("Failed to connect") from error

    with pytest.raises(InputError, match=r"workers.address auto: this process cannot join a Ray cluster there \(Failed "
                                         r"to connect; InvalidAuthToken: the token is missing\)"):
        run(Gone())


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "head", "127.0.0.1:port", "127.0.0.1:99999"])
def test_where_nothing_answers_ray_is_not_asked(address) -> None:
    ray = fake_ray.FakeRay()
    with pytest.raises(InputError, match=rf"workers.address {address}: nothing answers there .*; give HOST:PORT"):
        run(ray, address=address)
    assert ray.joined == []


def test_an_address_that_answers_is_joined() -> None:
    ray = fake_ray.FakeRay()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert run(ray, address=address) == EXPECTED
    assert [joined["address"] for joined in ray.joined] == [address]


def test_a_cluster_without_room_is_not_waited_for_for_ever() -> None:
    with pytest.raises(InputError, match=r"no worker started .* within workers.start_seconds 0.01; each takes one CPU "
                                         r"and 2 GPUs, and the cluster has 0 of 4 CPUs free, 0 of 0 GPUs free"):
        run(fake_ray.FakeRay(starts=False), start_seconds=0.01, gpus=2)


def test_a_process_that_has_joined_a_cluster_forks_none(monkeypatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    with fake_ray.installed(fake_ray.FakeRay()):
        config = WorkersConfig(runner="ray")
        assert dict(shards.run(square, 7, config, "")) == EXPECTED
        with workers.forked(lambda _: os.getpid(), 2) as pool:
            assert list(pool.map(range(2))) == [os.getpid()] * 2
    with workers.forked(lambda _: os.getpid(), 2) as pool:
        assert os.getpid() not in list(pool.map(range(2)))


def test_models_lie_on_the_gpu_that_a_worker_has() -> None:
    ray = fake_ray.FakeRay()
    ray._dies = lambda worker, method, arguments: bool(asked.append(arguments)) if method == "do" else False
    asked: list[tuple] = []
    assert run(ray, gpus=1.0, count=1) == EXPECTED
    assert {device for _, device, _ in asked} == {"cuda"}
    assert ray.options == {"num_cpus": 1, "num_gpus": 1.0, "max_restarts": 0}
