"""Dawid-Skene over the first error's position: posteriors against brute force, likelihood, recovered rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.labeling.merging import first_error
from prm_core.labeling.merging.first_error import ABSTAINS, AFTER, AT, BEFORE, RIGHT, WRONG


def random_case(seed, chains=6, longest=4, annotators=2):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, chains)
    lengths[0] = longest
    verdicts = {f"a{i}": rng.integers(-1, 2, (chains, longest)).astype(np.int8) for i in range(annotators)}
    outcomes = rng.choice([0.0, 1.0, np.nan], chains)
    return verdicts, lengths, outcomes


def brute_force(verdicts, length, outcome, model):
    """P(first error at k | evidence) for k = 0…length-1, and none, by adding up every term of the joint."""
    weights = []
    for k in [*range(length), None]:
        p = 1.0
        for step in range(length if k is None else k + 1):
            p *= model.hazard if step == k else 1 - model.hazard
        for name, said in verdicts.items():
            for step in range(length):
                if said[step] != ABSTAINS:
                    place = BEFORE if k is None or step < k else AT if step == k else AFTER
                    p *= model.emissions[name][place, said[step]]
        if not np.isnan(outcome):
            won = model.sound if k is None else model.lucky
            p *= won if outcome else 1 - won
        weights.append(p)
    return np.array(weights) / sum(weights)


@given(st.integers(0, 10_000))
def test_the_posterior_is_bayes_rule(seed):
    verdicts, lengths, outcomes = random_case(seed)
    model = first_error.fit(verdicts, lengths, outcomes)
    settled = len(model.log_likelihood) < first_error.MAX_ROUNDS
    for row, length in enumerate(lengths):
        own = {name: said[row] for name, said in verdicts.items()}
        posterior = brute_force(own, length, outcomes[row], model)
        for step in range(length):
            reached = posterior[step:].sum()
            if settled:
                assert model.reached[row, step] == pytest.approx(reached, abs=1e-6)
                assert model.right[row, step] == pytest.approx(1 - posterior[step] / reached, abs=1e-6)


@given(st.integers(0, 10_000))
def test_estimates_are_probabilities_and_the_likelihood_rises(seed):
    verdicts, lengths, outcomes = random_case(seed, chains=20)
    model = first_error.fit(verdicts, lengths, outcomes)
    assert np.all((model.right >= 0) & (model.right <= 1))
    for rates in model.emissions.values():
        assert np.all(rates > 0)
        assert rates.sum(1) == pytest.approx(np.ones(3))
    assert all(0 < p < 1 for p in (model.hazard, model.sound, model.lucky))


def test_rates_that_made_the_data_are_recovered():
    rng = np.random.default_rng(0)
    chains, longest, hazard = 6000, 5, 0.15
    rates = {"sharp": np.array([[0.03, 0.97], [0.9, 0.1], [0.5, 0.5]]),
             "weak": np.array([[0.15, 0.85], [0.6, 0.4], [0.8, 0.2]])}
    places = np.full((chains, longest), BEFORE)
    errors = np.full(chains, -1)
    for row, step in itertools.product(range(chains), range(longest)):
        if errors[row] >= 0:
            places[row, step] = AFTER
        elif rng.random() < hazard:
            errors[row], places[row, step] = step, AT
    verdicts = {name: np.where(rng.random(places.shape) < p[places, WRONG], WRONG, RIGHT).astype(np.int8)
                for name, p in rates.items()}
    outcomes = np.where(rng.random(chains) < np.where(errors < 0, 0.99, 0.1), 1.0, 0.0)

    model = first_error.fit(verdicts, np.full(chains, longest), outcomes)

    assert model.hazard == pytest.approx(hazard, abs=0.02)
    assert (model.sound, model.lucky) == (pytest.approx(0.99, abs=0.02), pytest.approx(0.1, abs=0.04))
    for name, expected in rates.items():
        assert model.emissions[name] == pytest.approx(expected, abs=0.05)
    truth = places != AT
    inside = places != AFTER
    said = model.right > 0.5
    assert np.mean(said[inside] == truth[inside]) > 0.96


def test_silence_is_no_evidence():
    verdicts, lengths, outcomes = random_case(3)
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
