"""A workspace whose tiny reward model serves: the chain's own data and chains as its stages leave them, a registered
champion, and traffic, outcomes and answers to adapt it by."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from prm_core import config as configuration
from prm_core.adaptation import loop
from prm_core.adaptation.rounds import REVIEW, home
from prm_core.config import Config
from prm_core.domains import DOMAINS, arithmetic, make_trajectory
from prm_core.domains.oracle import ORACLES
from prm_core.platform import store, tracking
from prm_core.review.files import Answer
from prm_core.review.importing import import_answers
from prm_core.review.session import HUMAN, QUEUE, generated
from prm_core.serving import model_registry
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import Outcome, tell, trajectory_id
from prm_core.serving.drift.samples import sample
from prm_core.serving.drift.watch import SAMPLES
from prm_core.types import Problem, Step, StepLabel, Trajectory
from tests import ROOT

NOW = 1_790_100_000.0
BEGIN = 1_790_000_000.0


def solved(problem: Problem, name: str, wrong: int | None, policy: str = "test") -> Trajectory:
    """The worked solution; at step `wrong` and in what follows from it the number is one too many."""
    texts = list(problem.meta["solution"])
    if wrong is not None:
        parsed = arithmetic.parse_step(texts[wrong])
        assert parsed is not None
        texts[wrong] = texts[wrong].replace(f"= {parsed.result}.", f"= {parsed.result + 1}.")
        texts[-1] = "The answer is 99."
    return make_trajectory(DOMAINS[problem.domain], problem, texts, trajectory_id=name, policy=policy, seed=0)


def some(split: str, count: int, seed: int = 0) -> list[tuple[Problem, Trajectory]]:
    """Problems, every other one solved with a wrong step."""
    problems = arithmetic.make_problems(split, count, seed)
    rng = random.Random(f"{split}/{seed}")
    return [(one, solved(one, f"{split}-base/{one.id}/0", rng.randrange(len(one.meta["events"])) if n % 2 else None))
            for n, one in enumerate(problems)]


def make_workspace(folder: Path, **adapt: Any) -> tuple[Path, Config]:
    """With a champion of the tracking store's `prm`, and no traffic yet."""
    raw = configuration.read_yaml(ROOT / "params.yaml")
    raw |= {"drift": {"texts": True, "min_questions": 10}, "promote": {**raw["promote"], "max_ece": 1.0},
            "adapt": {"min_trajectories": 20, "min_labels": 4, "review_share": 0.2, "max_old_fall": 1.0, **adapt},
            "probe": {**raw["probe"], "suffix_chains": 0}, "evaluate": {**raw["evaluate"], "bootstrap": 100},
            "train_prm": {**raw["train_prm"], "committee": 2, "nonsense_steps": 0.0, "harmless_steps": 0.0},
            "calibrate": {**raw["calibrate"], "min_labels": 10}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    splits = {split: some(split, count) for split, count in (("train", 30), ("dev", 8), ("test", 16))}
    for split, pairs in splits.items():
        store.write_jsonl(folder / f"data/{split}.jsonl", [problem for problem, _ in pairs])
    store.write_shard(folder / "artifacts/generate/trajectories", 0, Trajectory, [one for _, one in splits["train"]])
    store.write_shard(folder / "artifacts/calibrate/training_set", 0, StepLabel, [
        StepLabel(one.id, step, "merged", float(right), right, 1.0, 0, "")
        for problem, one in splits["train"] for step, right in until_wrong(problem, one.steps)])
    store.write_shard(folder / "artifacts/evaluate/trajectories", 0, Trajectory,
                      [one for split in ("dev", "test") for _, one in splits[split]])
    config = configuration.load(folder)
    _register(folder, config)
    return folder, config


def until_wrong(problem: Problem, steps: Sequence[Step]) -> list[tuple[int, bool]]:
    """(step, right) up to the first wrong one."""
    verdicts = ORACLES[problem.domain](problem, steps)
    last = next((step for step, right in enumerate(verdicts) if not right), len(verdicts))
    return list(enumerate(verdicts))[: last + 1]


def _register(folder: Path, config: Config) -> None:
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.kinds import REWARD_MODELS
    from prm_core.scoring.scorer import save_reward_model
    from tests.builders.tiny import make_encoder, make_model

    encoder = make_encoder(256)
    causal = folder / "causal"
    make_model(encoder).save_pretrained(causal)
    encoder.tokenizer.save_pretrained(causal)
    model = REWARD_MODELS["process"].from_backbone(
        str(causal), surprisal=True, encoder=dataclasses.asdict(encoder.config), dtype="float32", device="cpu")
    save_reward_model(model, encoder, Calibrator("identity", 0), folder / "champion")
    with tracking.stage_run(folder, "register", config) as run:
        model_id = model_registry.log_reward_model(folder, run.run_id, folder / "champion", config.serve)
        model_registry.add_version(folder, "prm", model_id, {
            model_registry.F1: "0.0", f"{model_registry.F1}_low": "0.0", model_registry.ECE: "0.5", "data_hash": "d"})
    tracking.connect(folder).set_registered_model_alias("prm", "champion", "1")


def serve(workspace: Path, config: Config, count: int, split: str, *, tenants: int = 2, mark: str = "") -> list[str]:
    """Traffic as the champion's server keeps it, its outcomes told; returns the trajectories' ids.

    Args:
        mark: text that the first question begins with.
    """
    rows, ends, names = [], [], []
    for number, (problem, one) in enumerate(some(split, count)):
        prompt = f"{mark}{problem.prompt}" if number == 0 else problem.prompt
        name = trajectory_id(prompt, one.steps)
        rows.append(sample(prompt, one.steps, [0.5] * len(one.steps), time=BEGIN + number, threshold=0.5, renderer=2,
                           source="models:/prm/1", version="v", texts=True, tenant=f"tenant-{number % tenants}"))
        ends.append(Outcome(name, bool(one.outcome), f"agent-{number % 3}", 1.0, BEGIN))
        names.append(name)
    folder = workspace / config.drift.folder
    stamp = f"20260921T{sum(map(ord, split)) % 24:02}0000"
    files.write(folder / SAMPLES / f"{stamp}-0-0.parquet", rows)
    tell(folder, ends)
    return names


def answer(workspace: Path, config: Config, *splits: tuple[str, int], reviewers: Sequence[str] = ("ann",)) -> int:
    """Has reviewers answer all that is asked, as the oracle would; returns how many steps that were."""
    gold = {trajectory_id(problem.prompt, one.steps): dict(until_wrong(problem, one.steps))
            for split, count in splits for problem, one in some(split, count)}
    review = home(workspace, config) / REVIEW
    rows = [row for _, row in store.read_json_lines(review / QUEUE)]
    given = [Answer("test", row["trajectory_id"], row["step_index"], row["chain"],
                    gold.get(row["trajectory_id"], {}).get(row["step_index"], True), "",
                    reviewers[number % len(reviewers)], row["chance"]) for number, row in enumerate(rows)]
    import_answers(given, review / HUMAN, generated(review))
    return len(given)


def a_round(workspace: Path, config: Config, *splits: tuple[str, int]) -> loop.Done:
    """A round from asking to the gate."""
    asked = loop.adapt(workspace, config, NOW)
    assert asked.state == loop.WAITING
    answer(workspace, config, *splits)
    return loop.adapt(workspace, config, NOW)
