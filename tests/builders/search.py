"""Search on scripts: a policy that writes what it is told, a scorer that knows texts, and what a search needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prm_core.domains import DOMAINS
from prm_core.sampling.policy import Policy
from prm_core.scoring.scorer import ChainScore
from prm_core.scoring.session import ScoringSession
from prm_core.search.base import Tools
from prm_core.types import Step
from tests.builders.quality import make_config


@dataclass
class TextScorer:
    """Scores a step by its text, 0.5 one it does not know; `asked` lists the steps of every chain, by call."""

    scores: Mapping[str, float]
    kind: str = "process"
    outcome: float | None = None
    asked: list[list[tuple[str, ...]]] = field(default_factory=list)
    version: str = "texts"

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        self.asked.append([tuple(step.text for step in steps) for _, steps in chains])
        said = [tuple(self.scores.get(step.text, 0.5) for step in steps) for _, steps in chains]
        return [ChainScore(row, row, 0, outcome_score=self.outcome) for row in said]


def make_tools(policy: Policy, scorer: TextScorer | None, max_new_tokens: int = 100, **settings: float | str) -> Tools:
    """Tools with fixed settings, whatever params.yaml says, and `settings` over them."""
    fixed = {"candidates": 4, "width": 2, "granularity": 2, "threshold": 0.6, "back_offs": 0, "gain": 0.1,
             "temperature": 1.0, "step_aggregate": "last", "chain_aggregate": "min"}
    session = ScoringSession(scorer, policy.encoder) if scorer else None
    return Tools(policy, session, DOMAINS, replace(make_config().search, **fixed | settings), max_new_tokens, 64)
