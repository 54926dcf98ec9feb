"""What a search method is: problems in, one chosen chain for each out, every token counted.

The methods are in `whole.py` (whole chains) and `steps.py` (steps, while a chain is written); what they choose by is in
`choosing.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.domains.base import Domain
from prm_core.registry import Registry
from prm_core.rules.verdicts import Overseer
from prm_core.scoring.scorer import ChainScore
from prm_core.scoring.session import ScoringSession
from prm_core.search import choosing
from prm_core.search.aggregate import AGGREGATIONS, NO_EVIDENCE, chain_value
from prm_core.types import Problem, Step, Trajectory

if TYPE_CHECKING:
    from prm_core.config import SearchConfig
    from prm_core.sampling.policy import Policy
    from prm_core.sampling.sampler import Continuation

# Below every score: a chain that states no answer, or that the limit of tokens cut off.
WORTHLESS = -1.0
# For each step that breaks a rule: below all that break fewer, whatever they are worth.
UNSAFE = -10.0


@dataclass(slots=True)
class Meter:
    """Tokens that one problem cost.

    Attributes:
        generated: that the policy sampled.
        read: of prefixes, that the policy computed to go on from them.
        scored: that the reward model computed.
        prefixes, chains: what `read` and `scored` would be if nothing were kept from call to call.
    """

    generated: int = 0
    read: int = 0
    scored: int = 0
    prefixes: int = 0
    chains: int = 0

    @property
    def total(self) -> int:
        """Tokens that went through either model."""
        return self.generated + self.read + self.scored

    @property
    def without_reuse(self) -> int:
        """The same if every call computed its prefixes anew."""
        return self.generated + self.prefixes + self.chains

    def flat(self) -> dict[str, int]:
        """By name."""
        return {"generated": self.generated, "read": self.read, "scored": self.scored, "total": self.total,
                "without_reuse": self.without_reuse}


@dataclass(frozen=True, slots=True)
class Found:
    """The chain that a search chose for a problem.

    Attributes:
        trajectory: the chain; one that the limit of tokens cut off, or that ended without a step, has no answer.
        value: what it was chosen by; 0 where no model scored it.
        drawn: chains (of a method that works on steps: steps) that were sampled.
        meter: what that cost.
    """

    trajectory: Trajectory
    value: float
    drawn: int
    meter: Meter


@dataclass(frozen=True, slots=True)
class Tools:
    """What methods work with.

    Attributes:
        policy: writes.
        session: scores; None for a method that asks no model.
        domains: by name.
        settings: of the search.
        max_new_tokens: of a chain; of a turn in an environment.
        batch_size: rows sampled together.
        overseer: rules that come before what a model says; None without any.
    """

    policy: Policy
    session: ScoringSession | None
    domains: Registry[Domain]
    settings: SearchConfig
    max_new_tokens: int
    batch_size: int
    overseer: Overseer | None = None

    def broken(self, chains: Sequence[tuple[Problem, Sequence[Step]]]) -> list[int]:
        """Of each chain how many steps break a rule; 0 without rules."""
        if self.overseer is None:
            return [0] * len(chains)
        return self.overseer.counts([(problem.prompt, steps) for problem, steps in chains])

    def score(
        self, chains: Sequence[tuple[Problem, Sequence[Step]]], meters: Mapping[str, Meter]
    ) -> list[ChainScore]:
        """Scores of chains, their tokens counted on their problems' meters (by id)."""
        assert self.session is not None
        found = self.session.score([(problem.prompt, steps) for problem, steps in chains])
        for (problem, _), read in zip(chains, found, strict=True):
            meters[problem.id].scored += read.computed
            meters[problem.id].chains += read.whole
        return [read.score for read in found]

    def chain_value(self, score: ChainScore) -> float:
        """What a whole chain is chosen by."""
        assert self.session is not None
        return chain_value(score, self.session.kind, self.settings.chain_aggregate)

    def step_value(self, score: ChainScore) -> float:
        """What a chain is worth that goes on, or ends, with the step it has now; 0 where not all of it was read."""
        return NO_EVIDENCE if score.truncated_steps else AGGREGATIONS[self.settings.step_aggregate](score.step_scores)

    def surety(self, score: ChainScore) -> float:
        """Probability that a whole chain is right, cautiously: of a process model its weakest step's, less the standard
        deviation of what the members of the committee say of it, where there is one; of other kinds the chain's value.

        The weakest step says better when to stop than what chains are chosen by, which a chain with one doubtful step
        among many scores nearly as high in as one without (measured on development seeds).
        """
        assert self.session is not None
        if score.truncated_steps or self.session.kind != "process":
            return self.chain_value(score)
        return min(choosing.cautious(score.step_scores, score.members))


def count_sampled(meter: Meter, continuations: Sequence[Continuation], prefixes: Sequence[int]) -> None:
    """Counts what one problem's continuations cost.

    Args:
        prefixes: lengths of the distinct prefixes that they went on from.
    """
    meter.generated += sum(len(one.ids) for one in continuations)
    meter.read += sum(one.read for one in continuations)
    # The last token of a prefix is the first that a row decodes.
    meter.prefixes += sum(length - 1 for length in prefixes)


Run = Callable[[Sequence[Problem], Tools, int], list[Found]]


@dataclass(frozen=True, slots=True)
class Method:
    """A way to search.

    Attributes:
        run: (problems, tools, seed) → the chosen chain of each problem, in order; the same for the same arguments.
        scores: whether it asks a reward model, and for what: nothing, `chains`, or `steps`.
        environments: whether it works where an environment replies.
        about: a line for people.
    """

    run: Run
    scores: str
    environments: bool
    about: str


METHODS: Registry[Method] = Registry("search method")


def mean_cost(found: Sequence[Found]) -> dict[str, float]:
    """What each count of the meter comes to for a problem."""
    return {name: math.fsum(one.meter.flat()[name] for one in found) / len(found) for name in Meter().flat()}
