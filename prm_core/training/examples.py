"""From labels to training examples, and splitting them by problem."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

from prm_core.errors import InputError
from prm_core.training.reward import IGNORED, Example
from prm_core.types import Problem, StepLabel, Trajectory


def build_examples(
    kind: str,
    problems: Mapping[str, Problem],
    trajectories: Iterable[Trajectory],
    labels: Sequence[StepLabel],
    *,
    soft: bool,
) -> list[Example]:
    """One example for each trajectory that has a label, the same trajectories for both kinds.

    Args:
        kind: `process` takes a target from each label (the value when `soft`, else the verdict; a soft 0.9 stays 0.9);
            `outcome` takes the trajectory's outcome.
        labels: joined to steps by (trajectory_id, step_index); steps without one are no targets.

    Raises InputError when a labelled trajectory or its problem is not there.
    """
    by_step = {(label.trajectory_id, label.step_index): label for label in labels}
    labelled = {label.trajectory_id for label in labels}
    examples = []
    for trajectory in trajectories:
        if trajectory.id not in labelled:
            continue
        if kind == "outcome":
            targets = (IGNORED if trajectory.outcome is None else float(trajectory.outcome),)
        else:
            found = [by_step.get((trajectory.id, index)) for index in range(len(trajectory.steps))]
            targets = tuple(_target(label, soft) for label in found)
        if trajectory.problem_id not in problems:
            raise InputError(f"trajectory {trajectory.id} is of problem {trajectory.problem_id}, which is not among "
                             "the training problems; generate again after changing data/")
        prompt = problems[trajectory.problem_id].prompt
        examples.append(Example(trajectory.problem_id, prompt, trajectory.steps, targets))
        labelled.remove(trajectory.id)
    if labelled:
        raise InputError(f"{len(labelled)} labelled trajectories are not among the generated ones ({min(labelled)}); "
                         "run the stages from label on again")
    return examples


def _target(label: StepLabel | None, soft: bool) -> float:
    if label is None:
        return IGNORED
    value = label.value if soft else label.is_correct
    return IGNORED if value is None else float(value)


def split_by_problem(
    examples: Sequence[Example], dev_share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, dev), at least one problem on each side and none on both."""
    ids = sorted({example.problem_id for example in examples})
    random.Random(f"split/{seed}").shuffle(ids)
    held = set(ids[: min(max(1, round(dev_share * len(ids))), len(ids) - 1)])
    train = [example for example in examples if example.problem_id not in held]
    return train, [example for example in examples if example.problem_id in held]
