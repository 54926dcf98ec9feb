"""prm_core/serving/drift/accuracy.py: expected accuracies by hand, weighted, and intervals that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from prm_core.serving.drift.accuracy import estimate
from tests.builders.drift import served


def test_expectations_of_two_trajectories_by_hand() -> None:
    found = estimate([served("a", [0.9, 0.2, 0.6]), served("b", [0.8], chance=0.5)], seed=0)
    # The second stands for two. Steps: (0.9 + 0.8 + 0.6 + 2 · 0.8) / (3 + 2).
    assert found["step_accuracy"].value == pytest.approx((0.9 + 0.8 + 0.6 + 2 * 0.8) / 5)
    # The first error of a is expected at its second step: 0.9 · 0.8; of b nowhere: 0.8.
    assert found["first_error_accuracy"].value == pytest.approx((0.9 * 0.8 + 2 * 0.8) / 3)
    assert found["wrong"].value == pytest.approx((1 - 0.9 * 0.2 * 0.6 + 2 * 0.2) / 3)
    for one in found.values():
        assert one.low <= one.value <= one.high


def test_intervals_hold_the_accuracy_of_calibrated_scores() -> None:
    rng, held = np.random.default_rng(0), 0
    for seed in range(40):
        chains = [rng.beta(4, 1, rng.integers(1, 6)) for _ in range(60)]
        found = estimate([served(f"{n}", scores.tolist()) for n, scores in enumerate(chains)], seed)["step_accuracy"]
        # Of beta(4, 1), E max(p, 1 - p) = 0.8 + integral of (1 - 2p) 4 p³ over p < 1/2.
        held += found.low <= 0.8 + 0.5**4 - 8 / 5 * 0.5**5 <= found.high
    assert held >= 34
