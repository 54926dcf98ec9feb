"""A reward model as a teacher: what it says of chains, as targets for another one. No labels of people are needed.

A step's target is the probability that the teacher gives it, soft: how unsure it is goes over too. What a step is worth
behind the first one that the teacher calls wrong is no question that process models are trained on, so such steps have
no target; nor have chains that the teacher says it cannot judge.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", soft targets at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prm_core.errors import InputError
from prm_core.scoring.scorer import ChainScorer, LoadedScorer
from prm_core.types import Step

BEHIND = "the teacher calls an earlier step wrong"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher says of a chain.

    Attributes:
        targets: for each step the probability that it is right, None where the teacher teaches nothing.
        reasons: for each step why there is none, empty where there is one.
    """

    targets: tuple[float | None, ...]
    reasons: tuple[str, ...]


def check_teacher(scorer: LoadedScorer, name: str) -> None:
    """Raises InputError where a reward model gives steps no probability of being right."""
    if scorer.kind != "process":
        raise InputError(f"teacher {name}: a reward model of kind {scorer.kind!r} does not say how likely each step is "
                         "right; name a process reward model")


def teach(scorer: ChainScorer, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[Lesson]:
    """What a process reward model teaches of each (prompt, steps) pair, in order."""
    return [_lesson(score.step_scores, len(steps), score.out_of_domain)
            for score, (_, steps) in zip(scorer.score(chains), chains, strict=True)]


def _lesson(scores: Sequence[float], steps: int, doubt: str | None) -> Lesson:
    if doubt:
        return Lesson((None,) * steps, (f"the teacher cannot judge the chain: {doubt}",) * steps)
    first = next((index for index, score in enumerate(scores) if score < 0.5), steps)
    targets = tuple(scores[index] if index < len(scores) and index <= first else None for index in range(steps))
    return Lesson(targets, tuple(
        "" if target is not None else BEHIND if index > first else "the step does not fit the teacher's context"
        for index, target in enumerate(targets)))
