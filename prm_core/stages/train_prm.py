"""Stage train_prm: process, outcome and process-advantage reward models on the same chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, StepLabel, StepPreference, Trajectory

if TYPE_CHECKING:
    from prm_core.labeling.human.labels import HumanData
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.scorer import RewardScorer
    from prm_core.training.examples import Example

MODELS = {"prm": "process", "orm": "outcome", "pav": "advantage"}


def run(config: Config, io: StageIO) -> None:
    """Trains the models, calibrates their scores and saves them as folders `load_scorer` reads."""
    from prm_core.labeling.human.labels import read_human
    from prm_core.platform.tracking import stage_run
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.domain import fit_domain
    from prm_core.scoring.prover import advantage_figures
    from prm_core.scoring.scorer import RewardScorer, save_reward_model
    from prm_core.training.examples import build_examples, build_pairs, build_values
    from prm_core.training.reward.recipe import train_on

    problems = {problem.id: problem for problem in store.read_jsonl(Problem, io.inputs["problems"])}
    trajectories = store.read_shards(Trajectory, io.inputs["trajectories"])
    labels = store.read_shards(StepLabel, io.inputs["training_set"])
    human = read_human(io.inputs["human"])
    soft = config.train_prm.labels == "soft"
    examples = {name: build_examples(kind, problems, trajectories, labels, soft=soft)
                for name, kind in MODELS.items() if kind != "advantage"}
    examples["pav"] = build_values(problems, trajectories, store.read_shards(StepLabel, io.inputs["labels"]))
    pairs = {"pav": build_pairs(problems, store.read_shards(StepPreference, io.inputs["preferences"]))}
    backbone = model_path(io.workspace, config.models.reward_backbone)
    metrics: dict[str, float] = {"train/prm/labels": len(labels)}
    curves = {}
    with stage_run(io.workspace, "train_prm", config, io.inputs) as tracked:
        for name, kind in MODELS.items():
            trained = train_on(kind, backbone, examples[name], pairs.get(name, []), config, work=io.work / name,
                               report=tracked.log_metrics, name=config.models.reward_backbone,
                               outcomes=examples["orm"] if kind == "process" else ())
            curves[name] = trained.history
            scorer = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "",
                                  config.serve.batch_size)
            calibrator = calibrate_scores(scorer, trained.dev, config, human)
            if kind == "advantage":
                scores = scorer.score([(example.prompt, example.steps) for example in trained.dev])
                values = [(score.prompt_score, *score.step_scores) for score in scores if score.step_scores]
                figures = advantage_figures(values, config.train_prm.prover_samples)
                metrics |= {f"dev/{name}/{what}": value for what, value in figures.items()}
            domain = fit_domain(trained.model, trained.encoder,
                                [(example.problem_id, example.prompt, example.steps) for example in examples[name]])
            save_reward_model(trained.model, trained.encoder, calibrator, io.outputs[name], domain)
            metrics |= {
                f"dev/{name}/loss": min(record["dev_loss"] for record in trained.history),
                f"dev/{name}/calibration_labels": calibrator.labels,
                **{f"train/{name}/{what}": count for what, count in trained.counts.items()},
            }
        tracked.log_metrics(metrics)
        tracked.tag("precision", str(trained.model.precision))
        tracked.note_output(io.outputs["prm"])
    store.write_json(io.outputs["history"], curves)
    store.write_json(io.outputs["metrics"], metrics)


def calibrate_scores(scorer: RewardScorer, dev: list[Example], config: Config, human: HumanData) -> Calibrator:
    """The map from raw scores to probabilities, fitted on chains the model was not trained on.

    A process model: on the steps of the human-labelled chains, up to each chain's first error. An outcome model: on
    the outcomes of its own dev chains. An advantage model's values are frequencies already and stay as they are.
    """
    from prm_core.labeling.human.labels import human_verdicts
    from prm_core.scoring.calibration import Calibrator, fit_calibrator

    if scorer.kind == "advantage":
        return Calibrator("identity", 0)
    if scorer.kind == "outcome":
        known = [example for example in dev if example.targets[0] == example.targets[0]]
        scores = scorer.score([(example.prompt, example.steps) for example in known])
        # A chain that outgrew the context has none.
        raw = [score.raw_scores[0] for score in scores if score.raw_scores]
        outcomes = [example.targets[0] == 1 for example, score in zip(known, scores, strict=True) if score.raw_scores]
    else:
        prompts = {problem.id: problem.prompt for problem in human.problems}
        scores = scorer.score([(prompts[t.problem_id], t.steps) for t in human.trajectories])
        by_step = {
            (t.id, index): value
            for t, score in zip(human.trajectories, scores, strict=True)
            for index, value in enumerate(score.raw_scores)
        }
        pairs = [(by_step[key], right) for key, right in human_verdicts(human.labels).verdicts.items()
                 if key in by_step]
        raw, outcomes = [value for value, _ in pairs], [right for _, right in pairs]
    return fit_calibrator(raw, outcomes, config.calibrate.method, config.calibrate.min_labels)


STAGE = Stage(
    inputs={
        "training_set": "artifacts/calibrate/training_set",
        "labels": "artifacts/label/labels",
        "preferences": "artifacts/label/preferences",
        "trajectories": "artifacts/generate/trajectories",
        "problems": "data/train.jsonl",
        "human": "data/human",
        "models": "artifacts/warmup/models",
    },
    outputs={
        "prm": "artifacts/train_prm/prm",
        "orm": "artifacts/train_prm/orm",
        "pav": "artifacts/train_prm/pav",
        "history": "artifacts/train_prm/history.json",
        "metrics": "artifacts/train_prm/metrics.json",
    },
    params=("seed", "models", "encoder", "calibrate", "train_prm"),
    run=run,
)
