"""Strategies' evidence weighed anew by people: logistic regression from what the merge and each strategy say of a step
to the probability that it is right. Where one number is calibrated, the disagreements of the strategies are lost; here
a few human labels decide whom to believe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Stated probabilities beyond these are taken as these: nothing is surer than one error in a thousand.
EDGE = 0.001
# Strength of the penalty on what differs from the merged probability.
PENALTY = 1.0


@dataclass(frozen=True, slots=True)
class Stack:
    """P(step right) = sigmoid(intercept + weights · evidence).

    Attributes:
        sources: names of the columns of the evidence.
        weights: for each source, of the logit of its probability (0 where it abstains).
        silence: for each source, what its abstention adds.
        intercept: with no evidence at all.
        labels: human labels it was fitted on.
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    silence: tuple[float, ...]
    intercept: float
    labels: int

    def apply(self, probabilities: Floats) -> Floats:
        """P(step right) (n,) from the sources' probabilities (n, sources), NaN where one abstains."""
        x = _features(np.asarray(probabilities, dtype=np.float64))
        return 0.5 * (1 + np.tanh(0.5 * (x @ np.array([*self.weights, *self.silence]) + self.intercept)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores exactly this stack."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Stack:
        """The stack `to_dict` wrote."""
        return Stack(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _features(probabilities: Floats) -> Floats:
    """(n, 2 · sources): logits, 0 where a source abstains, then 1 where it does."""
    silent = np.isnan(probabilities)
    p = np.clip(np.where(silent, 0.5, probabilities), EDGE, 1 - EDGE)
    return np.concatenate([np.log(p) - np.log1p(-p), silent], axis=1)


def fit_stack(probabilities: Floats, outcomes: NDArray[np.bool_], sources: Sequence[str]) -> Stack:
    """Fits the stack: the merged probability as it is, corrected by what the labels say against it.

    The penalty (ridge) draws towards the merged probability, not towards nothing known, so few labels change little.
    Rows are not weighed by the chance they were picked with: picks depend on the evidence alone, given which the
    outcome is modelled; weights would only add variance.

    Args:
        probabilities: (n, sources), NaN where a source abstains; the merge's first.
        outcomes: (n,), both values among them.
    """
    from scipy.optimize import minimize

    x = np.concatenate([_features(probabilities), np.ones((len(outcomes), 1))], axis=1)
    start = np.zeros(x.shape[1])
    start[0] = 1.0
    penalised = np.append(np.ones(x.shape[1] - 1), 0.0)
    sign = np.where(outcomes, 1.0, -1.0)

    def loss(weights: Floats) -> tuple[float, Floats]:
        margin = sign * (x @ weights)
        pull = PENALTY * penalised * (weights - start)
        gradient = -x.T @ (sign * 0.5 * (1 - np.tanh(0.5 * margin))) + pull
        return float(np.logaddexp(0, -margin).sum() + 0.5 * pull @ (weights - start)), gradient

    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    count = len(sources)
    return Stack(tuple(sources), tuple(found[:count].tolist()), tuple(found[count : 2 * count].tolist()),
                 float(found[-1]), len(outcomes))
