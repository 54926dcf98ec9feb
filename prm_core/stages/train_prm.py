"""Stage train_prm: process, outcome and process-advantage reward models on the same chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory

if TYPE_CHECKING:
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.domain import Domain
    from prm_core.scoring.scorer import RewardScorer
    from prm_core.training.examples import Example

MODELS = {"prm": "process", "orm": "outcome", "pav": "advantage"}


def run(config: Config, io: StageIO) -> None:
    """Trains the models, calibrates their scores and saves them as folders `load_scorer` reads."""
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
    soft = config.train_prm.labels == "soft"
    examples = {name: build_examples(kind, problems, trajectories, labels, soft=soft)
                for name, kind in MODELS.items() if kind != "advantage"}
    examples["pav"] = build_values(problems, trajectories, store.read_shards(StepLabel, io.inputs["labels"]))
    pairs = {"pav": build_pairs(problems, store.read_shards(StepPreference, io.inputs["preferences"]))}
    backbone = model_path(io.workspace, config.models.reward_backbone)
    metrics: dict[str, float] = {"train/prm/labels": len(labels)}
    curves = {}
    domains: dict[tuple[tuple[str, str, Sequence[Step]], ...], Domain] = {}
    with stage_run(io.workspace, "train_prm", config, io.inputs) as tracked:
        for name, kind in MODELS.items():
            trained = train_on(kind, backbone, examples[name], pairs.get(name, []), config, work=io.work / name,
                               report=tracked.log_metrics, name=config.models.reward_backbone,
                               outcomes=examples["orm"] if kind == "process" else ())
            curves[name] = trained.history
            scorer = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "",
                                  config.serve.batch_size)
            calibrator = calibrate_scores(scorer, trained.dev, config)
            if kind == "advantage":
                scores = scorer.score([(example.prompt, example.steps) for example in trained.dev])
                values = [(score.prompt_score, *score.step_scores) for score in scores if score.step_scores]
                figures = advantage_figures(values, config.train_prm.prover_samples)
                metrics |= {f"dev/{name}/{what}": value for what, value in figures.items()}
            known = tuple((example.problem_id, example.prompt, example.steps) for example in examples[name])
            # Models that leave one backbone as it is see the same chains alike.
            if trained.model.base is None or known not in domains:
                domains[known] = fit_domain(trained.model, trained.encoder, known)
            domain = domains[known]
            save_reward_model(trained.model, trained.encoder, calibrator, io.outputs[name], domain)
            if kind == "process":
                said = RewardScorer(trained.model, trained.encoder, calibrator, "", config.serve.batch_size, domain)
                metrics |= {f"human/{name}/{what}": value
                            for what, value in _by_people(said, config, io, problems, trajectories).items()}
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


def _by_people(
    scorer: RewardScorer, config: Config, io: StageIO, problems: Mapping[str, Problem],
    trajectories: Sequence[Trajectory],
) -> dict[str, float]:
    """How the calibrated scores hold on the chains people judged, none of which anything here was trained on."""
    from prm_core.labeling.calibrate import measure_scores
    from prm_core.labeling.human.labels import chain_digests, read_human
    from prm_core.labeling.human.population import other_authors

    human = read_human(io.inputs["human"])
    asked = {**problems, **{problem.id: problem for problem in human.problems}}
    digests, judged = (chain_digests(chains, asked) for chains in (trajectories, human.trajectories))
    scores = scorer.score([(asked[chain.problem_id].prompt, chain.steps) for chain in human.trajectories])
    return measure_scores(
        {chain.id: score.step_scores for chain, score in zip(human.trajectories, scores, strict=True)}, human.labels,
        other_authors(human.trajectories, judged, trajectories, digests.values()), config.calibrate.bins)


def calibrate_scores(scorer: RewardScorer, dev: list[Example], config: Config) -> Calibrator:
    """The map from raw scores to probabilities, fitted on the policy's own chains that the model was not trained on.

    A process model: on the targets of their steps, which end at a chain's first error; one that is a probability counts
    as right by it and as wrong by the rest. An outcome model: on their outcomes. An advantage model's values are
    frequencies already and stay as they are.
    """
    from prm_core.scoring.calibration import Calibrator, fit_calibrator

    if scorer.kind == "advantage":
        return Calibrator("identity", 0)
    scores = scorer.score([(example.prompt, example.steps) for example in dev])
    # A chain that outgrew the context has fewer scores than targets; a target that is NaN is none.
    pairs = [(raw, target) for example, score in zip(dev, scores, strict=True)
             for raw, target in zip(score.raw_scores, example.targets, strict=False) if target == target]
    raw, targets = [value for value, _ in pairs], [target for _, target in pairs]
    return fit_calibrator(raw, targets, config.calibrate.method, config.calibrate.min_labels)


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
    shared=True,
)
