"""Chains that were drawn for review from elsewhere, as a small workspace of their own: the page, the files and the
import work there as in any (`prm review --workspace FOLDER`), and nothing is ever trained on them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core.labeling.human.labels import chain_digest
from prm_core.platform import store
from prm_core.review.queue import readable
from prm_core.review.session import CHAINS, PROBLEMS, QUEUE
from prm_core.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class Drawn:
    """Attributes:
        problem: that the chain answers.
        chain: to judge.
        scores: what the model says of its steps.
        chance: that it was drawn, above 0.
    """

    problem: Problem
    chain: Trajectory
    scores: Sequence[float]
    chance: float


def write_drawn(folder: Path, drawn: Sequence[Drawn], seed: int) -> int:
    """Writes the queue of every step of the chains, in place of the last one; answers that were given stay. Returns the
    number of steps.

    The chains come in random order, so that whoever stops early has answered a fair part of them, and the steps of each
    in theirs.
    """
    order = list(drawn)
    random.Random(f"drawn/{seed}").shuffle(order)
    rows = [{
        "trajectory_id": one.chain.id, "step_index": index, "chain": chain_digest(one.problem.prompt, one.chain),
        "prompt": one.problem.prompt, "steps_before": [readable(step) for step in one.chain.steps[:index]],
        "step": readable(one.chain.steps[index]), "is_correct": None, "note": "", "chance": one.chance, "priority": 0.0,
        "probability": score, "strategies": [],
    } for one in order for index, score in enumerate(one.scores)]
    store.write_shard(folder / CHAINS, 0, Trajectory, [one.chain for one in drawn])
    store.write_jsonl(folder / PROBLEMS, [one.problem for one in drawn])
    store.write_jsonl(folder / QUEUE, rows)
    return len(rows)
