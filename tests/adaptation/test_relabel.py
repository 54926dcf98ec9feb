"""What is known of a chain becomes labels; sources are believed as far as they have earned it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.adaptation.relabel import (
    ALWAYS,
    NEVER,
    SOUND,
    SUREST,
    UNSOUND,
    USUAL,
    Chain,
    Trust,
    chains_of,
    find_trust,
    first_error,
    rate_of_success,
    recalibrated,
    relabel,
    trusted,
)
from prm_core.serving.drift.outcomes import Outcome
from prm_core.types import StepLabel
from tests.builders.quality import make_config

TRUST = Trust({"ann": 0.9}, {"agent": (0.9, 0.2)})


def test_the_first_error_by_hand() -> None:
    assert first_error(Chain([0.8, 0.5]), TRUST) == pytest.approx([0.2, 0.4, 0.4])
    # A failure is nine times as likely with an error, 0.8 against 0.1.
    assert first_error(Chain([0.8, 0.5], (), [("agent", False)]), TRUST) == pytest.approx(
        np.array([0.2 * 0.8, 0.4 * 0.8, 0.4 * 0.1]) / 0.52)
    # "Step 1 is wrong", by somebody right nine times in ten; of what follows an error nothing is said.
    assert first_error(Chain([0.8, 0.5], [(1, "ann", False)]), TRUST) == pytest.approx(
        np.array([0.2 * 0.5, 0.4 * 0.9, 0.4 * 0.1]) / 0.5)


def test_labels_end_where_an_error_is_likelier_behind() -> None:
    rows = relabel({"t": Chain([0.9, 0.1, 0.9])}, TRUST)
    assert [(row.step_index, round(row.value, 3), row.is_correct) for row in rows] == [(0, 0.9, True), (1, 0.1, False)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.booleans())
def test_probabilities_sum_to_one_and_an_outcome_moves_them_its_way(scores: list[float], success: bool) -> None:
    before, after = (first_error(Chain(scores, (), told), TRUST) for told in ([], [("agent", success)]))
    assert before.sum() == pytest.approx(1)
    assert after.sum() == pytest.approx(1)
    assert (after[-1] >= before[-1] - 1e-12) == success or after[-1] == pytest.approx(before[-1], abs=1e-9)


def chains(agents: dict[str, bool], reviewers: dict[str, bool]) -> list[Chain]:
    """Sound and unsound chains that the model tells apart; agents and reviewers tell the truth or not."""
    found = []
    for number in range(60):
        sound = number % 2 == 0
        agent, reviewer = (sorted(names)[number % len(names)] for names in (agents, reviewers))
        scores = [0.95, 0.95 if sound else 0.05]
        verdict = sound if reviewers[reviewer] else not sound
        found.append(Chain(scores, [(1, reviewer, verdict)], [(agent, sound or not agents[agent])]))
    return found


def test_who_tells_no_truth_is_found_out() -> None:
    trust = find_trust(chains({"a": True, "b": True, "liar": False}, {"ann": True, "bob": True, "eve": False}))
    assert min(trust.reviewers[name] for name in ("ann", "bob")) > 0.9
    assert trust.reviewers["eve"] < 0.75
    assert trust.reporters["liar"][1] > 0.5 > max(trust.reporters[name][1] for name in "ab")
    # A success told by somebody who tells nothing else says nothing.
    sound, unsound = trust.reporters["liar"]
    assert abs(sound - unsound) < 0.3


def test_a_pessimistic_champion_does_not_make_everybody_lucky() -> None:
    """Chains whose scores say that eight of ten go wrong; half of them succeed, as all but one reporter say."""
    known = [Chain([0.2 if number % 2 else 0.25], (), [(name, name == "liar" or number % 2 == 0)])
             for name in ("a", "b", "c", "liar") for number in range(60)]
    trust = find_trust(known)
    assert trust.reporters["liar"][1] > 0.9
    assert max(trust.reporters[name][1] for name in "abc") < 0.2
    succeeded = first_error(known[0], trust)[-1]
    assert succeeded > 0.6 > 0.2 > first_error(known[1], trust)[-1]


def test_liars_are_found_out_under_one_name_and_not_under_one_each() -> None:
    scores = [[0.95, 0.95] if number % 2 else [0.95, 0.05] for number in range(60)]
    one, each = (find_trust([Chain(row, (), [(name.format(number), True)]) for number, row in enumerate(scores)])
                 for name in ("", "request-{}"))
    assert one.reporters[""][1] > 0.9
    assert max(unsound for _, unsound in each.reporters.values()) < 0.5
    assert max(abs(sound - rate_of_success(1, 0, SOUND, NEVER)) for sound, _ in each.reporters.values()) < 0.05


def test_who_tells_failures_alone_is_believed_only_as_far_as_the_scores_agree() -> None:
    """Of chains half of which the scores find sound, or of those alone that they find wrong."""
    known = [Chain([0.95, 0.95 if number % 2 else 0.05], (), [("a", False)]) for number in range(60)]
    assert find_trust(known).reporters["a"][0] < 0.2
    assert find_trust(known[::2]).reporters["a"][0] > 0.85


def test_a_reporter_is_usual_until_its_own_chains_say_otherwise() -> None:
    before = rate_of_success(0, 0, UNSOUND, ALWAYS)
    assert before == pytest.approx(USUAL * 0.1 + (1 - USUAL) * 0.9)
    # As often as is usual, and whatever it is asked about.
    assert rate_of_success(4, 36, UNSOUND, ALWAYS) == pytest.approx(0.1, abs=0.001)
    assert rate_of_success(40, 0, UNSOUND, ALWAYS) == pytest.approx(58 / 60, abs=0.001)
    assert rate_of_success(0, 40, SOUND, NEVER) == pytest.approx(2 / 60, abs=0.001)


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.floats(0.1, 50),
       st.sampled_from([(UNSOUND, ALWAYS), (SOUND, NEVER)]))
def test_more_success_never_lowers_a_rate(success: float, failure: float, more: float, prior) -> None:
    found = [rate_of_success(told, failure, *prior) for told in (success, success + more)]
    assert 1 - SUREST <= found[0] <= found[1] + 1e-12 <= SUREST + 1e-12


def label(name: str, step: int, right: bool, reviewer: str = "ann", chance: float = 1.0) -> StepLabel:
    return StepLabel(name, step, f"human:{reviewer}", float(right), right, 1.0, 0, "", json.dumps({"chance": chance}))


def test_scores_are_calibrated_by_trusted_people_alone() -> None:
    scores = {f"t{n}": [0.8] for n in range(40)}
    labels = [label(name, 0, n % 2 == 0, chance=0.5) for n, name in enumerate(sorted(scores))]
    settings = make_config().calibrate
    few = recalibrated(scores, labels[:4], TRUST, settings)
    assert few == scores
    import dataclasses

    settings = dataclasses.replace(settings, min_labels=10)
    assert recalibrated(scores, labels, TRUST, settings)["t3"][0] == pytest.approx(0.5, abs=0.05)
    assert trusted(labels, Trust({"ann": 0.6}, {})) == []
    assert recalibrated(scores, labels, Trust({"ann": 0.6}, {}), settings) == scores


def test_what_is_known_is_joined_by_trajectory() -> None:
    found = chains_of({"t": [0.5, 0.5], "empty": []}, [label("t", 1, True), label("t", 2, True), label("u", 0, True)],
                      [Outcome("t", True, "agent"), Outcome("u", True)])
    assert found == {"t": Chain([0.5, 0.5], ((1, "ann", True),), (("agent", True),))}
