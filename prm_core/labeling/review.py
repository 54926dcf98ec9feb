"""Human review: which steps most deserve a look, and the queue of them with all that is needed to judge each."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prm_core.labeling.calibrate import right_probability
from prm_core.labeling.human import chain_digest
from prm_core.models.calibration import Calibrator
from prm_core.types import Problem, Step, StepLabel, Trajectory

RANDOM_SHARE = 0.1


def disagreement(verdicts: Sequence[bool]) -> float:
    """0 when all verdicts agree (or there is none), 1 when they split evenly."""
    if not verdicts:
        return 0.0
    share = sum(verdicts) / len(verdicts)
    return 2 * min(share, 1 - share)


def uncertainty(probability: float | None) -> float:
    """0 at probability 0 or 1, 1 at one half or where there is none."""
    return 1.0 if probability is None else 1 - abs(2 * probability - 1)


def _candidates(
    merged: Sequence[StepLabel], labels: Sequence[StepLabel], reviewable: Collection[str], calibrator: Calibrator
) -> dict[tuple[str, int], dict[str, Any]]:
    """Step → its strategies' labels, calibrated probability and priority. Steps after the first merged error are
    none: what a reviewer says of them is not used."""
    first_error: dict[str, int] = {}
    for label in merged:
        if label.is_correct is False:
            known = first_error.get(label.trajectory_id, label.step_index)
            first_error[label.trajectory_id] = min(known, label.step_index)
    by_step: dict[tuple[str, int], list[StepLabel]] = defaultdict(list)
    for label in labels:
        by_step[label.trajectory_id, label.step_index].append(label)
    found = {}
    for label in sorted(merged, key=lambda row: (row.trajectory_id, row.step_index)):
        key = label.trajectory_id, label.step_index
        if label.trajectory_id not in reviewable or label.step_index > first_error.get(key[0], key[1]):
            continue
        raw = right_probability(label)
        probability = None if raw is None else float(calibrator.apply(raw))
        given = sorted(by_step[key], key=lambda row: row.strategy)
        apart = disagreement([row.is_correct for row in given if row.is_correct is not None])
        found[key] = {"probability": probability, "priority": apart + uncertainty(probability), "strategies": given}
    return found


def _allotment(sizes: Mapping[int, int], budget: int) -> dict[int, int]:
    """`budget` places over strata in proportion to their sizes, largest remainders first."""
    total = sum(sizes.values())
    budget = min(budget, total)
    exact = {stratum: budget * size / total for stratum, size in sizes.items()} if total else {}
    places = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda s: (places[s] - exact[s], s))
    for stratum in by_remainder[: budget - sum(places.values())]:
        places[stratum] += 1
    return places


def select_steps(
    priorities: Mapping[tuple[str, int], float], budget: int, seed: int
) -> list[tuple[tuple[str, int], str]]:
    """The steps to review and why each was picked ("priority" or "random").

    A tenth of the budget is drawn at random, so that the human labels also say something about the steps nobody
    doubts; the rest are the highest priorities, with places for each step position in proportion to how many steps
    lie there (else the queue fills with first or last steps). Ties are broken by the seed.

    Args:
        priorities: (trajectory_id, step_index) → priority.

    Returns:
        min(budget, number of steps) entries, highest priority first.
    """
    rng = random.Random(f"review/{seed}")
    order = sorted(priorities)
    rng.shuffle(order)
    drawn = round(RANDOM_SHARE * min(budget, len(order)))
    places = _allotment(Counter(index for _, index in order), min(budget, len(order)) - drawn)
    picked: list[tuple[tuple[str, int], str]] = []
    rest = []
    # sorted() is stable: equal priorities keep their shuffled order.
    for key in sorted(order, key=lambda k: -priorities[k]):
        if places.get(key[1], 0):
            places[key[1]] -= 1
            picked.append((key, "priority"))
        else:
            rest.append(key)
    picked += [(key, "random") for key in rng.sample(rest, drawn)]
    return sorted(picked, key=lambda pick: -priorities[pick[0]])


def _readable(step: Step) -> str:
    return f"{step.text}\n[reply] {step.observation}" if step.observation else step.text


def review_queue(
    merged: Sequence[StepLabel],
    labels: Sequence[StepLabel],
    trajectories: Sequence[Trajectory],
    problems: Mapping[str, Problem],
    calibrator: Calibrator,
    *,
    budget: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The steps most worth a human's look, each with everything needed to judge it and an empty `is_correct`.

    Args:
        merged, labels: merged and single strategies' labels.
        trajectories: the chains that may be asked about (those without human labels).
        problems: id → problem, holding each trajectory's.
        calibrator: maps the merged probability.
    """
    chains = {t.id: t for t in trajectories}
    candidates = _candidates(merged, labels, chains.keys(), calibrator)
    picks = select_steps({key: c["priority"] for key, c in candidates.items()}, budget, seed)
    queue = []
    for (trajectory_id, step_index), picked in picks:
        chain, found = chains[trajectory_id], candidates[trajectory_id, step_index]
        prompt = problems[chain.problem_id].prompt
        queue.append({
            "trajectory_id": trajectory_id,
            "step_index": step_index,
            "chain": chain_digest(prompt, chain),
            "prompt": prompt,
            "steps_before": [_readable(step) for step in chain.steps[:step_index]],
            "step": _readable(chain.steps[step_index]),
            "is_correct": None,
            "note": "",
            "picked": picked,
            "priority": round(found["priority"], 4),
            "probability": found["probability"],
            "strategies": [
                {"strategy": row.strategy, "is_correct": row.is_correct, "value": row.value,
                 "confidence": row.confidence, "reasoning": row.reasoning} for row in found["strategies"]
            ],
        })
    return queue
