"""The first error's position: posteriors against brute force, likelihood, recovered rates, lucky errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.labeling.merging import first_error
from prm_core.labeling.merging.first_error import (
    ABSTAINS,
    AFTER,
    AT,
    BEFORE,
    EDGE,
    FATAL,
    LUCKY,
    RIGHT,
    SOUND,
    WRONG,
)


def random_case(seed, chains=6, longest=4, annotators=2):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, chains)
    lengths[0] = longest
    verdicts = {f"a{i}": rng.integers(-1, 2, (chains, longest)).astype(np.int8) for i in range(annotators)}
    outcomes = rng.choice([0.0, 1.0, np.nan], chains)
    prior = rng.random((chains, longest)) if seed % 2 else None
    return verdicts, lengths, outcomes, prior


def brute_force(verdicts, length, outcome, prior, model):
    """P(first error at k | evidence) for k = 0…length-1, and none, by adding up every term of the joint."""
    weights = {}
    for kind, k in [(SOUND, None), *itertools.product((FATAL, LUCKY), range(length))]:
        p = 1.0
        for step in range(length if k is None else k + 1):
            right = 1 - model.hazard if prior is None else np.clip(prior[step], EDGE, 1 - EDGE)
            p *= 1 - right if step == k else right
        p *= {SOUND: 1.0, FATAL: 1 - model.lucky, LUCKY: model.lucky}[kind]
        for name, said in verdicts.items():
            for step in range(length):
                if said[step] != ABSTAINS:
                    place = BEFORE if k is None or step < k else AT if step == k else AFTER
                    p *= model.emissions[name][kind, place, said[step]]
        if not np.isnan(outcome):
            won = model.sound if k is None else model.won[kind - FATAL]
            p *= won if outcome else 1 - won
        weights[k] = weights.get(k, 0.0) + p
    posterior = np.array([weights[k] for k in [*range(length), None]])
    return posterior / posterior.sum()


@given(st.integers(0, 10_000))
def test_the_posterior_is_bayes_rule(seed):
    verdicts, lengths, outcomes, prior = random_case(seed)
    model = first_error.fit(verdicts, lengths, outcomes, policy=("a0",), right=prior)
    for row, length in enumerate(lengths):
        own = {name: said[row] for name, said in verdicts.items()}
        posterior = brute_force(own, length, outcomes[row], None if prior is None else prior[row], model)
        assert model.none[row] == pytest.approx(posterior[-1], abs=1e-6)
        for step in range(length):
            reached = posterior[step:].sum()
            assert model.reached[row, step] == pytest.approx(reached, abs=1e-6)
            assert model.right[row, step] == pytest.approx(1 - posterior[step] / reached, abs=1e-5)


@given(st.integers(0, 10_000))
def test_estimates_are_probabilities_and_the_likelihood_rises(seed):
    verdicts, lengths, outcomes, prior = random_case(seed, chains=20)
    model = first_error.fit(verdicts, lengths, outcomes, policy=("a1",), right=prior)
    assert np.all((model.right >= 0) & (model.right <= 1))
    for name, rates in model.emissions.items():
        assert np.all(rates > 0)
        assert rates.sum(2) == pytest.approx(np.ones((3, 3)))
        alike = np.array_equal(rates[SOUND], rates[FATAL]) and np.array_equal(rates[SOUND], rates[LUCKY])
        assert alike is (name == "a0")
    assert all(0 < p < 1 for p in (model.hazard, model.sound, *model.won, model.lucky))
    rises = np.diff(model.log_posterior)
    assert np.all(rises > -1e-6 * np.abs(model.log_posterior[1:]))


def simulated(rng, chains, longest, hazard, rates):
    """Verdicts of annotators with these rates, and where each chain's first error is (-1 for none)."""
    places = np.full((chains, longest), BEFORE)
    errors = np.full(chains, -1)
    for row, step in itertools.product(range(chains), range(longest)):
        if errors[row] >= 0:
            places[row, step] = AFTER
        elif rng.random() < hazard:
            errors[row], places[row, step] = step, AT
    verdicts = {name: np.where(rng.random(places.shape) < p[places, WRONG], WRONG, RIGHT).astype(np.int8)
                for name, p in rates.items()}
    return verdicts, errors, places


def test_rates_that_made_the_data_are_recovered():
    rng = np.random.default_rng(0)
    chains, longest, hazard = 6000, 5, 0.15
    rates = {"sharp": np.array([[0.03, 0.97], [0.9, 0.1], [0.5, 0.5]]),
             "weak": np.array([[0.15, 0.85], [0.6, 0.4], [0.8, 0.2]])}
    verdicts, errors, places = simulated(rng, chains, longest, hazard, rates)
    outcomes = np.where(rng.random(chains) < np.where(errors < 0, 0.99, 0.1), 1.0, 0.0)

    model = first_error.fit(verdicts, np.full(chains, longest), outcomes)

    assert model.hazard == pytest.approx(hazard, abs=0.02)
    assert model.sound == pytest.approx(0.99, abs=0.02)
    assert np.dot([1 - model.lucky, model.lucky], model.won) == pytest.approx(0.1, abs=0.04)
    for name, expected in rates.items():
        assert model.emissions[name][SOUND] == pytest.approx(expected, abs=0.05)
    truth = places != AT
    inside = places != AFTER
    said = model.right > 0.5
    assert np.mean(said[inside] == truth[inside]) > 0.96


def test_errors_that_the_policy_recovers_from_are_not_outvoted_by_its_success():
    """Rollouts and outcome both say that nothing is wrong after one: as two witnesses they would acquit it."""
    rng = np.random.default_rng(1)
    chains, longest = 2000, 4
    verdicts, errors, _ = simulated(rng, chains, longest, 0.15, {"eye": np.array([[0.01, 0.99], [0.95, 0.05],
                                                                                  [0.5, 0.5]])})
    lucky = (errors >= 0) & (rng.random(chains) < 0.3)
    fatal = (errors >= 0) & ~lucky
    outcomes = np.where(fatal, 0.0, 1.0)
    rollouts = np.full((chains, longest), RIGHT, dtype=np.int8)
    for row in np.flatnonzero(fatal):
        rollouts[row, errors[row] :] = WRONG
    right = np.where(verdicts["eye"] == RIGHT, 0.99, 0.03)

    model = first_error.fit({"rollouts": rollouts}, np.full(chains, longest), outcomes, policy=("rollouts",),
                            right=right)

    wrong = model.right < 0.5
    said = np.where(wrong.any(1), wrong.argmax(1), -1)
    assert np.mean(said[lucky] == errors[lucky]) > 0.9
    assert np.mean(said[fatal] == errors[fatal]) > 0.97
    assert model.won == (pytest.approx(0.0, abs=0.02), pytest.approx(1.0, abs=0.02))


def test_chains_of_another_population_are_judged_and_do_not_count():
    verdicts, lengths, outcomes, _ = random_case(4, chains=30)
    extra = {name: np.concatenate([said, 1 - np.abs(said[:10])]).astype(np.int8) for name, said in verdicts.items()}
    counted = np.arange(40) < 30
    alone = first_error.fit(verdicts, lengths, outcomes)
    both = first_error.fit(extra, np.concatenate([lengths, lengths[:10]]), np.concatenate([outcomes, outcomes[:10]]),
                           counted=counted)
    assert both.right[:30] == pytest.approx(alone.right)
    assert np.isfinite(both.right[30:]).all()


def test_silence_is_no_evidence():
    verdicts, lengths, outcomes, _ = random_case(4)
    silent = np.full_like(verdicts["a0"], ABSTAINS)
    with_silent = first_error.fit({**verdicts, "silent": silent}, lengths, outcomes)
    assert with_silent.right == pytest.approx(first_error.fit(verdicts, lengths, outcomes).right)


def test_a_wrong_answer_convicts_a_step_and_a_right_one_acquits():
    # Half of the chains are called wrong at a step and end wrong; two more are called right throughout.
    said = np.full((40, 2), RIGHT, dtype=np.int8)
    said[:20, 1] = WRONG
    outcomes = np.array([0.0] * 20 + [1.0] * 20)
    outcomes[20] = 0.0
    model = first_error.fit({"a": said}, np.full(40, 2), outcomes)
    assert model.right[20].prod() < 0.5 < model.right[21].prod()
