"""What outcomes say about steps: recovered maps, the gradient, luck."""

from __future__ import annotations

import numpy as np
import pytest

from prm_core.labeling.outcomes import fit_outcomes, tells


def chains(rng, count, longest, weight, bias, sound, lucky):
    scores = rng.normal(0, 2, (count, longest, 1))
    exists = np.arange(longest) < rng.integers(1, longest + 1, count)[:, None]
    right = rng.random(exists.shape) < 1 / (1 + np.exp(-(weight * scores[:, :, 0] + bias)))
    whole = (right | ~exists).all(1)
    outcomes = (rng.random(count) < np.where(whole, sound, lucky)).astype(float)
    return scores, exists, outcomes


def test_the_map_that_made_the_outcomes_is_recovered_with_the_luck():
    """A map without luck would call every wrong step that the policy recovers from a right one."""
    scores, exists, outcomes = chains(np.random.default_rng(0), 8000, 4, 2.0, 1.5, 0.98, 0.15)
    found = fit_outcomes(scores, exists, outcomes)
    assert found.weights[0] == pytest.approx(2.0, rel=0.15)
    assert found.bias == pytest.approx(1.5, abs=0.25)
    assert (found.sound, found.lucky) == (pytest.approx(0.98, abs=0.03), pytest.approx(0.15, abs=0.03))
    assert found.right(np.array([[-6.0], [6.0]])).tolist() == pytest.approx([0.0, 1.0], abs=0.01)


def test_silence_has_a_weight_of_its_own_and_unknown_outcomes_say_nothing():
    rng = np.random.default_rng(1)
    scores, exists, outcomes = chains(rng, 3000, 3, 2.0, 1.0, 0.99, 0.1)
    known = fit_outcomes(scores, exists, outcomes)
    more = fit_outcomes(np.concatenate([scores, scores]), np.concatenate([exists, exists]),
                        np.concatenate([outcomes, np.full(3000, np.nan)]))
    assert more.right(scores) == pytest.approx(known.right(scores), abs=1e-3)
    # A score that is silent exactly where steps are wrong.
    wrong = scores[:, :, 0] < -1.0
    mute = np.where(wrong, np.nan, 1.0)[:, :, None]
    ends = np.where((wrong & exists).any(1), 0.0, 1.0)
    said = fit_outcomes(mute, exists, ends).right(np.array([[np.nan], [1.0]]))
    assert said[0] < 0.1 < 0.9 < said[1]


def test_a_score_never_counts_against_a_step():
    scores, exists, outcomes = chains(np.random.default_rng(2), 500, 3, 2.0, 1.0, 0.99, 0.1)
    assert fit_outcomes(-scores, exists, outcomes).weights[0] == 0.0


def test_without_scores_all_steps_share_one_rate():
    scores, exists, outcomes = chains(np.random.default_rng(3), 4000, 4, 0.0, 2.0, 0.99, 0.05)
    found = fit_outcomes(scores[:, :, :0], exists, outcomes)
    assert found.right(np.empty((1, 0)))[0] == pytest.approx(1 / (1 + np.exp(-2.0)), abs=0.03)


@pytest.mark.parametrize(("outcomes", "expected"), [([1, 0], True), ([1, 1], False), ([0, np.nan], False), ([], False)])
def test_outcomes_that_are_all_alike_tell_nothing(outcomes, expected):
    assert tells(np.array(outcomes, dtype=float)) is expected
