"""The MLflow model that answers `POST /invocations`: HTTP types in, ScoringService behind, MLflow errors out.

Logged as code (registry.log_reward_model): MLflow runs this file when it loads the model, beside the package's copy
that was logged with it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from pydantic import BaseModel, ConfigDict

from prm_core.errors import InputError, OverloadError
from prm_core.scoring.conformal import Promises
from prm_core.serving.analysis import TrajectoryAnalysis
from prm_core.serving.cache import ScoreCache
from prm_core.serving.service import ScoringService, parse_parameters, parse_rows

log = logging.getLogger(__name__)


class Request(BaseModel):
    """A trajectory to score."""

    model_config = ConfigDict(extra="forbid")
    prompt: str | None = None
    # Texts, or objects of the fields of a step.
    steps: list[Any] | None = None
    messages: list[Any] | None = None
    tools: list[Any] | None = None


class Refusal(MlflowException):
    """A request that is not answered, with our one line: bad input with HTTP 400, one too many with 503."""

    def __init__(self, line: str, code: int) -> None:
        self._line = line
        super().__init__(line, error_code=code)

    @property
    def message(self) -> str:
        """Our line, whatever MLflow's server writes around it (it prepends the whole request)."""
        return self._line

    @message.setter
    def message(self, _: str) -> None:
        pass


class RewardModel(mlflow.pyfunc.PythonModel):
    """Scores trajectories with the reward model among its artifacts."""

    def load_context(self, context: Any) -> None:
        """Loads the reward model; its cache and batch size come from the logged model config."""
        from prm_core.scoring.scorer import load_scorer

        config = context.model_config
        folder = Path(context.artifacts["reward_model"])
        scorer = load_scorer(folder, batch_size=config["batch_size"])
        self.service = ScoringService(scorer, ScoreCache(config["cache_size"], config["cache_ttl"]),
                                      Promises.load(folder))

    def predict(self, model_input: list[Request], params: dict[str, Any] | None = None) -> list[TrajectoryAnalysis]:
        """Answers requests in order. Thread-safe: MLflow calls it from many threads.

        Args:
            model_input: trajectories.
            params: `threshold` and `aggregate`; MLflow fills in the defaults of the model's signature.
        """
        requests = parse_rows([row.model_dump(exclude_none=True) for row in model_input])
        answers = self.service.answer(requests, **parse_parameters(params, params))
        return [answer.analysis.model_dump() for answer in answers]


def with_clear_errors(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Makes bad input a 400 of one line, what is too much a 503 and everything else a 500; MLflow by itself answers 400
    to any error, with many lines."""

    @functools.wraps(predict)
    def wrapper(self: RewardModel, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        try:
            # Before MLflow's type check, which would answer many lines.
            parse_rows(model_input)
            return predict(self, model_input, params)
        except InputError as error:
            raise Refusal(str(error), INVALID_PARAMETER_VALUE) from None
        except OverloadError as error:
            raise Refusal(str(error), TEMPORARILY_UNAVAILABLE) from None
        except MlflowException:
            raise
        except Exception as error:
            log.exception("scoring failed")
            raise MlflowException(
                f"scoring failed ({type(error).__name__}); the server's log has the traceback",
                error_code=INTERNAL_ERROR,
            ) from error

    return wrapper


# Around MLflow's own validation, which it puts around `predict` when the class is made.
RewardModel.predict = with_clear_errors(RewardModel.predict)
mlflow.models.set_model(RewardModel())
