"""Served trajectories as the loop takes them: with their texts, the chance that each was kept, and how they ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prm_core.config import Config
from prm_core.evaluation.metrics import Estimate
from prm_core.labeling.human.population import human_error
from prm_core.platform.steps import written_step
from prm_core.serving.drift.outcomes import Outcome
from prm_core.serving.drift.samples import PREFIX, Sample, read_window
from prm_core.serving.drift.watch import SAMPLES
from prm_core.serving.drift.withdrawn import read_withdrawn, without
from prm_core.types import Problem, Trajectory

POLICY = "served"
# Of a file of samples, beyond the time of its last trajectory.
LATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Served:
    """A trajectory that was served.

    Attributes:
        problem, trajectory: its question and steps; ids are digests of what they say.
        scores: calibrated, of the version that answered.
        chance: that it was kept.
        tenant: who asked, empty where that is not known.
    """

    problem: Problem
    trajectory: Trajectory
    scores: tuple[float, ...]
    chance: float
    tenant: str


def to_served(sample: Sample, domain: str) -> Served:
    """A sample whose text was kept."""
    assert sample.text is not None
    said = json.loads(sample.text)
    problem = Problem(f"{PREFIX}{sample.prompt}", domain, said["prompt"], "")
    steps = tuple(written_step(step) for step in said["steps"])
    trajectory = Trajectory(PREFIX + sample.prefixes[-1], problem.id, POLICY, steps, None, None, 0,
                            meta={"time": sample.time, "chance": sample.chance, "tenant": sample.tenant})
    return Served(problem, trajectory, tuple(sample.scores), sample.chance, sample.tenant)


def window(workspace: Path, config: Config, until: float) -> list[Sample]:
    """The samples with texts that a workspace's server kept, each trajectory once, by the order of their ids; without
    those that a later request went on with, and without what was withdrawn.

    Args:
        until: seconds since 1970.
    """
    folder = workspace / config.drift.folder
    since = until - 86400 * config.adapt.window_days
    found = read_window(folder / SAMPLES, since, until, config.drift.seconds + LATE_SECONDS).samples
    kept = [one for one in without(found, read_withdrawn(folder)) if one.text and one.prefixes]
    went_on = {prefix for one in kept for prefix in one.prefixes[:-1]}
    last = {one.prefixes[-1]: one for one in kept if one.prefixes[-1] not in went_on}
    return [last[name] for name in sorted(last)]


def is_held_out(problem_id: str, share: float) -> bool:
    """Whether a question is kept for measuring: by its digest, so that it is so in every round."""
    return int(hashlib.sha256(problem_id.encode()).hexdigest()[:8], 16) < share * 2**32


def chances(served: Iterable[Served], outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Trajectory id → the chance that it is here with an outcome: that it was kept times that it was carried out."""
    carried = {one.trajectory: one.chance for one in outcomes}
    return {one.trajectory.id: one.chance * carried[one.trajectory.id] for one in served
            if one.trajectory.id in carried}


def weighted_share(
    hits: Sequence[bool], chance: Sequence[float], questions: Sequence[str], seed: int
) -> Estimate:
    """The share of trajectories of which something holds, of all that were there to be chosen, with a 95 % interval
    over questions: each counts one over the chance that it was seen. All NaN without any.

    What a reward model chose itself shows what it likes; where any other may be chosen too, by a known chance, this
    has no bias but the ratio's, which falls with their number.

    Source: as `human_error`, whose interval counts one more trajectory for either end: few that had little chance
    decide, and a bootstrap of those alone is too sure.
    """
    if not hits:
        return Estimate(math.nan, math.nan, math.nan)
    found = human_error(questions, np.asarray(hits, dtype=bool), 1 / np.asarray(chance, dtype=np.float64), seed)
    return Estimate(found.share, found.low, found.high)


def success(served: Sequence[Served], outcomes: Sequence[Outcome], seed: int) -> Estimate:
    """The share of served trajectories that succeed, from those whose outcome was told."""
    told: Mapping[str, bool] = {one.trajectory: one.success for one in outcomes}
    chance = chances(served, outcomes)
    known = [one for one in served if one.trajectory.id in chance]
    return weighted_share([told[one.trajectory.id] for one in known], [chance[one.trajectory.id] for one in known],
                          [one.problem.id for one in known], seed)
