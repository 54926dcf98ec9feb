"""How right verdicts are, without labels: what calibrated probabilities say of themselves, with intervals.

It holds as long as the calibration does: on traffic that has drifted it is what the model believes, and no more.

Source: Guillory et al. 2021, "Predicting with Confidence on Unseen Distributions" (the mean confidence).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prm_core.evaluation.metrics import Estimate
from prm_core.serving.drift.samples import Sample

RESAMPLES = 1000
LEVEL = 0.95


def estimate(samples: Sequence[Sample], seed: int) -> dict[str, Estimate]:
    """What is expected of a window.

    Returns:
        `step_accuracy`: of steps, that the likelier verdict is right, the mean of max(p, 1 - p);
        `first_error_accuracy`: of trajectories, that the first error is where the likelier verdicts have it, the
        product of what they say up to there, as if they were independent; `wrong`: of trajectories, that a step is
        wrong, likewise.

    Args:
        samples: one a question, at least one.
    """
    weights = np.array([1 / one.chance for one in samples])
    steps = np.array([len(one.scores) for one in samples], dtype=np.float64)
    sure = np.array([np.maximum(one.scores, 1 - np.asarray(one.scores)).sum() for one in samples])
    located = np.array([_located(one.scores) for one in samples])
    wrong = np.array([1 - float(np.prod(one.scores)) for one in samples])
    ones = np.ones(len(samples))
    rows = np.random.default_rng(seed).integers(len(samples), size=(RESAMPLES, len(samples)))
    return {name: _interval(values * weights, per * weights, rows) for name, values, per in (
        ("step_accuracy", sure, steps), ("first_error_accuracy", located, ones), ("wrong", wrong, ones))}


def _located(scores: Sequence[float]) -> float:
    right = 1.0
    for score in scores:
        if score < 0.5:
            return right * (1 - score)
        right *= score
    return right


def _interval(values: NDArray[np.float64], per: NDArray[np.float64], rows: NDArray[np.int64]) -> Estimate:
    drawn = values[rows].sum(axis=1) / per[rows].sum(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(values.sum() / per.sum()), float(low), float(high))
