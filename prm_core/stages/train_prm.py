"""Stage train_prm: the process reward model, and the outcome reward model beside it on the same chains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prm_core import store
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, StepLabel, Trajectory

if TYPE_CHECKING:
    from prm_core.models.calibration import Calibrator
    from prm_core.models.scorer import RewardScorer
    from prm_core.training.reward import Example

KINDS = {"process": "prm", "outcome": "orm"}


def run(config: Config, io: StageIO) -> None:
    """Trains both models, calibrates their scores and saves them as folders `load_scorer` reads."""
    from prm_core.models.calibration import Calibrator
    from prm_core.models.encoder import Encoder
    from prm_core.models.loading import load_tokenizer, pick_device
    from prm_core.models.reward import RewardModel
    from prm_core.models.scorer import RewardScorer, save_reward_model
    from prm_core.tracking import stage_run
    from prm_core.training.examples import build_examples, split_by_problem
    from prm_core.training.reward import encode_examples, train_reward_model

    problems = {problem.id: problem for problem in store.read_jsonl(Problem, io.inputs["problems"])}
    trajectories = store.read_shards(Trajectory, io.inputs["trajectories"])
    labels = store.read_shards(StepLabel, io.inputs["training_set"])
    backbone = model_path(io.workspace, config.models.reward_backbone)
    encoder = Encoder(load_tokenizer(backbone), config.encoder)
    metrics: dict[str, float] = {"train/prm/labels": len(labels)}
    curves = {}
    with stage_run(io.workspace, "train_prm", config) as tracked:
        for kind, name in KINDS.items():
            examples = build_examples(kind, problems, trajectories, labels, soft=config.train_prm.labels == "soft")
            if len({example.problem_id for example in examples}) < 2:
                raise InputError(f"the training set has chains of {len({e.problem_id for e in examples})} problem(s); "
                                 "training and dev need one each: generate more, or lower calibrate.min_confidence")
            train, dev = split_by_problem(examples, config.train_prm.dev_share, config.seed)
            encoded, lost = encode_examples(encoder, train, kind)
            dev_encoded, _ = encode_examples(encoder, dev, kind)
            model = RewardModel.from_backbone(
                backbone, kind=kind, surprisal=config.models.surprisal, encoder=config.encoder.model_dump(),
                dtype=config.models.dtype, device=str(pick_device(config.models.device)), seed=config.seed,
            )
            curves[name] = train_reward_model(model, encoder, encoded, dev_encoded, config.train_prm,
                                              seed=config.seed, work=io.work / name, report=tracked.log_metrics)
            scorer = RewardScorer(model, encoder, Calibrator("identity", 0), "", config.train_prm.batch_size)
            calibrator = calibrate_scores(scorer, dev, config, io)
            save_reward_model(model, encoder, calibrator, io.outputs[name])
            metrics |= {
                f"train/{name}/chains": len(encoded),
                f"dev/{name}/chains": len(dev_encoded),
                f"dev/{name}/loss": min(record["dev_loss"] for record in curves[name]),
                f"dev/{name}/calibration_labels": calibrator.labels,
                **{f"train/{name}/{what}": count for what, count in lost.items()},
            }
        tracked.log_metrics(metrics)
    store.write_json(io.outputs["history"], curves)
    store.write_json(io.outputs["metrics"], metrics)


def calibrate_scores(scorer: RewardScorer, dev: list[Example], config: Config, io: StageIO) -> Calibrator:
    """The map from raw scores to probabilities, fitted on chains the model was not trained on.

    A process model: on the steps of the human-labelled chains, up to each chain's first error. An outcome model: on
    the outcomes of its own dev chains.
    """
    from prm_core.labeling.human import human_verdicts, read_human
    from prm_core.models.calibration import fit_calibrator

    if scorer.kind == "outcome":
        known = [example for example in dev if example.targets[0] == example.targets[0]]
        scores = scorer.score([(example.prompt, example.steps) for example in known])
        raw = [score.raw_scores[0] for score in scores]
        outcomes = [example.targets[0] == 1 for example in known]
    else:
        human = read_human(io.inputs["human"])
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
        "trajectories": "artifacts/generate/trajectories",
        "problems": "data/train.jsonl",
        "human": "data/human",
        "models": "artifacts/warmup/models",
    },
    outputs={
        "prm": "artifacts/train_prm/prm",
        "orm": "artifacts/train_prm/orm",
        "history": "artifacts/train_prm/history.json",
        "metrics": "artifacts/train_prm/metrics.json",
    },
    params=("seed", "models", "encoder", "calibrate", "train_prm"),
    run=run,
)
