"""Scoring sessions: the scorer's own scores, and every token that is computed counted once."""

from __future__ import annotations

import pytest

from prm_core.models.static.states import StaticStates
from prm_core.scoring import session as sessions
from prm_core.scoring.scorer import load_scorer
from prm_core.scoring.session import ScoringSession
from prm_core.types import Step
from tests.builders.reward_models import TEXTS, tiny_reward_model
from tests.builders.scorer import FakeScorer
from tests.builders.tiny import make_encoder

ONE, TWO = [Step(TEXTS[1])], [Step(TEXTS[1]), Step(TEXTS[2])]


@pytest.fixture(params=[(), ("cpu",)], ids=["prefixes", "fixed buffers"])
def graphed(request, monkeypatch):
    """Each way to keep what was computed."""
    monkeypatch.setattr(sessions, "GRAPHED", request.param)
    return bool(request.param)


@pytest.fixture(params=["process", "outcome", "advantage"])
def scorer(request, tmp_path):
    return load_scorer(tiny_reward_model(tmp_path / "model", kind=request.param), device="cpu")


def test_scores_are_the_scorers_own(scorer, graphed):
    session = ScoringSession(scorer, scorer.encoder)
    assert isinstance(session._states, StaticStates) == graphed
    chains = [(TEXTS[0], ONE), (TEXTS[0], TWO), (TEXTS[0], [Step("The answer is 3 .")])]
    for asked in (chains[:1], chains):
        for read, own in zip(session.score(asked), scorer.score(asked), strict=True):
            assert read.score.step_scores == pytest.approx(own.step_scores, abs=1e-5)
            assert read.score.out_of_domain == own.out_of_domain


def test_a_step_more_costs_its_own_tokens(scorer, graphed):
    session, encoder = ScoringSession(scorer, scorer.encoder), scorer.encoder
    prompt, one, two = (len(encoder.encode(TEXTS[0], steps).ids) for steps in ([], ONE, TWO))
    assert prompt < one < two
    reads = [session.score([(TEXTS[0], steps)])[0] for steps in (ONE, TWO, TWO)]
    assert [read.computed for read in reads] == [one, two - one, 0]
    assert [read.whole for read in reads] == [one, two, two]


def test_a_chain_that_does_not_fit_is_scored_as_far_as_it_does(scorer):
    session = ScoringSession(scorer, scorer.encoder)
    [read] = session.score([(TEXTS[0], ONE * 20)])
    assert read.score.truncated_steps == scorer.score([(TEXTS[0], ONE * 20)])[0].truncated_steps > 0
    assert read.computed == read.whole <= scorer.encoder.config.max_length


def test_a_model_without_its_own_encoder_reads_every_chain_whole():
    encoder = make_encoder()
    session = ScoringSession(FakeScorer(), encoder)
    reads = [session.score([("Ann has 3.", [Step("right"), Step("wrong")])])[0] for _ in range(2)]
    length = len(encoder.encode("Ann has 3.", ["right", "wrong"]).ids)
    assert [(read.score.step_scores, read.computed, read.whole) for read in reads] == [((0.9, 0.1), length, length)] * 2


def test_nothing_to_score_is_no_error():
    assert ScoringSession(FakeScorer(), make_encoder()).score([]) == []
