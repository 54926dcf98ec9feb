"""Verdict rules: verdicts by hand, confidences against posteriors computed without a Beta function, when to stop."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.strategies.verdicts import VERDICTS, Tally, Verdict, probability_above, probability_kept, settled

NONE = Tally(0, 0)
MOST = 12


def tallies(most: int):
    return st.integers(0, most).flatmap(lambda n: st.builds(Tally, st.integers(0, n), st.just(n)))


RULES = st.sampled_from(["any", "majority", "relative"])


def binomial_tail(tally: Tally, threshold: float) -> float:
    """P(Beta(1+s, 1+n-s) > t) = P(Binomial(n+1, t) <= s): the posterior without a Beta function."""
    n = tally.rollouts + 1
    return sum(comb(n, i) * threshold**i * (1 - threshold) ** (n - i) for i in range(tally.successes + 1))


def kept_by_integration(after: Tally, before: Tally, share: float, cells: int = 2000) -> float:
    """P(after >= share · before) by the midpoint rule over the value before."""
    total = weights = 0.0
    for cell in range(cells):
        x = (cell + 0.5) / cells
        weight = x**before.successes * (1 - x) ** (before.rollouts - before.successes)
        total += weight * binomial_tail(after, share * x)
        weights += weight
    return total / weights


@given(tallies(40), st.floats(0, 1))
def test_the_posterior(tally, threshold):
    assert probability_above(tally, threshold) == pytest.approx(binomial_tail(tally, threshold), abs=1e-9)


@pytest.mark.parametrize(("successes", "rollouts", "threshold", "expected"), [
    (0, 0, 0.3, 0.7),
    (0, 1, 0.5, 0.25),  # Beta(1, 2): (1/2)^2
    (1, 1, 0.5, 0.75),
    (3, 5, 0.5, 42 / 64),  # (1 + 6 + 15 + 20) / 2^6
    (0, 8, 0.125, 0.875**9),
    (8, 8, 0.5, 1 - 0.5**9),
    (4, 8, 0.5, 0.5),
])
def test_the_posterior_by_hand(successes, rollouts, threshold, expected):
    assert probability_above(Tally(successes, rollouts), threshold) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(tallies(40), tallies(40), st.sampled_from([0.25, 0.5, 1.0]))
def test_the_probability_that_a_value_is_kept(after, before, share):
    expected = kept_by_integration(after, before, share)

    assert probability_kept(after, before, share) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("after", "before", "share", "expected"), [
    (NONE, NONE, 1.0, 1 / 2),  # two uniform values
    (NONE, NONE, 0.5, 3 / 4),  # E[1 - x/2]
    (Tally(1, 1), NONE, 1.0, 2 / 3),  # E[1 - x^2]
    (Tally(0, 1), Tally(1, 1), 0.5, 11 / 24),  # E[(1 - x/2)^2] under the density 2x
])
def test_the_probability_that_a_value_is_kept_by_hand(after, before, share, expected):
    assert probability_kept(after, before, share) == pytest.approx(expected, abs=0.005)


def test_a_tally_counts_and_has_a_value():
    tally = Tally(1, 2).with_more(2, 6)

    assert (tally, tally.value) == (Tally(3, 8), 3 / 8)
    with pytest.raises(ZeroDivisionError):
        NONE.value  # noqa: B018


@pytest.mark.parametrize(("rule", "after", "before", "most", "is_correct", "confidence"), [
    # More than half of the rollouts succeed.
    ("majority", Tally(3, 5), NONE, 5, True, 42 / 64),
    ("majority", Tally(2, 5), Tally(5, 5), 5, False, 42 / 64),
    ("majority", Tally(4, 8), Tally(8, 8), 8, False, 0.5),
    ("majority", Tally(5, 5), NONE, 8, True, 1 - 0.5**6),
    # One success is enough; none speaks for a value below 1/K, K being the most that could be bought.
    ("any", Tally(1, 8), NONE, 8, True, 0.875**9 + 9 * 0.125 * 0.875**8),
    ("any", Tally(0, 8), Tally(8, 8), 8, False, 1 - 0.875**9),
    ("any", Tally(1, 1), NONE, 8, True, 1 - 0.125**2),
    ("any", Tally(0, 1), NONE, 8, False, 1 - 0.875**2),
    ("any", Tally(1, 1), NONE, 1, True, 0.75),
    ("any", Tally(0, 1), NONE, 1, False, 0.75),
    # Half of what the prefix had before the step.
    ("relative", Tally(0, 1), Tally(1, 1), 8, False, 13 / 24),
    ("relative", Tally(8, 8), Tally(0, 8), 8, None, 0.0),
    ("relative", Tally(0, 8), Tally(0, 8), 8, None, 0.0),
])
def test_verdicts_by_hand(rule, after, before, most, is_correct, confidence):
    verdict = VERDICTS[rule].judge(after, before, most)

    assert verdict.is_correct is is_correct
    assert verdict.confidence == pytest.approx(confidence, abs=0.005 if rule == "relative" else 1e-12)


@pytest.mark.parametrize(("after", "before", "is_correct"), [
    # Kept, halved at most, lost; the last two need the posterior: half of 1 of 8 is nearly nothing.
    ((8, 8), (8, 8), True), ((5, 8), (8, 8), True), ((3, 8), (8, 8), False), ((0, 8), (8, 8), False),
    ((2, 8), (4, 8), True), ((1, 8), (4, 8), False), ((1, 8), (1, 8), True), ((0, 8), (1, 8), False),
])
def test_relative_asks_whether_half_the_value_is_kept(after, before, is_correct):
    verdict = VERDICTS["relative"].judge(Tally(*after), Tally(*before), 8)
    kept = kept_by_integration(Tally(*after), Tally(*before), 0.5)

    assert verdict.is_correct is is_correct
    assert verdict.is_correct is (kept > 0.5)
    assert verdict.confidence == pytest.approx(max(kept, 1 - kept), abs=0.01)


def test_the_rules_differ_where_they_should():
    """A step after which one of eight rollouts wins, where six did before: `any` is lucky, the others are not."""
    said = {rule: VERDICTS[rule].judge(Tally(1, 8), Tally(6, 8), 8).is_correct for rule in VERDICTS}

    assert said == {"any": True, "majority": False, "relative": False}
    # A right step on a hard problem.
    assert {rule: VERDICTS[rule].judge(Tally(2, 8), Tally(2, 8), 8).is_correct for rule in VERDICTS} == {
        "any": True, "majority": False, "relative": True}
    assert {rule: VERDICTS[rule].compares for rule in VERDICTS} == {"any": False, "majority": False, "relative": True}


@settings(deadline=None)
@given(tallies(MOST), tallies(MOST), RULES, st.integers(0, 6))
def test_confidences_are_probabilities_and_more_successes_never_turn_right_to_wrong(after, before, rule, more):
    judge = VERDICTS[rule].judge
    verdict, better = judge(after, before, MOST), judge(after.with_more(more, more), before, MOST)

    assert isinstance(verdict, Verdict)
    assert 0.0 <= verdict.confidence <= 1.0
    if verdict.is_correct:
        assert better.is_correct
        assert better.confidence >= verdict.confidence - 1e-12
    if better.is_correct is False:
        assert verdict.is_correct is False
    # Success in place of a failure, too.
    if verdict.is_correct and after.successes < after.rollouts:
        assert judge(Tally(after.successes + 1, after.rollouts), before, MOST).is_correct


@settings(deadline=None)
@given(tallies(MOST).filter(lambda tally: tally.rollouts), tallies(MOST), RULES)
def test_a_verdict_is_never_less_likely_than_its_opposite(after, before, rule):
    """The guide's low confidence in what it calls right left nearly nothing labelled correct (METHODS 1)."""
    verdict = VERDICTS[rule].judge(after, before, MOST)

    # Short of K failures "wrong" by `any` is no verdict yet.
    if settled(VERDICTS[rule], after, before, MOST, 1.0) and verdict.is_correct is not None:
        assert verdict.confidence >= 0.5 - 1e-12


# --- when to stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "after", "before", "most", "decided", "stop"), [
    # The first success settles `any`, whatever `decided`; failures never do before all are there.
    ("any", (1, 1), (0, 0), 8, 1.0, True),
    ("any", (0, 7), (0, 0), 8, 1.0, False),
    ("any", (0, 7), (0, 0), 8, 0.95, False),
    ("any", (0, 8), (0, 0), 8, 1.0, True),
    ("any", (0, 0), (0, 0), 8, 0.6, False),
    # Curtailed: 5 of 8 cannot be outvoted, 4 failures cannot be made up for (a tie is wrong).
    ("majority", (5, 5), (0, 0), 8, 1.0, True),
    ("majority", (4, 4), (0, 0), 8, 1.0, False),
    ("majority", (0, 4), (0, 0), 8, 1.0, True),
    ("majority", (0, 3), (0, 0), 8, 1.0, False),
    ("majority", (1, 5), (0, 0), 8, 1.0, True),
    # Decided: 1 - 1/2^(n+1) of the posterior lies on one side after n equal outcomes.
    ("majority", (4, 4), (0, 0), 8, 0.968, True),
    ("majority", (4, 4), (0, 0), 8, 0.97, False),
    ("majority", (0, 2), (0, 0), 8, 0.875, True),
    ("majority", (0, 2), (0, 0), 8, 0.88, False),
    # Nothing to compare with: no rollout can change that.
    ("relative", (0, 0), (0, 8), 8, 1.0, True),
    ("relative", (0, 0), (8, 8), 8, 1.0, False),
    ("relative", (0, 4), (8, 8), 8, 0.9, True),
    ("relative", (0, 4), (8, 8), 8, 1.0, False),
])
def test_when_more_rollouts_are_not_worth_buying(rule, after, before, most, decided, stop):
    assert settled(VERDICTS[rule], Tally(*after), Tally(*before), most, decided) is stop


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=8, max_size=8), tallies(8).filter(lambda tally: tally.rollouts == 8), RULES)
def test_curtailed_sampling_gives_the_verdict_of_all_rollouts(outcomes, before, rule):
    """With `decided` 1 stopping early is free: the verdict is the one of all K, whatever would have come."""
    for bought in range(9):
        after = Tally(sum(outcomes[:bought]), bought)
        if settled(VERDICTS[rule], after, before, 8, 1.0):
            break
    final = VERDICTS[rule].judge(Tally(sum(outcomes), 8), before, 8)

    assert VERDICTS[rule].judge(after, before, 8).is_correct is final.is_correct


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(InputError, match="unknown verdict rule 'most'; known: any, majority, relative"):
        VERDICTS["most"]
