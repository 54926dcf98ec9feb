"""What a policy learns from each way to reward it, from the same base policy, with as many sampled chains.

    python -m benchmarks.policy WORKSPACE… --out benchmarks/results/policy.json

In finished runs, one workspace a seed: each way trains a policy anew on the training problems with the run's own reward
models, and is measured on the test problems, which nothing was chosen on, by pass@1 and by sound accuracy (right, and
every step right by the oracle). On the way it is looked at on dev problems for the curves. What differs between ways is
paired by problem and seed; its interval is a bootstrap over seeds, then over problems.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import IMPLICIT, AdvantageConfig, Config, CriticConfig, PolicyTrainingConfig
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.evaluation.judged_chains import Chain, Plan, sample_chains
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.sampling.rollouts import without_long
from prm_core.scoring.scorer import load_scorer
from prm_core.stages.base import model_path
from prm_core.training.policy.loop import Trained, train_policy
from prm_core.types import Problem

OUTCOME, PPO, PRIME, RAW = "outcome only", "outcome, PPO", "PRIME", "process sum"
CONFIGURED = "configured"
PLAIN = {"credit": "to_go", "gate": False, "chain_filter": "none", "left_out": 0, "turn_weight": 0.0,
         "process_sets": False}
_GRPO = PLAIN | {"outcome_weight": 1.0, "process_weight": 0.0, "form": "sum", "baseline": "group", "scale": "group"}
# Way → what of the configured advantages it changes. The guard watches over the configured one alone.
WAYS: Mapping[str, Mapping[str, Any]] = {
    CONFIGURED: {},
    OUTCOME: _GRPO,
    "outcome, λ-GRPO": _GRPO | {"process_sets": True},
    RAW: _GRPO | {"outcome_weight": 0.0, "process_weight": 1.0, "baseline": "step"},
    "hybrid of sums": _GRPO | {"outcome_weight": 0.3, "process_weight": 0.7, "baseline": "step"},
    "min form": _GRPO | {"outcome_weight": 0.1, "process_weight": 0.9, "form": "min", "baseline": "token",
                         "scale": "none"},
    "prover advantages": _GRPO | {"process_weight": 1.0, "form": "pav", "credit": "step", "baseline": "leave_one_out",
                                  "scale": "none"},
    "chosen chains (PROF)": _GRPO | {"chain_filter": "prof", "left_out": 3},
    "outcome, PRM as baseline": _GRPO | {"baseline": "prefix", "scale": "none"},
    PPO: _GRPO,
    PRIME: PLAIN | {"outcome_weight": 1.0, "process_weight": 1.0, "form": "sum", "baseline": "leave_one_out",
                    "scale": "none"},
}
# How often questions whose chains all end alike are replaced, where not as configured: PRIME's reward model learns
# from outcomes, and of mostly wrong ones that whatever the policy writes is wrong.
RESAMPLED: Mapping[str, int] = {PRIME: 4}
# Ways that learn by a critic.
CRITICS: Mapping[str, CriticConfig] = {PPO: CriticConfig(kind="separate")}


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What a way came to in one workspace.

    Attributes:
        right, sound: of each problem the share of its chains, (problems,).
        lucky: of the right ones those with a wrong step.
        calls_right: of the turns with a call, None where nobody calls.
        tokens: sampled in training.
        curve: (update, outcome on dev problems).
        alarm: (update, reason) of the guard's first, None without.
        steps, process: of a chain in the last updates.
    """

    right: Sequence[float]
    sound: Sequence[float]
    lucky: float
    calls_right: float | None
    tokens: float
    curve: list[tuple[int, float]]
    alarm: tuple[int, str] | None
    steps: float
    process: float

    def flat(self) -> dict[str, Any]:
        """As JSON, in percent."""
        return {"pass_at_1": 100 * np.mean(self.right), "sound": 100 * np.mean(self.sound), "lucky": 100 * self.lucky,
                "calls_right": None if self.calls_right is None else 100 * self.calls_right, "tokens": self.tokens,
                "steps": self.steps, "process": self.process, "alarm": self.alarm,
                "curve": [[update, 100 * value] for update, value in self.curve]}


def settings_of(config: Config, way: str, updates: int, *, guarded: bool) -> PolicyTrainingConfig:
    """The training of a way. Raises InputError for one that is not there."""
    if way not in WAYS:
        raise InputError(f"no way {way!r}; known: {', '.join(WAYS)}")
    given = config.train_policy
    advantages: AdvantageConfig = dataclasses.replace(given.advantages, **WAYS[way])
    reward_model = IMPLICIT if way == PRIME else "pav" if advantages.form == "pav" else "prm"
    return dataclasses.replace(
        given, advantages=advantages, critic=CRITICS.get(way, given.critic), updates=updates,
        reward_model=reward_model, resample=RESAMPLED.get(way, given.resample), eval_every=max(1, updates // 6),
        guard=given.guard if guarded else dataclasses.replace(given.guard, window=0))


def train(workspace: Path, config: Config, settings: PolicyTrainingConfig, seed: int) -> tuple[Any, Trained]:
    """The policy that was kept, the best of those looked at on dev problems, and its training."""
    policy = load_policy(model_path(workspace, config.models.policy), config)
    splits = {name: without_long(store.read_jsonl(Problem, workspace / f"data/{name}.jsonl"), policy.encoder)
              for name in ("train", "dev")}
    scorer = None if settings.reward_model == IMPLICIT else load_scorer(
        workspace / f"artifacts/train_prm/{settings.reward_model}", device=config.models.device,
        batch_size=config.serve.batch_size)
    with tempfile.TemporaryDirectory() as work:
        trained = train_policy(
            policy, scorer, DOMAINS, splits["train"], settings, dev=splits["dev"],
            batch_size=config.generate.batch_size, seed=seed, work=Path(work), report=lambda *given: None)
    return policy, trained


def kept(work: Path | None, workspace: Path, way: str, updates: int, *, guarded: bool) -> Result:
    """What `measure` gives; with a folder to work in, what it gave before."""
    name = re.sub(r"\W+", "-", f"{workspace.name} {way} {updates}{' guarded' if guarded else ''}") + ".json"
    if work is not None and (work / name).exists():
        return Result(**store.read_json(work / name))
    found = measure(workspace, way, updates, guarded=guarded)
    if work is not None:
        store.write_json(work / name, dataclasses.asdict(found))
    return found


def measure(workspace: Path, way: str, updates: int, *, guarded: bool = True, samples: int = 8) -> Result:
    """Trains a way in a workspace and measures it on the test problems."""
    config = configuration.load(workspace)
    settings = settings_of(config, way, updates, guarded=guarded)
    policy, trained = train(workspace, config, settings, config.seed)
    problems = without_long(store.read_jsonl(Problem, workspace / "data/test.jsonl"), policy.encoder)
    plan = Plan(samples, config.evaluate.temperature, config.generate.max_new_tokens, config.generate.batch_size,
                config.generate.shard_size, config.seed)
    with tempfile.TemporaryDirectory() as work:
        chains = sample_chains(policy, problems, "test-policy", plan, Path(work))
    last = trained.history[-1]
    alarm = (len(trained.history), trained.alarm) if trained.alarm else None
    solved = [chain for chain in chains if chain.right]
    return Result(
        _by_problem(chains, [chain.right for chain in chains], len(problems)),
        _by_problem(chains, [chain.right and chain.gold_error < 0 for chain in chains], len(problems)),
        sum(chain.gold_error >= 0 for chain in solved) / max(1, len(solved)), _calls_right(chains),
        sum(record["tokens"] for record in trained.history),
        [(record["update"], record["dev/outcome"]) for record in trained.history if "dev/outcome" in record],
        alarm, last["chain/steps"], last["reward/process"])


def _by_problem(chains: Sequence[Chain], values: Sequence[bool], problems: int) -> list[float]:
    found = np.zeros((problems, 2))
    for chain, value in zip(chains, values, strict=True):
        found[chain.problem] += (value, 1)
    return (found[:, 0] / np.maximum(found[:, 1], 1)).tolist()


def _calls_right(chains: Sequence[Chain]) -> float | None:
    called = [right for chain in chains for step, right in zip(chain.trajectory.steps, chain.gold or (), strict=False)
              if step.calls]
    return statistics.mean(called) if called else None


def gain(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], draws: int = 2000
) -> tuple[float, float, float]:
    """Mean difference in points and its 95 % interval, over seeds and the problems of each.

    Args:
        one, other: of each seed the shares of its problems, (problems,).
    """
    rng = np.random.default_rng(0)
    apart = [100 * (np.asarray(mine) - np.asarray(theirs)) for mine, theirs in zip(one, other, strict=True)]
    means = []
    for _ in range(draws):
        seeds = rng.integers(len(apart), size=len(apart))
        means.append(np.mean([apart[seed][rng.integers(len(apart[seed]), size=len(apart[seed]))].mean()
                              for seed in seeds]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean([values.mean() for values in apart])), float(low), float(high)


def bars_of(found: Mapping[str, Mapping[str, Result]], *, agents: bool) -> list[Bar]:
    """What is asked of the configured way, beside the others; ways that were not measured have none.

    Args:
        found: way → workspace → its result.
    """
    bars = []

    def compared(rival: str, what: str, least: float, above_zero: bool = True, way: str = CONFIGURED) -> None:
        if rival not in found or way not in found:
            return
        mine, theirs = ([getattr(found[one][name], what) for name in found[way]] for one in (way, rival))
        value, low, high = gain(mine, theirs)
        bars.append(Bar(f"{what}: {way} - {rival}, points", value, low, high,
                        f">= {least:g}{', interval above 0' if above_zero else ''}",
                        value >= least and (low > 0 or not above_zero)))

    compared(OUTCOME, "right", 3.0)
    if agents:
        if OUTCOME in found and CONFIGURED in found:
            apart = [100 * (found[CONFIGURED][name].lucky - found[OUTCOME][name].lucky) for name in found[CONFIGURED]]
            bars.append(Bar(f"lucky successes: {CONFIGURED} - {OUTCOME}, points, median of seeds",
                            statistics.median(apart), min(apart), max(apart), "< 0", statistics.median(apart) < 0))
        return bars
    compared("outcome, λ-GRPO", "right", 2.0, above_zero=False)
    compared(OUTCOME, "right", -3.0, above_zero=False, way=PPO)
    compared(OUTCOME, "sound", 15.0)
    if OUTCOME in found and CONFIGURED in found:
        apart = [found[OUTCOME][name].lucky - found[CONFIGURED][name].lucky for name in found[CONFIGURED]]
        value, low, high = gain([[one] for one in apart], [[0.0] for _ in apart])
        bars.append(Bar(f"process consistency: {CONFIGURED} - {OUTCOME}, points", value, low, high,
                        "interval above 0", low > 0))
        shares = [_tokens_to(found[CONFIGURED][name], found[OUTCOME][name]) for name in found[CONFIGURED]]
        bars.append(Bar(f"sampled tokens to the last dev outcome of {OUTCOME}, share of its own, median of seeds",
                        statistics.median(shares), min(shares), max(shares), "<= 0.5",
                        statistics.median(shares) <= 0.5))
    for way, asked in ((CONFIGURED, "<= 2"), (RAW, "reported")):
        falls = [100 * (max(value for _, value in one.curve) - one.curve[-1][1]) for one in found.get(way, {}).values()]
        if falls:
            fall, what = statistics.median(falls), f"right on dev problems: {way}'s best - its last, points"
            bars.append(Bar(f"{what}, median of seeds", fall, min(falls), max(falls), asked,
                            asked == "reported" or fall <= 2))
    return bars


def _tokens_to(one: Result, other: Result) -> float:
    """The share of its updates after which a way is as good on dev problems as another at its end; 1 where never."""
    wanted = other.curve[-1][1]
    return next((update / one.curve[-1][0] for update, value in one.curve if value >= wanted), 1.0)


def draw(found: Mapping[str, Mapping[str, Result]], path: Path) -> None:
    """Outcomes on dev problems by update, a line a way: the median of the seeds, with their range as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for way, results in found.items():
        updates = sorted({update for one in results.values() for update, _ in one.curve})
        curves = [[100 * dict(one.curve)[update] for one in results.values() if update in dict(one.curve)]
                  for update in updates]
        line, = axes.plot(updates, [statistics.median(values) for values in curves], marker="o", markersize=3,
                          label=way)
        axes.fill_between(updates, [min(values) for values in curves], [max(values) for values in curves], alpha=0.12,
                          color=line.get_color(), linewidth=0)
    axes.set(xlabel="update", ylabel="right answers on dev problems, %")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measures every way in every workspace; writes, draws and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy")
    parser.add_argument("workspaces", nargs="+", type=Path)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), help="of those in this file")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--unguarded", action="store_true", help="no alarm ends the configured training")
    parser.add_argument("--work", type=Path, help="folder where what was measured is kept: a stopped call goes on")
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    found: dict[str, dict[str, Result]] = {way: {} for way in given.ways}
    for workspace in given.workspaces:
        for way in given.ways:
            guarded = way == CONFIGURED and not given.unguarded
            found[way][workspace.name] = kept(given.work, workspace, way, given.updates, guarded=guarded)
            store.write_json(given.out, {way: {name: one.flat() for name, one in results.items()}
                                         for way, results in found.items()})
    agents = any(DOMAINS[configuration.load(workspace).domain].environment for workspace in given.workspaces)
    draw(found, given.out.with_suffix(".png"))
    write(given, bars_of(found, agents=agents),
          ways={way: {name: one.flat() for name, one in results.items()} for way, results in found.items()})


if __name__ == "__main__":
    main()
