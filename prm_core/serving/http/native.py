"""This project's own requests: MLflow's `/invocations`, and the guide's `score_step` and `analyze_trajectory`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from prm_core.errors import InputError
from prm_core.serving.analysis import TrajectoryAnalysis, Violation
from prm_core.serving.http import body
from prm_core.serving.http.asked import Asked
from prm_core.serving.service import ScoringAnswer, parse_rows

MESSAGES = "chat messages or items of the Responses API, in place of a prompt and steps"
# Either may be given, and is refused beside the other (service.parse_request).
STEPS = "texts, or objects of the fields of a step"


class Strict(BaseModel):
    """A request, or a part of one: fields that it does not have are refused."""

    model_config = ConfigDict(extra="forbid")


class Trajectory(Strict):
    """A trajectory to score: `prompt` and `steps`, or `messages`."""

    prompt: str | None = Field(None, description="the question that the steps answer")
    steps: list[Any] | None = Field(None, description=STEPS)
    messages: list[Any] | None = Field(None, description=MESSAGES)
    tools: list[Any] | None = Field(None, description="definitions of the tools that were offered")


class Parameters(Strict):
    """How trajectories are analysed; what is left out is as the model was registered."""

    threshold: float = Field(0.5, ge=0, le=1, description="a step that scores lower is called wrong")
    aggregate: str = Field("min", description="of the step scores: min, prod, mean, last")


class Invocation(Strict):
    """A request of MLflow's scoring server."""

    inputs: list[Trajectory] = Field(min_length=1)
    params: Parameters | None = None


class Predictions(BaseModel):
    """An answer each, in order."""

    predictions: list[TrajectoryAnalysis]


async def invocations(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of MLflow's scoring server; faults are told as `prm score` tells them."""
    for name in values:
        if name in asked.served.defaults:
            raise InputError(f"`{name}` is a parameter; put it into `params`, beside `inputs`")
        if name not in Invocation.model_fields:
            raise InputError(body.unknown("field", name, Invocation.model_fields))
    rows, parameters = values.get("inputs"), values.get("params", {})
    if isinstance(rows, list):
        asked.check_number(len(rows), "inputs")
    requests = parse_rows(rows, asked.request)
    if not isinstance(parameters, Mapping):
        raise InputError(f"`params` must be an object of {' and '.join(asked.served.defaults)}; leave it out for the "
                         "defaults")
    return {"predictions": [_said(one) for one in await asked.answer(requests, parameters)]}


class StepRequest(Strict):
    """One more step of a trajectory. What came before is `prompt` and `steps`, or `messages`."""

    prompt: str | None = Field(None, description="the question")
    steps: list[Any] = Field([], description="the steps before this one; " + STEPS)
    messages: list[Any] | None = Field(None, validation_alias=AliasChoices("messages", "conversation"),
                                       description=MESSAGES + "; `conversation` is the same")
    tools: list[Any] | None = Field(None, description="definitions of the tools that were offered")
    step: str | dict[str, Any] = Field(validation_alias=AliasChoices("step", "step_text"),
                                       description="the step to score; `step_text` is the same")
    step_index: int | None = Field(None, description="how many steps came before; refused where it is another number, "
                                                     "so that a lost step is noticed")
    threshold: float | None = Field(None, description="a step that scores lower is called wrong")


class StepScore(BaseModel):
    """What is said of one step, after all that came before it."""

    step_index: int = Field(description="counted from 0")
    step_score: float = Field(description="calibrated probability that the step is right")
    confidence: float = Field(description="probability that the verdict is right")
    interval: tuple[float, float] | None = Field(description="how far another training would move the score; null of a "
                                                             "model without a committee")
    is_correct: bool = Field(description="whether the score reaches the threshold")
    severity: float | None = Field(description="of a wrong step: how surely it is wrong")
    likely_cause: str | None = Field(description="of a wrong step")
    analysis: str = Field(description="of a wrong step: what to check there")
    in_domain: bool | None = Field(description="whether the model can judge this text; null where it cannot tell")
    alarm: bool | None = Field(description="whether the run should be stopped here or should have been before, at a "
                                           "false-alarm rate that is kept; null of a model without a fitted alarm, and "
                                           "where in_domain is false")
    clean_prefix: int | None = Field(description="how many steps from the first on are promised to be right; null as "
                                                 "alarm")
    calibration_stale: str | None = Field(description="why the score is no longer to be taken for a probability; null "
                                                      "while it is")
    violations: list[Violation] | None = Field(description="rules that this step breaks; null of a server without "
                                                           "rules")
    blocked: bool | None = Field(description="whether this step or one before breaks a rule that blocks; null where "
                                             "none does")
    model: str = Field(description="the version that says so")


async def score_step(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """The guide's `score_step`."""
    given = body.checked(StepRequest, values)
    answer = await _answer(asked, given, [*given.steps, given.step], given.step_index, _chosen(given))
    said = answer.analysis
    assert said is not None
    index = len(said.step_scores) - 1
    wrong = next((error for error in said.error_steps if error.step_index == index), None)
    return StepScore(
        step_index=index, step_score=said.step_scores[index], confidence=said.step_confidences[index],
        interval=said.step_intervals[index] if said.step_intervals else None, is_correct=wrong is None,
        severity=wrong.severity if wrong else None, likely_cause=wrong.likely_cause if wrong else None,
        analysis=said.improvements[-1] if wrong else "", in_domain=said.in_domain,
        alarm=None if said.alarm_step is None else said.alarm_step >= 0, clean_prefix=said.clean_prefix,
        calibration_stale=said.calibration_stale,
        violations=None if said.violations is None else [one for one in said.violations if one.step_index == index],
        blocked=said.blocked,
        model=asked.served.source,
    ).model_dump()


class AnalysisRequest(Strict):
    """A trajectory to analyse: `prompt` and `steps`; `messages`; or `messages` and the `steps` that came after them."""

    prompt: str | None = Field(None, description="the question that the steps answer")
    steps: list[Any] = Field([], description=STEPS)
    messages: list[Any] | None = Field(None, validation_alias=AliasChoices("messages", "conversation"),
                                       description=MESSAGES + "; `conversation` is the same")
    tools: list[Any] | None = Field(None, description="definitions of the tools that were offered")
    threshold: float | None = Field(None, description="a step that scores lower is called wrong")
    aggregate: str | None = Field(None, description="of the step scores: min, prod, mean, last")


class Analysis(TrajectoryAnalysis):
    """What is said of a trajectory."""

    model: str = Field(description="the version that says so")


async def analyze_trajectory(asked: Asked, values: Mapping[str, Any]) -> dict[str, Any]:
    """The guide's `analyze_trajectory`."""
    given = body.checked(AnalysisRequest, values)
    answer = await _answer(asked, given, given.steps, None, _chosen(given))
    return {**_said(answer), "model": asked.served.source}


def _chosen(given: StepRequest | AnalysisRequest) -> dict[str, Any]:
    return given.model_dump(include={"threshold", "aggregate"}, exclude_none=True)


async def _answer(
    asked: Asked, given: StepRequest | AnalysisRequest, steps: list[Any], index: int | None, chosen: Mapping[str, Any]
) -> ScoringAnswer:
    """What is said of the trajectory in a request; `index` is the number of the last step where that was told."""
    record = {"prompt": given.prompt, "tools": given.tools}
    if given.messages is None:
        request = asked.request({**record, "steps": steps}, "the request")
    else:
        request = asked.request({**record, "messages": given.messages}, "the request", steps)
    if index is not None and index != len(request.steps) - 1:
        raise InputError(f"`step_index` is {index}, and {len(request.steps) - 1} steps came before; send all of them")
    [answer] = await asked.answer([request], chosen)
    return answer


def _said(answer: ScoringAnswer) -> dict[str, Any]:
    assert answer.analysis is not None
    return answer.analysis.model_dump()
