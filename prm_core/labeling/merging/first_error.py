"""Annotators of unlike reliability, combined over the position of a chain's first error: expectation-maximisation.

Dawid & Skene (1979) treat every step as an item of its own. The steps of a chain are not: an error ends what can be
asked of the steps after it, and a chain with a wrong answer holds at least one. Here the unknown of a chain is where
its first error lies (or that there is none); every verdict and the chain's outcome are evidence for it.

Annotators that ask whether the policy still gets to the answer, and the outcome, are one kind of evidence: after an
error that the policy recovers from all of them say that nothing is wrong, and in a chain that fails they may doubt
right steps too, because the question is hard. So a wrong chain is fatal or lucky, unknown as well, and what such
annotators say depends on it. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Grades = NDArray[np.int8]
# A verdict as a number; ABSTAINS is no evidence. Finer grades may stand in their place, see `fit`.
WRONG, RIGHT, ABSTAINS = 0, 1, -1
# Where a step lies: before the first error (or in a chain without one), at it, after it.
BEFORE, AT, AFTER = 0, 1, 2
# What a chain is: without an error, with one that costs the answer, with one that the policy recovers from.
SOUND, FATAL, LUCKY = 0, 1, 2
# Where the search starts: an annotator mostly sees what is there, and says nothing dependable after the first error.
# One observation of each kind also stays in the estimates, so that none is 0.
START = np.array([[0.05, 0.95], [0.8, 0.2], [0.5, 0.5]])
POLICY_START = np.stack([START, np.array([[0.15, 0.85], START[AT], START[AFTER]]),
                         np.array([START[BEFORE], [0.3, 0.7], START[BEFORE]])])
START_HAZARD, START_SOUND = 0.15, 0.95
# Of fatal and lucky errors: P(right answer), share among the errors; and how many chains these starts count for.
START_WON, START_SHARE, COUNTED = np.array([0.05, 0.8]), np.array([0.8, 0.2]), 5.0
# No step is surer to be right, or wrong, before the policy's evidence is heard.
EDGE = 0.002
MAX_ROUNDS, TOLERANCE = 500, 1e-6


@dataclass(frozen=True, slots=True)
class FirstErrorModel:
    """What expectation-maximisation found.

    Attributes:
        at: P(first error at a step), (chains, longest); 0 where a chain has no such step.
        none: P(no step is wrong), (chains,).
        emissions: annotator → P(grade | chain, where the step lies), (3, 3, grades): SOUND, FATAL, LUCKY by BEFORE, AT,
            AFTER. The same for every chain unless the annotator asks whether the policy succeeds.
        hazard: P(step is the first error | none before it), where it was not given.
        sound: P(right answer | no error).
        won: P(right answer | a fatal error, a lucky one).
        lucky: share of lucky errors.
        log_posterior: of the evidence and the estimates, before each round; never falls.
    """

    at: Floats
    none: Floats
    emissions: Mapping[str, Floats]
    hazard: float
    sound: float
    won: tuple[float, float]
    lucky: float
    log_posterior: list[float]

    @property
    def reached(self) -> Floats:
        """P(no step before this one is wrong), (chains, longest)."""
        return np.clip(1 - np.concatenate([np.zeros((len(self.at), 1)), self.at.cumsum(1)[:, :-1]], axis=1), 0.0, 1.0)

    @property
    def right(self) -> Floats:
        """P(step is right | the steps before it are), (chains, longest); 1 where a chain has no such step."""
        reached = self.reached
        return np.clip(1 - np.divide(self.at, reached, out=np.zeros_like(self.at), where=reached > 0), 0.0, 1.0)


def fit(
    grades: Mapping[str, Grades], lengths: NDArray[np.int64], outcomes: Floats, *, policy: Collection[str] = (),
    right: Floats | None = None, counted: NDArray[np.bool_] | None = None, sides: Mapping[str, Grades] | None = None,
) -> FirstErrorModel:
    """Estimates where each chain's first error is, and how reliable each annotator is.

    Args:
        grades: annotator → (chains, longest) of ABSTAINS or a grade; two of them are WRONG and RIGHT.
        lengths: steps of each chain (chains,), at least 1.
        outcomes: 1 right answer, 0 wrong, NaN unknown (chains,).
        policy: annotators that ask whether the policy gets to the answer.
        right: P(step right | the steps before are) by everything else, (chains, longest); None where nothing else is
            known: all steps then share one hazard, which is estimated.
        counted: chains that the estimates are made on, None for all; the others are only judged by them.
        sides: annotator → for each of its grades, whether it is WRONG or RIGHT; those not named have these two.
    """
    data = _Data(grades, lengths, outcomes, right, np.ones(len(lengths), dtype=bool) if counted is None else counted)
    starts = {name: _start(said, (sides or {}).get(name, np.array([WRONG, RIGHT])), name in policy)
              for name, said in grades.items()}
    now = _Estimates(starts, START_HAZARD, START_SOUND, START_WON, START_SHARE)
    history: list[float] = []
    while True:
        joint = _log_joint(data, now)
        top = joint.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(joint - top).sum(1))
        posterior = np.exp(joint - total[:, None])
        history.append(float(total[data.counted].sum()) + _log_prior(now, starts, policy, right is None))
        small = len(history) > 1 and history[-1] - history[-2] < TOLERANCE * abs(history[-1])
        if small or len(history) == MAX_ROUNDS:
            break
        now = _estimate(data, posterior, starts, policy, now)
    at, none = posterior[:, :-1].reshape(len(lengths), data.longest, 2), posterior[:, -1]
    return FirstErrorModel(at.sum(2), none, now.emissions, now.hazard, now.sound,
                           (float(now.won[0]), float(now.won[1])), float(now.share[1]), history)


@dataclass(frozen=True, slots=True)
class _Data:
    grades: Mapping[str, Grades]
    lengths: NDArray[np.int64]
    outcomes: Floats
    right: Floats | None
    counted: NDArray[np.bool_]

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def exists(self) -> NDArray[np.bool_]:
        return np.arange(self.longest) < self.lengths[:, None]


@dataclass(frozen=True, slots=True)
class _Estimates:
    emissions: Mapping[str, Floats]
    hazard: float
    sound: float
    won: Floats
    share: Floats


def _start(said: Grades, sides: Grades, policy: bool) -> Floats:
    """Emissions before anything is known, (3, 3, grades): a side's probability, over its grades as often as each is"""
    counts = np.array([(said == grade).sum() for grade in range(len(sides))]) + 0.5
    shares = counts / np.array([counts[sides == side].sum() for side in sides])
    start = POLICY_START if policy else np.stack([START] * 3)
    return start[:, :, sides] * shares


def _log_joint(data: _Data, now: _Estimates) -> Floats:
    """log P(evidence, chain): (chains, longest · 2 + 1): first error at each step, fatal and lucky, and last none."""
    longest, exists = data.longest, data.exists
    steps = np.arange(longest)
    if data.right is None:
        right, wrong = steps * np.log1p(-now.hazard), np.full(exists.shape, np.log(now.hazard))
        all_right = data.lengths * np.log1p(-now.hazard)
    else:
        p = np.clip(data.right, EDGE, 1 - EDGE)
        before = np.concatenate([np.zeros((len(p), 1)), np.where(exists, np.log(p), 0.0).cumsum(1)], axis=1)
        right, wrong, all_right = before[:, :-1], np.log1p(-p), before[:, -1]
    evidence = np.zeros((3, 3, *exists.shape))
    for name, said in data.grades.items():
        spoken = exists & (said != ABSTAINS)
        evidence += np.where(spoken, np.log(now.emissions[name])[:, :, np.where(spoken, said, 0)], 0.0)
    zero = np.zeros((len(exists), 1))
    kinds = []
    for number, kind in enumerate((FATAL, LUCKY)):
        before = np.concatenate([zero, evidence[kind, BEFORE].cumsum(1)], axis=1)[:, :longest]
        after = np.concatenate([evidence[kind, AFTER][:, ::-1].cumsum(1)[:, ::-1][:, 1:], zero], axis=1)
        joint = right + wrong + before + evidence[kind, AT] + after + np.log(now.share[number])
        joint = joint + _log_outcome(data.outcomes, now.won[number])[:, None]
        kinds.append(np.where(exists, joint, -np.inf))
    none = all_right + evidence[SOUND, BEFORE].sum(1) + _log_outcome(data.outcomes, now.sound)
    return np.concatenate([np.stack(kinds, axis=2).reshape(len(exists), -1), none[:, None]], axis=1)


def _log_outcome(outcomes: Floats, won: float) -> Floats:
    """log P(outcome), 0 where it is unknown, (chains,)."""
    return np.where(np.isnan(outcomes), 0.0, np.where(outcomes == 1, np.log(won), np.log1p(-won)))


def _estimate(
    data: _Data, posterior: Floats, starts: Mapping[str, Floats], policy: Collection[str], now: _Estimates
) -> _Estimates:
    """What the posterior of the counted chains makes most likely."""
    exists, outcomes = data.exists[data.counted], data.outcomes[data.counted]
    at, none = posterior[data.counted, :-1].reshape(len(exists), -1, 2), posterior[data.counted, -1]
    known = ~np.isnan(outcomes)
    won = np.where(known, outcomes, 0.0)
    after = np.concatenate([np.zeros((len(at), 1, 2)), at.cumsum(1)[:, :-1]], axis=1)
    before = at.sum(1, keepdims=True) - after - at
    # One error and one right step are counted in advance, as everywhere below.
    first = at.sum(2)
    hazard = (first.sum() + 1) / (((none[:, None] + before.sum(2) + first) * exists).sum() + 2)
    sound = ((none * won).sum() + 1) / (none[known].sum() + 2)
    of_kind = at.sum(1)
    rates = ((of_kind * won[:, None]).sum(0) + 2 * START_WON) / (of_kind[known].sum(0) + 2)
    share = of_kind.sum(0) + COUNTED * START_SHARE
    # Chain by place: how much of each step lies there.
    lies = np.zeros((3, 3, *exists.shape))
    lies[SOUND, BEFORE] = none[:, None]
    for number, kind in enumerate((FATAL, LUCKY)):
        lies[kind] = before[:, :, number], at[:, :, number], after[:, :, number]
    lies *= exists
    emissions = {}
    for name, start in starts.items():
        said = data.grades[name][data.counted]
        counts = np.stack([lies[:, :, said == grade].sum(2) for grade in range(start.shape[2])], axis=2)
        counts = _tied(counts, name in policy) + start
        emissions[name] = counts / counts.sum(2, keepdims=True)
    return _Estimates(emissions, float(hazard) if data.right is None else now.hazard, float(sound), rates,
                      share / share.sum())


def _tied(counts: Floats, policy: bool) -> Floats:
    """Counts of rows that are one and the same: what the policy does after a lucky error is what it does in a sound
    chain; to other annotators all chains are alike."""
    counts = counts.copy()
    if policy:
        alike = counts[SOUND, BEFORE] + counts[LUCKY, BEFORE] + counts[LUCKY, AFTER]
        counts[SOUND, BEFORE] = counts[LUCKY, BEFORE] = counts[LUCKY, AFTER] = alike
    else:
        counts[:] = counts.sum(0)
    return counts


def _log_prior(
    now: _Estimates, starts: Mapping[str, Floats], policy: Collection[str], with_hazard: bool
) -> float:
    """log of what is counted in advance, as far as it changes with the estimates."""
    value = np.log(now.sound) + np.log1p(-now.sound)
    value += (2 * START_WON * np.log(now.won) + 2 * (1 - START_WON) * np.log1p(-now.won)).sum()
    value += (COUNTED * START_SHARE * np.log(now.share)).sum()
    if with_hazard:
        value += np.log(now.hazard) + np.log1p(-now.hazard)
    for name, start in starts.items():
        one = start * np.log(now.emissions[name])
        # Tied rows are estimated once, and what is counted in advance for them too.
        if name in policy:
            one = one[[SOUND, FATAL, FATAL, FATAL, LUCKY], [BEFORE, BEFORE, AT, AFTER, AT]]
        else:
            one = one[SOUND]
        value += one.sum()
    return float(value)
