"""From labels and human labels to calibrated probabilities and a training set. Pure functions over labels; no files.

What is calibrated is the probability that the step is right, not the confidence in the verdict: the former is what the
reward model is trained on and what a reviewer judges.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_core.config import CalibrateConfig
from prm_core.errors import InputError
from prm_core.labeling.human.labels import human_verdicts
from prm_core.labeling.human.population import OTHER, POLICY, HumanError, human_error
from prm_core.labeling.merging.merge import MERGED, probability_right
from prm_core.labeling.stacking import Stack, fit_stack
from prm_core.scoring.calibration import (
    Calibrator,
    ReliabilityBin,
    brier_score,
    expected_calibration_error,
    fit_calibrator,
    folds_of_groups,
    reliability_curve,
)
from prm_core.types import StepLabel

log = logging.getLogger(__name__)

FOLDS = 5
# In the lineage of a human label: the chance its step had to be picked for review.
CHANCE = "chance"
StepKey = tuple[str, int]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EvidenceTable:
    """What the merge and each strategy say of every merged step.

    Attributes:
        sources: the merge first, then the strategies by name.
        rows: step → its row.
        probabilities: P(step right) (steps, sources), NaN where a source abstains.
        verdicts: the merge's (steps,): 1 right, 0 wrong, NaN undecided.
    """

    sources: tuple[str, ...]
    rows: Mapping[StepKey, int]
    probabilities: Floats
    verdicts: Floats


def tabulate(merged: Sequence[StepLabel], labels: Sequence[StepLabel]) -> EvidenceTable:
    """Joins merged and single labels on (trajectory_id, step_index); steps without a merged label are left out.

    A strategy's value without a verdict is no evidence; the merge's is.
    """
    sources = (MERGED, *sorted({label.strategy for label in labels}))
    column = {name: number for number, name in enumerate(sources)}
    rows = {(label.trajectory_id, label.step_index): number for number, label in enumerate(merged)}
    table = np.full((len(rows), len(sources)), np.nan)
    for label in (*merged, *labels):
        row = rows.get((label.trajectory_id, label.step_index))
        if row is not None and (label.is_correct is not None or label.strategy == MERGED):
            probability = probability_right(label)
            table[row, column[label.strategy]] = np.nan if probability is None else probability
    verdicts = np.array([np.nan if label.is_correct is None else label.is_correct for label in merged], dtype=float)
    return EvidenceTable(sources, rows, table, verdicts)


@dataclass(frozen=True, slots=True)
class Joined:
    """Evidence beside human verdicts on the same step, in the order of the key.

    Attributes:
        trajectory_ids: (n,), which rows belong to one chain.
        sources: names of the columns of `probabilities`, the merge first.
        probabilities: (n, sources), as in `EvidenceTable`.
        verdicts: (n,), as in `EvidenceTable`.
        outcomes: (n,), whether the step is right, by the majority of its reviewers.
        weights: (n,), how many steps each stands for: one over the chance it was picked with. Where that is unknown, as
            many as a known one does on average (1 where none is known): so that each of two samples of the same steps
            counts by its size, and a few picked steps do not drown all others.
        counts: what was left out, by reason.
    """

    trajectory_ids: list[str]
    sources: tuple[str, ...]
    probabilities: Floats
    verdicts: Floats
    outcomes: NDArray[np.bool_]
    weights: Floats
    counts: dict[str, int]

    def take(self, rows: NDArray[np.int64]) -> Joined:
        """Some of the rows."""
        return Joined([self.trajectory_ids[row] for row in rows], self.sources, self.probabilities[rows],
                      self.verdicts[rows], self.outcomes[rows], self.weights[rows], {})

    def of(self, source: int) -> Joined:
        """The rows on which a source speaks, with its column alone."""
        spoken = self.take(np.flatnonzero(~np.isnan(self.probabilities[:, source])))
        return dataclasses.replace(spoken, sources=(self.sources[source],),
                                   probabilities=spoken.probabilities[:, source : source + 1])


def join_human(evidence: EvidenceTable, human: Sequence[StepLabel]) -> Joined:
    """Joins on (trajectory_id, step_index); the order of the labels does not matter.

    Counted: human_ties, human_after_error (see `human_verdicts`), human_unmatched (no merged label passed
    validation), human_unscored (no source says anything).

    Raises InputError on a label whose chance is none.
    """
    truth = human_verdicts(human)
    picked = {(label.trajectory_id, label.step_index): 1 / chance for label in human if (chance := _chance(label))}
    rows, unmatched, unscored = [], 0, 0
    for key, right in sorted(truth.verdicts.items()):
        row = evidence.rows.get(key)
        silent = row is not None and bool(np.isnan(evidence.probabilities[row]).all())
        unmatched += row is None
        unscored += silent
        if row is not None and not silent:
            rows.append((key[0], row, right, picked.get(key, np.nan)))
    counts = {"human_labels": len(rows), "human_chains": len({row[0] for row in rows}), "human_ties": truth.ties,
              "human_after_error": truth.after_error, "human_unmatched": unmatched, "human_unscored": unscored}
    picked_rows = np.array([row[1] for row in rows], dtype=np.int64)
    weights = np.array([row[3] for row in rows], dtype=np.float64)
    unknown = np.isnan(weights)
    weights[unknown] = 1.0 if unknown.all() else weights[~unknown].mean()
    return Joined([row[0] for row in rows], evidence.sources, evidence.probabilities[picked_rows],
                  evidence.verdicts[picked_rows], np.array([row[2] for row in rows], dtype=bool), weights, counts)


def _chance(label: StepLabel) -> float | None:
    """The chance a human label's step was picked with, None where it is not known."""
    try:
        chance = json.loads(label.lineage).get(CHANCE) if label.lineage else None
    except (ValueError, AttributeError):
        chance = 0
    if chance is None or (isinstance(chance, int | float) and 0 < chance <= 1):
        return chance
    raise InputError(f"data/human/labels.jsonl: the lineage of the label on step {label.step_index} of trajectory "
                     f"{label.trajectory_id!r} is {label.lineage!r}; expected nothing, or {{\"{CHANCE}\": a number "
                     "above 0 and at most 1}")


@dataclass(frozen=True, slots=True)
class LabelMap:
    """From what the sources say of a step to the calibrated probability that it is right.

    Attributes:
        calibrator: of the merged probability; the identity where there were too few human labels.
        stack: of all sources together, which then stands in for the calibrator; None where it was not asked for or
            could not be fitted.
    """

    calibrator: Calibrator
    stack: Stack | None = None

    @property
    def method(self) -> str:
        """What it is, in a word."""
        return "stacked" if self.stack else self.calibrator.method

    def apply(self, probabilities: Floats) -> Floats:
        """(n,) calibrated probabilities from (n, sources), the merge's first; NaN where nothing is known."""
        if self.stack:
            return np.where(np.isnan(probabilities).all(1), np.nan, self.stack.apply(probabilities))
        merged = probabilities[:, 0]
        known = ~np.isnan(merged)
        result = np.full(len(merged), np.nan)
        result[known] = self.calibrator.apply(merged[known])
        return result


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map and how well it does.

    Attributes:
        map: fitted on the joined labels of the policy's own chains.
        strategies: each strategy's own calibrator, fitted on these too.
        metrics: by population, `policy/…` and `other/…`: human_labels; ece_before, ece_after, brier_before, brier_after
            of the merged labels, and the same with /<strategy>; those without joined labels are left out. "After" is
            measured on chains that the map did not see, the policy's out of fold: on the labels it was fitted on, a
            calibrator always looks good.
        curves: population → series ("before", "after") → reliability curve of the merged labels.
        error: how wrong the merged labels of the policy's own chains are, None where people judged none.
    """

    map: LabelMap
    strategies: dict[str, Calibrator]
    metrics: dict[str, float]
    curves: dict[str, dict[str, list[ReliabilityBin]]]
    error: HumanError | None


def fit_map(joined: Joined, settings: CalibrateConfig) -> LabelMap:
    """The configured map, fitted on all joined labels."""
    merged = joined.of(0)
    calibrator = fit_calibrator(merged.probabilities[:, 0], merged.outcomes, settings.method, settings.min_labels,
                                merged.weights)
    if calibrator.method != "identity" and len(set(merged.trajectory_ids)) < 2:
        reason = "all labels are of one chain, which leaves nothing to check against"
        calibrator = Calibrator("identity", labels=len(merged.outcomes), reason=reason)
        log.warning("no calibration: %s", calibrator.reason)
    if calibrator.method == "identity" or not settings.stack:
        return LabelMap(calibrator)
    return LabelMap(calibrator, fit_stack(joined.probabilities, joined.outcomes, joined.sources))


def calibrate(
    joined: Joined, settings: CalibrateConfig, seed: int, others: Mapping[str, str]
) -> Calibration:
    """Fits the configured map and each strategy's calibrator, and measures them before and after.

    Args:
        others: human-labelled chain → who wrote it, of those that are not the policy's own (`other_authors`). They are
            measured, and nothing is fitted on them.
    """
    own, other = _populations(joined, others)
    too_few = _too_few(own, other, others, settings.min_labels)
    fitted = LabelMap(too_few) if too_few else fit_map(own, settings)
    alone = dataclasses.replace(settings, stack=False)
    maps = {source: fitted if too_few else fit_map(own.of(source), alone) for source in range(1, len(joined.sources))}
    metrics: dict[str, float] = {}
    curves = {}
    for population, part in ((POLICY, own), (OTHER, other)):
        metrics[f"{population}/human_labels"] = len(part.outcomes)
        measured = [("", part, fitted, settings)]
        measured += [(f"/{joined.sources[source]}", part.of(source), one, alone) for source, one in maps.items()]
        for suffix, rows, one, how in measured:
            # Nothing was fitted on the others: the map has seen none of them.
            after = _held_out(rows, one, how, seed) if population == POLICY else one.apply(rows.probabilities)
            spoken = rows.of(0)
            if not len(spoken.outcomes):
                continue
            series = {"before": spoken.probabilities[:, 0], "after": after[~np.isnan(rows.probabilities[:, 0])]}
            metrics |= {f"{population}/{figure}{suffix}": value
                        for figure, value in _figures(spoken, series, settings.bins).items()}
            if not suffix:
                curves[population] = {name: reliability_curve(values, spoken.outcomes, settings.bins, spoken.weights)
                                      for name, values in series.items()}
    strategies = {joined.sources[source]: one.calibrator for source, one in maps.items()}
    return Calibration(fitted, strategies, metrics, curves, _merge_error(own, seed))


def measure_scores(
    scores: Mapping[str, Sequence[float]], human: Sequence[StepLabel], others: Mapping[str, str], bins: int
) -> dict[str, float]:
    """How a reward model's scores hold on what people say: `policy/…` and `other/…` human_labels, ece and brier, of the
    populations that have any.

    Args:
        scores: human-labelled chain → P(right) of its first steps.
        human: the labels.
        others: as for `calibrate`.
    """
    rows = [StepLabel(chain, index, MERGED, score, score >= 0.5, max(score, 1 - score), 0, "")
            for chain, steps in scores.items() for index, score in enumerate(steps)]
    figures: dict[str, float] = {}
    for population, part in zip((POLICY, OTHER), _populations(join_human(tabulate(rows, ()), human), others),
                                strict=True):
        if not len(part.outcomes):
            continue
        said = (part.probabilities[:, 0], part.outcomes)
        figures |= {f"{population}/human_labels": len(part.outcomes),
                    f"{population}/ece": expected_calibration_error(*said, bins, part.weights),
                    f"{population}/brier": brier_score(*said, part.weights)}
    return figures


def _populations(joined: Joined, others: Mapping[str, str]) -> tuple[Joined, Joined]:
    """The policy's own chains, and all others."""
    foreign = np.array([chain in others for chain in joined.trajectory_ids], dtype=bool)
    return joined.take(np.flatnonzero(~foreign)), joined.take(np.flatnonzero(foreign))


def _too_few(own: Joined, other: Joined, others: Mapping[str, str], needed: int) -> Calibrator | None:
    """The identity where only labels of another population would make them enough, and why."""
    count, rest = len(own.of(0).outcomes), len(other.outcomes)
    if count >= needed or not rest:
        return None
    have = f"{count or 'no'} human labels on the policy's own chains ({needed} needed)"
    authors = ", ".join(sorted({others[chain] for chain in other.trajectory_ids}))
    reason = f"{have}; {rest} labels are on another population, {authors}, and only measured"
    log.warning("no calibration: %s", reason)
    return Calibrator("identity", labels=count, reason=reason)


def _merge_error(own: Joined, seed: int) -> HumanError | None:
    decided = own.take(np.flatnonzero(~np.isnan(own.verdicts)))
    if not len(decided.outcomes):
        return None
    return human_error(decided.trajectory_ids, decided.verdicts != decided.outcomes, decided.weights, seed)


def _held_out(joined: Joined, fitted: LabelMap, settings: CalibrateConfig, seed: int) -> Floats:
    """Each row mapped by a map that did not see its chain; the fitted map's own identity where nothing was fitted."""
    if fitted.method == "identity":
        return fitted.apply(joined.probabilities)
    result = np.empty(len(joined.outcomes))
    once = dataclasses.replace(settings, min_labels=1)
    for rows, held_out in folds_of_groups(joined.trajectory_ids, FOLDS, seed):
        result[held_out] = fit_map(joined.take(rows), once).apply(joined.probabilities[held_out])
    return result


def _figures(joined: Joined, series: Mapping[str, Floats], bins: int) -> dict[str, float]:
    figures = {}
    for name, values in series.items():
        figures[f"ece_{name}"] = expected_calibration_error(values, joined.outcomes, bins, joined.weights)
        figures[f"brier_{name}"] = brier_score(values, joined.outcomes, joined.weights)
    return figures


def calibrated_labels(
    merged: Sequence[StepLabel], evidence: EvidenceTable, label_map: LabelMap
) -> list[StepLabel]:
    """The merged labels with calibrated probabilities, one for one.

    `value` is the calibrated probability that the step is right, `is_correct` what is more likely, `confidence` the
    probability of that. A step stays undecided where nothing is known of it, and, unless a stack weighs the strategies
    anew, where the merge left it so.
    """
    if not merged:
        return []
    values = label_map.apply(evidence.probabilities)
    result = []
    for label in merged:
        value = float(values[evidence.rows[label.trajectory_id, label.step_index]])
        if np.isnan(value) or (label.is_correct is None and label_map.stack is None):
            known = None if np.isnan(value) else value
            result.append(dataclasses.replace(label, value=known, is_correct=None, confidence=0.0))
        else:
            result.append(dataclasses.replace(label, value=value, is_correct=value >= 0.5,
                                              confidence=max(value, 1 - value)))
    return result


def training_set(
    calibrated: Sequence[StepLabel],
    digests: Mapping[str, str],
    human_digests: Collection[str],
    min_confidence: float,
) -> tuple[list[StepLabel], dict[str, int]]:
    """The labels a reward model is trained on, and how many left for which reason.

    Args:
        calibrated: from `calibrated_labels`, of generated and human-labelled chains.
        digests: trajectory id → content digest, of the generated chains.
        human_digests: content digests of the human-labelled chains, which are kept for calibration.
        min_confidence: labels whose calibrated confidence is below it leave.

    Returns:
        Labels by (trajectory_id, step_index); counts: lost_human_chain, lost_after_error (an earlier step of the
        chain has the verdict wrong), lost_undecided, lost_confidence, each label under its first reason.
    """
    first_error = first_errors(calibrated)
    kept: list[StepLabel] = []
    lost: Counter[str] = Counter(
        dict.fromkeys(("lost_human_chain", "lost_after_error", "lost_undecided", "lost_confidence"), 0)
    )
    for label in sorted(calibrated, key=lambda row: (row.trajectory_id, row.step_index)):
        digest = digests.get(label.trajectory_id)
        if digest is None or digest in human_digests:
            lost["lost_human_chain"] += 1
        elif label.step_index > first_error.get(label.trajectory_id, label.step_index):
            lost["lost_after_error"] += 1
        elif label.is_correct is None:
            lost["lost_undecided"] += 1
        elif label.confidence < min_confidence:
            lost["lost_confidence"] += 1
        else:
            kept.append(label)
    return kept, dict(lost)


def first_errors(labels: Sequence[StepLabel]) -> dict[str, int]:
    """Trajectory id → its first step with the verdict wrong; chains without one are not there."""
    found: dict[str, int] = {}
    for label in labels:
        if label.is_correct is False:
            found[label.trajectory_id] = min(label.step_index, found.get(label.trajectory_id, label.step_index))
    return found
