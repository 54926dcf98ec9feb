"""Served trajectories that people judge, and a new calibration from what they say.

Weights stay as they are: what is registered is a version with another calibrator, whose reference is the window. Its
alarm and clean prefix are left out, since what they promise was fitted on other traffic.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.labeling.human.labels import HumanData, human_verdicts
from prm_core.platform import store, sums, tracking
from prm_core.platform.steps import written_step
from prm_core.platform.tracking import stage_run
from prm_core.scoring import conformal
from prm_core.scoring.calibration import (
    Calibrator,
    Floats,
    expected_calibration_error,
    fit_calibrator,
    folds_of_groups,
)
from prm_core.scoring.domain import moderate
from prm_core.scoring.scorer import CALIBRATOR_FILE, ChainScorer, load_scorer
from prm_core.serving import model_registry
from prm_core.serving.drift import trust
from prm_core.serving.drift.check import look
from prm_core.serving.drift.reference import Reference
from prm_core.serving.drift.samples import Sample
from prm_core.types import Problem, Trajectory

log = logging.getLogger(__name__)

# In `drift.folder`: a workspace for `prm review`.
REVIEW = "review"
POLICY = "served"
FOLDS = 5
# Of the version that was recalibrated, and not of the new one.
_ITS_OWN = ("promoted_", trust.TAG, f"{model_registry.ECE}{model_registry.LEFT_OUT}")


def draw(questions: Sequence[Sample], count: int, seed: int) -> list[tuple[Sample, float]]:
    """Trajectories drawn at random among those whose texts were kept, each with the chance of its question to get here.
    """
    able = [one for one in questions if one.text]
    picked = min(count, len(able))
    rows = np.random.default_rng(seed).choice(len(able), picked, replace=False) if picked else []
    return [(able[row], able[row].chance * picked / len(able)) for row in sorted(rows)]


def as_records(one: Sample, chance: float, domain: str) -> tuple[Problem, Trajectory]:
    """The question and the trajectory of a sample whose text was kept; ids are digests of what they say."""
    assert one.text is not None
    said = json.loads(one.text)
    problem = Problem(f"served-{one.prompt}", domain, said["prompt"], "")
    steps = tuple(written_step(step) for step in said["steps"])
    meta = {"time": one.time, "chance": chance, "tenant": one.tenant}
    return problem, Trajectory(f"served-{one.prefixes[-1]}", problem.id, POLICY, steps, None, None, 0, meta=meta)


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """Steps that people judged, (steps,) each. Attributes:
        chains: trajectory of each.
        raw: score before calibration.
        right: whether it is right.
        weights: one over the chance that it was drawn.
        doubted: whether the model cannot judge its text.
    """

    chains: list[str]
    raw: Floats
    right: Floats
    weights: Floats
    doubted: Floats

    def probabilities(self, calibrator: Calibrator) -> Floats:
        """As served."""
        made = calibrator.apply(self.raw)
        return np.where(self.doubted > 0, moderate(made), made)


def judged_steps(human: HumanData, scorer: ChainScorer, after: float) -> Judged:
    """What people say of served trajectories, beside the model's scores of them.

    Args:
        after: of trajectories answered later, seconds since 1970.
    """
    prompts = {problem.id: problem.prompt for problem in human.problems}
    chains = [one for one in human.trajectories if one.meta.get("time", 0.0) > after]
    scored = dict(zip((one.id for one in chains), scorer.score([(prompts[one.problem_id], one.steps) for one in chains])
                      if chains else [], strict=True))
    chance = {one.id: one.meta["chance"] for one in chains}
    rows = [(name, scored[name].raw_scores[index], right, 1 / chance[name], bool(scored[name].out_of_domain))
            for (name, index), right in sorted(human_verdicts(human.labels).verdicts.items())
            if name in scored and index < len(scored[name].raw_scores)]
    names, raw, right, weights, doubted = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Judged(list(names), *(np.array(column, dtype=np.float64) for column in (raw, right, weights, doubted)))


def calibrate(judged: Judged, method: str, needed: int, bins: int, seed: int) -> tuple[Calibrator, float]:
    """The calibrator, and the calibration error on trajectories that it was not fitted on.

    Raises InputError where people judged too few steps, or all alike.
    """
    if len(set(judged.chains)) < 2:
        raise InputError(f"people judged {len(set(judged.chains))} served trajectories since the last calibration, and "
                         "it takes two; `prm drift` draws some where drift.texts is true, `prm review` asks about them")
    calibrator = fit_calibrator(judged.raw, judged.right, method, needed, judged.weights)
    if calibrator.reason:
        raise InputError(f"no new calibration: {calibrator.reason} (calibrate.min_labels, calibrate.method); have more "
                         "served steps judged (`prm review`)")
    held_out = np.empty(len(judged.raw))
    for rows, others in folds_of_groups(judged.chains, FOLDS, seed):
        fitted = fit_calibrator(judged.raw[rows], judged.right[rows], method, 1, judged.weights[rows])
        held_out[others] = judged.probabilities(fitted)[others]
    return calibrator, expected_calibration_error(held_out, judged.right, bins, judged.weights)


def recalibrated(samples: Sequence[Sample], calibrator: Calibrator, threshold: float) -> list[Sample]:
    """Samples as they would have been with another calibrator, without texts."""
    found = []
    for one in samples:
        made = calibrator.apply(one.raw)
        scores = (moderate(made) if one.in_domain is False else made).tolist()
        first = next((index for index, score in enumerate(scores) if score < threshold), -1)
        found.append(dataclasses.replace(one, scores=scores, first_error=first, text=None))
    return found


def recalibrate(workspace: Path, config: Config, human: HumanData, model: str, since: float, until: float) -> str:
    """Registers a version that is calibrated on what people say of served traffic, as the challenger; returns its URI.

    Args:
        human: verdicts of people.
        model: the version that is served, registered.
        since, until: the window that becomes the reference, seconds since 1970.

    Raises InputError for too few verdicts, a window that is too small, and a model that is not registered.
    """
    found, reference, folder = look(workspace, config, model, since, until)
    named = re.fullmatch(r"models:/([^/@]+)/(\d+)", found.model)
    if not named:
        raise InputError(f"--model {model}: only a registered version can be recalibrated; name models:/NAME/VERSION")
    if found.comparison is None:
        raise InputError(f"the window can be no reference: {found.unchecked}")
    serve = model_registry.logged_settings(folder)
    scorer = load_scorer(folder, batch_size=serve.batch_size)
    last = max((one.time for one in reference.samples), default=0.0)
    calibrator, error = calibrate(judged_steps(human, scorer, last), config.calibrate.method,
                                  config.calibrate.min_labels, config.calibrate.bins, config.seed)
    window = Reference(f"served until {int(until)}", reference.renderer,
                       recalibrated([one for one in found.questions if one.raw], calibrator, serve.threshold))
    client = tracking.connect(workspace)
    old = client.get_model_version(*named.groups())
    tags = {key: value for key, value in old.tags.items() if not key.startswith(_ITS_OWN)}
    tags |= {model_registry.ECE: str(error), "recalibrated_from": found.model}
    with TemporaryDirectory() as temporary, stage_run(workspace, "drift", config) as run:
        copy = Path(shutil.copytree(folder, Path(temporary, folder.name)))
        sums.check_sums(copy, "download the model anew or register it again")
        (copy / conformal.FILE).unlink(missing_ok=True)
        store.write_json(copy / CALIBRATOR_FILE, calibrator.to_dict())
        sums.write_sums(copy)
        run.log_metrics({"recalibrated/ece": error, "recalibrated/labels": calibrator.labels})
        model_id = model_registry.log_reward_model(workspace, run.run_id, copy, serve, [window])
        version = model_registry.add_version(workspace, old.name, model_id, tags)
    client.update_model_version(old.name, version.version, description=(
        f"{found.model}, calibrated anew on {calibrator.labels} steps of served traffic that people judged: "
        f"calibration error {error:.4f} on trajectories it was not fitted on. Other figures are of that version."))
    client.set_registered_model_alias(old.name, config.promote.challenger_alias, version.version)
    return f"models:/{old.name}/{version.version}"
