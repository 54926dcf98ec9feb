"""What a policy that is paid by step scores alone has lost when the guard's alarm ends its training.

    python -m benchmarks.policy_alarm WORKSPACE… --out benchmarks/results/policy_alarm.json

In finished runs, one workspace a seed. The policy is looked at on dev problems every other update; what it has lost at
the alarm is measured from the best that it, or the base policy, was by then. Beside it stands how far it falls in as
many updates where nothing stops it (`benchmarks.policy`, "process sum").
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.policy import RAW, settings_of, train
from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.evaluation.judged_chains import Plan, sample_chains
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.sampling.rollouts import without_long
from prm_core.stages.base import model_path
from prm_core.types import Problem

MOST = 3.0
EVERY, SAMPLES = 2, 8


def lost(base: float, curve: Sequence[tuple[int, float]]) -> float:
    """Points from the best so far, the base policy's among them, to the last.

    Args:
        base: share of right answers before the first update.
        curve: (update, share of right answers), in order, at least one.
    """
    return 100 * (max(base, *(value for _, value in curve)) - curve[-1][1])


def measure(workspace: Path, updates: int) -> dict[str, Any]:
    """Trains by step scores alone under the workspace's guard, and says what was lost when it ended."""
    config = configuration.load(workspace)
    policy = load_policy(model_path(workspace, config.models.policy), config)
    problems = without_long(store.read_jsonl(Problem, workspace / "data/dev.jsonl"), policy.encoder)
    plan = Plan(SAMPLES, config.train_policy.temperature, config.train_policy.max_new_tokens,
                config.generate.batch_size, config.generate.shard_size, config.seed)
    with tempfile.TemporaryDirectory() as work:
        chains = sample_chains(policy, problems, "dev-policy", plan, Path(work))
    base = statistics.mean(float(chain.right) for chain in chains)
    settings = dataclasses.replace(settings_of(config, RAW, updates, guarded=True), eval_every=EVERY,
                                   eval_problems=len(problems), eval_samples=SAMPLES)
    _, trained = train(workspace, config, settings, config.seed)
    curve = [(record["update"], record["dev/outcome"]) for record in trained.history if "dev/outcome" in record]
    return {"base": 100 * base, "curve": [[update, 100 * value] for update, value in curve], "alarm": trained.alarm,
            "updates": len(trained.history), "lost": lost(base, curve)}


def bars_of(found: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Args:
        found: workspace → what `measure` gives.
    """
    values = [one["lost"] for one in found.values()]
    fired = [float(one["alarm"] is not None) for one in found.values()]
    return [
        Bar("points lost when the alarm fires, median of seeds", statistics.median(values), min(values), max(values),
            f"<= {MOST:g}", statistics.median(values) <= MOST),
        # Where nothing is lost there is nothing to fire for.
        Bar("share of seeds on which it fires", statistics.mean(fired), min(fired), max(fired), "reported", True),
    ]


def main() -> None:
    """Measures every workspace; writes and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_alarm")
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--updates", type=int, default=72, help="at most")
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    found = {}
    for workspace in given.workspaces:
        found[workspace.name] = measure(workspace, given.updates)
        store.write_json(given.out, found)
    write(given, bars_of(found), workspaces=found)


if __name__ == "__main__":
    main()
