"""Human review: which steps most deserve a look, and the queue of them with all that is needed to judge each."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prm_core.labeling.calibrate import first_errors
from prm_core.labeling.human.active import StepKey, priority, select_steps
from prm_core.labeling.human.labels import chain_digest
from prm_core.labeling.merging.merge import probability_right
from prm_core.turns import heard, written
from prm_core.types import Problem, Step, StepLabel, Trajectory


def _candidates(
    calibrated: Sequence[StepLabel], labels: Sequence[StepLabel], reviewable: Collection[str]
) -> dict[StepKey, dict[str, Any]]:
    """Step → its strategies' labels, calibrated probability and priority. Steps after the first merged error are
    none: what a reviewer says of them is not used."""
    ends = first_errors(calibrated)
    by_step: dict[StepKey, list[StepLabel]] = defaultdict(list)
    for label in labels:
        by_step[label.trajectory_id, label.step_index].append(label)
    found = {}
    for label in sorted(calibrated, key=lambda row: (row.trajectory_id, row.step_index)):
        key = label.trajectory_id, label.step_index
        if label.trajectory_id not in reviewable or label.step_index > ends.get(*key):
            continue
        given = sorted(by_step[key], key=lambda row: row.strategy)
        stated = [p for row in given if row.is_correct is not None and (p := probability_right(row)) is not None]
        found[key] = {"probability": label.value, "priority": priority(stated, label.value), "strategies": given}
    return found


def readable(step: Step) -> str:
    """A step and what came back, for a reviewer."""
    said = heard(step)
    return f"{written(step)}\n[reply] {said}" if said else written(step)


def review_queue(
    calibrated: Sequence[StepLabel],
    labels: Sequence[StepLabel],
    trajectories: Sequence[Trajectory],
    problems: Mapping[str, Problem],
    *,
    budget: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The steps most worth a human's look, each with everything needed to judge it and an empty `is_correct`.

    They come in random order: whoever stops early has answered a fair part of them, so that the chances they were
    picked with still say how many steps each answer stands for.

    Args:
        calibrated: merged labels with calibrated probabilities.
        labels: single strategies' labels.
        trajectories: the chains that may be asked about (those without human labels).
        problems: id → problem, holding each trajectory's.
        budget: steps to pick.
    """
    chains = {t.id: t for t in trajectories}
    candidates = _candidates(calibrated, labels, chains.keys())
    picks = select_steps({key: c["priority"] for key, c in candidates.items()}, budget, seed)
    queue = []
    for pick in picks:
        trajectory_id, step_index = pick.key
        chain, found = chains[trajectory_id], candidates[trajectory_id, step_index]
        prompt = problems[chain.problem_id].prompt
        queue.append({
            "trajectory_id": trajectory_id,
            "step_index": step_index,
            "chain": chain_digest(prompt, chain),
            "prompt": prompt,
            "steps_before": [readable(step) for step in chain.steps[:step_index]],
            "step": readable(chain.steps[step_index]),
            "is_correct": None,
            "note": "",
            "chance": pick.chance,
            "priority": round(found["priority"], 4),
            "probability": found["probability"],
            "strategies": [
                {"strategy": row.strategy, "is_correct": row.is_correct, "value": row.value,
                 "confidence": row.confidence, "reasoning": row.reasoning} for row in found["strategies"]
            ],
        })
    random.Random(f"review order/{seed}").shuffle(queue)
    return queue
