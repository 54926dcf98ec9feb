"""What the server is asked by POST, in one table: the path, the shape of request and answer, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from prm_core.serving.http import decisions, native, outcome, rewards
from prm_core.serving.http.asked import Asked


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path that is asked by POST.

    Attributes:
        path: where it is.
        summary: what it is, in a line.
        request, answer: shapes of the JSON.
        respond: the answer to a request's JSON object; it waits for nothing but the engine. Raises InputError.
        writes: whether it waits for the disk too, and so is run aside from the event loop.
    """

    path: str
    summary: str
    request: type[BaseModel]
    answer: type[BaseModel]
    respond: Callable[[Asked, Mapping[str, Any]], Coroutine[Any, Any, dict[str, Any]]]
    writes: bool = False


ENDPOINTS = (
    Endpoint("/invocations", "Trajectories analysed, as MLflow's scoring server has it", native.Invocation,
             native.Predictions, native.invocations),
    Endpoint("/score_step", "One more step of a trajectory scored", native.StepRequest, native.StepScore,
             native.score_step),
    Endpoint("/analyze_trajectory", "A trajectory analysed", native.AnalysisRequest, native.Analysis,
             native.analyze_trajectory),
    Endpoint("/outcome", "How trajectories that were scored have ended", outcome.Told, outcome.Noted, outcome.outcome,
             writes=True),
    Endpoint("/v1/decisions", "Questions about steps, as OpenAI's Decisions API has them", decisions.DecisionRequest,
             decisions.Decision, decisions.decisions),
    Endpoint("/v1/systemone", "Questions about steps, as System One has them", decisions.SystemOneRequest,
             decisions.SystemOneAnswer, decisions.systemone),
    Endpoint("/classify", "Whether all steps are right, as vLLM has it", rewards.ClassifyRequest, rewards.Classes,
             rewards.classify),
    Endpoint("/pooling", "A pair of probabilities a step, as vLLM has it", rewards.PoolingRequest, rewards.Pooling,
             rewards.pooling),
    Endpoint("/get_reward", "A reward a response, as OpenRLHF has it", rewards.RewardRequest, rewards.Rewards,
             rewards.get_reward),
)
