"""Values under a prover and advantages: exact numbers, and the property that makes a prover other than the policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.scoring.prover import advantage_figures, best_of, step_advantages

VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_best_of_four_of_known_values() -> None:
    # 1 - (1 - Q)^4: 1 - 1, 1 - 0.75^4, 1 - 0.5^4, 1 - 0.
    assert best_of([0.0, 0.25, 0.5, 1.0], 4).tolist() == [0.0, 0.68359375, 0.9375, 1.0]


def test_the_best_of_one_is_the_policy_itself() -> None:
    assert best_of([[0.25, 0.75]], 1).tolist() == [[0.25, 0.75]]


def test_advantages_of_known_values() -> None:
    assert step_advantages([0.5, 0.75, 0.25, 1.0]).tolist() == [0.25, -0.5, 0.75]
    assert step_advantages([[0.5, 0.75], [1.0, 0.0]]).tolist() == [[0.25], [-1.0]]
    assert step_advantages([0.5]).tolist() == []


@given(VALUES, st.integers(1, 8))
def test_advantages_sum_to_the_end_minus_the_start_whatever_the_steps_were(values: list[float], samples: int) -> None:
    """So under the policy itself they say no more than the outcome; METHODS 3."""
    prover = best_of(values, samples)
    assert step_advantages(prover).sum() == pytest.approx(prover[-1] - prover[0], abs=1e-12)


@given(VALUES, st.integers(2, 8))
def test_a_prover_is_better_than_the_policy_and_keeps_the_order(values: list[float], samples: int) -> None:
    own, prover = np.array(values), best_of(values, samples)
    assert ((prover >= 0) & (prover <= 1)).all()
    assert (prover >= own - 1e-12).all()
    assert (np.diff(prover[own.argsort()]) >= -1e-12).all()


def test_figures_of_a_prover_over_all_steps_of_all_chains() -> None:
    # Best of 2 of 0, 0.5, 1 is 0, 0.75, 1: advantages 0.75, 0.25 and, of the second chain, -0.75; own 0.5, 0.5, -0.5.
    found = advantage_figures([[0.0, 0.5, 1.0], [0.5, 0.0]], 2)
    own, prover = np.array([0.5, 0.5, -0.5]), np.array([0.75, 0.25, -0.75])
    assert found == {"advantage_variance": pytest.approx(prover.var()),
                     "advantage_alignment": pytest.approx((own * prover).mean())}
    assert found["advantage_alignment"] == pytest.approx(0.875 / 3)
