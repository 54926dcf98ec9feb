"""A challenger, trained from the champion on served trajectories as they are labelled now and on the chain's own
training set again."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.adaptation.relabel import Chain, Trust, is_heard, relabel
from prm_core.adaptation.traffic import Served
from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.types import Problem, StepLabel, Trajectory

if TYPE_CHECKING:
    from prm_core.scoring.scorer import RewardScorer
    from prm_core.training.examples import Example

TRAINING_SET, GENERATED, PROBLEMS = ("artifacts/calibrate/training_set", "artifacts/generate/trajectories",
                                     "data/train.jsonl")


def settings(config: Config) -> Config:
    """The configuration that a challenger is trained by."""
    how = {"heads": {"solver": "convex", "lora_rank": 0},
           "lora": {"solver": "gradient", "lora_rank": config.adapt.lora_rank},
           "all": {"solver": "gradient", "lora_rank": 0}}[config.adapt.train]
    return dataclasses.replace(config, train_prm=dataclasses.replace(config.train_prm, **how))


def weights(chance: Mapping[str, float], most: float) -> dict[str, float]:
    """Trajectory id → how much it counts: one over its chance, in units of the likeliest one's, at most `most`. So
    trajectories that had little chance to be seen stand for those that were not."""
    top = max(chance.values(), default=1.0)
    return {name: min(top / value, most) for name, value in chance.items()}


def served_examples(
    served: Sequence[Served], chains: Mapping[str, Chain], trust: Trust, chance: Mapping[str, float], config: Config
) -> tuple[list[Example], list[Example]]:
    """Examples of steps and of outcomes, of the trajectories of which something is known but the champion's scores.

    Args:
        chance: trajectory id → chance that it is here with what is known.
    """
    from prm_core.training.examples import build_examples

    known = {name: chain for name, chain in chains.items() if name in chance}
    labels = relabel(known, trust)
    problems = {one.problem.id: one.problem for one in served}
    told = {name: {success for reporter, success in chain.outcomes if is_heard(reporter, trust)}
            for name, chain in known.items()}
    trajectories = [dataclasses.replace(one.trajectory, outcome=_one_of(told[one.trajectory.id]))
                    for one in served if one.trajectory.id in known]
    counts = weights({name: chance[name] for name in known}, config.adapt.max_weight)
    made = []
    for kind in ("process", "outcome"):
        found = build_examples(kind, problems, trajectories, labels, soft=True)
        # One example for each labelled trajectory, in their order.
        labelled = {row.trajectory_id for row in labels}
        names = [one.id for one in trajectories if one.id in labelled]
        # Beside copies with nonsense in them what is unfamiliar would pass for nonsense too.
        made.append([dataclasses.replace(example, weight=counts[name], copied=False)
                     for name, example in zip(names, found, strict=True)])
    return made[0], made[1]


def _one_of(told: Iterable[bool]) -> bool | None:
    """What all say, None where they differ or nobody says anything."""
    said = set(told)
    return said.pop() if len(said) == 1 else None


def replayed(workspace: Path, config: Config) -> tuple[list[Example], list[Example]]:
    """Examples of steps and of outcomes of the chain's own training set, of `adapt.replay` of its problems, each as
    often as `adapt.replay_weight` says.

    Raises InputError where the workspace has none.
    """
    from prm_core.training.examples import build_examples

    if not config.adapt.replay:
        return [], []
    if not (workspace / TRAINING_SET).is_dir():
        raise InputError(f"{workspace / TRAINING_SET}: is not there, and what it holds is trained again against "
                         "forgetting; run the chain here (`prm run`), or set adapt.replay to 0")
    labels = store.read_shards(StepLabel, workspace / TRAINING_SET)
    trajectories = store.read_shards(Trajectory, workspace / GENERATED)
    problems = {one.id: one for one in store.read_jsonl(Problem, workspace / PROBLEMS)}
    names = sorted({one.problem_id for one in trajectories})
    random.Random(f"replay/{config.seed}").shuffle(names)
    kept = set(names[: round(config.adapt.replay * len(names))])
    trajectories = [one for one in trajectories if one.problem_id in kept]
    ids = {one.id for one in trajectories}
    labels = [row for row in labels if row.trajectory_id in ids]
    soft = config.train_prm.labels == "soft"
    steps, ends = ([dataclasses.replace(example, weight=config.adapt.replay_weight)
                    for example in build_examples(kind, problems, trajectories, labels, soft=soft)]
                   for kind in ("process", "outcome"))
    return steps, ends


def train(
    champion: RewardScorer, steps: Sequence[Example], outcomes: Sequence[Example], config: Config, *, work: Path,
    into: Path,
) -> dict[str, float]:
    """Trains from the champion, which is changed, calibrates on what was held out of training, saves the challenger.

    Args:
        work: survives a crash.
        into: folder of the challenger, whole or not there.

    Returns what was trained on, and how well.
    """
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.domain import fit_domain
    from prm_core.scoring.scorer import RewardScorer, save_reward_model
    from prm_core.stages.train_prm import calibrate_scores
    from prm_core.training.reward.recipe import train_on

    # Of people's verdicts alone nothing is learned of how chains end: the challenger has no further heads then.
    ends = [] if all(math.isnan(example.targets[0]) for example in outcomes) else outcomes
    trained = train_on("process", "the champion", steps, [], config, work=work, report=lambda figures, update: None,
                       outcomes=ends, start=champion)
    scorer = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "", config.serve.batch_size)
    calibrator = calibrate_scores(scorer, trained.dev, config)
    known = list(dict.fromkeys((one.problem_id, one.prompt, one.steps) for one in steps))
    fresh = into.with_name(f".{into.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_reward_model(trained.model, trained.encoder, calibrator, fresh,
                      fit_domain(trained.model, trained.encoder, known))
    shutil.rmtree(into, ignore_errors=True)
    fresh.rename(into)
    return {"examples": len(steps), "calibration_labels": calibrator.labels,
            "dev_loss": min(record["dev_loss"] for record in trained.history), **trained.counts}
