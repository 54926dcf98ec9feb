"""A new version beside the one that answers: it must answer the example it was logged with, and what was asked of late,
whose scores are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prm_core.errors import InputError
from prm_core.serving.service import ScoringAnswer, ScoringRequest, parse_parameters, parse_rows
from prm_core.serving.swap.current import Served
from prm_core.serving.swap.recent import Seen

# Trajectories from which on a difference of scores says something of the version.
ENOUGH = 16
# Of them, that are scored in one request.
TOGETHER = 16


@dataclass(frozen=True, slots=True)
class Difference:
    """How two versions' scores of the same trajectories differ.

    Attributes:
        trajectories, steps: that were compared.
        mean, largest: of the absolute differences of step scores; 0 where nothing was compared.
        verdicts_changed: share of the steps that one version calls wrong and the other right.
    """

    trajectories: int
    steps: int
    mean: float
    largest: float
    verdicts_changed: float

    def __str__(self) -> str:
        return (f"on {self.trajectories} recent trajectories of {self.steps} steps its scores differ by "
                f"{self.mean:.4f} on average, by at most {self.largest:.4f}, and {self.verdicts_changed:.2%} of the "
                "verdicts change")

    def check(self, most: float) -> None:
        """Raises InputError where the mean is more than may be, over ENOUGH trajectories."""
        if self.mean > most and self.trajectories >= ENOUGH:
            raise InputError(f"{self}; swap.max_difference allows {most:g}")


def try_example(served: Served) -> None:
    """Has a version answer the request it was logged with. Raises InputError where it does not."""
    if served.example is None:
        return
    requests = parse_rows(served.example.get("inputs"))
    chosen = parse_parameters(served.example.get("params") or {}, served.defaults)
    for request, answer in zip(requests, served.service.answer(requests, **chosen), strict=True):
        _scores(request, answer)


def compare(served: Served, seen: Sequence[Seen]) -> Difference:
    """Has a version answer what was asked of late. It then knows the beginnings of sessions that will go on with it.

    Args:
        served: the version.
        seen: answers of another one.

    Raises InputError where it refuses one of them.
    """
    differences: list[float] = []
    changed, threshold = 0, served.defaults["threshold"]
    # A few at a time: the version that answers meanwhile is on the same machine.
    for start in range(0, len(seen), TOGETHER):
        some = seen[start : start + TOGETHER]
        for one, answer in zip(some, served.service.answer([one.request for one in some], **served.defaults),
                               strict=True):
            for before, now in zip(one.step_scores, _scores(one.request, answer), strict=True):
                differences.append(abs(now - before))
                changed += (now < threshold) != (before < threshold)
    count = max(len(differences), 1)
    return Difference(len(seen), len(differences), sum(differences) / count, max(differences, default=0.0),
                      changed / count)


def _scores(request: ScoringRequest, answer: ScoringAnswer) -> Sequence[float]:
    scores = answer.analysis.step_scores if answer.analysis is not None else []
    if len(scores) != len(request.steps) or not all(math.isfinite(score) and 0 <= score <= 1 for score in scores):
        raise InputError(f"it gives {len(request.steps)} steps {len(scores)} scores, or some that are no probabilities")
    return scores
