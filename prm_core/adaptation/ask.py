"""Which steps of a round people are asked about, and what they have said: a small workspace of its own for `prm
review`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prm_core.adaptation.relabel import Chain, Trust, relabel
from prm_core.adaptation.traffic import Served
from prm_core.config import Config
from prm_core.labeling.human.labels import HumanData, read_human
from prm_core.platform import store
from prm_core.review.importing import durable_id, reading
from prm_core.review.queue import review_queue
from prm_core.review.session import CHAINS, HUMAN, PROBLEMS, QUEUE
from prm_core.types import StepLabel, Trajectory

CHAMPION = "champion"


def choose(
    served: Sequence[Served], chains: Mapping[str, Chain], trust: Trust, config: Config, seed: int
) -> list[dict[str, Any]]:
    """The rows of the review queue: the steps on which the champion's scores and what outcomes make of them differ
    most or say least. `chance` of each is that it was kept and picked.

    Args:
        chains: trajectory id → what is known of it.
        seed: of the picks.
    """
    calibrated = relabel(chains, trust)
    said = [StepLabel(name, step, CHAMPION, score, score >= 0.5, max(score, 1 - score), 0, "the champion's score")
            for name, chain in chains.items() for step, score in enumerate(chain.scores)]
    kept = {one.trajectory.id: one.chance for one in served}
    rows = review_queue(
        calibrated, [*said, *calibrated], [one.trajectory for one in served],
        {one.problem.id: one.problem for one in served}, seed=seed,
        budget=round(config.adapt.review_share * sum(len(one.scores) for one in served)))
    return [{**row, "chance": row["chance"] * kept[row["trajectory_id"]]} for row in rows]


def put(folder: Path, served: Sequence[Served], rows: Sequence[Mapping[str, Any]]) -> None:
    """Lays a queue before people, in place of the last one; answers that were given stay."""
    asked = {row["trajectory_id"] for row in rows}
    chosen = [one for one in served if one.trajectory.id in asked]
    store.write_shard(folder / CHAINS, 0, Trajectory, [one.trajectory for one in chosen])
    store.write_jsonl(folder / PROBLEMS, {one.problem.id: one.problem for one in chosen}.values())
    store.write_jsonl(folder / QUEUE, rows)


def answers(folder: Path) -> HumanData:
    """What people have said so far, of all rounds."""
    with reading(folder / HUMAN):
        return read_human(folder / HUMAN)


def answered(rows: Sequence[Mapping[str, Any]], labels: Collection[StepLabel]) -> int:
    """How many rows of a queue have a verdict."""
    given = {(label.trajectory_id, label.step_index) for label in labels}
    return sum((durable_id(row["trajectory_id"], row["chain"]), row["step_index"]) in given for row in rows)


def of_served(labels: Sequence[StepLabel]) -> list[StepLabel]:
    """Labels as the review wrote them, of the trajectories as they were served."""
    return [dataclasses.replace(label, trajectory_id=label.trajectory_id.split("@")[0]) for label in labels]
