"""Combining strategies: from one label per step and strategy to one merged label per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from prm_core.config import LabelConfig
from prm_core.registry import Registry
from prm_core.types import StepLabel

MERGED = "merged"
# (labels of one step, configuration) → merged label; the labels are never empty.
Merge = Callable[[Sequence[StepLabel], LabelConfig], StepLabel]
MERGES: Registry[Merge] = Registry("way to merge labels")


def probability_right(label: StepLabel) -> float:
    """Probability that the step is right which a verdict and its confidence state."""
    return label.confidence if label.is_correct else 1.0 - label.confidence


@MERGES.register("vote")
def vote(labels: Sequence[StepLabel], config: LabelConfig) -> StepLabel:
    """The guide's vote: two or more verdicts → the majority, one alone → its confidence times `lone_vote_factor`.

    A tie goes to the side with the larger summed confidence, and is undecided when these are equal too. The merged
    confidence is the mean probability that the votes give the merged verdict.
    """
    votes = [label for label in labels if label.is_correct is not None]
    tokens = sum(label.tokens for label in labels)
    first = labels[0]
    if not votes:
        reasons = "; ".join(f"{label.strategy} abstains: {label.reasoning}" for label in labels)
        return StepLabel(first.trajectory_id, first.step_index, MERGED, None, None, 0.0, tokens, reasons)
    reasoning = "; ".join(f"{v.strategy} says {'right' if v.is_correct else 'wrong'}: {v.reasoning}" for v in votes)
    right = [label for label in votes if label.is_correct]
    wrong = [label for label in votes if not label.is_correct]
    margin = len(right) - len(wrong) or sum(v.confidence for v in right) - sum(v.confidence for v in wrong)
    value = sum(probability_right(label) for label in votes) / len(votes)
    if margin == 0:
        return StepLabel(first.trajectory_id, first.step_index, MERGED, value, None, 0.0, tokens, reasoning)
    confidence = value if margin > 0 else 1.0 - value
    if len(votes) == 1:
        confidence *= config.lone_vote_factor
    return StepLabel(first.trajectory_id, first.step_index, MERGED, value, margin > 0, confidence, tokens, reasoning)


def undecided(trajectory_id: str, step_index: int, reasoning: str) -> StepLabel:
    """The merged label of a step that nothing is known of."""
    return StepLabel(trajectory_id, step_index, MERGED, None, None, 0.0, 0, reasoning)


def take_one(labels: Sequence[StepLabel], config: LabelConfig) -> StepLabel:
    """The label of the one strategy that `config.merge` names, as it is."""
    for label in labels:
        if label.strategy == config.merge:
            return dataclasses.replace(label, strategy=MERGED, reasoning=f"{label.strategy}: {label.reasoning}")
    return undecided(labels[0].trajectory_id, labels[0].step_index, f"{config.merge} did not label it")


def find_merge(config: LabelConfig) -> Merge:
    """What `config.merge` names: a rule, or one of the strategies. Raises InputError when it is neither."""
    return take_one if config.merge in config.strategies else MERGES[config.merge]


def merge_labels(
    steps: Mapping[str, int], labels: Sequence[StepLabel], config: LabelConfig
) -> list[StepLabel]:
    """One merged label for every step, joined on (trajectory, step), never by position in a list.

    Args:
        steps: number of steps of each labelled trajectory; a step no strategy speaks of is undecided.
        labels: of all strategies.
        config: `merge` names the rule, or one strategy whose labels are taken as they are.
    """
    merge = find_merge(config)
    by_step: dict[tuple[str, int], list[StepLabel]] = {}
    for label in labels:
        by_step.setdefault((label.trajectory_id, label.step_index), []).append(label)
    return [
        merge(found, config) if (found := by_step.get((trajectory_id, index)))
        else undecided(trajectory_id, index, "no strategy labelled it")
        for trajectory_id, count in steps.items()
        for index in range(count)
    ]
