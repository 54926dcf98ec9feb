"""What a finished chain shows, as flat figures; and the PRM from oracle labels that its own is measured by.

    python -m benchmarks.robustness_figures WORKSPACE      trains and measures that PRM in a workspace

The oracle's PRM is trained by the stage train_prm itself, on the same chains, its training set alone replaced; it is
measured on the chains that the stage evaluate sampled.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prm_embedded import oracle_labels
from prm_core import config as configuration
from prm_core.config import Config
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.evaluation import metrics, protocol
from prm_core.evaluation.judged_chains import Chain, first_per_problem, load_chains, score_with_prm
from prm_core.evaluation.label_quality import MERGED
from prm_core.evaluation.metrics import Bootstrap
from prm_core.platform import store
from prm_core.scoring.scorer import ChainScorer, load_scorer
from prm_core.search import selection
from prm_core.stages.base import StageIO, load_stage
from prm_core.types import Problem, StepLabel, Trajectory

Record = dict[str, Any]
# The step after the stages: what it is called, and the figures that it leaves in the workspace.
ORACLE, ORACLE_FILE = "oracle", "oracle.json"
SPLITS = ("test", "shifted")
# Figure of a split → key of the evaluation's metrics.
EVALUATED = {
    "prm_f1": "prm/first_error_f1", "ece": "prm/ece", "base_pass_at_1": "policy_base/pass_at_1",
    "trained_pass_at_1": "policy_trained/pass_at_1", "random_f1": "random/first_error_f1",
    "base_sound": "policy_base/sound_accuracy", "trained_sound": "policy_trained/sound_accuracy",
    "base_lucky": "policy_base/wrong_step_right_answer", "trained_lucky": "policy_trained/wrong_step_right_answer",
    "base_calls_right": "policy_base/tool_call_accuracy", "trained_calls_right": "policy_trained/tool_call_accuracy",
    "base_turns": "policy_base/mean_steps", "trained_turns": "policy_trained/mean_steps",
}
# Ways to choose among N chains → the evaluation's names of them.
CHOSEN = {"prm": "prm_best_of_n", "orm": "orm_best_of_n", "majority": "majority", "promoted": "combined_best_of_n"}
# Shares of one that are given as such; all others are in percent.
AS_SHARES = ("ece", "base_turns", "trained_turns")


def collect(workspace: Path, config: Config) -> dict[str, float]:
    """The figures of a chain that has run to its end, shares in percent but for ECE. What is undefined is left out.

    `<split>/prm_f1`, `/oracle_f1` (of the PRM from oracle labels), `/ece`, and of the base and the trained policy
    `/base_pass_at_1`, `/base_lucky` (of right answers, those with a wrong step), `/base_calls_right`, `/base_turns`;
    `/<prm, orm, majority, promoted, oracle, oracle_promoted>_at_<N>`; `backbone_pass_at_1`; `labels/<strategy>/f1` on
    the policy's own chains; `label_error` as the chain reports it with `_low` and `_high`, and `label_error_true`.
    """
    measured = store.read_json(workspace / "artifacts/evaluate/metrics.json")
    warmup = store.read_json(workspace / "artifacts/warmup/metrics.json")
    label = store.read_json(workspace / "artifacts/label/metrics.json")
    found = {"backbone_pass_at_1": 100 * warmup["dev/backbone/pass_at_1"],
             "label_error_true": 100 * true_label_error(workspace)}
    for split in SPLITS:
        keys = EVALUATED | {f"{name}_at_{n}": f"{method}/accuracy_at_{n}" for name, method in CHOSEN.items()
                            for n in config.evaluate.best_of}
        found |= {f"{split}/{name}": _scaled(name, measured[f"{split}/{key}"]) for name, key in keys.items()
                  if f"{split}/{key}" in measured}
    found |= {f"labels/{name}/f1": 100 * measured[key] for name in (*config.label.strategies, MERGED)
              if (key := f"labels/{name}/first_error_f1") in measured}
    found |= {f"label_error{end}": 100 * label[key] for end in ("", "_low", "_high")
              if (key := f"train/{MERGED}/label_error{end}") in label}
    return found | store.read_json(workspace / ORACLE_FILE)


def _scaled(name: str, value: float) -> float:
    return value if name in AS_SHARES else 100 * value


def true_label_error(workspace: Path) -> float:
    """Share of the generated chains whose first error, or its absence, the merged labels state wrongly."""
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, workspace / "data/train.jsonl")}
    chains = store.read_shards(Trajectory, workspace / "artifacts/generate/trajectories")
    merged = store.read_shards(StepLabel, workspace / "artifacts/label/merged")
    return label_error(chains, problems, merged)


def label_error(
    chains: Iterable[Trajectory], problems: Mapping[str, Problem], merged: Iterable[StepLabel]
) -> float:
    """Share of chains for which the first step that is labelled wrong is not the oracle's first error."""
    said: dict[str, int] = {}
    for row in merged:
        if row.is_correct is False:
            said[row.trajectory_id] = min(row.step_index, said.get(row.trajectory_id, row.step_index))
    missed = []
    for chain in chains:
        problem = problems[chain.problem_id]
        missed.append(said.get(chain.id, -1) != first_error(ORACLES[problem.domain](problem, chain.steps)))
    return sum(missed) / len(missed)


def train_on_oracle(workspace: Path, config: Config, folder: Path) -> Path:
    """The PRM that stage train_prm makes of the oracle's labels of the chains in the training set; its folder."""
    stage = load_stage("train_prm")
    inputs = {name: workspace / path for name, path in stage.inputs.items()}
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, inputs["problems"])}
    labelled = {row.trajectory_id for row in store.read_shards(StepLabel, inputs["training_set"])}
    gold = [dataclasses.replace(row, value=float(bool(row.is_correct)))
            for chain in store.read_shards(Trajectory, inputs["trajectories"]) if chain.id in labelled
            for row in oracle_labels(problems[chain.problem_id], chain)]
    inputs["training_set"] = folder / "training_set"
    store.write_shard(inputs["training_set"], 0, StepLabel, gold)
    outputs = {name: folder / path for name, path in stage.outputs.items()}
    for path in (*outputs.values(), folder / "work/here"):
        path.parent.mkdir(parents=True, exist_ok=True)
    stage.run(config, StageIO(inputs, outputs, folder / "work", workspace))
    return outputs["prm"]


def measure(workspace: Path, config: Config, scorer: ChainScorer, work: Path) -> dict[str, float]:
    """Of a PRM, in percent: `<split>/oracle_f1`, its threshold chosen on dev chains, `<split>/oracle_at_<N>` and
    `<split>/oracle_promoted_at_<N>`."""
    evaluated = workspace / "artifacts/evaluate"
    asked = {trajectory.problem_id for trajectory in store.read_shards(Trajectory, evaluated / "trajectories")}
    problems = {split: [problem for problem in store.read_jsonl(Problem, workspace / f"data/{split}.jsonl")
                        if problem.id in asked] for split in ("dev", *SPLITS)}
    tags = {f"{split}-{policy}": split for split in problems for policy in ("base", "trained")}
    chains = load_chains(evaluated / "trajectories", evaluated / "scores.jsonl",
                         {tag: problems[split] for tag, split in tags.items()})
    scored = {split: score_with_prm(scorer, chains[f"{split}-base"], problems[split], config.evaluate.aggregate,
                                    work / split) for split in problems}
    threshold, _ = protocol.choose_threshold(scored["dev"], config.serve.threshold)
    found = {}
    for split in SPLITS:
        found |= {f"{split}/oracle_f1": 100 * first_error_f1(scored[split], len(problems[split]), threshold)}
        for n in config.evaluate.best_of:
            found |= {f"{split}/oracle_at_{n}": 100 * best_of(scored[split], n, lambda chain: chain.prm_score),
                      f"{split}/oracle_promoted_at_{n}": 100 * best_of(scored[split], n,
                                                                      lambda chain: chain.combined_score)}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def first_error_f1(chains: list[Chain], problems: int, threshold: float) -> float:
    """F1 of the chains that the evaluation's step figures are of; NaN where it is undefined."""
    table = protocol.step_table(first_per_problem(chains, protocol.STEP_CHAINS))
    tally = metrics.prm_tally(table.compared, table.gold, table.problem, problems, threshold)
    return Bootstrap(problems, 1, 0).draws(tally.f1)[0]


def best_of(chains: list[Chain], n: int, score: Callable[[Chain], float | None]) -> float:
    """Accuracy of the chain that scores best of n, mean over problems."""
    groups: dict[int, list[Chain]] = {}
    for chain in chains:
        groups.setdefault(chain.problem, []).append(chain)
    return float(np.mean([selection.best_of_n([score(chain) for chain in group], [chain.right for chain in group], n)
                          for group in groups.values()]))


def main() -> None:
    """Trains and measures the PRM from oracle labels in the workspace given."""
    workspace = Path(sys.argv[1])
    config = configuration.load(workspace)
    # Below the workspace, where a model that is saved without its backbone finds it.
    with tempfile.TemporaryDirectory(dir=workspace) as name:
        model = train_on_oracle(workspace, config, Path(name))
        scorer = load_scorer(model, device=config.models.device, batch_size=config.serve.batch_size)
        store.write_json(workspace / ORACLE_FILE, measure(workspace, config, scorer, Path(name) / "scores"))


if __name__ == "__main__":
    main()
