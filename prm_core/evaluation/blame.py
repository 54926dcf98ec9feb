"""Who of several agents made a run fail: the agent that a reward model names, and what each agent's turns cost.

Naming needs scores and a threshold alone, so that it can be measured on recorded runs too. What turns cost is asked of
the environment: prefixes are replayed and played to their ends by the policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prm_core.evaluation import metrics
from prm_core.evaluation.judged_chains import Chain, compared
from prm_core.evaluation.metrics import Statistic
from prm_core.types import Step

if TYPE_CHECKING:
    from prm_core.domains.base import Domain
    from prm_core.registry import Registry
    from prm_core.sampling.policy import Policy
    from prm_core.types import Problem

# Failing runs, one a problem, whose turns' cost the stage evaluate asks for, and the rollouts from each of their
# prefixes.
COST_RUNS, COST_ROLLOUTS = 50, 8


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A run that failed, of which it is known where.

    Attributes:
        agents: who took each step.
        scores: of the steps that fit the reward model's context, at least one.
        first_error: index of the first wrong step.
        problem: index of its problem.
    """

    agents: Sequence[str]
    scores: Sequence[float]
    first_error: int
    problem: int

    @property
    def faulty(self) -> str:
        """Who took the first wrong step."""
        return self.agents[self.first_error]

    def named(self, threshold: float) -> str:
        """Who took the first step that scores below the threshold, or else the one that scores lowest."""
        found = metrics.first_error(self.scores, threshold)
        return self.agents[found if found >= 0 else int(np.argmin(self.scores))]


def agents_of(steps: Sequence[Step]) -> list[str]:
    """Who took each step; empty where nobody has a name."""
    names = [step.agent for step in steps]
    return names if any(names) else []


def failed_runs(chains: Sequence[Chain]) -> list[FailedRun]:
    """Those of the chains that are runs of named agents, failed, and are judged and scored."""
    return [FailedRun(agents, compared(chain, chain.step_scores), chain.gold_error, chain.problem)
            for chain in chains if (agents := agents_of(chain.trajectory.steps)) and chain.gold is not None
            and not chain.right and chain.gold_error >= 0 and chain.step_scores]


def naming_statistics(runs: Sequence[FailedRun], problems: int, threshold: float) -> dict[str, Statistic]:
    """How often the agent of the first wrong step is named, by model; nothing where there is no run.

    `prm` names as `FailedRun.named`, `random` any agent of the run, in expectation, `majority` the one that is at fault
    most often in the runs of other problems.
    """
    if not runs:
        return {}
    owners = [run.problem for run in runs]
    shares = {
        "prm": [run.named(threshold) == run.faulty for run in runs],
        "random": [1 / len(set(run.agents)) for run in runs],
        "majority": [name == run.faulty for name, run in zip(_majority(runs), runs, strict=True)],
    }
    return {f"{model}/faulty_agent": metrics.share(hits, owners, problems) for model, hits in shares.items()}


def _majority(runs: Sequence[FailedRun]) -> list[str | None]:
    """For each run the agent that is at fault most often in the runs of other problems, of several the first by name;
    None where there are no others."""
    every = Counter(run.faulty for run in runs)
    own: dict[int, Counter[str]] = {}
    for run in runs:
        own.setdefault(run.problem, Counter())[run.faulty] += 1
    best = {problem: min((every - counts).items(), key=lambda item: (-item[1], item[0]), default=(None, 0))[0]
            for problem, counts in own.items()}
    return [best[run.problem] for run in runs]


def agent_statistics(chains: Sequence[Chain], problems: int) -> dict[str, Statistic]:
    """`agent/<name>/<figure>` of every agent that has a name: turns a run (`steps`), the share of them that is wrong
    (`wrong`), and the share of failing runs whose first wrong turn is this agent's (`first_errors`)."""
    runs = [(agents, chain) for chain in chains if (agents := agents_of(chain.trajectory.steps))]
    failing = failed_runs(chains)
    found: dict[str, Statistic] = {}
    for name in sorted({name for agents, _ in runs for name in agents if name}):
        turns = [(not right, chain.problem) for agents, chain in runs
                 for agent, right in zip(agents, chain.gold or (), strict=False) if agent == name]
        found[f"agent/{name}/steps"] = metrics.share(
            [agents.count(name) for agents, _ in runs], [chain.problem for _, chain in runs], problems)
        if turns:
            found[f"agent/{name}/wrong"] = metrics.share(*zip(*turns, strict=True), problems)
        if failing:
            found[f"agent/{name}/first_errors"] = metrics.share(
                [run.faulty == name for run in failing], [run.problem for run in failing], problems)
    return found


@dataclass(frozen=True, slots=True)
class Cost:
    """What the turns of an agent cost a run, in chance of success.

    Attributes:
        value: V(before a turn) - V(after it), summed over the agent's turns; negative where they helped.
        error: its standard error.
        rollouts: it was estimated from.
    """

    value: float
    error: float
    rollouts: int


def turn_costs(agents: Sequence[str], successes: Sequence[int], rollouts: int, success: bool) -> dict[str, Cost]:
    """Agent → cost, in the order in which they first acted; the costs add up to V(nothing) - success.

    Args:
        agents: who took each turn.
        successes: of the rollouts from each prefix, from none to all turns but the last: the next turn sampled again,
            and the run played to its end.
        rollouts: from each prefix.
        success: how the run itself ended, which is its value after the last turn.

    A value's variance is that of a share, with a success and a failure more than there were: of values that are all or
    none something is left open.
    """
    values = [*(count / rollouts for count in successes), float(success)]
    shares = [(count + 1) / (rollouts + 2) for count in successes]
    variances = [*(share * (1 - share) / (rollouts + 2) for share in shares), 0.0]
    found = {}
    for name in dict.fromkeys(agents):
        # How often each value is counted: where turns of one agent follow each other, those between them cancel.
        weights = np.zeros(len(values))
        for turn, agent in enumerate(agents):
            if agent == name:
                weights[turn] += 1
                weights[turn + 1] -= 1
        found[name] = Cost(float(weights @ values), math.sqrt(float(weights**2 @ variances)),
                           rollouts * int(np.count_nonzero(weights[:-1])))
    return found


def most_costly(costs: Mapping[str, Cost]) -> str:
    """The agent whose turns cost most, of several the one who acted first."""
    return max(costs, key=lambda name: costs[name].value)


def replay(
    policy: Policy, domains: Registry[Domain], runs: Sequence[tuple[Problem, Sequence[Step], bool]], *, rollouts: int,
    temperature: float, max_new_tokens: int, batch_size: int, seed: int,
) -> list[dict[str, Cost]]:
    """What the turns of each agent of each run cost, by rollouts from every prefix of it.

    Args:
        runs: (problem, steps, whether it succeeded), in domains with an environment.
        rollouts: from each prefix.
    """
    from prm_core.sampling.episodes import run_episodes

    starts = [(problem, steps[:count]) for problem, steps, _ in runs for count in range(len(steps))]
    played = run_episodes(policy, domains, [start for start in starts for _ in range(rollouts)],
                          temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    successes = np.array([run.success for run in played], dtype=np.int64).reshape(len(starts), rollouts).sum(axis=1)
    found, at = [], 0
    for _, steps, success in runs:
        found.append(turn_costs([step.agent for step in steps], successes[at : at + len(steps)].tolist(), rollouts,
                                success))
        at += len(steps)
    return found


def one_a_problem(chains: Sequence[Chain], most: int) -> list[Chain]:
    """The first failing run of named agents of each problem, up to so many."""
    first: dict[int, Chain] = {}
    for chain in chains:
        if not chain.right and agents_of(chain.trajectory.steps):
            first.setdefault(chain.problem, chain)
    return list(first.values())[:most]


def cost_figures(costs: Sequence[Mapping[str, Cost]]) -> dict[str, float]:
    """`agent/<name>/cost`, the mean over runs in which the agent acts, one a problem, and `cost_error`, its standard
    error over them, where there are several; and how many runs there are."""
    found: dict[str, float] = {"agent/cost_runs": len(costs)} if costs else {}
    for name in sorted({name for one in costs for name in one if name}):
        values = [one[name].value for one in costs if name in one]
        found[f"agent/{name}/cost"] = float(np.mean(values))
        if len(values) > 1:
            found[f"agent/{name}/cost_error"] = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return found
