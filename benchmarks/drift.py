"""Is injected drift found within one window, and how often does a window without drift raise an alarm?

    python -m benchmarks.drift WORKSPACE… [--questions N] [--new] --out benchmarks/results/drift.json

On the chains and scores of finished evaluations, one a seed. A window is 150 questions with a chain each. 100 quiet
windows a workspace are dev and test problems that the base policy solved, drawn at random and each compared with the
others. Of drifted windows there are 20 of each kind, against the reference that goes with the model:

- scores: the best of four chains, by the reward model, in place of one of them: somebody has begun to search;
- lengths and phrases: the base policy's on problems with names, phrases or lengths that no training saw;
- tools and agents: its chains as ever, of which one in five is by an agent of another name that calls, where it calls
  tools, one of its own.

Beside the bars: windows of which the second half alone has drifted; and chains of the trained policy, which differ from
the base policy's by as much as that training came to (`pass_at_1`). With `--new` quiet windows are also made of new
problems, no two the same, that the base policy solves and the reward model scores (minutes a workspace): 100 more,
against the reference that goes with the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import Config, DriftConfig
from prm_core.domains import DOMAINS
from prm_core.evaluation.judged_chains import Plan, sample_chains, save_scores, score_with_prm
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.drift.check import alarm_of
from prm_core.serving.drift.compare import change_in_stream, compare
from prm_core.serving.drift.reference import evaluated
from prm_core.serving.drift.samples import Sample, first_of_each
from prm_core.types import Problem, Trajectory

WINDOWS, QUESTIONS, DRIFTED = 100, 150, 20
KINDS = ("scores", "lengths and phrases", "tools and agents")
ANOTHER_POLICY = "another policy"
CHOSEN_AMONG = 4
MOST_FALSE_ALARMS = 5
SETTINGS = DriftConfig()
Rng = np.random.Generator


def new_traffic(workspace: Path, config: Config, known: set[str], questions: int) -> list[Sample]:
    """New problems that a workspace's base policy has solved once each, scored by its reward model."""
    # A tenth more: a chain without a step is none that is served.
    problems = DOMAINS[config.domain].levels[config.data.level]("new", round(1.1 * WINDOWS * questions), config.seed,
                                                                known)
    plan = Plan(1, config.evaluate.temperature, config.generate.max_new_tokens, config.generate.batch_size,
                config.generate.batch_size, config.seed)
    policy = load_policy(str(workspace / config.models.policy), config)
    scorer = load_scorer(workspace / "artifacts/train_prm/prm", device="cpu", batch_size=config.serve.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chains = sample_chains(policy, problems, "new-base", plan, work)
        save_scores(work / "scores.jsonl", score_with_prm(scorer, chains, problems, config.serve.aggregate, work / "s"))
        store.write_shard(work / "chains", 0, Trajectory, [chain.trajectory for chain in chains])
        found = evaluated(work / "chains", work / "scores.jsonl", {"new-base": problems},
                          threshold=config.serve.threshold, renderer=2)
    return first_of_each(found)


def some(samples: Sequence[Sample], count: int, rng: Rng) -> list[Sample]:
    """As many, drawn without replacement, in random order."""
    return [samples[row] for row in rng.permutation(len(samples))[:count]]


def best(samples: Sequence[Sample]) -> list[Sample]:
    """Of each question the chain whose lowest score is the highest of its first few."""
    groups: dict[str, list[Sample]] = {}
    for one in samples:
        groups.setdefault(one.prompt, []).append(one)
    return [max(group[:CHOSEN_AMONG], key=lambda one: min(one.scores)) for group in groups.values()]


def renamed(samples: Sequence[Sample], rng: Rng) -> list[Sample]:
    """One in five by another agent, which calls its own tool in place of one of theirs."""
    return [dataclasses.replace(one, agents=["helper"] * len(one.agents),
                                tools=["lookup" if tool == one.tools[0] else tool for tool in one.tools])
            if rng.random() < 0.2 else one for one in samples]


def alarms(pairs: Sequence[tuple[Sequence[Sample], Sequence[Sample]]]) -> dict[str, Any]:
    """How many (reference, window) raise an alarm, by which features, and in how many the stream has changed."""
    raised, streams, features = 0, 0, []
    for seed, (reference, window) in enumerate(pairs):
        comparison, change = compare(reference, window, seed), change_in_stream(reference, window, seed)
        streams += change is not None
        if alarm_of(comparison, change, window, SETTINGS.false_alarms) is not None:
            raised += 1
            features.append(comparison.distances[0].feature)
    return {"windows": len(pairs), "alarms": raised, "by_the_stream": streams,
            "farthest": {name: features.count(name) for name in sorted(set(features))}}


def measure(workspace: Path, new: bool, questions: int) -> dict[str, Any]:
    """The figures of a workspace."""
    config, folder = configuration.load(workspace), workspace / "artifacts/evaluate"
    problems = {split: store.read_jsonl(Problem, workspace / f"data/{split}.jsonl")
                for split in ("train", "dev", "test", "shifted")}
    rng = np.random.default_rng(config.seed)

    def chains(*tags: str) -> list[Sample]:
        return evaluated(folder / "trajectories", folder / "scores.jsonl",
                         {tag: problems[tag.split("-")[0]] for tag in tags}, threshold=config.serve.threshold,
                         renderer=2)

    usual = first_of_each(chains("dev-base", "test-base"))
    drifted = {"scores": best(chains("test-base")),
               "lengths and phrases": first_of_each(chains("shifted-base")),
               ANOTHER_POLICY: first_of_each(chains("test-trained"))}
    splits = [(mixed[questions:], mixed[:questions]) for mixed in (some(usual, len(usual), rng)
                                                                  for _ in range(WINDOWS))]
    made: dict[str, Any] = {"workspace": workspace.name, "domain": config.domain, "reference": len(usual),
                            "questions_a_window": questions, "quiet": alarms(splits)}
    if new:
        known = {problem.prompt for group in problems.values() for problem in group}
        traffic = new_traffic(workspace, config, known, questions)
        made["quiet, new problems"] = alarms([
            (usual, traffic[start : start + questions])
            for start in range(0, questions * (len(traffic) // questions), questions)][:WINDOWS])
    table = store.read_json(folder / "metrics.json")
    made["pass_at_1"] = {name: table[f"test/policy_{name}/pass_at_1"] for name in ("base", "trained")}
    for kind in (*KINDS, ANOTHER_POLICY):
        whole, half = [], []
        for reference, window in splits[:DRIFTED]:
            # What is renamed is compared with other chains than it was made of.
            pool, known_before = (drifted[kind], usual) if kind in drifted else (renamed(window, rng), reference)
            whole.append((known_before, some(pool, questions, rng)))
            half.append((reference, [*window[: questions // 2], *(some(pool, questions // 2, rng) if kind in drifted
                                                                  else pool[questions // 2 :])]))
        made[kind], made[f"{kind}, second half only"] = alarms(whole), alarms(half)
    return made


def bars(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """Each kind found in every window of every workspace; alarms in 100 quiet windows, the median and the worst."""
    made = []
    for kind in KINDS:
        shares = [one[kind]["alarms"] / one[kind]["windows"] for one in found]
        made.append(Bar(f"windows with drifted {kind} that raise an alarm, worst of {len(found)} seeds", min(shares),
                        min(shares), max(shares), "1", min(shares) == 1))
    for quiet in ("quiet", "quiet, new problems"):
        rates = [100 * one[quiet]["alarms"] / one[quiet]["windows"] for one in found if quiet in one]
        for name, put_together in (("median", statistics.median), ("worst", max)) if rates else ():
            value = put_together(rates)
            made.append(Bar(f"alarms in 100 windows, {quiet}, {name} of {len(rates)} seeds", value, min(rates),
                            max(rates), f"<= {MOST_FALSE_ALARMS}", value <= MOST_FALSE_ALARMS))
    return made


def main() -> None:
    """Measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift")
    parser.add_argument("workspaces", type=Path, nargs="+", help="finished runs, one a seed")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="in a window")
    parser.add_argument("--new", action="store_true", help="also on new problems, solved and scored here")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    found = [measure(workspace, given.new, given.questions) for workspace in given.workspaces]
    write(given, bars(found), workspaces=found)


if __name__ == "__main__":
    main()
