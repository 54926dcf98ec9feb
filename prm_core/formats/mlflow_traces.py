"""Traces as MLflow saves them (trace schema 3): the calls of a language model are steps, tools' spans their results.

MLflow's server translates a dozen dialects of OpenTelemetry into this, so that reading it reads those too. In a trace's
JSON a span's id is base64; in assessments, and everywhere else, it is the same number in hex, which is how a step's
`ref` names its span.

Source: `mlflow` 3.17.2, `Trace.to_json` and `entities/assessment.py`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    LabelledChain,
    Labels,
    RowFormat,
    get,
    get_list,
    label_between,
    register,
    score_in,
    shown,
)
from prm_core.formats.spans import ACTOR, MODEL, TOOL, Span, read_spans

KINDS = {"CHAT_MODEL": MODEL, "LLM": MODEL, "TOOL": TOOL, "AGENT": ACTOR}
# Names of assessments: what people say of a step, and what a model does.
LABEL, SCORE = "step_label", "prm_step"
RUNNING, FAILED = "IN_PROGRESS", "STATUS_CODE_ERROR"


def _hex(value: Any, where: str) -> str:
    try:
        return base64.b64decode(value, validate=True).hex()
    except (binascii.Error, ValueError, TypeError):
        raise InputError(f"{where} is {shown(value)}, expected an id in base64, as a trace's JSON has it") from None


def _decoded(attributes: Mapping[str, Any], name: str, where: str) -> Any:
    """An attribute: each holds JSON in a text."""
    value = attributes.get(f"mlflow.{name}")
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise InputError(f"{where}: attribute mlflow.{name} is {shown(value)}, expected JSON in a text") from None


def _span(raw: Any, where: str) -> Span:
    if not isinstance(raw, dict):
        raise InputError(f"{where} is {shown(raw)}, expected an object")
    attributes = get({"attributes": {}, **raw}, "attributes", dict, where)
    parent = raw.get("parent_span_id")
    status = raw["status"] if isinstance(raw.get("status"), dict) else {}
    return Span(
        where, _hex(raw.get("span_id"), f"{where}: span_id"),
        None if not parent else _hex(parent, f"{where}: parent_span_id"), str(raw.get("name") or ""),
        KINDS.get(str(_decoded(attributes, "spanType", where)), ""), get(raw, "start_time_unix_nano", int, where),
        status.get("code") == FAILED, str(status.get("message") or ""), "",
        _decoded(attributes, "chat.tools", where),
        _decoded(attributes, "spanInputs", where), _decoded(attributes, "spanOutputs", where))


@register
class MlflowTrace(RowFormat):
    """A trace a record: `info`, `data.spans`. Assessments of a step's span, with a value from 0 to 1, are labels where
    they are named `step_label`, and a model's scores where they are named `prm_step`; a trace that is still running is
    left out."""

    name = "mlflow_trace"
    soft = unlabelled = observations = scored = True

    def refusal(self, chain: LabelledChain) -> str | None:
        return None if chain.source == self.name else "has spans, which only its own chains have; write atif"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        info = get(row, "info", dict, where)
        if info.get("state") == RUNNING:
            noted["traces that are still running left out"] += 1
            return None
        raw = get(get(row, "data", dict, where), "spans", list, f"{where}: data")
        prompt, steps, tools = read_spans(
            [_span(one, f"{where}: span {index}") for index, one in enumerate(raw)], where, noted)
        if not steps:
            noted["traces without a model's answer left out"] += 1
            return None
        ids, trace = [step.ref for step in steps], info.get("trace_id")
        return LabelledChain(prompt, steps, _labels(info, ids, where), source=self.name, meta={"record": row},
                             tools=tools, id=trace if isinstance(trace, str) else "", **_scores(info, ids))

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        record, ids = chain.meta["record"], [step.ref for step in chain.steps]
        info = record["info"]
        assessments = given = get_list(info, "assessments", "")
        if _labels(info, ids, "") != chain.labels:
            assessments = _replaced(assessments, LABEL, ids, chain.labels, info, "prm")
        if _scores(info, ids) != {"scores": chain.scores, "scorer": chain.scorer}:
            assessments = _replaced(assessments, SCORE, ids, chain.scores, info, chain.scorer)
        return record if assessments is given else {**record, "info": {**info, "assessments": assessments}}


def _replaced(assessments: Sequence[Any], name: str, ids: Sequence[str], values: Labels, info: Mapping[str, Any],
              source: str) -> list[Any]:
    """The assessments with these values of this name on the spans, in place of those there were."""
    given = [{"assessment_name": name, "trace_id": info.get("trace_id"), "span_id": span, "feedback": {"value": value},
              "source": {"source_type": "CODE", "source_id": source}, "metadata": {"step_index": str(index)},
              "valid": True}
             for index, (span, value) in enumerate(zip(ids, values or (None,) * len(ids), strict=True))
             if value is not None]
    return [*(one for one in assessments if not _is(name, one, ids)), *given]


def _is(name: str, assessment: Any, ids: Sequence[str]) -> bool:
    return (isinstance(assessment, dict) and assessment.get("assessment_name") == name
            and assessment.get("valid") is not False and assessment.get("span_id") in ids)


def _value(assessment: Mapping[str, Any]) -> Any:
    given = assessment.get("feedback") or assessment.get("expectation") or {}
    return given.get("value") if isinstance(given, dict) else None


def _labels(info: Mapping[str, Any], ids: Sequence[str], where: str) -> Labels:
    """Labels of the steps, the last one where a span has several."""
    found: dict[str, float] = {}
    for assessment in get_list(info, "assessments", where):
        if _is(LABEL, assessment, ids):
            value, at = _value(assessment), f"{where}: the assessment of span {assessment['span_id']}"
            found[assessment["span_id"]] = float(value) if isinstance(value, bool) else label_between(value, at)
    return tuple(found.get(span) for span in ids)


def _scores(info: Mapping[str, Any], ids: Sequence[str]) -> dict[str, Any]:
    """A model's scores of the steps, the last one where a span has several, and its version."""
    found: dict[str, float] = {}
    scorer = ""
    for assessment in get_list(info, "assessments", ""):
        score = score_in(_value(assessment)) if _is(SCORE, assessment, ids) else None
        if score is not None:
            found[assessment["span_id"]] = score
            source = assessment.get("source")
            scorer = str(source.get("source_id") or "") if isinstance(source, dict) else ""
    return {"scores": tuple(found.get(span) for span in ids) if found else (), "scorer": scorer}
