"""Versions of a served model that differ in what they score, and a registry that names one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prm_core.config import SwapConfig
from prm_core.scoring.scorer import ChainScore
from prm_core.serving.cache import ScoreCache
from prm_core.serving.metrics import Metrics
from prm_core.serving.service import ScoringService
from prm_core.serving.swap.bell import Bell
from prm_core.serving.swap.current import Current, Served
from prm_core.serving.swap.recent import Recent
from prm_core.serving.swap.watcher import Watcher
from tests.builders.edge import DEFAULTS
from tests.builders.scorer import FakeScorer

EXAMPLE = {"inputs": [{"prompt": "p", "steps": ["ok", "wrong"]}], "params": {"threshold": 0.5}}


class Version(FakeScorer):
    """Scores like FakeScorer, less a tenth for each version before."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.version = f"v{number}"
        self.less = (number - 1) / 10

    def _score(self, prompt: str, steps: Any) -> ChainScore:
        score = super()._score(prompt, steps)
        scores = tuple(max(value - self.less, 0.0) for value in score.step_scores)
        return replace(score, step_scores=scores, raw_scores=scores)


def source(number: int) -> str:
    """The URI of a version."""
    return f"models:/prm/{number}"


def served(number: int, scorer: FakeScorer | None = None) -> Served:
    """A version, ready to answer."""
    service = ScoringService(scorer or Version(number), ScoreCache(10, 60.0))
    return Served(service, DEFAULTS, "prm", source(number), float(number), EXAMPLE)


class Registry:
    """An alias and the versions it may point to.

    Attributes:
        points_to: number of the version that it points to, or what asking for it raises.
        versions: that load in place of plain ones; an exception is raised.
        loaded: numbers that were loaded, in order.
    """

    def __init__(self, points_to: int) -> None:
        self.points_to: int | Exception = points_to
        self.versions: dict[int, Served | Exception] = {}
        self.loaded: list[int] = []

    def find(self) -> str:
        """Where the alias points."""
        if isinstance(self.points_to, Exception):
            raise self.points_to
        return source(self.points_to)

    def load(self, uri: str) -> Served:
        """A version."""
        number = int(uri.rsplit("/", 1)[1])
        self.loaded.append(number)
        found = self.versions.get(number) or served(number)
        if isinstance(found, Exception):
            raise found
        return found

    def watcher(self, current: Current, recent: Recent | None = None, bell: Bell | None = None, **config: Any
                ) -> tuple[Watcher, Metrics]:
        """What has the alias's version take over, and where that is counted; `config` are settings of `SwapConfig`."""
        metrics = Metrics("prm")
        return Watcher(current, recent or Recent(50), self.find, self.load, SwapConfig(**config), metrics,
                       bell or Bell()), metrics
