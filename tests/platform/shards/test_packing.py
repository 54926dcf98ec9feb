"""Work as bytes: functions with models arrive whole, what was one object is one, and other code is told apart."""

from __future__ import annotations

import threading

import cloudpickle
import pytest
import torch

from prm_core.platform import store
from prm_core.platform.shards.packing import environment, packed, unpacked
from tests.builders import tiny


def test_a_policy_samples_the_same_after_its_journey() -> None:
    policy = tiny.make_policy()

    def work(seed: int) -> object:
        return policy.sample([tiny.mia().prompt], samples=2, temperature=1.0, max_new_tokens=12, batch_size=4,
                             seed=seed)

    arrived = unpacked(packed(work, cloudpickle), "cpu")
    assert arrived(5) == work(5) != work(6)


def test_what_is_shared_arrives_shared_and_models_lie_where_they_are_asked_to() -> None:
    policy = tiny.make_policy()
    part = policy.model.base_model

    def work(_: int) -> tuple[object, object]:
        return policy.model, part

    content = packed(work, cloudpickle)
    model, base = unpacked(content, "cpu")(0)
    assert base is model.base_model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model, base = unpacked(content, "meta")(0)
    assert base is model.base_model
    places = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    assert places == {"meta"}
    assert policy.model.device.type == "cpu"


@pytest.mark.parametrize("kind", [threading.Lock, threading.RLock])
def test_a_lock_arrives_open(kind) -> None:
    lock = kind()
    with lock:
        arrived = unpacked(packed(lambda _: lock, cloudpickle), "cpu")(0)
    assert type(arrived) is type(lock)
    assert arrived is not lock
    assert arrived.acquire(blocking=False)


def test_what_cannot_travel_is_told_at_once(tmp_path) -> None:
    with (tmp_path / "open").open("wb") as file, pytest.raises(TypeError, match="cannot pickle"):
        packed(lambda _: file, cloudpickle)


def test_other_code_is_another_environment(tmp_path, monkeypatch) -> None:
    ours = environment()
    assert ours == environment()
    assert ours["torch"] == torch.__version__.partition("+")[0] or ours["torch"] == torch.__version__
    (tmp_path / "prm_core").mkdir()
    (tmp_path / "prm_core/__init__.py").write_text("# another one\n")
    monkeypatch.setattr(store.prm_core, "__file__", str(tmp_path / "prm_core/__init__.py"))
    theirs = environment()
    assert {name for name in ours if ours[name] != theirs[name]} == {"prm_core"}
