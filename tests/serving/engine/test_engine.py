"""The engine: many threads, one model; nothing is lost, mixed up or held up."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prm_core.config import EngineConfig
from prm_core.errors import OverloadError
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.engine.engine import FEWEST, Engine, Pace
from prm_core.serving.engine.requests import RefusedChain, Request, in_turn
from prm_core.types import Step
from tests.builders.reward_models import TEXTS, tiny_reward_model
from tests.builders.scorer import FakeScorer

GIB = 2**30


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return load_scorer(tiny_reward_model(tmp_path_factory.mktemp("model") / "prm"), device="cpu")


def chain(*texts: str):
    return "p", [Step(text) for text in texts]


class Gated(FakeScorer):
    """Scores when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def score(self, chains):
        self.entered.set()
        assert self.gate.wait(10)
        return super().score(chains)


@pytest.mark.parametrize("memory", [0.0, 20_000 / GIB, 0.1])
def test_threads_get_the_scores_of_their_own_chains(scorer, memory):
    engine = Engine(scorer, EngineConfig(memory=memory))
    texts = [TEXTS[1], TEXTS[2], "4 + 3 = 7 .", "7 ."]

    def agent(number: int) -> None:
        steps = []
        for turn in range(5):
            steps.append(Step(texts[(number + turn * (1 + number % 2)) % 4]))
            [said], [own] = engine.score([(TEXTS[0], list(steps))]), scorer.score([(TEXTS[0], steps)])
            assert said.score.step_scores == pytest.approx(own.step_scores, abs=1e-4)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(agent, range(6)))
    figures = engine.figures()
    assert (figures.waiting, figures.refused, figures.late) == (0, 0, 0)
    assert figures.memory <= figures.limit
    # What two ask about at one time is computed once though nothing is kept.
    assert figures.computed <= figures.asked
    assert memory == 0 or figures.computed < figures.asked
    engine.close()


def test_requests_that_wait_are_read_together():
    scorer = Gated()
    engine = Engine(scorer, EngineConfig())
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(engine.score, [chain("first")])
        assert scorer.entered.wait(10)
        others = [pool.submit(engine.score, [chain("ok", f"wrong {n}")]) for n in range(4)]
        while engine.figures().waiting < 5:
            time.sleep(0.001)
        scorer.gate.set()
        assert first.result()[0].score.step_scores == (0.9,)
        assert [other.result()[0].score.step_scores for other in others] == [(0.9, 0.1)] * 4
    assert [len(call) for call in scorer.calls] == [1, 4]


def test_a_full_queue_refuses_and_a_deadline_passes():
    scorer = Gated()
    engine = Engine(scorer, EngineConfig(waiting=10, deadline=30.0))
    assert engine.has_room
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.score, [chain("of any size where nothing waits")])
        assert scorer.entered.wait(10)
        with pytest.raises(OverloadError, match="1 requests wait") as refused:
            engine.score([chain("more")])
        assert refused.value.retry_after >= 1
        assert not engine.has_room
        scorer.gate.set()
        first.result()
    while engine.figures().waiting:
        time.sleep(0.001)
    assert engine.has_room
    scorer.gate.clear()
    with pytest.raises(OverloadError, match=r"no answer within 0\.05 seconds"):
        engine.score([chain("late")], timeout=0.05)
    scorer.gate.set()
    while engine.figures().waiting:
        time.sleep(0.001)
    # Nobody waits for it, and it takes no room any more.
    assert engine.score([chain("again")])[0].score.step_scores == (0.9,)
    engine.close()
    assert (engine.figures().refused, engine.figures().late, engine.figures().waiting) == (1, 1, 0)
    with pytest.raises(OverloadError, match="stopping"):
        engine.score([chain("after")])


def test_what_is_refused_or_breaks_takes_nothing_else_with_it(scorer, caplog):
    for own, bad, kind in ((FakeScorer(), "refuse", RefusedChain), (FakeScorer(), "crash", RuntimeError),
                           (scorer, "", RefusedChain)):
        engine = Engine(own, EngineConfig())
        with ThreadPoolExecutor(2) as pool:
            good = pool.submit(engine.score, [chain("3 + 4 = 7 ."), chain("7 .")])
            with pytest.raises(kind) as error:
                engine.score([chain("7 ."), chain(bad)])
            assert len(good.result()) == 2
        if kind is RefusedChain:
            assert error.value.index == 1
        assert engine.figures().waiting == 0


def test_a_pass_that_runs_out_of_memory_is_made_smaller(scorer, monkeypatch):
    engine = Engine(scorer, EngineConfig())
    reader, sizes = engine._reader, []
    extend = reader.pool.extend

    def limited(places, texts):
        sizes.append(sum(map(len, texts)))
        if sizes[-1] > 20:
            raise torch.OutOfMemoryError("out of memory")
        return extend(places, texts)

    monkeypatch.setattr(reader.pool, "extend", limited)
    chains = [(TEXTS[0], [Step(TEXTS[1]), Step(f"{n} .")]) for n in range(6)]
    for said, own in zip(engine.score(chains), scorer.score(chains), strict=True):
        assert said.score.step_scores == pytest.approx(own.step_scores, abs=1e-4)
    assert sizes[0] > 20 >= sizes[-1]
    # Where one token is too much there is no way out.
    monkeypatch.setattr(reader.pool, "extend", lambda places, texts: limited(places, [[0] * 21]))
    with pytest.raises(torch.OutOfMemoryError):
        engine.score([("new", [Step("7 .")])])


def test_a_pass_never_gets_more_tokens_than_there_was_memory_for():
    pace = Pace(16)
    assert pace.halve()
    for tokens, seconds in ((0, 1.0), (8, 1.0), (8, 0.0), (8, 0.0)):
        pace.took(tokens, seconds, target=0.1)
        assert pace.tokens == 8
    assert [pace.halve() for _ in range(4)] == [True, True, True, False]


def test_a_long_chain_holds_up_no_short_one(scorer, monkeypatch):
    engine = Engine(scorer, EngineConfig())
    engine._piece.tokens = engine._batch.tokens = 4
    monkeypatch.setattr(Pace, "took", lambda *_: None)
    order = []

    def ask(name: str, chain) -> None:
        [said] = engine.score([chain])
        order.append(name)
        assert said.score.step_scores == pytest.approx(scorer.score([chain])[0].step_scores, abs=1e-4)

    passes = []
    advance = engine._reader.advance

    def slow(jobs, tokens):
        passes.append(tokens)
        time.sleep(0.02)
        return advance(jobs, tokens)

    monkeypatch.setattr(engine._reader, "advance", slow)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(ask, "long", (TEXTS[0], [Step(TEXTS[1])] * 5))
        while len(passes) < 2:
            time.sleep(0.001)
        short = pool.submit(ask, "short", ("7", [Step("7")]))
        for one in (short, long):
            one.result()
    assert order == ["short", "long"]


def test_each_request_has_its_turn():
    one, other = Request([chain(str(n)) for n in range(3)], 0.0), Request([chain("x")], 0.0)
    assert [(task.request is one, task.index) for task in in_turn([one, other])] == [
        (True, 0), (False, 0), (True, 1), (True, 2)]


def test_a_pass_is_as_large_as_time_allows():
    pace = Pace(64)
    pace.took(64, 0.01, 0.1)
    assert pace.tokens == 128
    pace.took(3, 0.01, 0.1)
    assert pace.tokens == 128, "a small pass says nothing"
    pace.took(128, 1.0, 0.1)
    assert pace.tokens == 64
    for _ in range(5):
        pace.took(pace.tokens, 1.0, 0.1)
    assert pace.tokens == FEWEST
    assert pace.halve()
    pace.took(pace.tokens, 0.0, 0.1)
    assert pace.tokens == FEWEST // 2, "memory sets the bound"
