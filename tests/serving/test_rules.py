"""Rules where scores are served: violations in answers, what blocks, and feedback on traces that is given once."""

from __future__ import annotations

from typing import Any

import mlflow
import pytest
from mlflow.entities import Assessment, AssessmentSource, Feedback
from starlette.testclient import TestClient

from prm_core.config import PromoteConfig
from prm_core.errors import InputError, OverloadError
from prm_core.rules.constitution import load
from prm_core.rules.verdicts import Judge, Overseer
from prm_core.serving.cache import ScoreCache
from prm_core.serving.promotion import decide
from prm_core.serving.rules import Guard, write_feedback
from prm_core.serving.service import ScoringRequest, ScoringService
from prm_core.types import Step
from tests.builders.edge import ask, edge
from tests.builders.scorer import CONTEXT, FakeScorer
from tests.serving.test_promotion import tags

RULES = """\
rules:
  - {id: no-shouting, text: No shouting., severity: low, predicate: 'text == "LOUD"'}
  - {id: no-harm, text: No harm., severity: high, predicate: 'text == "harm"', instead: Help.}
"""


@pytest.fixture
def overseer(tmp_path) -> Overseer:
    (tmp_path / "rules.yaml").write_text(RULES)
    return Overseer(load(tmp_path / "rules.yaml"))


def answered(guard: Guard | None, *texts: str) -> dict[str, Any]:
    service = ScoringService(FakeScorer(), ScoreCache(10, 60.0), guard=guard)
    [answer] = service.answer([ScoringRequest("r", "p", tuple(map(Step, texts)))], threshold=0.5, aggregate="min")
    service.close()
    return answer.analysis.model_dump()


def test_violations_are_told_beside_scores(overseer):
    said = answered(Guard(overseer), "fine", "LOUD", "harm")
    assert [(one["step_index"], one["rule"], one["severity"], one["probability"]) for one in said["violations"]] == [
        (1, "no-shouting", "low", 1.0), (2, "no-harm", "high", 1.0)]
    assert said["violations"][1]["reason"] == "harm: No harm."
    # What keeps a rule is told where its file tells it.
    assert [{"first", "instead"} & one.keys() for one in said["violations"]] == [set(), {"instead"}]
    assert said["violations"][1]["instead"] == {"text": "Help."}
    # What is unsafe is not therefore wrong.
    assert (said["step_scores"], said["overall_score"], said["first_error_step"]) == ([0.9] * 3, 0.9, -1)
    assert "blocked" not in said


def test_without_rules_nothing_is_told_and_with_none_broken_an_empty_list(overseer):
    assert "violations" not in answered(None, "harm")
    assert answered(Guard(overseer), "fine")["violations"] == []


def test_a_judge_that_does_not_answer_is_no_fault_of_who_asks(tmp_path):
    (tmp_path / "asked.yaml").write_text(
        "rules: [{id: polite, text: No insults., severity: low, question: 'Does it insult?'}]")

    def ask(questions):
        raise InputError("the judge is away")

    guard = Guard(Overseer(load(tmp_path / "asked.yaml"), judge=Judge("j", ask)))
    service = ScoringService(FakeScorer(), ScoreCache(10, 60.0), guard=guard)
    assert service.waits_for_a_judge
    with pytest.raises(OverloadError, match="the judge is away"):
        service.answer([ScoringRequest("r", "p", (Step("x"),))], threshold=0.5, aggregate="min")
    service.close()


def test_what_is_refused_is_not_judged(tmp_path):
    (tmp_path / "asked.yaml").write_text(
        "rules: [{id: polite, text: No insults., severity: low, question: 'Does it insult?'}]")
    asked = []

    def ask(questions):
        asked.extend(questions)
        return [(0.9, "it does")] * len(questions)

    service = ScoringService(FakeScorer(), ScoreCache(10, 60.0),
                             guard=Guard(Overseer(load(tmp_path / "asked.yaml"), judge=Judge("j", ask))))
    long = ScoringRequest("r", "p", (Step("x"), Step("x" * CONTEXT)))
    with pytest.raises(InputError, match="longer than the model's context"):
        service.answer([long], threshold=0.5, aggregate="min")
    assert not asked
    [answer] = service.answer([ScoringRequest("r", "p", (Step("x"),))], threshold=0.5, aggregate="min")
    assert ([one.rule for one in answer.analysis.violations], len(asked)) == (["polite"], 1)
    service.close()


@pytest.mark.parametrize(("block", "text", "blocked"), [
    ("high", "harm", True), ("high", "LOUD", False), ("low", "LOUD", True), ("critical", "harm", False)])
def test_what_is_severe_enough_blocks(overseer, block, text, blocked):
    said = answered(Guard(overseer, block), "fine", text)
    assert (said["blocked"], said["overall_score"]) == (blocked, 0.0 if blocked else 0.9)


def test_what_blocks_does_so_wherever_a_score_of_the_whole_is_asked(overseer):
    app = edge(guard=Guard(overseer, "high"))
    client = TestClient(app)
    rows = [{"prompt": "p", "steps": steps} for steps in (["LOUD"], ["fine", "harm"])]
    said = ask(client, "/invocations", {"inputs": rows})["predictions"]
    assert [(one["blocked"], one["overall_score"]) for one in said] == [(False, 0.9), (True, 0.0)]
    assert [ask(client, "/analyze_trajectory", row)["overall_score"] for row in rows] == [0.9, 0.0]
    texts = ["p<|step|>LOUD<|step|>", "p<|step|>fine<|step|>harm<|step|>"]
    assert ask(client, "/get_reward", {"query": texts})["rewards"] == [0.9, 0.0]
    assert [one["probs"][1] for one in ask(client, "/classify", {"input": texts})["data"]] == [0.9, 0.0]
    whole = ask(client, "/pooling", {"input": texts, "task": "classify"})
    assert [one["data"][1] for one in whole["data"]] == [0.9, 0.0]
    # A step's score stays the probability that it is right, whatever it breaks.
    steps = ask(client, "/pooling", {"input": texts})
    assert [[pair[1] for pair in one["data"]] for one in steps["data"]] == [[0.9], [0.9, 0.9]]
    later = ask(client, "/score_step", {"prompt": "p", "steps": ["harm"], "step": "fine"})
    assert (later["step_score"], later["violations"], later["blocked"]) == (0.9, [], True)


def test_broken_rules_and_what_they_block_are_counted(overseer):
    app = edge(guard=Guard(overseer, "high"))
    client = TestClient(app)
    rows = [{"prompt": "p", "steps": steps} for steps in (["LOUD", "fine", "LOUD"], ["LOUD", "harm"], ["fine"])]
    ask(client, "/invocations", {"inputs": rows})
    figures = client.get("/metrics").text
    for name, value in (('rule_violations_total{model_name="prm",rule="no-shouting",severity="low"}', 3),
                        ('rule_violations_total{model_name="prm",rule="no-harm",severity="high"}', 1),
                        ('trajectories_blocked_total{model_name="prm"}', 1)):
        assert f"prm:{name} {value:.1f}\n" in figures


@pytest.mark.parametrize(("value", "passed", "reason"), [
    ("0.05", True, "no champion yet"), ("0.1", True, "no champion yet"),
    ("0.11", False, "above the limit promote.max_vi"),
    (None, False, "has no test/policy_trained/violations"), ("nan", False, "has no test/policy_trained/violations")])
def test_the_gate_asks_how_often_rules_are_broken(value, passed, reason):
    own = tags() | ({} if value is None else {"test/policy_trained/violations": value})
    decision = decide(own, None, PromoteConfig(max_ece=0.1, max_violations=0.1))
    assert (decision.passed, reason in decision.reason) == (passed, True), decision


def given(
    span: str, rule: str, version: str, *, edited: bool = False, source: str = "CODE", id: str = ""
) -> Assessment:
    made = Feedback(name=f"rule/{rule}", value=1.0, source=AssessmentSource(source, "x"), span_id=span,
                    create_time_ms=1, last_update_time_ms=1 + edited,
                    metadata={"rule": rule, "rules_version": version})
    made.assessment_id = id or f"{span}/{rule}/{version}"
    return made


@pytest.mark.parametrize(("there", "logged", "removed"), [
    ([], [("s", "no-harm")], []),
    ([given("s", "no-harm", "NOW")], [], []),
    ([given("s", "no-harm", "old")], [("s", "no-harm")], ["s/no-harm/old"]),
    ([given("s", "no-harm", "NOW"), given("s", "no-harm", "NOW", id="twice")], [], ["twice"]),
    # Of a rule that is kept now; of another program; corrected by somebody.
    ([given("f", "no-harm", "NOW")], [("s", "no-harm")], ["f/no-harm/NOW"]),
    ([given("s", "no-harm", "old", source="HUMAN")], [("s", "no-harm")], []),
    ([given("s", "no-harm", "old", edited=True)], [], []),
])
def test_feedback_on_spans_is_given_once(overseer, monkeypatch, there, logged, removed):
    calls: dict[str, list[Any]] = {"logged": [], "removed": []}
    monkeypatch.setattr(mlflow, "log_feedback", lambda **values: calls["logged"].append(values))
    monkeypatch.setattr(mlflow, "delete_assessment", lambda trace, id: calls["removed"].append(id))
    [broken] = overseer.breaks([("p", [Step("fine"), Step("harm")])])
    counts = write_feedback("t", ["f", "s"], broken, there, "NOW")
    assert [(one["span_id"], one["metadata"]["rule"]) for one in calls["logged"]] == logged
    assert calls["removed"] == removed
    assert (counts["broken"], counts["removed"]) == (len(logged), len(removed))
    for one in calls["logged"]:
        assert (one["name"], one["value"], one["rationale"]) == ("rule/no-harm", 1.0, "harm: No harm.")
