"""What of a trajectory is compared: a number each, and names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_core.serving.drift.samples import Sample

Floats = NDArray[np.float64]
NONE = "(none)"

NUMBERS: dict[str, Callable[[Sample], float]] = {
    "mean_score": lambda one: float(np.mean(one.scores)),
    "lowest_score": lambda one: min(one.scores),
    "first_error": lambda one: one.first_error,
    "steps": lambda one: len(one.scores),
    "step_length": lambda one: float(np.mean(one.lengths)),
    "question_length": lambda one: one.prompt_length,
}
NAMES: dict[str, Callable[[Sample], Sequence[str]]] = {
    "tools": lambda one: one.tools,
    "agents": lambda one: [name or NONE for name in one.agents],
    "in_domain": lambda one: [{True: "yes", False: "no", None: NONE}[one.in_domain]],
}


@dataclass(frozen=True, slots=True)
class Table:
    """Trajectories as numbers.

    Attributes:
        numbers: feature → its value, (trajectories,).
        names: feature → how often each of `labels` occurs, (trajectories, names).
        labels: feature → names, sorted.
        weights: how many trajectories each stands for, one over its chance, (trajectories,).
    """

    numbers: dict[str, Floats]
    names: dict[str, Floats]
    labels: dict[str, list[str]]
    weights: Floats


def table(samples: Sequence[Sample]) -> Table:
    """The features of trajectories, each with at least one step."""
    numbers = {name: np.array([value(one) for one in samples], dtype=np.float64) for name, value in NUMBERS.items()}
    names, labels = {}, {}
    for feature, value in NAMES.items():
        # A trajectory without a call is one of another kind, and not nothing.
        found = [Counter(value(one)) or Counter([NONE]) for one in samples]
        labels[feature] = sorted(set().union(*found))
        column = {name: index for index, name in enumerate(labels[feature])}
        counts = np.zeros((len(samples), len(column)))
        for row, counter in enumerate(found):
            for name, count in counter.items():
                counts[row, column[name]] = count
        names[feature] = counts
    return Table(numbers, names, labels, np.array([1 / one.chance for one in samples]))
