"""What a judge is: a trajectory in, a verdict on each step and its cost out. Judges register by name."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from prm_core.config import Config
from prm_core.platform.progress import track
from prm_core.registry import Registry
from prm_core.types import Step

Verdicts = tuple[bool | None, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A trajectory whose steps somebody judged.

    Attributes:
        id: unique among the cases.
        problem: what is equal for trajectories of one problem.
        prompt: the question.
        asked: the question as reward models read it: with the tools, where the data offers them there.
        tools: the tools the agent was offered, as JSON of their definitions; empty for none.
        steps: in order, at least one.
        gold: for each step whether it is right, None where nobody says.
    """

    id: str
    problem: str
    prompt: str
    asked: str
    tools: str
    steps: tuple[Step, ...]
    gold: Verdicts

    @property
    def first_error(self) -> int | None:
        """Index of the first wrong step, -1 for none, None where a step before it has no verdict."""
        for index, right in enumerate(self.gold):
            if right is not True:
                return None if right is None else index
        return -1


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of a trajectory.

    Attributes:
        scores: P(right) of each step, None where the judge has none.
        verdicts: of each step where the judge decides itself, empty where a threshold on the scores does.
        reasons: of each step, a line or empty; empty for a judge that gives none.
        tokens_read, tokens_written: by a model.
        seconds: from the question to the answer.
    """

    scores: tuple[float | None, ...]
    verdicts: Verdicts = ()
    reasons: tuple[str, ...] = ()
    tokens_read: int = 0
    tokens_written: int = 0
    seconds: float = 0.0

    def verdicts_at(self, threshold: float) -> Verdicts:
        """The judge's own verdicts, or those of its scores: right from the threshold on."""
        return self.verdicts or tuple(None if score is None else score >= threshold for score in self.scores)

    def reason(self, index: int) -> str:
        """Why, empty where the judge does not say."""
        return self.reasons[index] if self.reasons else ""


class Judge(ABC):
    """One way to judge steps.

    Attributes:
        about: what it is, in a few words.
        version: names exactly what judges, empty where that is the code.
        decides: whether it gives verdicts; the scores of others need a threshold.
        prices: of a million tokens read, and written.
    """

    about: str
    version: str = ""
    decides: ClassVar[bool] = False
    prices: tuple[float, float] = (0.0, 0.0)

    @abstractmethod
    def judge(self, case: Case, seed: int) -> Judgement:
        """A verdict or score for each step of a trajectory, without regard to its gold; `seconds` is left to others.

        Args:
            seed: of whatever is drawn.
        """


@dataclass(frozen=True, slots=True)
class Setup:
    """What judges are made with.

    Attributes:
        config: sections `label.judge` and `models`.
        folder: the folder of a reward model, by whatever names one.
    """

    config: Config
    folder: Callable[[str], Path]


# Name → the judge of a source (a model, where it has one).
JUDGES: Registry[Callable[[str, Setup], Judge]] = Registry("judge")


def judge_all(
    judge: Judge, name: str, cases: Sequence[Case], seed: int, clock: Callable[[], float] = time.perf_counter
) -> list[Judgement]:
    """Judges trajectories one at a time, so that the time of each is its own."""
    found = []
    for case in track(cases, f"judging by {name}", unit="trajectory"):
        start = clock()
        said = judge.judge(case, seed)
        found.append(replace(said, seconds=clock() - start))
    return found
