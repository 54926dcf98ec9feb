"""What a labelling strategy is: chains in, one label per step out. Strategies register by name in their own modules."""

from __future__ import annotations

import dataclasses
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prm_core.config import Config
from prm_core.domains.base import Domain
from prm_core.errors import GateError
from prm_core.registry import Registry
from prm_core.sampling.policy import Policy
from prm_core.types import Problem, StepLabel, Trajectory

log = logging.getLogger(__name__)
# Opens the reasoning of a label whose strategy raised; counted from there, so that a resumed run counts the same.
FAILED = "failed: "


@dataclass(frozen=True, slots=True)
class Chain:
    """A trajectory with its problem: what a strategy is given.

    Attributes:
        own: whether the policy wrote it whose chains are to be labelled. What a strategy fits, it fits to these: a
            chain that people labelled may be of another population, such as a worked solution somebody corrupted.
    """

    problem: Problem
    trajectory: Trajectory
    own: bool = True


@dataclass(frozen=True, slots=True)
class LabelingTools:
    """What strategies work with.

    Attributes:
        config: the whole configuration.
        domains: to read and compare answers.
        policy: the base policy, whose rollouts value a prefix.
        backbone: the reward backbone as a language model.
        locate: a model of the configuration as a path or hub id.
    """

    config: Config
    domains: Registry[Domain]
    policy: Policy
    backbone: Policy
    locate: Callable[[str], str] = str


class Strategy(ABC):
    """One way to label steps.

    Attributes:
        version: raised whenever the same chains, parameters and seed give other labels than before.
        parallel: whether shards are labelled in several processes at once.
    """

    version: ClassVar[int]
    parallel: bool = True

    def __init__(self, tools: LabelingTools) -> None:
        self.tools = tools

    @property
    @abstractmethod
    def model(self) -> str:
        """Hash or name of the model whose judgement the labels are, empty where there is none."""

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The settings that the labels depend on, as plain JSON values."""

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:  # noqa: B027  (most have nothing to prepare)
        """Sees all chains once, before any is labelled; the same chains and seed prepare the same."""

    @abstractmethod
    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """Labels of the chains' steps, at most one a step; a step it says nothing about has none.

        The same chains and seed give the same labels.
        """

    def keep_evidence(self, folder: Path, shard: int) -> None:  # noqa: B027  (most have nothing beside their labels)
        """Writes what else the last call of `label` found out, atomically, under names of its own."""


STRATEGIES: Registry[Callable[[LabelingTools], Strategy]] = Registry("labelling strategy")


def lineage(strategy: Strategy, name: str, seed: int) -> str:
    """What makes labels: strategy@version, model, parameters and seed, as JSON with sorted keys."""
    return json.dumps({"strategy": f"{name}@{strategy.version}", "model": strategy.model,
                       "parameters": strategy.parameters, "seed": seed}, sort_keys=True)


def label_shard(strategy: Strategy, name: str, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
    """Labels of a shard, with their lineage.

    When the whole fails, chain by chain; a chain that fails alone gets labels that say so.
    """
    made_by = lineage(strategy, name, seed)
    return [dataclasses.replace(row, lineage=made_by) for row in _label_or_say_why(strategy, name, chains, seed)]


def _label_or_say_why(strategy: Strategy, name: str, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
    try:
        return strategy.label(chains, seed)
    except Exception:
        log.warning("%s failed on a shard of %d chains; trying them one by one", name, len(chains), exc_info=True)
    labels: list[StepLabel] = []
    for chain in chains:
        try:
            labels += strategy.label([chain], seed)
        except Exception as error:
            log.warning("%s failed on chain %s: %s", name, chain.trajectory.id, error)
            labels += [
                StepLabel(chain.trajectory.id, index, name, None, None, 0.0, 0, f"{FAILED}{error}")
                for index in range(len(chain.trajectory.steps))
            ]
    return labels


def check_failures(
    labels: Sequence[StepLabel], strategies: Sequence[str], chains: int, max_share: float
) -> dict[str, int]:
    """Chains each strategy failed on. Raises GateError when a strategy failed on more than `max_share` of all."""
    failed = {
        name: len({row.trajectory_id for row in labels if row.strategy == name and row.reasoning.startswith(FAILED)})
        for name in strategies
    }
    for name, count in failed.items():
        if count > max_share * chains:
            raise GateError(
                f"labelling strategy {name} failed on {count} of {chains} chains, more than label.max_failed_share "
                f"{max_share}; the log has the reasons: fix the cause or raise the bound"
            )
    return failed
