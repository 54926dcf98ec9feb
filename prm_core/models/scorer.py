"""Scoring chains with a saved reward model: the one interface training, search, evaluation and serving use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prm_core.types import Step


@dataclass(frozen=True, slots=True)
class ChainScore:
    """Scores of one chain.

    Attributes:
        step_scores: calibrated probability that each step is right; an outcome model gives one score for the chain.
        raw_scores: the same before calibration (sigmoid of the head's output).
        truncated_steps: trailing steps that did not fit the context and have no score.
    """

    step_scores: tuple[float, ...]
    raw_scores: tuple[float, ...]
    truncated_steps: int


class ChainScorer(Protocol):
    """Anything that scores chains of steps."""

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order."""
        ...
