"""What step scores say about a trajectory: where the first error is, what kind of error it looks like, what to check.

Pure functions over calibrated scores; no model, no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from prm_core.errors import InputError
from prm_core.search.aggregate import AGGREGATIONS

SHOWN_CHARACTERS = 80
# Standard deviations on either side of the mean that hold 95 % of a normal distribution.
Z_95 = 1.96


class ErrorStep(BaseModel):
    """A step judged wrong."""

    step_index: int = Field(description="counted from 0")
    severity: float = Field(description="1 - score: how surely wrong, in [0, 1]")
    confidence: float = Field(description="probability that this verdict is right")
    likely_cause: str = Field(description="initial_step_error, logic_jump_error or accumulated_error")


class _Known(BaseModel):
    """Says only what is known."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_known(self, rest: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in rest(self).items() if value is not None}


class Violation(_Known):
    """A rule that a step breaks, whether the step is right or not."""

    step_index: int = Field(description="counted from 0")
    rule: str = Field(description="its id in the rules file")
    severity: str = Field(description="low, medium, high or critical")
    probability: float = Field(description="that the step breaks it")
    reason: str
    first: dict[str, Any] | None = Field(None, description="a step to be taken before this one, which keeps the rule "
                                                           "then; not there where the rules file says none")
    instead: dict[str, Any] | None = Field(None, description="a step to be taken in place of this one, likewise")


class TrajectoryAnalysis(_Known):
    """The answer to one scoring request; field names are the HTTP contract (docs/serving.md)."""

    step_scores: list[float] = Field(description="calibrated probability that each step is right")
    step_confidences: list[float] = Field(description="probability that the verdict on each step is right")
    overall_score: float = Field(description="the step scores aggregated as the request asks")
    first_error_step: int = Field(description="index of the first step judged wrong, -1 where none is")
    error_steps: list[ErrorStep]
    improvements: list[str] = Field(description="one sentence per error step: what to check there")
    in_domain: bool | None = Field(None, description="false where the text is unlike what the model was trained on, so "
                                                     "that no score means anything; None where the model cannot tell")
    out_of_domain: str | None = Field(None, description="why not, where in_domain is false")
    outcome_score: float | None = Field(None, description="probability that the chain's final answer is right, were it "
                                                         "to end here; not there where the model does not say")
    step_reliabilities: list[float] | None = Field(None, description="how far each score can be relied upon: 1 where "
                                                   "heads trained on other draws of the problems agree, 0 where they "
                                                   "are split; not there of a model without such heads")
    step_intervals: list[list[float]] | None = Field(None, description="from and to: how far another draw of the "
                                                     "training problems would move each score; not there as "
                                                     "step_reliabilities")
    alarm_step: int | None = Field(None, description="index of the step after which a run should be stopped, -1 for "
                                                     "none, at a false-alarm rate that is kept; not there of a model "
                                                     "without a fitted alarm or where in_domain is false")
    clean_prefix: int | None = Field(None, description="how many steps from the first on are promised to be right, "
                                                       "for all but a share of runs; not there as alarm_step")
    calibration_stale: str | None = Field(None, description="why the scores are no longer to be taken for "
                                                            "probabilities: the calibration's age, or traffic that has "
                                                            "drifted; not there while they are")
    violations: list[Violation] | None = Field(None, description="rules that steps break, by the section rules of "
                                                                 "the server's params.yaml; not there without rules")
    blocked: bool | None = Field(None, description="whether a rule is broken that is severe enough to block, so that "
                                                   "overall_score is 0; not there where none blocks")
    step_refs: list[str] | None = Field(None, description="where each step stands in what was sent: its `ref`, of "
                                                          "`messages` the index; not there where no step has one")


def check_parameters(threshold: float, aggregate: str) -> None:
    """Raises InputError when the threshold is outside [0, 1] or the aggregation is unknown."""
    if not 0.0 <= threshold <= 1.0:
        raise InputError(f"threshold is {threshold}, not a probability; give a number from 0 to 1")
    AGGREGATIONS[aggregate]


def verdict_confidences(step_scores: Sequence[float], threshold: float) -> list[float]:
    """Probability that each step's verdict is right: p where the step is judged right (p >= threshold), else 1 - p.

    At threshold 0.5 this is max(p, 1 - p). It is a probability only as far as the scores are calibrated.
    """
    return [score if score >= threshold else 1.0 - score for score in step_scores]


def intervals(step_scores: Sequence[float], reliabilities: Sequence[float]) -> list[list[float]]:
    """Each score ± 1.96 standard deviations of what the heads of a committee say, cut at 0 and 1. They were fitted on
    other draws of the training problems: it says how far another training would move the score, and nothing of how well
    the scores are calibrated.

    Args:
        reliabilities: 1 - 2 standard deviations, as `ChainScore.reliabilities` has them.

    Returns a pair for each: MLflow's signatures know no tuples.
    """
    reaches = [Z_95 * (1 - reliability) / 2 for reliability in reliabilities]
    return [[max(0.0, score - reach), min(1.0, score + reach)]
            for score, reach in zip(step_scores, reaches, strict=True)]


def likely_cause(step_scores: Sequence[float], index: int, threshold: float) -> str:
    """The kind of error at a step judged wrong, from the step before it (the guide's rule).

    Returns:
        `initial_step_error` for the first step, `logic_jump_error` when the step before it is judged right,
        `accumulated_error` when that one is judged wrong too.
    """
    if index == 0:
        return "initial_step_error"
    return "logic_jump_error" if step_scores[index - 1] >= threshold else "accumulated_error"


def _improvement(index: int, text: str, score: float, cause: str) -> str:
    shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    what = f"steps[{index}] “{shown}” is right with probability {score:.2f}: "
    if cause == "initial_step_error":
        return what + "check that it uses the quantities the problem gives and starts on what the problem asks."
    if cause == "logic_jump_error":
        return what + (
            f"the chain holds up to steps[{index - 1}], so check what this step takes from there, whether it follows, "
            "and its own calculation."
        )
    return what + f"it builds on steps[{index - 1}], which is doubtful itself; correct that one first, then redo this."


def analyze(
    step_scores: Sequence[float], texts: Sequence[str], *, threshold: float, aggregate: str
) -> TrajectoryAnalysis:
    """Analyses one trajectory.

    Args:
        step_scores: calibrated probability that each step is right, (steps).
        texts: the steps' texts, at least as many; they are only quoted.
        threshold: a step is judged wrong when its score is below it.
        aggregate: name of the aggregation that gives `overall_score`.

    Raises:
        InputError: a threshold outside [0, 1], an unknown aggregation, no step.
    """
    check_parameters(threshold, aggregate)
    scores = [float(score) for score in step_scores]
    overall = AGGREGATIONS[aggregate](scores)
    confidences = verdict_confidences(scores, threshold)
    errors = [
        ErrorStep(
            step_index=index,
            severity=1.0 - score,
            confidence=confidences[index],
            likely_cause=likely_cause(scores, index, threshold),
        )
        for index, score in enumerate(scores)
        if score < threshold
    ]
    return TrajectoryAnalysis(
        step_scores=scores,
        step_confidences=confidences,
        overall_score=overall,
        first_error_step=errors[0].step_index if errors else -1,
        error_steps=errors,
        improvements=[_improvement(e.step_index, texts[e.step_index], scores[e.step_index], e.likely_cause)
                      for e in errors],
    )
