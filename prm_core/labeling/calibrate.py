"""From merged labels and human labels to a calibrator and a training set. Pure functions over labels; no files.

What is calibrated is the probability that the step is right, not the confidence in the verdict: the former is what the
reward model is trained on and what a reviewer judges.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prm_core.config import CalibrateConfig
from prm_core.labeling.human import human_verdicts
from prm_core.models.calibration import (
    Calibrator,
    ReliabilityBin,
    brier_score,
    expected_calibration_error,
    fit_calibrator,
    out_of_fold,
    reliability_curve,
)
from prm_core.types import StepLabel

log = logging.getLogger(__name__)

FOLDS = 5


def right_probability(label: StepLabel) -> float | None:
    """The label's probability that its step is right.

    The confidence, turned round where the verdict is "wrong"; where there is no verdict the value, None without one.
    """
    if label.is_correct is None:
        return label.value
    return label.confidence if label.is_correct else 1 - label.confidence


@dataclass(frozen=True, slots=True)
class Joined:
    """Merged labels beside human verdicts on the same step, in the order of the key.

    Attributes:
        trajectory_ids: (n,), which rows belong to one chain.
        probabilities: (n,), merged probability that the step is right.
        outcomes: (n,), whether it is, by the majority of its reviewers.
        counts: what was left out, by reason.
    """

    trajectory_ids: list[str]
    probabilities: np.ndarray
    outcomes: np.ndarray
    counts: dict[str, int]


def join_human(merged: Sequence[StepLabel], human: Sequence[StepLabel]) -> Joined:
    """Joins on (trajectory_id, step_index); the order of either list does not matter.

    Counted: human_ties, human_after_error (see `human_verdicts`), human_unmatched (no merged label passed
    validation), human_unscored (the merged label has neither verdict nor value).
    """
    truth = human_verdicts(human)
    by_key = {(label.trajectory_id, label.step_index): label for label in merged}
    rows, unmatched, unscored = [], 0, 0
    for key, right in sorted(truth.verdicts.items()):
        label = by_key.get(key)
        probability = None if label is None else right_probability(label)
        unmatched += label is None
        unscored += label is not None and probability is None
        if probability is not None:
            rows.append((key[0], probability, right))
    counts = {"human_labels": len(rows), "human_chains": len({row[0] for row in rows}), "human_ties": truth.ties,
              "human_after_error": truth.after_error, "human_unmatched": unmatched, "human_unscored": unscored}
    return Joined([row[0] for row in rows], np.array([row[1] for row in rows], dtype=np.float64),
                  np.array([row[2] for row in rows], dtype=bool), counts)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted calibrator and how well it does.

    Attributes:
        calibrator: fitted on all joined labels.
        metrics: ece_before, ece_after, brier_before, brier_after; empty without joined labels. "After" is measured
            out of fold, by chain: on the labels it was fitted on, a calibrator always looks good.
        curves: series ("before", "after") → reliability curve.
    """

    calibrator: Calibrator
    metrics: dict[str, float]
    curves: dict[str, list[ReliabilityBin]]


def calibrate(joined: Joined, settings: CalibrateConfig, seed: int) -> Calibration:
    """Fits the configured calibrator and measures it before and after."""
    p, y = joined.probabilities, joined.outcomes
    calibrator = fit_calibrator(p, y, settings.method, settings.min_labels)
    if calibrator.method != "identity" and len(set(joined.trajectory_ids)) < 2:
        reason = "all labels are of one chain, which leaves nothing to check against"
        calibrator = Calibrator("identity", labels=len(y), reason=reason)
        log.warning("no calibration: %s", calibrator.reason)
    if not len(y):
        return Calibration(calibrator, {}, {})
    after = p
    if calibrator.method != "identity":
        after = out_of_fold(p, y, joined.trajectory_ids, settings.method, folds=FOLDS, seed=seed)
    series = {"before": p, "after": after}
    metrics = {}
    for name, values in series.items():
        metrics[f"ece_{name}"] = expected_calibration_error(values, y, settings.bins)
        metrics[f"brier_{name}"] = brier_score(values, y)
    curves = {name: reliability_curve(values, y, settings.bins) for name, values in series.items()}
    return Calibration(calibrator, metrics, curves)


def training_set(
    merged: Sequence[StepLabel],
    digests: Mapping[str, str],
    human_digests: Collection[str],
    calibrator: Calibrator,
    min_confidence: float,
) -> tuple[list[StepLabel], dict[str, int]]:
    """The labels a reward model is trained on, and how many left for which reason.

    Each kept label has `value` = calibrated probability that the step is right (the soft label), `is_correct` the
    merged verdict (the hard label), `confidence` the calibrated probability that the verdict is right.

    Args:
        merged: merged labels that passed validation, of generated and human-labelled chains.
        digests: trajectory id → content digest, of the generated chains.
        human_digests: content digests of the human-labelled chains, which are kept for calibration.
        min_confidence: labels whose calibrated confidence is below it leave.

    Returns:
        Labels by (trajectory_id, step_index); counts: lost_human_chain, lost_after_error (an earlier step of the
        chain has the verdict wrong), lost_undecided, lost_confidence, each label under its first reason.
    """
    first_error: dict[str, int] = {}
    for label in merged:
        if label.is_correct is False:
            known = first_error.get(label.trajectory_id, label.step_index)
            first_error[label.trajectory_id] = min(known, label.step_index)
    kept: list[StepLabel] = []
    lost: Counter[str] = Counter(
        dict.fromkeys(("lost_human_chain", "lost_after_error", "lost_undecided", "lost_confidence"), 0)
    )
    for label in sorted(merged, key=lambda row: (row.trajectory_id, row.step_index)):
        digest = digests.get(label.trajectory_id)
        if digest is None or digest in human_digests:
            lost["lost_human_chain"] += 1
        elif label.step_index > first_error.get(label.trajectory_id, label.step_index):
            lost["lost_after_error"] += 1
        elif label.is_correct is None:
            lost["lost_undecided"] += 1
        else:
            value = float(calibrator.apply(right_probability(label)))
            confidence = value if label.is_correct else 1 - value
            if confidence < min_confidence:
                lost["lost_confidence"] += 1
            else:
                kept.append(dataclasses.replace(label, value=value, confidence=confidence))
    return kept, dict(lost)
