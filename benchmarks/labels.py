"""The bars of the automatic labels: how right they are against gold, what they cost, how fast rollouts are drawn.

    python -m benchmarks.labels --out benchmarks/results/labels.json                 the embedded domain, oracle as gold
    python -m benchmarks.labels --chains FILE --policy FOLDER --out FILE             chains with human step labels

Models come from a workspace in which the default profile has run (`--workspace`, here unless given). The problems are
drawn anew with a seed of their own: none of them is in data/. With `--chains` (PRM800K phase 1 as .parquet, or
ProcessBench as .json) every strategy of the configuration runs on these chains with the policy given.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console

from benchmarks import label_data
from benchmarks.label_data import GoldChain
from benchmarks.label_quality import Labelled, Quality, human_labels_needed, measure, pick, records
from benchmarks.report import Bar, arguments, write
from benchmarks.rollout_speed import Speeds, measure_speeds, median
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.labeling import judge, mc_dropout, mcts, rollout, verifier  # noqa: F401  (they register themselves)
from prm_core.labeling.base import STRATEGIES, LabelingTools
from prm_core.labeling.calibrate import LabelMap, fit_map
from prm_core.labeling.merge import MERGES, Merged, merge_labels
from prm_core.labeling.rollout import NAME as ROLLOUT
from prm_core.labeling.verdicts import VERDICTS, Tally
from prm_core.models.calibration import Calibrator
from prm_core.models.policy import Policy, load_policy
from prm_core.models.sampler import Prefix
from prm_core.rollouts import rollout_succeeds
from prm_core.types import StepLabel

K = 8
TARGET_ECE = 0.03
SEED = 20_261_122
HUMAN_SHARE = 0.05
BUDGETS = (5, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50, 60, 80, 120)
# The guide's way to merge: what human effort is measured on beside the configured way.
GUIDE = "vote"
# Several settings of one strategy, to see what each buys: name → changes of section `label`.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"rollout any, sequential, K={k}": ("rollout", {"rollout": {"rule": "any", "rollouts": k}})
       for k in (2, 4, 8, 16)},
    "rollout majority, sequential, K=8": ("rollout", {"rollout": {"rule": "majority", "rollouts": 8}}),
    "rollout relative, sequential, K=8": ("rollout", {"rollout": {"rule": "relative", "rollouts": 8}}),
    **{f"mcts omega, K={k}": ("mcts", {"mcts": {"selection": "omega", "rollouts": k}}) for k in (2, 4, 8, 16)},
    "mcts ucb1": ("mcts", {"mcts": {"selection": "ucb1", "simulations": 8, "exploration": 1.4}}),
    "mcts puct": ("mcts", {"mcts": {"selection": "puct", "simulations": 8, "exploration": 1.4}}),
    **{f"mc_dropout {measure_}": ("mc_dropout", {"mc_dropout": {"measure": measure_}})
       for measure_ in ("predictive", "likelihood", "bald", "representation")},
    "verifier": ("verifier", {}),
}


def main() -> None:
    """Runs the benchmark and writes its result, with a plot beside it."""
    given = arguments("labels", _more)
    torch.manual_seed(0)
    if given.chains:
        people(given)
    else:
        embedded(given)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("."), help="folder in which the default profile has run")
    parser.add_argument("--chains", type=Path, help="chains people judged (PRM800K .parquet, ProcessBench .json)")
    parser.add_argument("--policy", type=Path, help="Hugging Face folder, with --chains")
    parser.add_argument("--count", type=int, default=200, help="chains, with --chains")


def tools_of(config: Config, policy: str, backbone: str) -> LabelingTools:
    """Both models, loaded."""
    return LabelingTools(config, DOMAINS, load_policy(policy, config), load_policy(backbone, config))


def changed(tools: LabelingTools, label: dict[str, Any]) -> LabelingTools:
    """The same models under another `label` section."""
    raw = tools.config.model_dump(by_alias=True, mode="json")
    config = configuration.parse(configuration.merge(raw, {"label": label}), "benchmark")
    return dataclasses.replace(tools, config=config)


def run_strategy(name: str, tools: LabelingTools, gold: Sequence[GoldChain]) -> tuple[list[StepLabel], float]:
    """Labels by one strategy, and the seconds that took."""
    chains = [one.chain for one in gold]
    start = time.monotonic()
    strategy = STRATEGIES[name](tools)
    strategy.prepare(chains, SEED)
    labels = strategy.label(chains, SEED)
    seconds = time.monotonic() - start
    say(f"{name} on {len(chains)} chains: {seconds:.0f} s")
    return labels, seconds


def say(what: str) -> None:
    """A line of progress."""
    Console(stderr=True).log(what, _stack_offset=2)


def per_step_rollouts(policy: Policy, config: Config, gold: Sequence[GoldChain], rule: str) -> list[StepLabel]:
    """The yardstick: K rollouts of every prefix of every chain, as in the guide; nothing stops early."""
    encoded = [policy.encode(one.chain.problem.prompt, one.chain.trajectory.steps) for one in gold]
    prefixes = [Prefix(number, length) for number, (_, lengths) in enumerate(encoded) for length in lengths[:-1]
                for _ in range(K)]
    drawn = iter(policy.continue_chains(
        [ids for ids, _ in encoded], prefixes, temperature=1.0, max_new_tokens=config.label.max_new_tokens,
        batch_size=config.label.batch_size, seed=SEED,
    ))
    labels = []
    for one, (_, lengths) in zip(gold, encoded, strict=True):
        trajectory, problem = one.chain.trajectory, one.chain.problem
        tallies, tokens = [], []
        for last in ("", *(step.text for step in trajectory.steps))[: len(lengths) - 1]:
            group = [next(drawn) for _ in range(K)]
            won = sum(rollout_succeeds(policy, DOMAINS[problem.domain], problem, c, last) for c in group)
            tallies.append(Tally(won, K))
            tokens.append(sum(len(c.ids) for c in group))
        tallies.append(Tally(K if trajectory.outcome else 0, K))
        for index in range(len(trajectory.steps)):
            verdict = VERDICTS[rule].judge(tallies[index + 1], tallies[index], K)
            labels.append(StepLabel(trajectory.id, index, ROLLOUT, tallies[index + 1].value, verdict.is_correct,
                                    verdict.confidence, tokens[index], ""))
    return labels


def all_strategies(tools: LabelingTools, gold: Sequence[GoldChain]) -> tuple[list[StepLabel], list[Quality]]:
    """Every configured strategy as configured, its labels and figures; trees for all questions."""
    labels: list[StepLabel] = []
    figures = []
    for name in tools.config.label.strategies:
        found, seconds = run_strategy(name, tools, gold)
        labels += found
        figures.append(measure(f"{name} (as configured)", gold, found, seconds))
    return labels, figures


def combinations(
    tools: LabelingTools, gold: Sequence[GoldChain], labels: Sequence[StepLabel], seconds: float
) -> tuple[list[Quality], dict[str, dict[str, float]]]:
    """Every way to merge, with and without consensus, and what the configured way takes the annotators to be."""
    figures, reliability = [], {}
    for name in MERGES:
        for consensus in (False, True):
            start = time.monotonic()
            merged = merge(tools, gold, labels, name, consensus)
            spent = seconds + time.monotonic() - start
            figures.append(measure(merge_name(name, consensus), gold, merged.labels, spent))
            if (name, consensus) == (tools.config.label.merge, tools.config.label.consensus):
                reliability = merged.reliability
    return figures, reliability


def merge_name(name: str, consensus: bool = False) -> str:
    """What a way to merge is called in the result."""
    return f"merged: {name}{' + consensus' if consensus else ''}"


def merge(
    tools: LabelingTools, gold: Sequence[GoldChain], labels: Sequence[StepLabel], name: str, consensus: bool = False
) -> Merged:
    """One way to merge."""
    config = changed(tools, {"merge": name, "consensus": consensus}).config.label
    return merge_labels([one.chain.trajectory for one in gold], labels, config)


def embedded(given: argparse.Namespace) -> None:
    """The bars, on newly drawn problems."""
    models = given.workspace / "artifacts/warmup/models"
    if not models.is_dir():
        raise SystemExit(f"{models}: not there; run the default profile first (`make run`), or name its --workspace")
    config = configuration.load(given.workspace)
    problems = 100 if given.quick else 400
    config = changed(LabelingTools(config, DOMAINS, None, None), {"mcts": {"problems": 10 * problems}}).config
    tools = tools_of(config, str(models / "policy"), str(models / "backbone"))
    known = label_data.embedded(tools.policy, config, "benchmark-known", problems, SEED)
    unseen = label_data.embedded(tools.policy, config, "benchmark-unseen", problems, SEED)
    speeds = measure_speeds(
        tools.policy, known[: 40 if given.quick else 100], rollouts=K, batch=config.label.batch_size,
        single=20 if given.quick else 60, max_new_tokens=config.label.max_new_tokens, rounds=given.repeats, seed=SEED,
    )
    say("rollouts timed")
    figures = []
    for rule in ("any", "majority"):
        start = time.monotonic()
        labels = per_step_rollouts(tools.policy, config, known, rule)
        figures.append(measure(f"rollout {rule}, every step, K={K}", known, labels, time.monotonic() - start))
    for name, (strategy, change) in VARIANTS.items():
        labels, seconds = run_strategy(strategy, changed(tools, change), known)
        figures.append(measure(name, known, labels, seconds))
    own, configured = all_strategies(tools, known)
    merges, reliability = combinations(tools, known, own, sum(one.seconds for one in configured))
    figures += [*configured, *merges]
    other, _ = all_strategies(tools, unseen)
    human = {}
    for name in dict.fromkeys((config.label.merge, GUIDE)):
        labelled = [Labelled.of(gold, merge(tools, gold, labels, name).labels, labels)
                    for gold, labels in ((known, own), (unseen, other))]
        say(f"human labels on {name}")
        human[name], relabelled = human_effort(*labelled, config, 10 if given.quick else 50)
        figures += [measure(f"{merge_name(name)}, unseen problems", unseen, labelled[1].merged, 0.0),
                    measure(f"{merge_name(name)}, 5 % human labels, unseen problems", unseen, relabelled, 0.0)]
    bars = speed_bars(speeds) + quality_bars(figures, config, human)
    plot(figures, given.out.with_suffix(".png"))
    write("labels", given, bars, chains=len(known), unseen_chains=len(unseen), seed=SEED, strategies=records(figures),
          reliability=reliability, human=human, speeds=dataclasses.asdict(speeds))


def human_effort(
    known: Labelled, unseen: Labelled, config: Config, repeats: int
) -> tuple[dict[str, Any], list[StepLabel]]:
    """Calibration error on unseen problems without and with the human share, how few labels would do, and the unseen
    problems' labels with the share."""
    share = round(HUMAN_SHARE * len(known.truth()))
    fitted = fit_map(known.human(pick(known, "active", share, 0)), config.calibrate)
    result: dict[str, Any] = {
        "labels_of_the_share": share,
        "ece_before": unseen.ece(LabelMap(Calibrator("identity", 0))),
        "ece_after": unseen.ece(fitted),
        "method": fitted.method,
    }
    settings = {"stack": config.calibrate} | {
        method: config.calibrate.model_copy(update={"stack": False, "method": method})
        for method in ("isotonic", "platt", "temperature")
    }
    for name, one in settings.items():
        result[name] = human_labels_needed(known, unseen, one, BUDGETS, repeats, TARGET_ECE)
    return result, unseen.relabelled(fitted)


def speed_bars(speeds: Speeds) -> list[Bar]:
    """Ratios of rollouts a second."""
    bars = []
    for name, other, least in (("rollouts/s against one generate call a rollout", "generate_one", 20),
                               ("rollouts/s against generate, 512 rollouts a call", "generate_batch", 3)):
        ratios = speeds.ratios(other)
        bars.append(Bar(name, median(ratios), min(ratios), max(ratios), f">= {least} x", median(ratios) >= least))
    return bars


def quality_bars(figures: Sequence[Quality], config: Config, human: dict[str, Any]) -> list[Bar]:
    """The bars on labels; the tokens to reach the yardstick's F1 are those of the cheapest setting that does."""
    by_name = {one.name: one for one in figures}
    merged = by_name[f"merged: {config.label.merge}"]
    yardstick = by_name[f"rollout any, every step, K={K}"]
    # On all chains, whatever a search leaves undecided.
    cheapest = min((one for one in figures if one.name.startswith(("rollout any, seq", "mcts"))
                    and one.full_f1 >= yardstick.full_f1), key=lambda one: one.tokens, default=yardstick)
    share = cheapest.tokens / yardstick.tokens
    # Where the configured merge needs no human label for the target, the guide's vote does.
    own = human[config.label.merge]
    needed = {way: human[GUIDE]["stack"][way]["labels_needed"] for way in ("active", "random")}
    ratio = needed["active"] / needed["random"] if all(needed.values()) else float("inf")
    return [
        Bar("merged labels: first-error F1", merged.first_error_f1, None, None, ">= 93", merged.first_error_f1 >= 93),
        Bar("merged labels: coverage, % of chains", 100 * merged.coverage, None, None, ">= 80", merged.coverage >= 0.8),
        Bar(f"tokens to reach the F1 of every-step rollouts ({cheapest.name})", share, None, None, "<= 0.25",
            share <= 0.25),
        Bar(f"ECE on unseen problems, 5 % human labels (without any: {own['ece_before']:.3f})", own["ece_after"], None,
            None, "<= 0.03", own["ece_after"] <= TARGET_ECE),
        Bar(f"human labels for that ECE, from the guide's vote: active ({needed['active']}) / random "
            f"({needed['random']}), nine draws in ten", ratio, None, None, "<= 0.5", ratio <= 0.5),
    ]


def plot(figures: Sequence[Quality], path: Path) -> None:
    """F1 against generated tokens; what nothing beats in both is joined by a line."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [one for one in figures if "unseen" not in one.name]
    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    families = ("rollout", "mcts", "mc_dropout", "verifier", "merged")
    for family, marker in zip(families, "osD^*", strict=True):
        rows = [one for one in shown if one.name.startswith(family)]
        axes.scatter([max(one.tokens, 1) / 1000 for one in rows], [one.full_f1 for one in rows], marker=marker, s=60,
                     label=family, alpha=0.8)
    for number, one in enumerate(sorted(shown, key=lambda one: (one.full_f1, one.tokens))):
        axes.annotate(one.name, (max(one.tokens, 1) / 1000, one.full_f1), fontsize=6,
                      xytext=(6, 4 if number % 2 else -8), textcoords="offset points")
    best, front = -1.0, []
    for one in sorted(shown, key=lambda one: (one.tokens, -one.full_f1)):
        if one.full_f1 > best:
            best = one.full_f1
            front.append(one)
    axes.plot([max(one.tokens, 1) / 1000 for one in front], [one.full_f1 for one in front], color="0.6", linewidth=1,
              zorder=0, label="Pareto front")
    axes.set(xscale="symlog", xlabel="generated tokens, thousands", ylabel="first-error F1 over all chains, %",
             title="What labels cost and how right they are (embedded domain, oracle as gold)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def people(given: argparse.Namespace) -> None:
    """Every configured strategy on chains judged by people; no bars."""
    if given.policy is None:
        raise SystemExit("--chains needs --policy, the folder of a Hugging Face causal LM")
    raw = configuration.resolve(given.workspace / configuration.PARAMS_FILE, "gsm8k-smollm2")
    own = {"label": {"strategies": ["mc_dropout", "verifier"]}}
    config = configuration.parse(configuration.merge(raw, own), "--chains")
    try:
        gold = label_data.judged_by_people(given.chains, 40 if given.quick else given.count, SEED)
        policy = load_policy(str(given.policy), config)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    tools = LabelingTools(config, DOMAINS, policy, policy)
    labels, figures = all_strategies(tools, gold)
    merges, reliability = combinations(tools, gold, labels, sum(one.seconds for one in figures))
    write("labels", given, [], chains=len(gold), seed=SEED, strategies=records([*figures, *merges]),
          reliability=reliability)


if __name__ == "__main__":
    main()
