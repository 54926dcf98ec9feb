"""Evaluation events: one for each scored step, on its span, as a collector takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prm_core.errors import InputError
from prm_core.formats import LabelledChain
from prm_core.types import Step
from tests.builders.formats import Files

CHAIN = LabelledChain("p", (Step("a", ref="00000000000000aa"), Step("b", ref="00000000000000bb"), Step(
    "c", ref="00000000000000cc")), (None,) * 3, id="tr-" + "1" * 32, scores=(0.75, None, 0.25), scorer="prm/3")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files("evaluation_events", tmp_path)


def test_one_event_for_each_scored_step(files: Files) -> None:
    (request, other) = files.write(CHAIN, replace(CHAIN, id="2" * 32, scores=(None, 1.0, None), scorer=""))
    events = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert [(one["eventName"], one["traceId"], one["spanId"]) for one in events] == [
        ("gen_ai.evaluation.result", "1" * 32, "00000000000000aa"),
        ("gen_ai.evaluation.result", "1" * 32, "00000000000000cc")]
    assert [{each["key"]: next(iter(each["value"].values())) for each in one["attributes"]} for one in events] == [
        {"gen_ai.evaluation.name": "prm_step", "gen_ai.evaluation.score.value": value,
         "gen_ai.evaluation.score.label": label, "gen_ai.evaluation.explanation": why, "prm.version": "prm/3"}
        for value, label, why in ((0.75, "right", "step 0: right with probability 0.75, says prm/3"),
                                  (0.25, "wrong", "step 2: right with probability 0.25, says prm/3"))]
    (event,) = other["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert (event["traceId"], event["spanId"]) == ("2" * 32, "00000000000000bb")
    assert "prm.version" not in {one["key"] for one in event["attributes"]}


def test_ids_are_in_hex_whatever_they_were_in(files: Files) -> None:
    span = Step("a", ref="t61rcWkgMzE=")
    (request,) = files.write(LabelledChain("p", (span,), (None,), id="SPe9L1lzRBqYp0YE7V2Wow==", scores=(0.5,)))
    (event,) = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert (event["traceId"], event["spanId"]) == ("48f7bd2f5973441a98a74604ed5d96a3", "b7ad6b7169203331")


def test_a_trace_without_a_score_is_counted(files: Files) -> None:
    assert len(files.write(CHAIN, replace(CHAIN, scores=()))) == 1
    assert files.noted == {"traces without a score left out": 1}


@pytest.mark.parametrize("change", [
    {"id": "run-1"}, {"id": ""}, {"steps": (Step("a", ref="2"),) * 3}, {"steps": (Step("a", ref="abcd"),) * 3}])
def test_steps_that_are_no_spans_are_refused(files: Files, change: dict) -> None:
    with pytest.raises(InputError, match="is about spans, and these steps are none; read the chains from mlflow_trace"):
        files.write(replace(CHAIN, **change))


def test_events_are_only_written(files: Files) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl:1: evaluation_events says nothing but scores"):
        files.read({"resourceLogs": []})
