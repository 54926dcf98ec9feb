"""How right labels are: against gold verdicts, and how many human labels make their confidences true."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.label_data import GoldChain
from prm_core.config import CalibrateConfig
from prm_core.evaluation import metrics
from prm_core.evaluation.metrics import Bootstrap, Estimate
from prm_core.labeling.calibrate import (
    EvidenceTable,
    Joined,
    LabelMap,
    calibrated_labels,
    first_errors,
    fit_map,
    tabulate,
)
from prm_core.labeling.human.active import priority, select_steps
from prm_core.labeling.merging.merge import probability_right
from prm_core.scoring.calibration import expected_calibration_error
from prm_core.types import StepLabel

BINS = 10
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures of one strategy or combination.

    Attributes:
        name: of it.
        first_error_f1: ProcessBench's F1 in percent, over the chains it covers; f1_low to f1_high is its 95 % interval,
            bootstrapped over problems.
        full_f1: the same over all chains: one left undecided is taken to be wrong at its first undecided step, as
            Math-Shepherd takes a step from which no rollout succeeds.
        acc_err, acc_ok: its two halves.
        coverage: share of the chains on which it names a first error or says that there is none.
        step_accuracy: share of its verdicts, up to a chain's first error, that are right.
        step_coverage: share of those steps that have a verdict.
        ece: of P(step right) on them.
        tokens: generated.
        seconds: wall time.
    """

    name: str
    first_error_f1: float
    f1_low: float
    f1_high: float
    full_f1: float
    acc_err: float
    acc_ok: float
    coverage: float
    step_accuracy: float
    step_coverage: float
    ece: float | None
    tokens: int
    seconds: float


def measure(name: str, gold: Sequence[GoldChain], labels: Sequence[StepLabel], seconds: float) -> Quality:
    """Labels of one strategy, or merged ones, against gold."""
    table: dict[str, dict[int, StepLabel]] = {}
    for label in labels:
        table.setdefault(label.trajectory_id, {})[label.step_index] = label
    problems: dict[str, int] = {}
    covered: list[tuple[bool, int, int]] = []
    full: dict[bool, list[bool]] = {True: [], False: []}
    probabilities, truth, right, asked = [], [], 0, 0
    for one in gold:
        given = table.get(one.chain.trajectory.id, {})
        said, decided = named_error(given, len(one.chain.trajectory.steps))
        full[one.first_error >= 0].append(said == one.first_error)
        problem = problems.setdefault(one.chain.problem.id, len(problems))
        if decided:
            covered.append((said == one.first_error, one.first_error, problem))
        for index, is_right in enumerate(one.right):
            asked += 1
            label = given.get(index)
            if label is not None and label.is_correct is not None:
                right += label.is_correct == is_right
                probabilities.append(probability_right(label))
                truth.append(is_right)
    f1, acc_err, acc_ok = _estimates(covered, len(problems))
    full_f1 = harmonic(*(100 * _mean(full[kind]) for kind in (True, False)))
    return Quality(
        name, f1.value, f1.low, f1.high, full_f1, acc_err.value, acc_ok.value, len(covered) / len(gold),
        right / max(len(truth), 1), len(truth) / asked,
        expected_calibration_error(probabilities, truth, BINS) if truth else None,
        sum(label.tokens for label in labels), seconds,
    )


def _estimates(covered: Sequence[tuple[bool, int, int]], problems: int) -> list[Estimate]:
    """F1, accuracy on erroneous and on sound chains, in percent; 0 where there is none to cover."""
    found = metrics.tally(*zip(*covered, strict=True), problems) if covered else None
    result = []
    for name in ("f1", "acc_err", "acc_ok"):
        estimate = Bootstrap(problems, RESAMPLES, 0).estimate(getattr(found, name)) if found else None
        shares = (estimate.value, estimate.low, estimate.high) if estimate and estimate.defined else (0.0, 0.0, 0.0)
        result.append(Estimate(*(100 * share for share in shares)))
    return result


def named_error(given: Mapping[int, StepLabel], steps: int) -> tuple[int, bool]:
    """The first step not called right (-1: there is none), and whether it is called wrong, not just left undecided."""
    for index in range(steps):
        verdict = given[index].is_correct if index in given else None
        if verdict is not True:
            return index, verdict is False
    return -1, True


def harmonic(a: float, b: float) -> float:
    """Harmonic mean, 0 when both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Chains with gold, all their labels joined, and the merged labels."""

    gold: Sequence[GoldChain]
    merged: Sequence[StepLabel]
    labels: Sequence[StepLabel]
    evidence: EvidenceTable

    @staticmethod
    def of(gold: Sequence[GoldChain], merged: Sequence[StepLabel], labels: Sequence[StepLabel]) -> Labelled:
        """Joins them."""
        return Labelled(gold, merged, labels, tabulate(merged, labels))

    def truth(self) -> dict[tuple[str, int], bool]:
        """Gold verdicts by step."""
        return {(one.chain.trajectory.id, index): right for one in self.gold for index, right in enumerate(one.right)}

    def human(self, picks: Mapping[tuple[str, int], float]) -> Joined:
        """What people would say of the picked steps: gold, weighed by one over the chance of each pick."""
        truth = self.truth()
        keys = [key for key in sorted(picks) if key in truth]
        rows = [self.evidence.rows[key] for key in keys]
        return Joined([key[0] for key in keys], self.evidence.sources, self.evidence.probabilities[rows],
                      self.evidence.verdicts[rows],
                      np.array([truth[key] for key in keys]), np.array([1 / picks[key] for key in keys]), {})

    def ece(self, label_map: LabelMap) -> float:
        """Calibration error of the mapped merged probabilities on the steps up to each chain's first error."""
        truth = self.truth()
        rows = [self.evidence.rows[key] for key in truth]
        values = label_map.apply(self.evidence.probabilities[rows])
        known = ~np.isnan(values)
        return expected_calibration_error(values[known], np.array(list(truth.values()))[known], BINS)

    def relabelled(self, label_map: LabelMap) -> list[StepLabel]:
        """The merged labels as the map changes them."""
        return calibrated_labels(self.merged, self.evidence, label_map)

    def priorities(self) -> dict[tuple[str, int], float]:
        """Review priority of every step that may be asked about, as the calibrate stage computes it."""
        ends = first_errors(self.merged)
        result = {}
        for label in self.merged:
            key = label.trajectory_id, label.step_index
            if label.step_index <= ends.get(*key):
                stated = self.evidence.probabilities[self.evidence.rows[key], 1:]
                result[key] = priority(stated[~np.isnan(stated)].tolist(), label.value)
        return result


def pick(labelled: Labelled, way: str, budget: int, seed: int) -> dict[tuple[str, int], float]:
    """Steps for people, active or random, with the chance each had."""
    priorities = labelled.priorities()
    if way == "random":
        keys = random.Random(seed).sample(sorted(priorities), min(budget, len(priorities)))
        return dict.fromkeys(keys, len(keys) / len(priorities))
    return {one.key: one.chance for one in select_steps(priorities, budget, seed)}


def human_labels_needed(
    known: Labelled, unseen: Labelled, settings: CalibrateConfig, budgets: Sequence[int], repeats: int, target: float
) -> dict[str, dict[str, Any]]:
    """For active and for random selection: ECE on unseen problems by number of human labels, and the smallest number
    from which on nine draws in ten stay at or below the target (None: none of the budgets does).

    Nine in ten, since a team draws its labels once: what the median draw would have done does not help it.
    """
    once = dataclasses.replace(settings, min_labels=1)
    found: dict[str, dict[str, Any]] = {}
    for way in ("active", "random"):
        curve = []
        for budget in budgets:
            errors = []
            for seed in range(repeats):
                joined = known.human(pick(known, way, budget, seed))
                errors.append(unseen.ece(fit_map(joined, once)))
            curve.append({"labels": budget, "ece": statistics.median(errors),
                          "ece_90": float(np.percentile(errors, 90))})
        reached = next((start["labels"] for number, start in enumerate(curve)
                        if all(point["ece_90"] <= target for point in curve[number:])), None)
        found[way] = {"curve": curve, "labels_needed": reached}
    return found


def records(qualities: Sequence[Quality]) -> list[dict[str, Any]]:
    """Plain values, for the result file."""
    return [asdict(quality) for quality in qualities]


