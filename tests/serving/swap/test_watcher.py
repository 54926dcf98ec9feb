"""The server goes with the alias: tried, taken over, or left as it was with an alert."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from typing import Any

import pytest
from starlette.testclient import TestClient

from prm_core.config import HttpConfig
from prm_core.errors import InputError
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.http.edge import Edge
from prm_core.serving.metrics import Metrics
from prm_core.serving.swap.bell import Bell
from prm_core.serving.swap.current import Current
from prm_core.serving.swap.recent import Recent
from prm_core.types import Step
from tests.builders.edge import ask, unsampled
from tests.builders.reward_models import TEXTS, tiny_reward_model
from tests.builders.scorer import FakeScorer
from tests.builders.versions import Registry, Version, served, source

ROW = {"prompt": "p", "steps": ["ok", "wrong"]}


def value(metrics: Metrics, name: str, labels: str = "") -> float:
    start = f'prm:{name}{{model_name="prm"{labels}}} '
    return float(next((line.split()[-1] for line in metrics.render().decode().splitlines() if line.startswith(start)),
                      0.0))


def swaps(metrics: Metrics) -> dict[str, float]:
    return {outcome: count for outcome in ("done", "not_loaded", "not_passed")
            if (count := value(metrics, "model_swaps_total", f',outcome="{outcome}"'))}


def test_where_the_alias_moves_the_version_takes_over_and_is_told(caplog) -> None:
    registry, current, recent = Registry(1), Current(served(1)), Recent(50)
    watcher, metrics = registry.watcher(current, recent)
    client = TestClient(Edge(current, HttpConfig(), None, metrics, recent, unsampled(metrics), watcher))
    watcher.look()
    assert (registry.loaded, swaps(metrics)) == ([], {})
    assert ask(client, "/invocations", {"inputs": [ROW]})["predictions"][0]["step_scores"] == [0.9, 0.1]
    before, registry.points_to = weakref.ref(current.served.service), 2
    with caplog.at_level(logging.INFO):
        watcher.look()
    said = client.post("/invocations", json={"inputs": [ROW]})
    assert said.json()["predictions"][0]["step_scores"] == pytest.approx([0.8, 0.0])
    assert (said.headers["x-model"], said.headers["x-model-version"]) == (source(2), "v2")
    assert client.get("/ready").json() == {"ready": True, "draining": False, "model": source(2), "alert": None}
    assert (swaps(metrics), value(metrics, "model_swap_alert")) == ({"done": 1}, 0)
    assert value(metrics, "shadow_score_difference") == pytest.approx(0.1)
    assert value(metrics, "calibration_age_seconds") == pytest.approx(time.time() - 2, abs=60)
    assert "on 1 recent trajectories of 2 steps its scores differ by 0.1000 on average" in caplog.text
    gc.collect()
    assert before() is None, "the version before is still in memory"


class Picky(FakeScorer):
    """Refuses one of the questions."""

    def _score(self, prompt, steps):
        if prompt == "7":
            raise InputError("not this one")
        return super()._score(prompt, steps)


@pytest.mark.parametrize(("version", "outcome", "why"), [
    (InputError("config.json is broken"), "not_loaded", "does not load (config.json is broken)"),
    (RuntimeError("secret text"), "not_loaded", "does not load (RuntimeError)"),
    (served(2, Picky()), "not_passed", "does not pass (inputs[0]: not this one)"),
    (served(2, Version(10)), "not_passed", "differ by 0.5000 on average"),
])
def test_a_version_that_fails_leaves_the_old_one_and_is_not_tried_again(version, outcome, why, caplog) -> None:
    registry, current, recent = Registry(2), Current(served(1)), Recent(50)
    registry.versions[2] = version
    watcher, metrics = registry.watcher(current, recent, max_difference=0.3)
    client = TestClient(Edge(current, HttpConfig(), None, metrics, recent, unsampled(metrics), watcher))
    for number in range(20):
        ask(client, "/invocations", {"inputs": [{"prompt": str(number), "steps": ["ok", "wrong"] * (number % 2 + 1)}]})
    for _ in range(3):
        watcher.look()
    assert (registry.loaded, swaps(metrics), current.served.source) == ([2], {outcome: 1}, source(1))
    assert value(metrics, "model_swap_alert") == 1
    assert watcher.alert.startswith(f"{source(2)} is not served: it does not")
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["alert"]) == (200, watcher.alert)
    [error] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert why in error.getMessage()
    assert ask(client, "/invocations", {"inputs": [ROW]})["predictions"][0]["step_scores"] == [0.9, 0.1]
    # When it is told to, and when the alias has pointed elsewhere.
    del registry.versions[2]
    watcher.look(again=True)
    assert (current.served.source, watcher.alert) == (source(2), None)
    registry.versions[3] = InputError("broken")
    for number in (3, 2, 3):
        registry.points_to = number
        watcher.look()
        watcher.look()
    assert registry.loaded == [2, 2, 3, 3]
    registry.points_to = 2
    watcher.look()
    assert (watcher.alert, value(metrics, "model_swap_alert")) == (None, 0)


def test_a_registry_that_does_not_answer_changes_nothing_and_is_asked_again(caplog) -> None:
    registry, current = Registry(1), Current(served(1))
    watcher, metrics = registry.watcher(current)
    registry.points_to = InputError("cannot be reached")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watcher.look()
        assert (current.served.source, value(metrics, "registry_failures_total")) == (source(1), 3)
        registry.points_to = 2
        watcher.look()
    assert current.served.source == source(2)
    assert caplog.text.count("the registry does not say which version to serve (InputError: cannot be reached)") == 1
    assert caplog.text.count("the registry answers again") == 1


def test_a_registry_that_goes_while_a_version_loads_is_no_fault_of_the_version() -> None:
    registry, current = Registry(2), Current(served(1))
    watcher, metrics = registry.watcher(current)
    load, gone = registry.load, OSError("gone")

    def lost(uri: str):
        registry.points_to = gone
        raise gone

    watcher._load = lost
    watcher.look()
    assert (swaps(metrics), watcher.alert, value(metrics, "registry_failures_total")) == ({}, None, 1)
    watcher._load, registry.points_to = load, 2
    watcher.look()
    assert (current.served.source, swaps(metrics)) == (source(2), {"done": 1})


def test_the_thread_looks_at_once_when_told_and_outlives_a_fault(caplog) -> None:
    registry, current, bell = Registry(1), Current(served(1)), Bell()
    watcher, metrics = registry.watcher(current, bell=bell, poll=60.0)
    with TestClient(Edge(current, HttpConfig(), None, metrics, Recent(0), unsampled(metrics), watcher)) as client:
        broken, registry.points_to, load = threading.Event(), 2, registry.load

        def fault(uri: str):
            broken.set()
            raise SystemError

        watcher._refuse = lambda *_: 1 / 0
        registry.load = watcher._load = fault
        assert client.post("/reload").status_code == 202
        assert broken.wait(10)
        watcher._load = load
        answer = client.post("/reload", content=b"{", headers={"content-type": "text/plain"})
        assert (answer.status_code, answer.json()) == (202, {"model": source(1)})
        for _ in range(1000):
            if client.get("/ready").json()["model"] == source(2):
                break
            time.sleep(0.01)
        assert current.served.source == source(2)
        thread = watcher._thread
        assert thread.is_alive()
    assert not thread.is_alive()
    assert "looking for a new version failed" in caplog.text


def row(count: int) -> dict[str, Any]:
    return {"prompt": TEXTS[0], "steps": (TEXTS * 2)[1 : 1 + count]}


def test_under_swaps_no_answer_is_lost_or_of_two_versions(tmp_path) -> None:
    scorers = {number: load_scorer(tiny_reward_model(tmp_path / str(number), seed=number), device="cpu")
               for number in (1, 2)}
    registry, current, recent = Registry(1), Current(served(1, scorers[1])), Recent(50)
    watcher, metrics = registry.watcher(current, recent, max_difference=1.0)
    watcher._load = lambda uri: served(int(uri[-1]), scorers[int(uri[-1])])
    client = TestClient(Edge(current, HttpConfig(), None, metrics, recent, unsampled(metrics), watcher))
    said: list[tuple[str, int, list[float]]] = []
    ended = threading.Event()

    def agent(number: int) -> None:
        turn = number
        while not ended.is_set():
            count = turn % 3 + 1
            answer = client.post("/invocations", json={"inputs": [row(count)]})
            assert answer.status_code == 200
            said.append((answer.headers["x-model"], count, answer.json()["predictions"][0]["step_scores"]))
            turn += 1

    threads = [threading.Thread(target=agent, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for swap in range(10):
        enough = len(said) + 6
        while len(said) < enough:
            time.sleep(0.001)
        registry.points_to = 2 - swap % 2
        watcher.look()
    ended.set()
    for thread in threads:
        thread.join()
    assert swaps(metrics) == {"done": 10}
    assert {model for model, _, _ in said} == {source(1), source(2)}
    chains = [(TEXTS[0], [Step(text) for text in row(count)["steps"]]) for count in (1, 2, 3)]
    plain = {(source(number), count): score.step_scores for number, scorer in scorers.items()
             for count, score in enumerate(scorer.score(chains), 1)}
    for model, count, scores in said:
        assert scores == pytest.approx(plain[model, count], abs=1e-4)
