"""Whose chains people have judged, and how wrong labels are by what they say. Pure functions.

What people say of one population of chains (solutions somebody corrupted) tells little of another (what the policy
writes): the errors are of other kinds. So no figure here mixes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_core.types import Trajectory

# Names of the populations in figures: the policy's own chains, and all others.
POLICY, OTHER = "policy", "other"
RESAMPLES = 2000
MISSED = 0.025


def other_authors(
    human: Iterable[Trajectory], human_digests: Mapping[str, str], generated: Iterable[Trajectory],
    digests: Collection[str],
) -> dict[str, str]:
    """Human-labelled chain → who wrote it, of those that are not the policy's own.

    The policy's own are those that were generated, by content, and those of the policy that generated the others,
    whose chains of an earlier run people may have judged.

    Args:
        human_digests: trajectory id → content digest, of `human`.
        digests: content digests of `generated`.
    """
    policies, known = {trajectory.policy for trajectory in generated}, set(digests)
    return {trajectory.id: trajectory.policy for trajectory in human
            if trajectory.policy not in policies and human_digests[trajectory.id] not in known}


@dataclass(frozen=True, slots=True)
class HumanError:
    """How wrong labels are by what people say of some of their steps.

    Attributes:
        labels: steps that both people and the labels decide, none after the first that people call wrong.
        share: of the steps on which they differ, each weighed by how many it stands for.
        low, high: 95 % interval.
    """

    labels: int
    share: float
    low: float
    high: float


def human_error(
    chains: Collection[str], differs: NDArray[np.bool_], weights: NDArray[np.float64], seed: int
) -> HumanError:
    """The weighted share of steps on which labels differ from people, with a bootstrap interval over chains.

    Errors are rare, and the likeliest to be missed are those of sure labels, which few look at. So each end is drawn
    with one more step of average weight: the upper end as if it differed, the lower as if it did not (the exact
    interval of a binomial share counts one more too, Clopper and Pearson 1934). Without a single difference the upper
    end still says how many may have been missed.

    Source: Hajek's ratio of Horvitz-Thompson sums.

    Args:
        chains: (n,), whose step each is, n >= 1: the steps of a chain are not independent.
        differs: (n,), whether the labels and people differ.
        weights: (n,), one over the chance that the step was picked, positive.
    """
    rows = np.unique(np.asarray(list(chains)), return_inverse=True)[1]
    wrong, all_ = np.bincount(rows, weights * differs), np.bincount(rows, weights)
    share, more = float(wrong.sum() / all_.sum()), weights.mean()
    every = np.append(all_, more)
    drawn = np.random.default_rng(seed).integers(len(every), size=(RESAMPLES, len(every)))
    low, high = (float(np.quantile(np.append(wrong, extra)[drawn].sum(1) / every[drawn].sum(1), level))
                 for extra, level in ((0.0, MISSED), (more, 1 - MISSED)))
    return HumanError(len(differs), share, min(low, share), max(high, share))
