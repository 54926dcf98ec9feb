"""Verdict rules: verdicts by hand, confidences as Beta posteriors computed by hand."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.verdicts import VERDICTS, Verdict, probability_above

COUNTS = st.integers(1, 40).flatmap(lambda k: st.tuples(st.integers(0, k), st.integers(0, k), st.just(k)))


def binomial_tail(successes: int, rollouts: int, threshold: float) -> float:
    """P(Beta(1+s, 1+K-s) > t) = P(Binomial(K+1, t) <= s): the posterior without a Beta function."""
    n = rollouts + 1
    return sum(comb(n, i) * threshold**i * (1 - threshold) ** (n - i) for i in range(successes + 1))


@given(COUNTS, st.floats(0, 1))
def test_the_posterior(counts, threshold):
    successes, _, rollouts = counts

    assert probability_above(successes, rollouts, threshold) == pytest.approx(
        binomial_tail(successes, rollouts, threshold), abs=1e-9)


@pytest.mark.parametrize(("successes", "rollouts", "threshold", "expected"), [
    (0, 1, 0.5, 0.25),  # Beta(1, 2): (1/2)^2
    (1, 1, 0.5, 0.75),
    (3, 5, 0.5, 42 / 64),  # (1 + 6 + 15 + 20) / 2^6
    (0, 8, 0.125, 0.875**9),
    (8, 8, 0.5, 1 - 0.5**9),
    (4, 8, 0.5, 0.5),
])
def test_the_posterior_by_hand(successes, rollouts, threshold, expected):
    assert probability_above(successes, rollouts, threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("rule", "successes", "before", "rollouts", "is_correct", "confidence"), [
    # More than half of the rollouts succeed.
    ("majority", 3, 0, 5, True, 42 / 64),
    ("majority", 2, 5, 5, False, 42 / 64),
    ("majority", 4, 8, 8, False, 0.5),
    ("majority", 5, 8, 5, True, 1 - 0.5**6),
    # One success is enough; none speaks for a value below 1/K.
    ("any", 1, 0, 8, True, 0.875**9 + 9 * 0.125 * 0.875**8),
    ("any", 0, 8, 8, False, 1 - 0.875**9),
    ("any", 2, 0, 2, True, 1 - 0.5**3),
    ("any", 1, 0, 1, True, 0.75),
    ("any", 0, 0, 1, False, 0.75),
    # Half of what the prefix had before the step.
    ("relative", 2, 4, 8, True, 0.75**9 + 9 * 0.25 * 0.75**8 + 36 * 0.25**2 * 0.75**7),
    ("relative", 1, 4, 8, False, 1 - (0.75**9 + 9 * 0.25 * 0.75**8)),
    ("relative", 4, 8, 8, True, 0.5),
    ("relative", 1, 1, 2, True, 1 - 3 * 0.25**2 + 2 * 0.25**3),  # Beta(2, 2) has the distribution 3x^2 - 2x^3
    ("relative", 8, 0, 8, None, 0.0),
    ("relative", 0, 0, 8, None, 0.0),
])
def test_verdicts_by_hand(rule, successes, before, rollouts, is_correct, confidence):
    verdict = VERDICTS[rule](successes, before, rollouts)

    assert verdict.is_correct is is_correct
    assert verdict.confidence == pytest.approx(confidence, abs=1e-12)


def test_the_rules_differ_where_they_should():
    """A step after which one of eight rollouts wins, where six did before: `any` is lucky, the others are not."""
    verdicts = {rule: VERDICTS[rule](1, 6, 8).is_correct for rule in VERDICTS}

    assert verdicts == {"any": True, "majority": False, "relative": False}
    # A right step on a hard problem.
    assert {rule: VERDICTS[rule](2, 2, 8).is_correct for rule in VERDICTS} == {
        "any": True, "majority": False, "relative": True}


@given(COUNTS, st.sampled_from(["any", "majority", "relative"]))
def test_confidences_are_probabilities_and_more_successes_never_turn_right_to_wrong(counts, rule):
    successes, before, rollouts = counts
    verdict = VERDICTS[rule](successes, before, rollouts)

    assert isinstance(verdict, Verdict)
    assert 0.0 <= verdict.confidence <= 1.0
    if successes < rollouts and verdict.is_correct:
        more = VERDICTS[rule](successes + 1, before, rollouts)
        assert more.is_correct
        assert more.confidence >= verdict.confidence


@given(COUNTS, st.sampled_from(["any", "majority"]))
def test_a_verdict_is_never_less_likely_than_its_opposite(counts, rule):
    """The guide's low confidence in what it calls right left nearly nothing labelled correct (METHODS 1)."""
    assert VERDICTS[rule](*counts).confidence >= 0.5 - 1e-12


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(InputError, match="unknown verdict rule 'most'; known: any, majority, relative"):
        VERDICTS["most"]
