"""Texts a reward model cannot judge: limits from training chains, and what scorers, services and folders make of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain
from prm_core.scoring import domain
from prm_core.scoring.domain import (
    Domain,
    fit_domain,
    moderate,
    neighbour_codes,
    parts,
    unmoderated,
    unreadable,
)
from prm_core.scoring.scorer import load_scorer, save_reward_model
from prm_core.serving.cache import ScoreCache
from prm_core.serving.service import ScoringRequest, ScoringService
from prm_core.types import Step
from tests.builders.reward_models import tiny_reward_model

# (problem, prompt, steps): words of `tiny_reward_model`'s tokenizer in ordinary sentences.
CHAINS = [(f"p{n}", f"Ann has {a} apples and buys {b} more .", (Step(f"{a} + {b} = 7 ."), Step("The answer is 7 .")))
          for n, (a, b) in enumerate([("3", "4"), ("4", "3")] * 10)]
EVEN = np.eye(6, dtype=np.float32)


def chain(prompt, *steps):
    ids, ends = list(prompt), []
    for step in steps:
        ids += step
        ends.append(len(ids) - 1)
    return EncodedChain(ids, len(prompt), ends, [], 0)


def of(known, max_unknown=0.0, states=EVEN, max_distance=np.inf):
    return Domain(np.isin(np.arange(10), known), max_unknown, states, max_distance, np.zeros(10, bool),
                  np.arange(11 * 11), 1.0)


def test_parts_are_the_prompt_and_each_step_with_its_separator():
    assert parts(chain([1, 2, 9], [3, 9], [4, 5, 9])) == [[1, 2, 9], [3, 9], [4, 5, 9]]


@pytest.mark.parametrize(("given", "reason"), [
    (chain([1, 2], [1, 2]), ""),
    (chain([1, 3], [1, 2]), "50% of the tokens of the prompt occur nowhere in the text the model was trained on (usual "
                            "is up to 25%)"),
    (chain([1, 2], [1, 2], [2, 3, 4, 5]), "75% of the tokens of steps[1]"),
    (chain([1, 2], [1, 2, 1, 3]), ""),
])
def test_a_part_with_too_many_tokens_of_no_training_chain_is_named(given, reason):
    (found,) = of([1, 2], 0.25).doubts([given], EVEN[:1])
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_distance_is_to_the_fifth_nearest_training_chain():
    # Cosines of the state with the six unit vectors: 0.8, 0.6 and four times 0, so the fifth nearest is at 1.
    state = np.array([8, 6, 0, 0, 0, 0], dtype=np.float32)
    def doubt(known):
        (found,) = known.doubts([chain([1], [1])], state[None])
        return found

    assert doubt(of([1], max_distance=0.99)).endswith("its distance 1.000 is above 0.990")
    assert doubt(of([1], max_distance=1.01)) == ""
    # 0.6 again and again: at 0.4, whatever the state's length.
    same = np.repeat(EVEN[1:2], 5, axis=0)
    assert doubt(of([1], states=same, max_distance=0.41)) == ""
    assert doubt(of([1], states=same, max_distance=0.39)) != ""


def test_neighbours_that_no_training_chain_has_are_new_and_numbers_are_alike():
    numbers = np.isin(np.arange(10), [7, 8])
    codes = neighbour_codes([1, 2, 7, 3], numbers)
    assert codes.tolist() == neighbour_codes([1, 2, 8, 3], numbers).tolist()
    known = dataclasses.replace(of([1, 2, 3, 7, 8]), numbers=numbers, neighbours=np.unique(codes), max_new=0.3)
    said = known.doubts([chain([1, 2, 8, 3], [1, 2, 7]), chain([2, 1], [3, 1, 7])], EVEN[:2])
    # Of six neighbours 3 before 1 is new; of four all are.
    assert said == ["", "100% of the pairs of neighbouring tokens occur nowhere in the text the model was trained on "
                        "(usual is up to 30%)"]


def test_of_what_a_model_says_of_other_text_half_of_the_log_odds_is_believed():
    odds = [p / (1 - p) for p in moderate([0.999, 0.8, 0.5, 0.1, 0.0])]
    assert odds == pytest.approx([999**0.5, 2.0, 1.0, 1 / 3, 999**-0.5])
    assert unmoderated(moderate([0.9, 0.3, 0.0])) == pytest.approx([0.9, 0.3, domain.EDGE])


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return load_scorer(tiny_reward_model(tmp_path_factory.mktemp("model") / "prm"), device="cpu")


@pytest.fixture(scope="module")
def fitted(scorer):
    return fit_domain(scorer.model, scorer.encoder, CHAINS)


def test_limits_are_what_training_chains_keep_against_other_problems(scorer, fitted):
    encoded = [scorer.encoder.encode(prompt, steps) for _, prompt, steps in CHAINS]
    assert set(np.flatnonzero(fitted.known)) == {token for one in encoded for token in one.ids}
    # Ten problems hold each chain, so no token is new and every chain has its equals.
    assert (fitted.max_unknown, fitted.max_distance) == (0.0, pytest.approx(0.0, abs=1e-5))
    # With one problem more, whose words nobody else has: its own share of them is what may be unknown.
    odd = ("odd", "How many does she have ?", (Step("7 ."),))
    wider = fit_domain(scorer.model, scorer.encoder, [*CHAINS, odd])
    assert wider.max_unknown == pytest.approx(6 / 8)
    assert wider.max_distance > 0.01
    # All of one problem: nothing to measure from, so nothing is told by distance.
    alone = fit_domain(scorer.model, scorer.encoder, [("p", prompt, steps) for _, prompt, steps in CHAINS])
    assert (alone.max_unknown, alone.max_distance) == (1.0, np.inf)
    assert domain.NEIGHBOUR > 1


def test_states_do_not_depend_on_the_batch(scorer, fitted):
    encoded = [scorer.encoder.encode(prompt, steps) for _, prompt, steps in (
        *CHAINS[:2], ("long", "Ann has 3 apples .", (Step("3 + 4 = 7 . " * 6),)))]
    together = domain.mean_states(scorer.model, scorer.encoder, encoded)
    for one, state in zip(encoded, together, strict=True):
        np.testing.assert_allclose(domain.mean_states(scorer.model, scorer.encoder, [one])[0], state, atol=1e-5)


def test_a_saved_model_says_what_it_cannot_judge_and_scores_as_before(scorer, fitted, tmp_path):
    save_reward_model(scorer.model, scorer.encoder, scorer.calibrator, tmp_path, fitted)
    found = load_scorer(tmp_path, device="cpu")
    assert found.version != scorer.version
    for _, prompt, steps in CHAINS[:2]:
        assert found.score([(prompt, steps)])[0].out_of_domain == ""
    strange = [("Ann has 3 apples and buys 4 more .", (Step("zyx qwv ."),)),
               ("apples apples 7 7 .", (Step("7 7 7 7 ."),))]
    (foreign, salad), (plain, _) = found.score(strange), scorer.score(strange)
    assert "of the tokens of steps[0] occur nowhere" in foreign.out_of_domain
    assert "of the pairs of neighbouring tokens occur nowhere" in salad.out_of_domain
    assert foreign.step_scores == pytest.approx(moderate(plain.step_scores))
    assert foreign.raw_scores == pytest.approx(plain.raw_scores)
    # A model saved without its domain cannot say.
    assert plain.out_of_domain is None
    service = ScoringService(found, ScoreCache(8, 60.0))
    requests = [ScoringRequest("a", prompt, steps) for prompt, steps in (*strange, CHAINS[0][1:])]
    for _ in range(2):  # The second time from the cache.
        analyses = [a.analysis for a in service.answer(requests, threshold=0.5, aggregate="min")]
        assert [a.in_domain for a in analyses] == [False, False, True]
        assert [a.out_of_domain for a in analyses] == [foreign.out_of_domain, salad.out_of_domain, None]
        # What there is nothing to say of is not in the answer.
        assert [{"in_domain", "out_of_domain"} & set(a.model_dump()) for a in analyses] == [
            {"in_domain", "out_of_domain"}, {"in_domain", "out_of_domain"}, {"in_domain"}]


@pytest.mark.parametrize("spoil", [
    lambda d: dataclasses.replace(d, known=d.known[:-1]),
    lambda d: dataclasses.replace(d, states=d.states[:, 1:].copy()),
    lambda d: dataclasses.replace(d, states=d.states * np.float32(np.nan)),
    lambda d: dataclasses.replace(d, max_unknown=-1.0),
    lambda d: dataclasses.replace(d, numbers=d.numbers[:-1]),
    None,
])
def test_a_domain_of_another_model_is_refused(scorer, fitted, tmp_path, spoil):
    width = fitted.states.shape[1]
    (tmp_path / domain.FILE).write_bytes(b"no tensors")
    if spoil:
        spoil(fitted).save(tmp_path)
    with pytest.raises(InputError, match=r"domain\.safetensors: (is not of this model|does not load)"):
        Domain.load(tmp_path, len(fitted.known), width)


def test_without_a_domain_unknown_tokens_are_all_that_tells():
    assert unreadable(2, 4) == "the model's tokenizer cannot read 2 of 4 tokens"
    assert unreadable(0, 2) is None
