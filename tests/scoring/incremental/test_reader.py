"""Scores that go on from others: the scorer's own, whatever was asked before and whatever was dropped."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.scoring.domain import fit_domain
from prm_core.scoring.incremental.reader import IncrementalReader, reads_on
from prm_core.scoring.scorer import load_scorer
from prm_core.scoring.surprisal import FEATURES, HISTORY
from prm_core.types import Call, Step
from tests.builders.reward_models import TEXTS, tiny_reward_model
from tests.builders.scorer import FakeScorer

STEPS = (Step(TEXTS[1]), Step(TEXTS[2]), Step("3 + 4 = 8 ."), Step("", calls=(Call("add", "3", "7"),)),
         Step(TEXTS[1], observation="ok", ref="7"))
PROMPTS = (TEXTS[0], "Ann has 4 apples .")
CHAINS = st.tuples(st.sampled_from(PROMPTS), st.lists(st.sampled_from(STEPS), min_size=1, max_size=7))


@pytest.fixture(scope="module", params=["process", "outcome", "advantage", "history"])
def scorer(request, tmp_path_factory):
    history = request.param == "history"
    kind = "process" if history else request.param
    scorer = load_scorer(tiny_reward_model(tmp_path_factory.mktemp("model") / "prm", kind=kind), device="cpu")
    if history:
        scorer.model.surprisal.weight.data = torch.linspace(-1, 1, len(FEATURES) + len(HISTORY))
    known = [(str(n % 2), PROMPTS[n % 2], STEPS[: 1 + n % 2]) for n in range(8)]
    scorer.domain = fit_domain(scorer.model, scorer.encoder, known)
    return scorer


def agrees(found, own) -> None:
    assert found.step_scores == pytest.approx(own.step_scores, abs=1e-4)
    assert found.raw_scores == pytest.approx(own.raw_scores, abs=1e-4)
    assert found.prompt_score == (None if own.prompt_score is None else pytest.approx(own.prompt_score, abs=1e-4))
    assert (found.truncated_steps, found.out_of_domain) == (own.truncated_steps, own.out_of_domain)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(CHAINS, min_size=1, max_size=4), min_size=1, max_size=3), st.sampled_from([0, 6000, 2**20]),
       st.sampled_from([1, 7, 4096]))
def test_scores_are_the_scorers_own_in_any_order_within_any_memory_and_in_pieces(scorer, calls, limit, tokens):
    reader = IncrementalReader(scorer, limit)
    for chains in calls:
        jobs = [reader.start(*chain) for chain in chains]
        while any(job.score is None for job in jobs):
            reader.advance(jobs, tokens)
        for job, own in zip(jobs, scorer.score(chains), strict=True):
            agrees(job.score, own)
            reader.leave(job)
    assert reader.pool.tree.size <= limit
    assert all(not branch.held for branch in reader.pool.tree._used)


def test_a_step_costs_its_own_tokens_and_branches_share_their_past(scorer):
    reader, encoder = IncrementalReader(scorer), scorer.encoder
    one, two, three = (len(encoder.encode(TEXTS[0], STEPS[:count]).ids) for count in (1, 2, 3))
    assert [reader.score([(TEXTS[0], STEPS[:count])])[0].computed for count in (1, 2, 2, 3)] == [
        one, two - one, 0, three - two]
    branches = [(TEXTS[0], (*STEPS[:2], step)) for step in STEPS[3:]]
    jobs = reader.score(branches)
    assert sum(job.computed for job in jobs) < sum(job.length - two for job in jobs) + 1
    # What a step is called and where it stands changes nothing.
    again = (TEXTS[0], (dataclasses.replace(STEPS[0], ref="x"), *STEPS[1:3]))
    assert reader.score([again])[0].computed == 0


def test_prompts_that_begin_alike_share_what_they_begin_with(scorer):
    reader = IncrementalReader(scorer)
    rules = "Ann has 3 apples and buys 4 more . "
    chains = [(rules + TEXTS[0], STEPS[:1]), (rules + "How many ?", STEPS[:1])]
    whole = [len(scorer.encoder.encode(*chain).ids) for chain in chains]
    jobs = reader.score(chains)
    assert jobs[0].computed + jobs[1].computed < sum(whole) - 5
    for job, own in zip(jobs, scorer.score(chains), strict=True):
        agrees(job.score, own)


def test_what_is_dropped_is_forgotten(scorer):
    reader = IncrementalReader(scorer, 0)
    reader.score([(TEXTS[0], STEPS[:2])])
    assert (len(reader.pool.tree), reader._nothing.following) == (0, {})


def test_a_chain_that_does_not_fit_is_read_as_far_as_it_does(scorer):
    reader = IncrementalReader(scorer)
    for chain in ((TEXTS[0], STEPS[:1] * 20), (TEXTS[0] * 20, STEPS[:2])):
        [job], [own] = reader.score([chain]), scorer.score([chain])
        agrees(job.score, own)
        assert job.score.truncated_steps > 0


def test_an_empty_step_is_refused_wherever_it_is(scorer):
    reader = IncrementalReader(scorer)
    reader.score([(TEXTS[0], STEPS[:1])])
    for steps, index in (([Step("")], 0), ([STEPS[0], Step("")], 1), ([*STEPS[:1] * 20, Step("")], 20)):
        with pytest.raises(InputError, match=f"step {index} is empty"):
            reader.start(TEXTS[0], steps)


def test_only_models_of_known_kinds_read_on(tmp_path):
    assert not reads_on(FakeScorer())
