"""What the outcomes of chains say about their steps, where nobody has judged a step.

A chain whose steps are all right mostly ends right; one with a wrong step mostly does not, but for luck. That is enough
to learn, from outcomes alone, how what annotators state of a step maps to the probability that it is right: the product
over a chain's steps is the probability that it is sound. A map fitted to outcomes without the luck takes every wrong
step that the policy recovers from for a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Strength of the penalty that draws the weights towards what is taken for granted; some hundred chains outweigh it.
RIDGE = 0.02
# Logits beyond it round to 0 or 1.
LIMIT = 50.0


@dataclass(frozen=True, slots=True)
class OutcomeModel:
    """P(step right) = sigmoid(bias + weights · scores + silence · silent).

    Attributes:
        weights: of each score, not negative.
        silence: what a score that is not there adds.
        bias: with no score at all.
        sound: P(right answer | every step is right).
        lucky: P(right answer | a step is wrong).
    """

    weights: Floats
    silence: Floats
    bias: float
    sound: float
    lucky: float

    def right(self, scores: Floats) -> Floats:
        """P(step right) (…) from scores (…, scores), NaN where one is not there."""
        silent = np.isnan(scores)
        logit = np.where(silent, 0.0, scores) @ self.weights + silent @ self.silence + self.bias
        return 1 / (1 + np.exp(-np.clip(logit, -LIMIT, LIMIT)))


def tells(outcomes: Floats) -> bool:
    """Whether there is something to learn from these outcomes (chains,): both kinds are among them."""
    return bool((outcomes == 1).any() and (outcomes == 0).any())


def fit_outcomes(scores: Floats, exists: NDArray[np.bool_], outcomes: Floats, start: float = 1.0) -> OutcomeModel:
    """The most likely model of the chains' outcomes.

    Args:
        scores: of each step, larger for what speaks for it, NaN where one is not there: (chains, longest, scores).
        exists: whether a chain has such a step, (chains, longest).
        outcomes: 1 right answer, 0 wrong, NaN unknown, (chains,); both kinds among them, see `tells`.
        start: the weight of a score before anything is known, and what the penalty draws towards.
    """
    from scipy.optimize import minimize

    known = ~np.isnan(outcomes)
    scores, exists, won = scores[known], exists[known], outcomes[known]
    silent = np.isnan(scores) & exists[:, :, None]
    evidence = np.concatenate([np.where(np.isnan(scores), 0.0, scores), silent], axis=2)
    count = scores.shape[2]
    given = np.concatenate([np.full(count, start), np.zeros(count)])

    def loss(values: Floats) -> tuple[float, Floats]:
        weights, bias = values[:-3], values[-3]
        # Luck is at most, soundness at least one half.
        luck, sound = 0.5 / (1 + np.exp(-values[-2])), 0.5 + 0.5 / (1 + np.exp(-values[-1]))
        logit = np.clip(evidence @ weights + bias, -LIMIT, LIMIT)
        all_right = np.exp(np.where(exists, -np.logaddexp(0, -logit), 0.0).sum(1))
        p = np.clip(luck + (sound - luck) * all_right, 1e-12, 1 - 1e-12)
        slope = (1 - won) / (1 - p) - won / p
        by_logit = (slope * (sound - luck) * all_right)[:, None] * np.where(exists, 1 / (1 + np.exp(logit)), 0.0)
        away = weights - given
        # One chain of each kind is counted in advance, so that neither rate is 0 or 1.
        value = (-(won * np.log(p) + (1 - won) * np.log1p(-p)).sum() + 0.5 * RIDGE * away @ away
                 - np.log(2 * luck) - np.log1p(-2 * luck) - np.log(2 * sound - 1) - np.log(2 - 2 * sound))
        rates = ((slope * (1 - all_right)).sum() * luck * (1 - 2 * luck) - (1 - 4 * luck),
                 (slope * all_right).sum() * (sound - 0.5) * (2 - 2 * sound) - (3 - 4 * sound))
        return float(value), np.concatenate([
            np.einsum("cs,csk->k", by_logit, evidence) + RIDGE * away, [by_logit.sum(), *rates]])

    bounds = [*[(0.0, None)] * count, *[(None, None)] * (count + 1), *[(-10.0, 10.0)] * 2]
    found = minimize(loss, np.concatenate([given, [0.0, -1.0, 2.0]]), jac=True, method="L-BFGS-B", bounds=bounds,
                     options={"maxiter": 500}).x
    return OutcomeModel(found[:count], found[count : 2 * count], float(found[-3]),
                        float(0.5 + 0.5 / (1 + np.exp(-found[-1]))), float(0.5 / (1 + np.exp(-found[-2]))))
