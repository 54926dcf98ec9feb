"""Rules as constraints on a policy's training: what it may not do comes before what it earns, and is no part of it.

A weight on broken rules would be a price, which enough reward pays. A Lagrangian multiplier rises for as long as more
is broken than may be, so that no reward does; a lexicographic order never weighs the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.training.policy.advantages.base import Baseline, Rewards

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from prm_core.config import ConstraintConfig


@dataclass(frozen=True, slots=True)
class Limit:
    """What broken rules do in an update.

    Attributes:
        kind: none, lagrangian or lexicographic.
        multiplier: of a Lagrangian one, from 0 on.
        exceeded: whether more was broken than may be.
        alone: whether rules alone are learned, and nothing is paid.
    """

    kind: str
    multiplier: float
    exceeded: bool
    alone: bool = False


NO_LIMIT = Limit("none", 0.0, False)


def less_costs(values: Tensor, costs: Tensor | None, multiplier: float) -> Tensor:
    """(values - multiplier * costs) / (1 + multiplier): the same size whatever the multiplier is.

    Source: Ray et al. 2019, "Benchmarking Safe Exploration in Deep Reinforcement Learning", PPO-Lagrangian.
    """
    return values if costs is None or not multiplier else (values - multiplier * costs) / (1 + multiplier)


def constrained(found: Tensor, costs: Rewards, limit: Limit, baseline: Baseline) -> Tensor:
    """Advantages under the rules, (chains, slots).

    Args:
        found: by the rewards alone.
        costs: 1 at steps that break a rule.
        baseline: what a Lagrangian's costs are compared with, as rewards are.
    """
    if limit.alone:
        found = found * 0
    if limit.kind == "lagrangian":
        return less_costs(found, baseline(costs), limit.multiplier)
    if limit.kind == "lexicographic" and limit.exceeded:
        # As bad as anything is good, and no less.
        return found.where(costs.values == 0, -found.abs().max().clamp(min=1.0))
    return found


def goes_on(record: Mapping[str, float], config: ConstraintConfig, broken: str) -> bool:
    """Whether there is more to learn of the rules after an update, whatever has become of the rewards.

    Args:
        broken: of the record, the share of chains that broke a rule.
    """
    return config.kind != "none" and record[broken] > config.limit


def next_multiplier(history: Sequence[Mapping[str, float]], config: ConstraintConfig, broken: str, name: str) -> float:
    """The multiplier after these updates: dual ascent on the share of chains that broke a rule.

    Args:
        broken, name: of the records, the share and the multiplier.
    """
    if config.kind != "lagrangian":
        return 0.0
    if not history:
        return min(config.multiplier, config.most)
    last = history[-1]
    return min(max(last[name] + config.rate * (last[broken] - config.limit), 0.0), config.most)
