"""AgentProcessBench with a small language model: step and first-error accuracy beside a guess and two constant answers.

    python -m benchmarks.agentprocessbench FILE --base SMOLLM2 --prm800k PARQUET --runs WORKSPACE --out RESULT

A head on the frozen base is trained by `prm train` on other data: rated steps of PRM800K, and turns of the errands'
agents (test problems of a finished run of the profile `agents`) as their oracle judges them. The solver is convex, so a
seed is a draw of training problems. The threshold is chosen on problems of both sources that no seed trains on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Bar, parsed, write
from prm_core.domains.oracle import ORACLES
from prm_core.evaluation.benchmarks import suite
from prm_core.evaluation.benchmarks.base import BenchmarkChain, ScoredFile
from prm_core.formats import FORMATS, LabelledChain, labelled_once
from prm_core.platform import store
from prm_core.platform.progress import track
from prm_core.scoring.domain import unmoderated
from prm_core.scoring.scorer import ChainScore, RewardScorer, load_scorer
from prm_core.types import Problem, Trajectory

PROTOCOL = suite.BENCHMARKS["agentprocessbench"]
FORMAT = FORMATS["agentprocessbench"]
# Problems of each source that a seed draws, and of each its chains at most; those held out for the threshold, one chain
# each.
DRAWN, CHAINS, HELD_OUT = {"prm800k": 50, "errands": 100}, 4, 80
# About the tokens that a row of training has room for; a longer chain would lose the step that is rated.
MOST_CHARACTERS = 1500
PROFILE = {"extends": "prm800k-smollm2", "encoder": {"max_length": 8192}, "calibrate": {"min_labels": 20},
           "train_prm": {"solver": "convex", "dev_share": 0.1}}
RESAMPLES = 2000
# Figure → what is said of it; the floors are measured on the same chains.
FIGURES = {"step_accuracy": "StepAcc (three ratings)", "step_accuracy_binary": "steps told right or wrong",
           "accuracy": "FirstErrAcc", "first_error_f1": "first-error F1", "auroc": "AUROC of steps"}
FLOORS = {"random": "a uniform guess", "silent": "always right", "ceiling": "best that two ratings can say"}
Source = dict[str, list[LabelledChain]]


def prm800k(path: Path) -> Source:
    """Problem → its chains that fit."""
    found: Source = defaultdict(list)
    for chain in FORMATS["prm800k_flat"].read(path):
        if len(chain.prompt) + sum(len(step.text) for step in chain.steps) <= MOST_CHARACTERS:
            found[chain.prompt].append(chain)
    return dict(found)


def errands(workspace: Path, split: str, policy: str = "base") -> Source:
    """Problem → one of the runs that the evaluation of a workspace measured, with the oracle's verdicts."""
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, workspace / f"data/{split}.jsonl")}
    found: Source = {}
    for run in store.read_shards(Trajectory, workspace / "artifacts/evaluate/trajectories"):
        if run.id.startswith(f"{split}-{policy}/") and run.steps:
            problem = problems[run.problem_id]
            verdicts = ORACLES[problem.domain](problem, run.steps)
            found.setdefault(problem.prompt, [LabelledChain(problem.prompt, run.steps, tuple(map(float, verdicts)))])
    return found


def held_out(source: Source, seed: int) -> tuple[Source, list[LabelledChain]]:
    """The source less some problems, and a chain of each of those whose first wrong step, or its absence, is known."""
    order = random.Random(seed)
    problems = list(source)
    order.shuffle(problems)
    chosen: list[LabelledChain] = []
    gone = set()
    for problem in problems:
        known = [chain for chain in source[problem] if chain.first_error is not None]
        if known and len(chosen) < HELD_OUT:
            chosen.append(order.choice(known))
            gone.add(problem)
    return {problem: chains for problem, chains in source.items() if problem not in gone}, chosen


def train(chains: Sequence[LabelledChain], base: Path, folder: Path) -> dict[str, Any]:
    """A reward model by `prm train`, in `folder`/prm; what its `training.json` says. One that is there stays."""
    out = folder / "prm"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        FORMAT.write(folder / "train.jsonl", labelled_once(chains))
        store.write_text(folder / "profile.yaml", json.dumps(PROFILE))
        subprocess.run([sys.executable, "-m", "prm_core.cli", "train", str(folder / "train.jsonl"), "--format",
                        FORMAT.name, "--profile", str(folder / "profile.yaml"), "--backbone", str(base), "--out",
                        str(out), "--workspace", str(folder)], check=True)
    told = store.read_json(out / "training.json")
    return {name: told[name] for name in ("precision", "counts", "held_out")}


def score(scorers: Sequence[RewardScorer], name: str, chains: Sequence[BenchmarkChain]) -> list[ScoredFile]:
    """The file as each scorer scores it, in one pass of the base that they share.

    Scores are as before moderation: a threshold that was chosen on other text compares with those.
    """
    first, *others = scorers
    rows: list[list[ChainScore]] = [[] for _ in scorers]
    for chain in track(chains, f"scoring {name}", unit="chain"):
        for row, said in zip(rows, first.score_with(others, [(chain.prompt, chain.steps)]), strict=True):
            row += said
    return [ScoredFile(name, chains, [tuple(unmoderated(said.step_scores) if said.out_of_domain else said.step_scores)
                                      for said in row], sum(said.truncated_steps > 0 for said in row),
                       sum(said.truncated_steps for said in row)) for row in rows]


def figures(file: ScoredFile, threshold: float) -> dict[str, dict[str, float]]:
    """`<model>/<figure>` → value, low, high in percent."""
    measured, _ = suite.measure_files(PROTOCOL, [file], threshold, RESAMPLES, 0)
    wanted = {f"{model}/{name}" for model in ("prm", *FLOORS) for name in FIGURES}
    return {key: {part: 100 * getattr(estimate, part) for part in ("value", "low", "high")}
            for key, estimate in measured[0].estimates.items() if key in wanted}


def bars(found: Sequence[dict[str, dict[str, float]]]) -> Iterator[Bar]:
    """Of each figure the median seed and the worst, each with its interval over tasks, then the floors."""
    for name, what in FIGURES.items():
        rows = sorted((one[f"prm/{name}"] for one in found), key=lambda row: row["value"])
        for which, row in (("median", rows[(len(rows) - 1) // 2]), ("worst", rows[0])):
            yield Bar(f"{what}, %, {which} of {len(rows)} seeds", row["value"], row["low"], row["high"], "reported",
                      True)
        for model, said in FLOORS.items():
            if f"{model}/{name}" in found[0]:
                row = found[0][f"{model}/{name}"]
                yield Bar(f"{what}, %, {said}", row["value"], row["low"], row["high"], "beside it", True)


def drawn(sources: dict[str, Source], seed: int) -> list[LabelledChain]:
    """A seed's training chains."""
    order = random.Random(f"train {seed}")
    problems = [chains for name, source in sources.items()
                for chains in order.sample(list(source.values()), min(DRAWN[name], len(source)))]
    return [chain for chains in problems for chain in order.sample(chains, min(CHAINS, len(chains)))]


def main() -> None:
    """Trains what is not there yet, measures, writes and prints the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agentprocessbench")
    parser.add_argument("file", type=Path, help="AgentProcessBench's JSON lines, or any in its format")
    parser.add_argument("--base", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--prm800k", type=Path, required=True, help="phase 1, in the format prm800k_flat")
    parser.add_argument("--runs", type=Path, required=True, help="a finished run of the profile agents")
    parser.add_argument("--work", type=Path, required=True, help="folder for models; those there are not trained again")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    sources, kept = {}, {}
    for name, source in (("prm800k", prm800k(given.prm800k)), ("errands", errands(given.runs, "test"))):
        sources[name], kept[name] = held_out(source, 0)
    given.work.mkdir(parents=True, exist_ok=True)
    for name, chains in kept.items():
        FORMAT.write(given.work / f"{name}.jsonl", chains)
    training = [train(drawn(sources, seed), given.base, given.work / f"seed-{seed}") for seed in range(given.seeds)]
    scorers = [load_scorer(given.work / f"seed-{seed}/prm") for seed in range(given.seeds)]
    dev = {name: score(scorers, name, PROTOCOL.read(given.work / f"{name}.jsonl")) for name in kept}
    test = score(scorers, given.file.name, PROTOCOL.read(given.file))
    found, beside = [], []
    for seed, file in enumerate(test):
        both = [files[seed] for files in dev.values()]
        threshold, best = PROTOCOL.choose(both)
        found.append({"threshold": threshold, "there": best, "figures": figures(file, threshold)})
        # What it would be with either source alone, or the best there is in hindsight.
        others = {**{name: [files[seed]] for name, files in dev.items()}, "hindsight": [file]}
        beside.append({name: figures(file, PROTOCOL.choose(files)[0]) for name, files in others.items()})
    write(given, [*bars([one["figures"] for one in found])], chains=len(test[0].chains),
          tasks=test[0].problems, truncated_chains=test[0].truncated, unscored_steps=test[0].unscored,
          training=training, seeds=found, thresholds_from_elsewhere=beside,
          cpu_minutes=round(sum(os.times()[:4]) / 60, 1))


if __name__ == "__main__":
    main()
