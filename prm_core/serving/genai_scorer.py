"""The reward model as a scorer of `mlflow.genai.evaluate`.

`evaluate` stores whatever a scorer returns on a trace's root span, so this one returns the trace's score and logs those
of the steps itself, each on its span.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.scorers import Scorer
from mlflow.tracking import MlflowClient
from pydantic import PrivateAttr

from prm_core.errors import InputError
from prm_core.search.aggregate import AGGREGATIONS
from prm_core.serving.trace_judge import CHAMPION, NAME, Judge, read


class ProcessScorer(Scorer):
    """Scores traces by their steps: `mlflow.genai.evaluate(data=traces, scorers=[ProcessScorer()])`.

    Returns the steps' scores put together; an error for a trace that the model cannot judge. The model is loaded at
    once, so that no trace waits for it.

    Attributes:
        name: of the trace's feedback.
        model: as `prm judge --model` takes it.
        workspace: folder whose store knows the model.
        aggregate: how step scores make the trace's: min, prod, mean or last.
        step_name: of the steps' feedback, which is as `prm judge` logs it: each step has one, of the last model.

    Raises InputError for a model that is not there, or has no step scores.
    """

    name: str = "prm"
    model: str = CHAMPION
    workspace: Path = Path(".")
    aggregate: str = "min"
    step_name: str = NAME
    _judge: Judge = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        AGGREGATIONS[self.aggregate]
        self._judge = Judge(self.model, self.workspace, self.step_name, self.aggregate)
        self._judge.load()

    def __call__(self, *, trace: Trace | None = None) -> Feedback:
        if trace is None:
            raise InputError("there is no trace; give `evaluate` traces, or a predict_fn that is traced")
        noted = Counter[str]()
        request = read(trace, noted)
        if request is None:
            raise InputError(f"trace {trace.info.trace_id} has no step to score: {', '.join(noted)}")
        answer = self._judge.score([request])[0]
        if isinstance(answer, InputError):
            raise answer
        assert answer.analysis is not None
        # What was given may have been fetched before the scores that are there now.
        now = MlflowClient().get_trace(trace.info.trace_id, display=False)
        self._judge.write(now, request, answer.analysis)
        return Feedback(
            name=self.name, value=answer.analysis.overall_score, source=AssessmentSource("CODE", self._judge.source),
            rationale=answer.analysis.out_of_domain,
            metadata={"first_error_step": str(answer.analysis.first_error_step), "aggregate": self.aggregate})
