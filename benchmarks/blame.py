"""Who of a team made a run fail: the agent that the PRM names, beside a guess and the agent most often at fault, and
how often the agent whose turns cost most is the one who erred first.

    python -m benchmarks.blame WORKSPACE… --out benchmarks/results/blame.json

On finished runs of the profile `agents-team`, one a seed: the saved scores of the base policy's chains of the test
problems, at the threshold that the evaluation chose on dev. The oracle says whose turn was the first wrong one. What
turns cost is played out by the base policy: rollouts from every prefix of a failing run of each problem.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.alarms import read
from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.evaluation import blame
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.metrics import Bootstrap, Estimate, share
from prm_core.evaluation.protocol import choose_threshold
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.stages.base import model_path
from prm_core.types import Problem

NAMED = 85.0
RESAMPLES, SEED = 1000, 0


def measure(workspace: Path, most: int, rollouts: int) -> dict[str, Any]:
    """The figures of a workspace, shares from 0 to 1.

    Args:
        most: failing runs, one a problem, of which it is asked what turns cost.
        rollouts: from each prefix.

    Raises InputError where no run of named agents failed.
    """
    config = configuration.load(workspace)
    chains = read(workspace)
    threshold, _ = choose_threshold(chains["dev-base"], config.serve.threshold)
    problems = store.read_jsonl(Problem, workspace / "data/test.jsonl")
    runs = blame.failed_runs(chains["test-base"])
    if not runs:
        raise InputError(f"{workspace}: no run of named agents failed; name a finished run of the profile agents-team")
    bootstrap = Bootstrap(len(problems), RESAMPLES, SEED)
    found = {name: bootstrap.estimate(statistic) for name, statistic in (
        blame.naming_statistics(runs, len(problems), threshold)
        | blame.agent_statistics(chains["test-base"], len(problems))).items()}
    return {"workspace": workspace.name, "threshold": threshold, "failing_runs": len(runs),
            **{name: _shares(estimate) for name, estimate in found.items()},
            **_costs(workspace, config, blame.one_a_problem(chains["test-base"], most), problems, rollouts, bootstrap)}


def _costs(
    workspace: Path, config: configuration.Config, failing: Sequence[Chain], problems: Sequence[Problem], rollouts: int,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """What turns cost, and how often the most costly agent is the one who erred first; also of the runs in which its
    turns cost more than the others' by two standard errors of its own."""
    policy = load_policy(model_path(workspace, config.models.policy), config)
    costs = blame.replay(
        policy, DOMAINS, [(problems[chain.problem], chain.trajectory.steps, False) for chain in failing],
        rollouts=rollouts, temperature=config.evaluate.temperature, max_new_tokens=config.generate.max_new_tokens,
        batch_size=config.generate.batch_size, seed=config.seed)
    owners = [chain.problem for chain in failing]
    hits = [blame.most_costly(one) == chain.trajectory.steps[chain.gold_error].agent
            for one, chain in zip(costs, failing, strict=True)]
    clear = [row for row, one in enumerate(costs) if _is_clear(one)]
    parts = {"costly_is_faulty": (hits, owners),
             "costly_is_faulty_where_clear": ([hits[row] for row in clear], [owners[row] for row in clear])}
    turns = sum(len(chain.trajectory.steps) for chain in failing)
    return {"cost_runs": len(failing), "cost_rollouts": turns * rollouts,
            "clear_runs": len(clear), **blame.cost_figures(costs),
            **{name: _shares(bootstrap.estimate(share(*columns, bootstrap.problems)))
               for name, columns in parts.items()}}


def _is_clear(costs: dict[str, blame.Cost]) -> bool:
    first, *others = sorted(costs.values(), key=lambda cost: -cost.value)
    return not others or first.value - others[0].value > 2 * first.error


def _shares(estimate: Estimate) -> dict[str, float | None]:
    # JSON has no NaN for what no run tells.
    return {part: None if np.isnan(value := getattr(estimate, part)) else round(value, 4)
            for part in ("value", "low", "high")}


def bars(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """What is asked of the worst workspace, with its interval; the others with their range."""
    worst = min(found, key=lambda one: one["prm/faulty_agent"]["value"])["prm/faulty_agent"]
    value, low, high = (100 * worst[part] for part in ("value", "low", "high"))
    made = [Bar(f"first faulty agent named by the PRM, %, worst of {len(found)}", value, low, high, f">= {NAMED:g}",
                value >= NAMED)]
    for key, name in (("prm/faulty_agent", "the same"), ("random/faulty_agent", "by a guess"),
                      ("majority/faulty_agent", "as the agent most often at fault"),
                      ("costly_is_faulty", "as the agent whose turns cost most"),
                      ("costly_is_faulty_where_clear", "the same, where one costs more by two standard errors")):
        values = [100 * one[key]["value"] for one in found if one[key]["value"] is not None]
        if values:
            made.append(Bar(f"first faulty agent named, {name}, %, median of {len(values)}", statistics.median(values),
                            min(values), max(values), "reported", True))
    return made


def main() -> None:
    """Measures every workspace; writes and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blame")
    parser.add_argument("workspaces", nargs="+", type=Path, help="finished runs of a team, one a seed")
    parser.add_argument("--runs", type=int, default=100, help="failing runs whose turns' cost is asked for")
    parser.add_argument("--rollouts", type=int, default=16, help="from each of their prefixes")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    found = [measure(workspace, given.runs, given.rollouts) for workspace in given.workspaces]
    write(given, bars(found), workspaces=found)


if __name__ == "__main__":
    main()
