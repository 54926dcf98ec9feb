"""Questions of decision models: which are answered with which score, and which are refused."""

from __future__ import annotations

import asyncio

import pytest
from starlette.testclient import TestClient

from prm_core.serving.analysis import TrajectoryAnalysis, analyze
from prm_core.serving.http import decisions
from tests.builders.edge import SOURCE, ask, edge, listening, refused

RIGHT, BAD = pytest.approx(0.9), pytest.approx(0.1)
ITEMS = [
    {"type": "message", "role": "user", "content": "Which came out first, A or B?"},
    {"type": "message", "role": "assistant", "content": "I will look up A.", "phase": "commentary"},
    {"type": "function_call", "call_id": "c1", "name": "search", "arguments": '{"query": "A"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "A: 2000"},
    {"type": "message", "role": "assistant", "content": "wrong: A came out first.", "phase": "final_answer"},
]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(edge())


def said() -> TrajectoryAnalysis:
    return analyze([0.9, 0.1, 0.7], ["a", "b", "c"], threshold=0.5, aggregate="min")


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("step_0", "", 0.9), ("step-1", "", 0.1), ("step2", "", 0.7), ("step_0", "Is the assistant's step 0 right?", 0.9),
    ("", "Is steps[1] right?", 0.1), ("", "Is step [1] correct?", 0.1), ("", "Is step #2 valid?", 0.7),
    ("evaluation", "Is the last step of state.outputs right, given state.inputs?", 0.7),
    ("", "Was the final step correct?", 0.7), ("", "Is step 0 wrong?", 0.1), ("", "Does step 1 hold an error?", 0.9),
])
def test_a_question_about_a_step_is_answered_by_its_score(name, text, expected) -> None:
    assert decisions.probability(said(), name, text) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "text"), [
    ("step_3", ""), ("step_-1", ""), ("step_1x", ""), ("", ""), ("evaluation", "Is it right?"),
    ("step_0", "Is step 0 polite?"), ("step_0", "Is step 1 right?"), ("", "Are steps 0 and 1 right?"),
    ("", "Is step 0 right and step 1 wrong?"), ("", "Is step 0 not right?"), ("", "Isn't step 0 right?"),
    ("", "Is step 0 free of errors?"), ("", "Are all steps up to step 1 right?"), ("", "Is step 99999999999 right?"),
    ("", "Is the final answer right?"), ("step_0", "Is it correct or incorrect?"),
])
def test_any_other_question_has_no_probability(name, text) -> None:
    assert decisions.probability(said(), name, text) is None


def test_of_a_model_that_says_so_the_final_answer_is_judged() -> None:
    model = said()
    model.outcome_score = 0.3
    assert decisions.probability(model, "", "Is the final answer correct?") == 0.3
    assert decisions.probability(model, "outcome", "") == 0.3
    assert decisions.probability(model, "", "Is the outcome wrong?") == 0.7


def test_a_decision_answers_in_order_and_refuses_what_it_cannot_say(client) -> None:
    def question(kind: str, text: str, name: str | None = None, **more) -> dict:
        return {"type": kind, "instructions": text, **({"name": name} if name else {}), **more}

    answer = ask(client, "/v1/decisions", {"model": "gpt-6-luna", "input": ITEMS, "questions": [
        question("predicate", "Is the assistant's step 0 right?", "step_0"),
        question("predicate", [{"type": "input_text", "text": "Is step 1 right?"}]),
        question("predicate", "Is the user polite?", "other"),
        question("choice", "Is step 1 right or wrong?", choices=[{"value": "right"}, {"value": "wrong"}]),
        question("choice", "Is step 1 wrong?", choices=[{"value": True}, {"value": False}]),
        question("choice", "Which colour has step 1?", choices=[{"value": "red"}, {"value": "blue"}]),
        question("score", "How good is step 1?", levels=[{"label": "a"}]),
    ]})
    assert answer["model"] == SOURCE
    assert [one["type"] for one in answer["answers"]] == [
        "predicate", "predicate", "refusal", "choice", "choice", "refusal", "refusal"]
    first, second, third, fourth, fifth, *_ = answer["answers"]
    assert (first["name"], first["probability"], second["name"], second["probability"]) == ("step_0", RIGHT, None, BAD)
    assert third == {"name": "other", "type": "refusal"}
    assert (fourth["choice"], fourth["confidence"]) == ("wrong", RIGHT)
    assert fourth["probabilities"] == [{"value": "right", "probability": BAD}, {"value": "wrong", "probability": RIGHT}]
    assert (fifth["choice"], fifth["confidence"]) == (True, RIGHT)
    assert answer["usage"]["input_tokens"] == answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("state", [
    {"task": "p", "steps": ["ok", "wrong"]}, {"prompt": "p", "steps": ["ok", {"text": "wrong"}]},
    {"messages": ITEMS}, {"conversation": ITEMS}, ITEMS,
    {"inputs": {"task": "p"}, "outputs": {"steps": ["ok", "wrong"]}}, {"inputs": "p", "outputs": ["ok", "wrong"]},
])
def test_system_one_reads_a_trajectory_where_it_stands(client, state) -> None:
    answer = ask(client, "/v1/systemone", {"model": "prm", "state": state, "questions": {
        "step_0": {"type": "noul", "instructions": "Is steps[0] right?",
                   "criteria": {"true": "right", "false": "wrong"}},
        "flipped": {"type": "noul", "instructions": "step 1", "criteria": {"true": "it is wrong", "false": "right"}},
        "step_1": {"type": "noul"}, "manners": {"type": "noul", "instructions": "Is step 1 polite?"},
        "kind": {"type": "choice", "instructions": "Step 1", "criteria": {"correct": "", "incorrect": ""}},
        "many": {"type": "score", "criteria": ["a", "b"]},
        "polite": {"type": "noul", "instructions": "Is step 0 right?",
                   "criteria": {"true": "polite", "false": "rude"}}}})
    assert answer["answers"] == {
        "step_0": {"type": "noul", "noul": RIGHT}, "flipped": {"type": "noul", "noul": RIGHT},
        "step_1": {"type": "noul", "noul": BAD}, "manners": {"type": "refusal"},
        "kind": {"type": "choice", "choice": "incorrect", "confidence": RIGHT,
                 "probabilities": {"correct": BAD, "incorrect": RIGHT}},
        "many": {"type": "refusal"}, "polite": {"type": "refusal"}}
    assert set(answer["usage"]) == {"input_tokens", "output_tokens"}


@pytest.mark.parametrize("state", [
    "a text", 3, None, {}, {"prompt": "p"}, {"steps": ["a"]}, {"inputs": 1, "outputs": 2}])
def test_of_a_state_without_a_trajectory_every_question_is_refused(client, state) -> None:
    answer = ask(client, "/v1/systemone", {"model": "prm", "state": state, "questions": {"step_0": {"type": "noul"}}})
    assert answer["answers"] == {"step_0": {"type": "refusal"}}
    assert answer["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_what_cannot_be_read_is_named_not_refused_politely(client) -> None:
    asked = {"model": "prm", "questions": [{"type": "predicate", "instructions": "Is step 0 right?"}]}
    assert "step 0 is empty" in refused(client, "/v1/systemone", {
        "model": "m", "state": {"prompt": "p", "steps": [""]}, "questions": {"step_0": {"type": "noul"}}})
    assert "`questions[0].type`" in refused(client, "/v1/decisions", {
        **asked, "input": ITEMS, "questions": [{"type": "guess", "instructions": "?"}]})
    assert "did you mean 'instructions'? " in refused(client, "/v1/decisions", {
        **asked, "input": ITEMS, "questions": [{"type": "predicate", "instruction": "?"}]})
    assert "`questions`" in refused(client, "/v1/decisions", {
        **asked, "input": ITEMS, "questions": asked["questions"] * 401})
    assert "a part that is no text" in refused(client, "/v1/decisions", {
        **asked, "input": ITEMS, "questions": [{"type": "predicate", "instructions": [{"type": "input_image"}]}]})


def test_openai_s_client_gets_what_it_expects() -> None:
    import httpx2
    import openai

    async def decided(**asked):
        transport = httpx2.ASGITransport(app=edge())
        async with openai.AsyncOpenAI(api_key="k", base_url="http://a/v1", max_retries=0,
                                      http_client=httpx2.AsyncClient(transport=transport)) as client:
            return await client.decisions.create(model="prm", input=ITEMS, **asked)

    question = {"type": "predicate", "name": "step_1", "instructions": "Is step 1 right?"}
    decision = asyncio.run(decided(questions=[question, {"type": "predicate", "instructions": "Is it blue?"}]))
    assert (decision.model, decision.answers[0].probability, decision.answers[1].type) == (SOURCE, BAD, "refusal")
    with pytest.raises(openai.BadRequestError, match="questions") as bad:
        asyncio.run(decided(questions=[]))
    assert (bad.value.code, bad.value.type) == ("invalid_parameter_value", "invalid_request_error")


def test_mlflow_s_judges_get_what_they_expect(monkeypatch) -> None:
    from mlflow.genai.judges import make_judge

    monkeypatch.setenv("TYPESAFE_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    ask = "Is the last step of {{ outputs }} right, given {{ inputs }}?"
    about = {"inputs": {"task": "q"}, "outputs": {"steps": ["ok", "wrong"]}}
    with listening(edge()) as address:
        for model, api in (("typesafe:/prm", None), ("openai:/prm", "decisions")):
            judge = make_judge(name="last", instructions=ask, model=model, feedback_value_type=bool,
                               base_url=f"{address}/v1", **({"model_api": api} if api else {}))
            feedback = judge(**about)
            (share,) = [text for name, text in feedback.metadata.items() if name.endswith(".probability")]
            assert (feedback.value, float(share)) == (False, BAD)
