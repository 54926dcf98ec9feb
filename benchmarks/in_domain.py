"""How well a reward model tells text that it cannot judge, over seeds of its training.

    python -m benchmarks.in_domain --workspace . --gsm8k train.jsonl --out benchmarks/results/in_domain.json

On the labels of a finished default run the PRM is trained anew with each seed. Alarms on test chains of the base policy
are false; GSM8K's problems, random words, and the domain's own words shuffled should raise one. The limits come from
the training chains, so that no set here had a part in them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import re
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.platform import store
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.domain import fit_domain
from prm_core.scoring.scorer import RewardScorer
from prm_core.stages.base import model_path
from prm_core.training.examples import build_examples
from prm_core.training.reward.recipe import train_on
from prm_core.types import Problem, Step, StepLabel, Trajectory

Chain = tuple[str, tuple[Step, ...]]
CHAINS = 300
BAR_FALSE, BAR_FOUND = 2.0, 95.0


def read_gsm8k(path: Path) -> list[Chain]:
    """Questions with their worked solutions, a line a step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["question"], tuple(Step(re.sub("<<.*?>>", "", line)) for line in row["answer"].splitlines()
                                    if line.strip())) for row in rows]


def shuffled(words: Sequence[str], rng: random.Random) -> Chain:
    """Twenty words as a question, and three steps of eight."""
    def draw(count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count))

    return draw(20), tuple(Step(draw(8)) for _ in range(3))


def train(workspace: Path, config: Config) -> RewardScorer:
    """A PRM of the configuration's seed on the workspace's labels, with its domain."""
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, workspace / "data/train.jsonl")}
    trajectories = store.read_shards(Trajectory, workspace / "artifacts/generate/trajectories")
    labels = store.read_shards(StepLabel, workspace / "artifacts/calibrate/training_set")
    examples = build_examples("process", problems, trajectories, labels, soft=config.train_prm.labels == "soft")
    with tempfile.TemporaryDirectory(prefix="prm-in-domain-") as work:
        trained = train_on("process", model_path(workspace, config.models.reward_backbone), examples, [], config,
                           work=Path(work), report=lambda *_: None)
    known = [(example.problem_id, example.prompt, example.steps) for example in examples]
    domain = fit_domain(trained.model, trained.encoder, known)
    return RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "", config.serve.batch_size, domain)


def flagged(scorer: RewardScorer, chains: Sequence[Chain]) -> float:
    """Share of the chains that fit the context which the model says it cannot judge, in per cent."""
    encoded = [scorer.encoder.encode(prompt, steps, may_be_empty=True) for prompt, steps in chains]
    scores = scorer.score_encoded([chain for chain in encoded if not chain.truncated_steps])
    return 100 * statistics.mean(bool(score.out_of_domain) for score in scores)


def main() -> None:
    """Trains, measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.in_domain")
    parser.add_argument("--workspace", type=Path, default=Path(), help="where the default profile has run")
    parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl of GSM8K")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    config = configuration.load(given.workspace)
    rng = random.Random(0)
    prompts = {problem.id: problem.prompt for problem in store.read_jsonl(Problem, given.workspace / "data/test.jsonl")}
    evaluated = store.read_shards(Trajectory, given.workspace / "artifacts/evaluate/trajectories")
    own = [(prompts[row.problem_id], row.steps) for row in evaluated if row.id.startswith("test-base") and row.steps]
    foreign = rng.sample(read_gsm8k(given.gsm8k), CHAINS)
    sets = {
        "test chains of the base policy (false alarms)": rng.sample(own, min(len(own), 1000)),
        "GSM8K": foreign,
        "random words": [shuffled([word for question, _ in foreign for word in question.split()], rng)
                         for _ in range(CHAINS)],
        "own words shuffled": [shuffled([word for question, _ in own for word in question.split()], rng)
                               for _ in range(CHAINS)],
    }
    shares: dict[str, list[float]] = {name: [] for name in sets}
    for seed in range(given.seeds):
        scorer = train(given.workspace, dataclasses.replace(config, seed=seed))
        for name, chains in sets.items():
            shares[name].append(flagged(scorer, chains))
    bars = []
    for number, (name, found) in enumerate(shares.items()):
        worst, asked = (max(found), f"<= {BAR_FALSE}") if number == 0 else (min(found), f">= {BAR_FOUND}")
        holds = worst <= BAR_FALSE if number == 0 else worst >= BAR_FOUND
        bars.append(Bar(f"{name}: told as foreign, %, median (bar on the worst seed)", statistics.median(found),
                        min(found), max(found), asked, holds))
    write(given, bars, by_seed=shares)


if __name__ == "__main__":
    main()
