"""What a chain of a real language model gives: accuracy of base, warmed-up and trained policy, reward models, labels.

    python -m benchmarks.language_chain WORKSPACE… [--base FOLDER] --out benchmarks/results/language_chain.json

On finished runs of the profile gsm8k-smollm2 or gsm8k-smollm2-cpu, one a seed. Nobody judged the steps of such chains,
so nothing here is about first errors: reward models are held against outcomes and by what choosing with them brings,
labels against how their chains end. With `--base` the pretrained model itself answers the test questions, as it came, a
line a step; else its figure is left out. A share of none or of all is given the interval of as many questions as one
answer each, not the empty one that resampling would give.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.evaluation import metrics
from prm_core.evaluation.metrics import Bootstrap, Estimate, Statistic
from prm_core.platform import store
from prm_core.stages.base import CHAIN
from prm_core.types import Problem, StepLabel, Trajectory

RESAMPLES = 1000
BASE_SAMPLES = 2
# In the order of training.
POLICIES = ("policy_base", "policy_trained")
COUNTS = ("n_chains", "n_empty_chains", "n_truncated_chains", "n_chains_without_answer")
METHODS = ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "oracle")


def estimate(statistic: Statistic, problems: int, seed: int) -> Estimate:
    """A share and its interval, by resampling problems; of none or all, as if each question had one answer."""
    found = Bootstrap(problems, RESAMPLES, seed).estimate(statistic)
    return widened(found, problems)


def widened(found: Estimate, problems: int) -> Estimate:
    """The interval of a share of none or all, which resampling leaves empty: beyond it (Clopper and Pearson) a sample
    like this one would be seen less than once in forty."""
    beyond = 1 - 0.025 ** (1 / problems)
    if found.value == 0:
        return Estimate(0.0, 0.0, beyond)
    return Estimate(1.0, 1 - beyond, 1.0) if found.value == 1 else found


def _figure(table: Mapping[str, Any], name: str, problems: int = 0) -> dict[str, Any]:
    """A figure of `metrics.json` with its interval, or why it is not there."""
    if name not in table:
        return {"left_out": table.get(f"{name}_left_out", "not measured")}
    found = Estimate(*(table[f"{name}{end}"] for end in ("", "_low", "_high")))
    if "_minus_" in name and found == Estimate(0.0, 0.0, 0.0):
        # An empty interval would claim to know.
        return {"left_out": "no question on which the two could differ"}
    return asdict(widened(found, problems) if problems else found)


def measure(workspace: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    table = store.read_json(workspace / "artifacts/evaluate/metrics.json")
    config = configuration.load(workspace)
    count = int(table["test/n_problems"])
    curve = {method: {str(n): _figure(table, f"test/{method}/accuracy_at_{n}", count) for n in config.evaluate.best_of}
             for method in METHODS}
    most = max(config.evaluate.best_of)
    return {
        "workspace": workspace.name, "profile": config.profile, "seed": config.seed, "questions": count,
        "chains_a_question": config.evaluate.samples,
        "pass_at_1": {policy: _figure(table, f"test/{policy}/pass_at_1", count) for policy in POLICIES},
        "chains": {policy: {name: table[f"test/{policy}/{name}"] for name in COUNTS} for policy in POLICIES},
        "trained_minus_warmed_up": _figure(table, "test/trained_minus_base/pass_at_1"),
        "outcome_auroc": {name: _figure(table, f"test/{name}/outcome_auroc") for name in ("prm", "orm")},
        "chosen": curve,
        "prm_minus_majority": _figure(table, f"test/prm_minus_majority/accuracy_at_{most}"),
        "prm_minus_orm": _figure(table, f"test/prm_minus_orm/accuracy_at_{most}"),
        "labels": labels(workspace, config),
        "training": {name: value for stage in ("warmup", "calibrate", "train_prm", "train_policy")
                     for name, value in store.read_json(workspace / f"artifacts/{stage}/metrics.json").items()},
        "cost": cost(workspace),
    }


def labels(workspace: Path, config: Config) -> dict[str, Any]:
    """How labels of chains go with how these end, by strategy and merged.

    A chain is called wrong where one of its steps is, right where those with a verdict are, and neither where none has
    one.
    """
    chains = store.read_shards(Trajectory, workspace / "artifacts/generate/trajectories")
    numbers = {problem: number for number, problem in enumerate(sorted({chain.problem_id for chain in chains}))}
    found: dict[str, Any] = {
        "chains": len(chains), "questions": len(numbers), "right": sum(bool(chain.outcome) for chain in chains)}
    rows = {"merged": store.read_shards(StepLabel, workspace / "artifacts/label/merged")}
    every = store.read_shards(StepLabel, workspace / "artifacts/label/labels")
    rows |= {name: [row for row in every if row.strategy == name] for name in config.label.strategies}
    for name, own in rows.items():
        by_chain: dict[str, list[bool]] = {}
        for row in own:
            if row.is_correct is not None:
                by_chain.setdefault(row.trajectory_id, []).append(row.is_correct)
        said = [all(by_chain[chain.id]) if chain.id in by_chain else None for chain in chains]
        found[name] = {"decided": sum(one is not None for one in said), "tokens": sum(row.tokens for row in own)}
        for outcome, what in ((True, "right_called_right"), (False, "wrong_called_wrong")):
            kept = [(one == outcome, numbers[chain.problem_id]) for one, chain in zip(said, chains, strict=True)
                    if one is not None and bool(chain.outcome) == outcome]
            if kept:
                hits, problem = zip(*kept, strict=True)
                found[name][what] = {"chains": len(kept), **asdict(estimate(
                    metrics.share(hits, _dense(problem), len(set(problem))), len(set(problem)), config.seed))}
    return found


def _dense(problem: Sequence[int]) -> list[int]:
    """Numbers from 0 on, for those that are left."""
    order = {one: number for number, one in enumerate(sorted(set(problem)))}
    return [order[one] for one in problem]


def cost(workspace: Path) -> dict[str, Any]:
    """Seconds of the last finished run of each stage, where MLflow's store here knows it."""
    if not (workspace / "mlflow.db").is_file():
        return {}
    from prm_core.platform.tracking import connect, experiment_id

    client = connect(workspace)
    runs = client.search_runs([experiment_id(client, workspace)], "attributes.status = 'FINISHED'",
                              order_by=["attributes.start_time ASC"])
    seconds = {run.info.run_name: (run.info.end_time - run.info.start_time) / 1000 for run in runs}
    return {"seconds": {name: seconds[name] for name in CHAIN if name in seconds}}


def base_accuracy(folder: str, workspace: Path, samples: int) -> dict[str, Any]:
    """What the pretrained model itself answers of the test questions of a run, without the warm-up."""
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import sample_trajectories, without_long

    config = configuration.load(workspace)
    plain = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, policy_steps="line"))
    policy = load_policy(folder, plain)
    problems = without_long(store.read_jsonl(Problem, workspace / "data/test.jsonl"), policy.encoder)
    chains = sample_trajectories(
        policy, problems, DOMAINS, samples=samples, temperature=config.evaluate.temperature, seed=config.seed,
        max_new_tokens=config.generate.max_new_tokens, batch_size=config.generate.batch_size, prefix="base",
        keep_empty=True)
    numbers = {problem.id: number for number, problem in enumerate(problems)}
    found = estimate(metrics.share([bool(chain.outcome) for chain in chains],
                                   [numbers[chain.problem_id] for chain in chains], len(problems)),
                     len(problems), config.seed)
    return {"questions": len(problems), "chains_a_question": samples,
            "unanswered": sum(chain.answer is None for chain in chains) / len(chains), **asdict(found)}


def bars(found: Sequence[Mapping[str, Any]], base: Mapping[str, Any] | None) -> list[Bar]:
    """The median over runs, with their range, or of a single run its interval; a bar holds by the low end."""
    made = []
    if base is not None:
        made.append(Bar("base, as it came: right, %", *(100 * base[part] for part in ("value", "low", "high")),
                        "reported", True))
    for name, asked, least, figure in (
        ("warmed-up policy: right, %", "reported" if base is None else "above the base's interval",
         None if base is None else base["high"], lambda run: run["pass_at_1"]["policy_base"]),
        ("trained policy: right, %", "reported", None, lambda run: run["pass_at_1"]["policy_trained"]),
        ("trained - warmed-up, points", "> 0 with its interval", 0.0, lambda run: run["trained_minus_warmed_up"]),
        ("PRM: AUROC of outcomes, %", "> 50 with its interval", 0.5, lambda run: run["outcome_auroc"]["prm"]),
        ("ORM: AUROC of outcomes, %", "> 50 with its interval", 0.5, lambda run: run["outcome_auroc"]["orm"]),
        ("best of N by the PRM - majority, points", "> 0 with its interval", 0.0,
         lambda run: run["prm_minus_majority"]),
    ):
        rows = [figure(run) for run in found if "value" in figure(run)]
        if not rows:
            continue
        if len(rows) == 1:
            value, low, high = (rows[0][part] for part in ("value", "low", "high"))
        else:
            values = [row["value"] for row in rows]
            value, low, high = statistics.median(values), min(values), max(values)
        made.append(Bar(name, 100 * value, 100 * low, 100 * high, asked, least is None or low > least))
    return made


def main() -> None:
    """Measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_chain")
    parser.add_argument("workspaces", type=Path, nargs="+", help="finished runs, one a seed")
    parser.add_argument("--base", help="folder of the pretrained model, to answer the first run's test questions")
    parser.add_argument("--base-samples", type=int, default=BASE_SAMPLES, help="answers of it to each question")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    found = [measure(workspace) for workspace in given.workspaces]
    base = None if given.base is None else base_accuracy(given.base, given.workspaces[0], given.base_samples)
    write(given, bars(found, base), base=base, runs=found)


if __name__ == "__main__":
    main()
