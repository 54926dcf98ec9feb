"""Annotators of unlike reliability, combined over the position of a chain's first error: expectation-maximisation.

Dawid & Skene (1979) treat every step as an item of its own. The steps of a chain are not: an error ends what can be
asked of the steps after it, and a chain with a wrong answer holds at least one. Here the unknown of a chain is where
its first error lies (or that there is none); every verdict and the chain's outcome are evidence for it. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# A verdict as a number; ABSTAINS is no evidence.
WRONG, RIGHT, ABSTAINS = 0, 1, -1
# Where a step lies: before the first error (or in a chain without one), at it, after it.
BEFORE, AT, AFTER = 0, 1, 2
# Where the search starts: an annotator mostly sees what is there, and says nothing dependable after the first error.
# One observation of each kind also stays in the estimates, so that none is 0.
START = np.array([[0.05, 0.95], [0.8, 0.2], [0.5, 0.5]])
START_HAZARD, START_SOUND, START_LUCKY = 0.15, 0.95, 0.2
MAX_ROUNDS, TOLERANCE = 500, 1e-6


@dataclass(frozen=True, slots=True)
class FirstErrorModel:
    """What expectation-maximisation found.

    Attributes:
        right: P(step is right | the steps before it are), (chains, longest); 1 where a chain has no such step.
        reached: P(no step before this one is wrong), (chains, longest).
        emissions: annotator → P(verdict | where the step lies), (3, 2): rows BEFORE, AT, AFTER; columns WRONG, RIGHT.
        hazard: P(step is the first error | none before it).
        sound, lucky: P(right answer | no error), P(right answer | an error).
        log_likelihood: of the evidence, before each round; never falls.
    """

    right: Floats
    reached: Floats
    emissions: Mapping[str, Floats]
    hazard: float
    sound: float
    lucky: float
    log_likelihood: list[float]


def fit(verdicts: Mapping[str, NDArray[np.int8]], lengths: NDArray[np.int64], outcomes: Floats) -> FirstErrorModel:
    """Estimates where each chain's first error is, and how reliable each annotator is.

    Args:
        verdicts: annotator → (chains, longest) of WRONG, RIGHT or ABSTAINS.
        lengths: steps of each chain (chains,), at least 1.
        outcomes: 1 right answer, 0 wrong, NaN unknown (chains,).
    """
    longest = int(lengths.max())
    exists = np.arange(longest) < lengths[:, None]
    emissions = {name: START.copy() for name in verdicts}
    hazard, sound, lucky = START_HAZARD, START_SOUND, START_LUCKY
    history: list[float] = []
    for _ in range(MAX_ROUNDS):
        joint = _log_joint(verdicts, emissions, lengths, exists, hazard) + _log_outcome(outcomes, sound, lucky, longest)
        top = joint.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(joint - top).sum(1))
        history.append(float(total.sum()))
        posterior = np.exp(joint - total[:, None])
        at, none = posterior[:, :longest], posterior[:, longest]
        before_or_at = 1 - np.concatenate([np.zeros((len(lengths), 1)), at.cumsum(1)[:, :-1]], axis=1)
        if len(history) > 1 and history[-1] - history[-2] < TOLERANCE * abs(history[-1]):
            break
        # One error and one right step are counted in advance, as everywhere below.
        hazard = (at.sum() + 1) / ((before_or_at * exists).sum() + 2)
        known = ~np.isnan(outcomes)
        won = np.where(known, outcomes, 0.0)
        sound = ((none * won).sum() + 1) / (none[known].sum() + 2)
        lucky = (((1 - none) * won).sum() + 1) / ((1 - none)[known].sum() + 2)
        weights = (before_or_at - at, at, 1 - before_or_at)
        for name, said in verdicts.items():
            counts = np.array([[weight[said == verdict].sum() for verdict in (WRONG, RIGHT)] for weight in weights])
            counts += START
            emissions[name] = counts / counts.sum(1, keepdims=True)
    right = 1 - np.divide(at, before_or_at, out=np.zeros_like(at), where=before_or_at > 0)
    return FirstErrorModel(np.clip(right, 0.0, 1.0), np.clip(before_or_at, 0.0, 1.0), emissions, float(hazard),
                           float(sound), float(lucky), history)


def _log_joint(
    verdicts: Mapping[str, NDArray[np.int8]], emissions: Mapping[str, Floats], lengths: NDArray[np.int64],
    exists: NDArray[np.bool_], hazard: float,
) -> Floats:
    """log P(verdicts, first error at k) for k = 0…longest-1 and, last, none: (chains, longest + 1)."""
    longest = exists.shape[1]
    evidence = np.zeros((3, *exists.shape))
    for name, said in verdicts.items():
        spoken = exists & (said != ABSTAINS)
        evidence += np.where(spoken, np.log(emissions[name])[:, np.where(spoken, said, 0)], 0.0)
    zero = np.zeros((len(lengths), 1))
    before = np.concatenate([zero, evidence[BEFORE].cumsum(1)], axis=1)
    after = np.concatenate([evidence[AFTER][:, ::-1].cumsum(1)[:, ::-1][:, 1:], zero], axis=1)
    steps = np.arange(longest)
    at = np.log(hazard) + steps * np.log1p(-hazard) + before[:, :longest] + evidence[AT] + after
    none = lengths * np.log1p(-hazard) + before[:, longest]
    return np.concatenate([np.where(exists, at, -np.inf), none[:, None]], axis=1)


def _log_outcome(outcomes: Floats, sound: float, lucky: float, longest: int) -> Floats:
    """log P(outcome | first error at k, or none): (chains, longest + 1), 0 where the outcome is unknown."""
    shares = np.concatenate([np.full(longest, lucky), [sound]])
    said = outcomes[:, None]
    return np.where(np.isnan(said), 0.0, np.where(said == 1, np.log(shares), np.log1p(-shares)))
