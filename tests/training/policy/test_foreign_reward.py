"""Reward models of other projects pay a policy whose tokens are not theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.sampling.sampler import Continuation
from prm_core.scoring.foreign import ForeignScorer, load_any_scorer
from prm_core.training.policy import loop
from prm_core.training.policy.experience import sample_and_score, to_experience
from prm_core.types import Problem, Step
from tests.builders import foreign
from tests.builders.training import PROBLEMS, changed, make_encoder, make_policy, small_config, weights

ENCODER = make_encoder(max_length=1024)
PROBLEM = Problem("p", "arithmetic", "How many apples?", "7")
SETTINGS = dataclasses.replace(
    small_config().train_policy, group_size=3, updates=2, inner_epochs=1,
    advantages=dataclasses.replace(small_config().train_policy.advantages, outcome_weight=0.0, process_weight=1.0,
                                   credit="step", baseline="none", scale="none"))


@pytest.fixture(scope="module", params=["trl_model", "qwen_model", "shepherd_model"])
def scorer(request, tmp_path_factory) -> ForeignScorer:
    folder = tmp_path_factory.mktemp(request.param)
    write: Callable[[Path], Any] = getattr(foreign, request.param)
    write(folder)
    found = load_any_scorer(folder, device="cpu")
    assert isinstance(found, ForeignScorer)
    assert len(found.encoder.tokenizer) != len(ENCODER.tokenizer)
    return found


def scripted(*chains: tuple[str, ...]) -> Any:
    """A policy that writes these steps, whatever it is asked."""
    ids = [[token for step in chain for token in (*ENCODER.tokenizer.encode(step, add_special_tokens=False),
                                                  ENCODER.separator_id)] + [ENCODER.eos_id] for chain in chains]
    return SimpleNamespace(encoder=ENCODER, continue_chains=lambda *args, **kwargs: [
        Continuation(one, [-0.5] * len(one), True) for one in ids])


def test_scores_stand_on_the_policy_s_own_tokens_and_a_chain_that_does_not_fit_has_none(scorer) -> None:
    first, second = "Ann has 3 apples", "3 + 4 = 7"
    # Of more steps than the model's context has tokens.
    long = tuple(f"Ann buys {number} more" for number in range(80))
    chains = sample_and_score(scripted((first, second), (second,), long), scorer, DOMAINS, [PROBLEM], SETTINGS,
                              batch_size=8, seed=0)
    own = [scorer.score([(PROBLEM.prompt, [Step(text) for text in texts])])[0].step_scores
           for texts in ((first, second), (second,))]
    assert 0 < len(chains[2].scores) < len(long)
    assert own[0][1] != own[1][0], "what stands before a step counts"
    found = to_experience(chains, ENCODER.pad_id, SETTINGS, 0.0)
    for row, (texts, scores) in enumerate((((first, second), own[0]), ((second,), own[1]))):
        expected = [score for text, score in zip(texts, scores, strict=True)
                    for _ in range(len(ENCODER.tokenizer.encode(text, add_special_tokens=False)) + 1)]
        # Whoever stops is paid nothing for it.
        assert_close(found.advantages[row][found.learned[row]], torch.tensor([*expected, 0.0]), atol=1e-6, rtol=1e-5)
    assert not found.advantages[2].any(), "what nobody scored whole is neither good nor bad"
    assert found.figures["chain/unjudged_share"] == pytest.approx(1 / 3)
    assert found.figures["reward/process"] == pytest.approx(sum((*own[0], *own[1])) / 3)


def test_a_policy_learns_from_it(scorer, tmp_path) -> None:
    policy = make_policy(ENCODER)
    before = weights(policy.model)
    history = loop.train_policy(policy, scorer, DOMAINS, PROBLEMS[:3], SETTINGS, dev=(), batch_size=64, seed=0,
                                work=tmp_path, report=lambda *given: None).history
    assert len(history) == 2
    assert all(0 < record["reward/process"] < 1 for record in history)
    assert changed(before, weights(policy.model)) == set(before)


def test_a_score_that_is_no_number_is_one_clear_error(scorer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scorer, "_logits", lambda ids, mask, rows, columns: torch.full((len(rows), 2), torch.nan))
    with pytest.raises(InputError, match=r"scores a step of problem train-\S+ as \(nan.*not a number; train it again"):
        loop.train_policy(make_policy(ENCODER), scorer, DOMAINS, PROBLEMS[:3], SETTINGS, dev=(), batch_size=64, seed=0,
                          work=tmp_path, report=lambda *given: None)
