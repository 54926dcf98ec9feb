"""Teacher: a reward model that is there labels the steps; a model trained on its labels is distilled from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.labeling.strategies.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.teacher import check_teacher, teach
from prm_core.types import StepLabel

NAME = "teacher"


class TeacherLabeler(Strategy):
    """Gives each step the probability that a process reward model gives it, of this project or another one.

    Alone, with `label.merge: teacher` and `train_prm.labels: soft`, it makes the chain a distillation, which needs
    neither outcomes nor rollouts; among others it is one annotator more.

    Raises InputError where the teacher does not load, or scores no steps.
    """

    version = 1

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.teacher
        if not self.settings.model:
            raise InputError("label.teacher.model names no reward model; name a folder or hub id")
        self.scorer = load_any_scorer(tools.locate(self.settings.model), device=tools.config.models.device,
                                      batch_size=self.settings.batch_size)
        check_teacher(self.scorer, self.settings.model)

    @property
    def model(self) -> str:
        return self.scorer.version

    @property
    def parameters(self) -> dict[str, Any]:
        return dataclasses.asdict(self.settings)

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`; nothing is drawn."""
        lessons = teach(self.scorer, [(chain.problem.prompt, chain.trajectory.steps) for chain in chains])
        return [_label(chain.trajectory.id, index, target, reason)
                for chain, lesson in zip(chains, lessons, strict=True)
                for index, (target, reason) in enumerate(zip(lesson.targets, lesson.reasons, strict=True))]


def _label(trajectory_id: str, index: int, target: float | None, reason: str) -> StepLabel:
    if target is None:
        return StepLabel(trajectory_id, index, NAME, None, None, 0.0, 0, reason)
    return StepLabel(trajectory_id, index, NAME, target, target >= 0.5, max(target, 1 - target), 0,
                     f"right with probability {target:.3f}")


STRATEGIES.register(NAME)(TeacherLabeler)
