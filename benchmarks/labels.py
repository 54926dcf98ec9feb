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
import logging
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
from prm_core.labeling.calibrate import LabelMap, fit_map
from prm_core.labeling.merging.merge import MERGES, Merged, merge_labels
from prm_core.labeling.strategies import STRATEGIES, LabelingTools
from prm_core.labeling.strategies.rollout import NAME as ROLLOUT
from prm_core.labeling.strategies.verdicts import VERDICTS, Tally
from prm_core.platform import store
from prm_core.sampling.policy import Policy, load_policy
from prm_core.sampling.rollouts import rollout_succeeds
from prm_core.sampling.sampler import Prefix
from prm_core.scoring.calibration import Calibrator
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
    # With few labels "nothing can be fitted" is an expected answer here, hundreds of times.
    logging.getLogger("prm_core.scoring.calibration").setLevel(logging.ERROR)
    if given.again:
        again(given)
    elif given.chains:
        people(given)
    else:
        embedded(given)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", type=Path, default=Path("."), help="folder in which the default profile has run")
    parser.add_argument("--seed", type=int, default=SEED, help="of the problems drawn and of everything sampled")
    parser.add_argument("--again", type=Path, help="an earlier result: its bars and plot anew, without measuring")
    parser.add_argument("--chains", type=Path, help="chains people judged (PRM800K .parquet, ProcessBench .json)")
    parser.add_argument("--policy", type=Path, help="Hugging Face folder, with --chains")
    parser.add_argument("--count", type=int, default=200, help="chains, with --chains")


def tools_of(config: Config, policy: str, backbone: str) -> LabelingTools:
    """Both models, loaded."""
    return LabelingTools(config, DOMAINS, load_policy(policy, config), load_policy(backbone, config))


def changed(tools: LabelingTools, label: dict[str, Any]) -> LabelingTools:
    """The same models under another `label` section."""
    raw = dataclasses.asdict(tools.config)
    config = configuration.parse(configuration.merge(raw, {"label": label}), "benchmark")
    return dataclasses.replace(tools, config=config)


def run_strategy(name: str, tools: LabelingTools, gold: Sequence[GoldChain]) -> tuple[list[StepLabel], float]:
    """Labels by one strategy, and the seconds that took."""
    chains = [one.chain for one in gold]
    start = time.monotonic()
    strategy = STRATEGIES[name](tools)
    strategy.prepare(chains, tools.config.seed)
    labels = strategy.label(chains, tools.config.seed)
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
        batch_size=config.label.batch_size, seed=config.seed,
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
    config = dataclasses.replace(config, seed=given.seed)
    tools = tools_of(config, str(models / "policy"), str(models / "backbone"))
    known = label_data.embedded(tools.policy, config, "benchmark-known", problems, given.seed)
    unseen = label_data.embedded(tools.policy, config, "benchmark-unseen", problems, given.seed)
    speeds = measure_speeds(
        tools.policy, known[: 40 if given.quick else 100], rollouts=K, batch=config.label.batch_size,
        single=20 if given.quick else 60, max_new_tokens=config.label.max_new_tokens, rounds=given.repeats,
        seed=given.seed,
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
    write(given, bars, chains=len(known), unseen_chains=len(unseen), seed=given.seed,
          strategies=records(figures), reliability=reliability, human=human, speeds=dataclasses.asdict(speeds))


def again(given: argparse.Namespace) -> None:
    """Bars and plot from the figures of an earlier result."""
    result = store.read_json(given.again)
    figures = [Quality(**row) for row in result["strategies"]]
    speeds = Speeds(**result["speeds"])
    config = configuration.load(given.workspace)
    plot(figures, given.out.with_suffix(".png"))
    bars = speed_bars(speeds) + quality_bars(figures, config, result["human"])
    store.write_json(given.out, {**result, "bars": [dataclasses.asdict(bar) for bar in bars]})


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
        method: dataclasses.replace(config.calibrate, stack=False, method=method)
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
    final = by_name[f"{merge_name(config.label.merge)}, 5 % human labels, unseen problems"]
    yardstick = by_name[f"rollout any, every step, K={K}"]
    # On all chains, whatever a search leaves undecided.
    cheapest = min((one for one in figures if one.name.startswith(("rollout any, seq", "mcts"))
                    and one.full_f1 >= yardstick.full_f1), key=lambda one: one.tokens, default=yardstick)
    share = cheapest.tokens / yardstick.tokens
    own = human[config.label.merge]
    return [
        Bar("merged labels: first-error F1", merged.first_error_f1, merged.f1_low, merged.f1_high, ">= 93",
            merged.first_error_f1 >= 93),
        Bar("merged labels and 5 % human labels, unseen problems: first-error F1", final.first_error_f1, final.f1_low,
            final.f1_high, ">= 93", final.first_error_f1 >= 93),
        Bar("merged labels: coverage, % of chains", 100 * merged.coverage, None, None, ">= 80", merged.coverage >= 0.8),
        Bar(f"tokens to reach the F1 of every-step rollouts ({cheapest.name})", share, None, None, "<= 0.25",
            share <= 0.25),
        Bar(f"ECE on unseen problems, 5 % human labels (without any: {own['ece_before']:.3f})", own["ece_after"], None,
            None, "<= 0.03", own["ece_after"] <= TARGET_ECE),
        *(_effort_bar(name, found["stack"]) for name, found in human.items()),
    ]


def _effort_bar(name: str, ways: dict[str, Any]) -> Bar:
    """Human labels for the target by active selection over those by random selection."""
    active, random = ways["active"]["labels_needed"], ways["random"]["labels_needed"]
    ratio = active / random if active and random else float("inf")
    return Bar(f"human labels for that ECE in nine draws of ten, merged by {name}: active ({active}) / random "
               f"({random})", ratio, None, None, "<= 0.5", ratio <= 0.5)


def plot(figures: Sequence[Quality], path: Path) -> None:
    """F1 against generated tokens; of what generates any, what nothing beats in both is joined by a line."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # What is configured is one of the variants or has nothing on its own; consensus leaves chains out.
    hidden = ("unseen", "configured", "consensus")
    shown = sorted((one for one in figures if not any(word in one.name for word in hidden)),
                   key=lambda one: one.full_f1)
    figure, axes = plt.subplots(figsize=(11, 6.5), layout="constrained")
    for family, marker in zip(("rollout", "mcts", "mc_dropout", "verifier", "merged"), "osD^*", strict=True):
        rows = [one for one in shown if one.name.startswith(family)]
        axes.scatter([one.tokens / 1000 for one in rows], [one.full_f1 for one in rows], marker=marker, s=60,
                     label=family, alpha=0.8)
    best, front = -1.0, []
    for one in sorted((one for one in shown if one.tokens), key=lambda one: (one.tokens, -one.full_f1)):
        if one.full_f1 > best:
            best = one.full_f1
            front.append(one)
    axes.plot([one.tokens / 1000 for one in front], [one.full_f1 for one in front], color="0.6", linewidth=1, zorder=0,
              label="nothing that generates is\ncheaper and better")
    for one in shown:
        if not one.tokens:
            axes.annotate(one.name, (0, one.full_f1), xytext=(8, 0), fontsize=7, va="center",
                          textcoords="offset points")
    # Names of the others stand in a column on the right, each tied to its point.
    named = [one for one in shown if one.tokens]
    for one, height in zip(named, apart([one.full_f1 for one in named], 3.0), strict=True):
        axes.annotate(one.name, (one.tokens / 1000, one.full_f1), xytext=(1.03, height), fontsize=7, va="center",
                      textcoords=axes.get_yaxis_transform(),
                      arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "relpos": (0, 0.5)})
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(-0.3, None), ylim=(-4, 104), xlabel="generated tokens, thousands",
             ylabel="first-error F1 over all chains, %",
             title="What labels cost and how right they are (embedded domain, oracle as gold)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="lower center")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved as little as it takes for neighbours to be `gap` apart (neighbours part half each)."""
    result = list(heights)
    for _ in range(500):
        for low in range(len(result) - 1):
            short = gap - (result[low + 1] - result[low])
            if short > 0:
                result[low] -= short / 2
                result[low + 1] += short / 2
    return result


def people(given: argparse.Namespace) -> None:
    """Every configured strategy on chains judged by people; no bars."""
    if given.policy is None:
        raise SystemExit("--chains needs --policy, the folder of a Hugging Face causal LM")
    raw = configuration.resolve(given.workspace / configuration.PARAMS_FILE, "gsm8k-smollm2")
    own = {"label": {"strategies": ["mc_dropout", "verifier"]}, "encoder": {"policy_steps": "line"}}
    config = dataclasses.replace(configuration.parse(configuration.merge(raw, own), "--chains"), seed=given.seed)
    try:
        gold = label_data.judged_by_people(given.chains, 40 if given.quick else given.count, given.seed)
        policy = load_policy(str(given.policy), config)
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    tools = LabelingTools(config, DOMAINS, policy, policy)
    labels, figures = all_strategies(tools, gold)
    merges, reliability = combinations(tools, gold, labels, sum(one.seconds for one in figures))
    write(given, [], chains=len(gold), seed=given.seed, strategies=records([*figures, *merges]),
          reliability=reliability)


if __name__ == "__main__":
    main()
