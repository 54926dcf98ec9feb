"""Labels of served steps from all that is known of them: the champion's scores, outcomes and people's verdicts, each
believed as far as its source has earned it. Pure functions.

A chain's first wrong step is one of its steps or none. The champion's scores say how likely each is; an outcome speaks
for "none" or for "one of them", a verdict for or against its step. Of reporters and reviewers it is found out by
expectation and maximisation how often they are right, each starting from what is usual.

A reporter is as most are, or tells the same whatever happened. Of one that is as most are it is known well how often
luck has a wrong chain succeed; were it learned from each one's few chains, a champion that is too pessimistic about
new traffic would have its pessimism confirmed as everybody's luck.

Sources: Dawid & Skene 1979, "Maximum Likelihood Estimation of Observer Error-Rates", with the model as one observer;
Mitchell & Beauchamp 1988, "Bayesian Variable Selection in Linear Regression" (a prior of a spike and a slab).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from prm_core.config import CalibrateConfig
from prm_core.labeling.calibrate import CHANCE
from prm_core.labeling.human.labels import HUMAN_PREFIX, human_verdicts
from prm_core.scoring.calibration import fit_calibrator
from prm_core.serving.drift.outcomes import Outcome
from prm_core.types import StepLabel

Floats = NDArray[np.float64]
Counts: TypeAlias = tuple[float, float]
EDGE = 1e-3
ROUNDS = 10
# What is usual, as counts before any evidence: (right, wrong) of reviewers; (success, failure) told by reporters of
# chains without an error, and of chains with one, of which some succeed by luck.
REVIEWER, SOUND, UNSOUND = (9.5, 0.5), (95.0, 5.0), (10.0, 90.0)
# The same of those who tell failure whatever they see, and of those who tell success; a share USUAL are neither.
NEVER, ALWAYS, USUAL = (2.0, 18.0), (18.0, 2.0), 0.95
# A reviewer is never believed less than a coin: who says the contrary throughout is no help either.
COIN, SUREST = 0.5, 0.995
# Believed less, a reviewer's verdicts are left out.
MIN_REVIEWER = 0.75
# So are outcomes of reporters that tell more success of chains with an error, or less of chains without one.
MAX_LUCK = MIN_SOUND = 0.5
STRATEGY = "adapted"


@dataclass(frozen=True, slots=True)
class Trust:
    """How far sources are relied upon.

    Attributes:
        reviewers: name → how often its verdicts are right, in [0.5, 1).
        reporters: name → (chance that it tells success of a chain without an error, and of one with an error).
    """

    reviewers: Mapping[str, float]
    reporters: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chain:
    """What is known of a chain: `scores` of its steps, `verdicts` (step, reviewer, right), `outcomes` (reporter,
    success)."""

    scores: Sequence[float]
    verdicts: Sequence[tuple[int, str, bool]] = ()
    outcomes: Sequence[tuple[str, bool]] = ()


def chains_of(
    scores: Mapping[str, Sequence[float]], labels: Sequence[StepLabel], outcomes: Sequence[Outcome]
) -> dict[str, Chain]:
    """Trajectory id → what is known of it, of those with scores."""
    verdicts: dict[str, list[tuple[int, str, bool]]] = {}
    told: dict[str, list[tuple[str, bool]]] = {}
    for label in labels:
        if label.is_correct is not None and label.step_index < len(scores.get(label.trajectory_id, ())):
            verdicts.setdefault(label.trajectory_id, []).append(
                (label.step_index, label.strategy.removeprefix(HUMAN_PREFIX), label.is_correct))
    for one in outcomes:
        told.setdefault(one.trajectory, []).append((one.reporter, one.success))
    return {name: Chain(found, tuple(verdicts.get(name, ())), tuple(told.get(name, ())))
            for name, found in scores.items() if len(found)}


def first_error(chain: Chain, trust: Trust) -> Floats:
    """Probability of each step to be the first wrong one, and last that there is none, (steps + 1,)."""
    scores = np.clip(np.asarray(chain.scores, dtype=np.float64), EDGE, 1 - EDGE)
    alive = np.concatenate([[1.0], np.cumprod(scores)])
    table = np.log(alive) + np.log(np.append(1 - scores, 1.0))
    steps = np.arange(len(table))
    for reporter, success in chain.outcomes:
        sound, unsound = trust.reporters[reporter]
        told = np.where(steps == len(scores), sound, unsound)
        table += np.log(told if success else 1 - told)
    for step, reviewer, right in chain.verdicts:
        believed = trust.reviewers[reviewer]
        agrees = (steps > step) if right else (steps == step)
        # Behind the first wrong step "is it right" has no clear meaning.
        table += np.where(steps < step, np.log(0.5), np.log(np.where(agrees, believed, 1 - believed)))
    table = np.exp(table - table.max())
    return table / table.sum()


def find_trust(chains: Sequence[Chain], before: Trust | None = None) -> Trust:
    """How far each source of these chains is to be relied upon, from how it agrees with everything else.

    Args:
        before: what was found with other scores, to go on from by one round.
    """
    reviewers = sorted({name for chain in chains for _, name, _ in chain.verdicts})
    reporters = sorted({name for chain in chains for name, _ in chain.outcomes})
    unheard = rate_of_success(0, 0, SOUND, NEVER), rate_of_success(0, 0, UNSOUND, ALWAYS)
    trust = before or Trust(dict.fromkeys(reviewers, REVIEWER[0] / sum(REVIEWER)), dict.fromkeys(reporters, unheard))
    known = [chain for chain in chains if chain.verdicts or chain.outcomes]
    for _ in range(1 if before else ROUNDS):
        agreed = {name: np.array(REVIEWER) for name in reviewers}
        told = {name: np.zeros((2, 2)) for name in reporters}
        for chain in known:
            found = first_error(chain, trust)
            for step, name, right in chain.verdicts:
                counts = found[step + 1 :].sum(), found[step]
                agreed[name] += counts if right else counts[::-1]
            for name, success in chain.outcomes:
                told[name][:, 0 if success else 1] += [found[-1], 1 - found[-1]]
        trust = Trust({name: float(np.clip(right / (right + wrong), COIN, SUREST))
                       for name, (right, wrong) in agreed.items()},
                      {name: (rate_of_success(*sound, SOUND, NEVER), rate_of_success(*unsound, UNSOUND, ALWAYS))
                       for name, (sound, unsound) in told.items()})
    return trust


def rate_of_success(success: float, failure: float, usual: Counts, other: Counts) -> float:
    """Posterior mean of how often a reporter tells success of chains of one kind, in [1 - SUREST, SUREST].

    Args:
        success, failure: how often it told either.
        usual, other: counts of each before any evidence, of reporters as most are and of the others.
    """
    counts = np.array([usual, other])
    after = counts + np.array([success, failure])
    weights = np.log([USUAL, 1 - USUAL]) + betaln(*after.T) - betaln(*counts.T)
    weights = np.exp(weights - weights.max())
    return float(np.clip(weights @ (after[:, 0] / after.sum(1)) / weights.sum(), 1 - SUREST, SUREST))


def trusted(labels: Sequence[StepLabel], trust: Trust) -> list[StepLabel]:
    """The verdicts of reviewers that are believed enough."""
    return [row for row in labels
            if trust.reviewers.get(row.strategy.removeprefix(HUMAN_PREFIX), 0.0) >= MIN_REVIEWER]


def is_heard(reporter: str, trust: Trust) -> bool:
    """Whether a reporter's outcomes may measure and teach: it does not tell the same of nearly everything."""
    sound, unsound = trust.reporters.get(reporter, (0.0, 1.0))
    return sound >= MIN_SOUND and unsound <= MAX_LUCK


def chance_of(label: StepLabel) -> float:
    """That its step was kept and picked for review."""
    return json.loads(label.lineage)[CHANCE] if label.lineage else 1.0


def recalibrated(
    scores: Mapping[str, Sequence[float]], labels: Sequence[StepLabel], trust: Trust, settings: CalibrateConfig
) -> dict[str, Sequence[float]]:
    """The scores as what trusted people say of some of their steps makes of them; as they are where too few have a
    verdict.

    Each verdict counts once. People are asked where the scores are least sure, which is where it matters how sure they
    are; one over the chance would have a few verdicts on sure steps decide.
    """
    rows = [(scores[name][step], right) for (name, step), right in sorted(
        human_verdicts(trusted(labels, trust)).verdicts.items()) if step < len(scores.get(name, ()))]
    if not rows:
        return dict(scores)
    found, right = map(list, zip(*rows, strict=True))
    fitted = fit_calibrator(found, right, "platt", settings.min_labels)
    return {name: fitted.apply(found).tolist() for name, found in scores.items()}


def relabel(chains: Mapping[str, Chain], trust: Trust) -> list[StepLabel]:
    """A label a step, up to where an error before it is likelier than not: `value` is the probability that the step is
    right, given that those before it are. By trajectory and step."""
    rows = []
    for name in sorted(chains):
        found = first_error(chains[name], trust)
        left = found[::-1].cumsum()[::-1]
        for step in range(len(found) - 1):
            if left[step] < 0.5:
                break
            value = float(np.clip(1 - found[step] / left[step], 0.0, 1.0))
            rows.append(StepLabel(name, step, STRATEGY, value, value >= 0.5, max(value, 1 - value), 0, ""))
    return rows
