"""Combining strategies: from one label per step and strategy to one merged label per step."""

from __future__ import annotations

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


def merge_labels(
    steps: Mapping[str, int], labels: Sequence[StepLabel], config: LabelConfig
) -> list[StepLabel]:
    """One merged label for every step, joined on (trajectory, step), never by position in a list.

    Args:
        steps: number of steps of each labelled trajectory; a step no strategy speaks of is undecided.
        labels: of all strategies.
        config: `merge` names the rule, or one strategy whose labels are taken as they are.
    """
    by_step: dict[tuple[str, int], list[StepLabel]] = {}
    single = config.merge if config.merge in config.strategies else None
    for label in labels:
        if single is None or label.strategy == single:
            by_step.setdefault((label.trajectory_id, label.step_index), []).append(label)
    merged = []
    for trajectory_id, count in steps.items():
        for index in range(count):
            found = by_step.get((trajectory_id, index))
            if not found:
                merged.append(StepLabel(trajectory_id, index, MERGED, None, None, 0.0, 0, "no strategy labelled it"))
            elif single is None:
                merged.append(MERGES[config.merge](found, config))
            else:
                one = found[0]
                merged.append(StepLabel(trajectory_id, index, MERGED, one.value, one.is_correct, one.confidence,
                                        one.tokens, f"{one.strategy}: {one.reasoning}"))
    return merged
