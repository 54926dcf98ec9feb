"""OpenTelemetry's events for scores: one `gen_ai.evaluation.result` for each step, on the span the step is.

They go out as export requests of logs, which any collector takes at /v1/logs, one for each trace; a trace of OTLP may
hold them as its spans' own events too (otlp.py). The convention has no field for the model that scores: its version
stands in an attribute of our own.

Source: OpenTelemetry semantic conventions for generative AI, gen-ai-events.md (in development); OTLP/JSON 1.x.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, register

EVENT = "gen_ai.evaluation.result"
NAME, VALUE, LABEL, EXPLANATION = (f"gen_ai.evaluation.{name}" for name in (
    "name", "score.value", "score.label", "explanation"))
VERSION = "prm.version"
# What is evaluated: what people say of a step, and what a model does.
STEP_LABEL, STEP_SCORE = "step_label", "prm_step"
TRACE_BYTES, SPAN_BYTES = 16, 8


def hex_id(id: str, size: int) -> str | None:
    """An id of so many bytes in hex, as OTLP's JSON has it; also of MLflow's name for a trace, and of base64, in which
    protobuf's own JSON has ids. None of any other text."""
    id = id.removeprefix("tr-")
    if re.fullmatch(rf"[0-9a-fA-F]{{{2 * size}}}", id):
        return id
    try:
        found = base64.b64decode(id, validate=True)
    except ValueError:
        return None
    return found.hex() if len(found) == size else None


def attributes(**values: Any) -> list[dict[str, Any]]:
    """Attributes in OTLP's JSON, of texts and numbers."""
    return [{"key": name, "value": {"stringValue": value} if isinstance(value, str) else {"doubleValue": value}}
            for name, value in values.items()]


def result(name: str, index: int, value: float, version: str) -> list[dict[str, Any]]:
    """The attributes of one event: `value` is the probability that step `index` is right."""
    verdict = "right" if value >= 0.5 else "wrong"
    by = f", says {version}" if version else ""
    return attributes(**{NAME: name, VALUE: value, LABEL: verdict,
                         EXPLANATION: f"step {index}: right with probability {value:.3g}{by}"},
                      **({VERSION: version} if version else {}))


@register
class EvaluationEvents(RowFormat):
    """`gen_ai.evaluation.result` events of a trace's scored steps, as an export request of logs; only written."""

    name = "evaluation_events"
    soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        if hex_id(chain.id, TRACE_BYTES) is None or any(
                hex_id(step.ref, SPAN_BYTES) is None for step in chain.steps):
            return "is about spans, and these steps are none; read the chains from mlflow_trace or otlp"
        return None

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        raise InputError(f"{where}: {self.name} says nothing but scores; read the traces they are about (otlp, "
                         "mlflow_trace)")

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for number, chain in enumerate(chains):
            if any(score is not None for score in chain.scores):
                yield self.compose_row(chain, number, noted)
            else:
                noted["traces without a score left out"] += 1

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        events = [{"eventName": EVENT, "traceId": hex_id(chain.id, TRACE_BYTES),
                   "spanId": hex_id(step.ref, SPAN_BYTES),
                   "attributes": result(STEP_SCORE, index, score, chain.scorer)}
                  for index, (step, score) in enumerate(zip(chain.steps, chain.scores, strict=True))
                  if score is not None]
        return {"resourceLogs": [{"resource": {"attributes": attributes(**{"service.name": "prm"})},
                                  "scopeLogs": [{"scope": {"name": "prm"}, "logRecords": events}]}]}
