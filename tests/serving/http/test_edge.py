"""What `prm serve` answers: bad requests get a 4xx of one line, never a 500 and never a guess."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
import logging
import signal
import threading
import time
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from prm_core.config import EngineConfig
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.http import edge as edges
from prm_core.serving.http.logs import JsonLines
from tests.builders.edge import DEFAULTS, JSON, SOURCE, edge, listening
from tests.builders.edge import ask as answered
from tests.builders.reward_models import TEXTS, tiny_reward_model
from tests.builders.scorer import CONTEXT, FakeScorer

ROW = {"prompt": "p", "steps": ["ok", "wrong"]}


@pytest.fixture
def client() -> TestClient:
    return TestClient(edge())


def ask(client: TestClient, body: str | bytes, content_type: str | None = JSON) -> tuple[int, dict]:
    response = client.post("/invocations", content=body, headers={"content-type": content_type} if content_type else {})
    assert response.headers["content-type"] == JSON
    return response.status_code, response.json()


def with_params(params: object) -> str:
    return json.dumps({"inputs": [ROW], "params": params})


@pytest.mark.parametrize(("params", "overall", "first_error"), [
    ({}, 0.1, 1), ({"threshold": 0}, 0.1, -1), ({"threshold": 1}, 0.1, 0), ({"threshold": 0.05}, 0.1, -1),
    ({"aggregate": "last"}, 0.1, 1), ({"aggregate": "mean", "threshold": 1.0}, 0.5, 0),
])
def test_parameters_say_how_a_chain_is_analysed(client, params, overall, first_error) -> None:
    status, content = ask(client, with_params(params))
    assert status == 200
    (prediction,) = content["predictions"]
    assert (prediction["overall_score"], prediction["first_error_step"]) == (pytest.approx(overall), first_error)
    assert prediction["step_scores"] == [0.9, 0.1]


def test_without_parameters_the_model_s_own_count(client) -> None:
    assert ask(client, json.dumps({"inputs": [ROW]})) == ask(client, with_params(DEFAULTS))
    assert ask(client, json.dumps({"inputs": [ROW]}), "application/json; charset=UTF-8")[0] == 200
    assert client.get("/ping").status_code == client.get("/health").status_code == 200


@pytest.mark.parametrize(("body", "reason"), [
    (with_params({"treshold": 0.9}), "unknown parameter 'treshold'; did you mean 'threshold'? known: aggregate"),
    (with_params({"aggregateBy": "mean"}), "unknown parameter 'aggregateBy'"),
    (with_params({"threshold": None}), "threshold must be a number from 0 to 1"),
    (with_params({"threshold": "0.5"}), "threshold must be a number"),
    (with_params({"threshold": True}), "threshold must be a number"),
    (with_params({"threshold": [0.5]}), "threshold must be a number"),
    (with_params({"threshold": float("nan")}), "threshold is nan, not a probability"),
    (with_params({"threshold": float("inf")}), "threshold is inf, not a probability"),
    (with_params({"threshold": -0.1}), "threshold is -0.1, not a probability"),
    (with_params({"threshold": 5}), "threshold is 5, not a probability"),
    (with_params({"threshold": 10**400}), "a number of 401 digits"),
    (with_params({"threshold": 10**99}), "threshold is 10000000000000000000, not a probability"),
    ('{"inputs": [], "params": {"threshold": 0.%s}}' % ("1" * 5000), "a number of 5002 digits"),
    ('{"inputs": [], "params": {"threshold": %s}}' % ("1" * 5000), "a number of 5000 digits"),
    (with_params({"aggregate": None}), "aggregate must be a text, one of min, prod, mean, last"),
    (with_params({"aggregate": 3}), "aggregate must be a text"),
    (with_params({"aggregate": "median"}), "unknown aggregation 'median'"),
    (with_params({"aggregate": "a\nb"}), "unknown aggregation"),
    (with_params({"a\nb": 1}), "unknown parameter"),
    (with_params(None), "`params` must be an object of threshold and aggregate"),
    (with_params([]), "`params` must be an object"),
    (json.dumps({"inputs": [ROW], "threshold": 0.9}), "`threshold` is a parameter; put it into `params`"),
    (json.dumps({"inputs": [ROW], "parms": {}}), "unknown field 'parms'"),
    (json.dumps({"instances": [ROW]}), "unknown field 'instances'"),
    (json.dumps({"dataframe_split": {}}), "unknown field 'dataframe_split'"),
    ('{"inputs": [{"prompt": "p", "prompt": "q", "steps": ["a"]}]}', "names 'prompt' twice"),
    ('{"inputs": [], "inputs": []}', "names 'inputs' twice"),
    (json.dumps({"params": {}}), "`inputs` must be a list of at least one object"),
    (json.dumps({"inputs": []}), "`inputs` must be a list of at least one object"),
    (json.dumps({"inputs": ROW}), "`inputs` must be a list"),
    (json.dumps({"inputs": ["x"]}), r"inputs[0]: expected an object with `prompt` and `steps`"),
    (json.dumps({"inputs": [ROW, {"prompt": "p", "steps": None}]}), "inputs[1]: `steps` must be a non-empty list"),
    (json.dumps({"inputs": [{"prompt": "p", "steps": "a"}]}), "inputs[0]: `steps` must be a non-empty list"),
    (json.dumps({"inputs": [{"prompt": "p", "steps": [{"txt": "a"}]}]}), "inputs[0]: step 0 must be a text or"),
    (json.dumps({"inputs": [{"prompt": ["p"], "steps": ["a"]}]}), "inputs[0]: `prompt` is empty or no text"),
    (json.dumps({"inputs": [{**ROW, "id": 3}]}), "inputs[0]: unknown field 'id'"),
    (json.dumps({"inputs": [{"prompt": "p\ud800", "steps": ["a"]}]}), "no valid Unicode"),
    (json.dumps({"\ud800": [{"role": {"x\udfff": 3}}]}), "no valid Unicode"),
    (json.dumps({str(number): number for number in range(1001)}), "an object of 1001 fields; at most 1000"),
    ('{"inputs": [}', "not valid JSON"),
    ("", "not valid JSON"),
    ("[" * 200_000, "nested too deep"),
    ('{"inputs": ' * 100_000, "nested too deep"),
    ("[" * 40 + "]" * 40, "nested too deep; at most 32 levels"),
    (json.dumps([ROW]), "must be an object"),
    ("7", "must be an object"),
    (b'{"inputs": "\xff"}', "not UTF-8"),
])
def test_bad_requests_are_400_in_one_line(client, body, reason: str) -> None:
    status, content = ask(client, body)
    assert (status, content["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert reason in content["message"]
    assert "\n" not in content["message"]
    assert len(content["message"]) <= edges.LONGEST_MESSAGE


@pytest.mark.parametrize("content_type", [
    None, "", "text/csv", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "nonsense"])
def test_a_body_that_is_not_sent_as_json_is_415(client, content_type) -> None:
    status, content = ask(client, json.dumps({"inputs": [ROW]}), content_type)
    assert status == 415
    assert "Content-Type: application/json" in content["message"]


def test_a_fault_of_ours_is_a_500_that_says_where_to_look(client, caplog) -> None:
    with caplog.at_level(logging.CRITICAL):
        status, content = ask(client, json.dumps({"inputs": [{"prompt": "p", "steps": ["crash"]}]}))
    assert (status, content["error_code"]) == (500, "INTERNAL_ERROR")
    assert content["message"] == "scoring failed (RuntimeError); the server's log has the traceback"




def test_every_answer_has_a_request_id_and_the_version(client) -> None:
    given = client.post("/invocations", json={"inputs": [ROW]}, headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    assert (given.headers["x-model"], given.headers["x-model-version"]) == (SOURCE, "v1")
    made = client.post("/invocations", json={}, headers={"x-request-id": "no\tid"})
    assert len(made.headers["x-request-id"]) == 32
    assert made.json()["request_id"] == made.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "status", "reason"), [
    ("POST", "/invocation", 404, "did you mean /invocations?"), ("GET", "/zzzzzzzzzz", 404, "see /openapi.json"),
    ("GET", "/invocations", 405, "is asked by POST"), ("POST", "/ping", 405, "is asked by GET"),
    ("POST", "/invocations?threshold=0.9", 400, "parameters in the URL are not read"),
    ("DELETE", "/classify", 405, "is asked by POST"),
])
def test_a_wrong_path_or_method_says_where_to_go(client, method, path, status, reason) -> None:
    response = client.request(method, path, headers={"content-type": JSON})
    assert response.status_code == status
    assert reason in response.json()["message"]
    assert response.json()["error"]["message"] == response.json()["message"]


def test_what_others_ask_of_mlflow_s_server_is_there(client) -> None:
    assert client.get("/version").text == importlib.metadata.version("mlflow")
    assert client.get("/ping").text == client.get("/health").text == "\n"
    assert client.head("/ping").status_code == 200


# Limits


class Counting(FakeScorer):
    """Says how many characters it was made to read."""

    read = 0

    def score(self, chains):
        self.read += sum(len(prompt) + sum(len(step.text) for step in steps) for prompt, steps in chains)
        return super().score(chains)


@pytest.mark.parametrize("sent", ["length", "chunks"])
def test_ten_megabytes_are_refused_before_they_are_read(sent) -> None:
    scorer = Counting()
    body = json.dumps({"inputs": [{"prompt": "a" * 10_000_000, "steps": ["a"]}]}).encode()
    taken = []

    def chunks():
        for start in range(0, len(body), 1 << 16):
            taken.append(start)
            yield body[start : start + (1 << 16)]

    response = TestClient(edge(scorer, max_body=1 << 20)).post(
        "/invocations", content=body if sent == "length" else chunks(), headers={"content-type": JSON})
    assert (response.status_code, scorer.read) == (413, 0)
    assert "longer than 1048576 bytes (http.max_body)" in response.json()["message"]
    assert "a" * 20 not in response.text


def test_a_text_that_no_context_holds_never_reaches_the_tokenizer() -> None:
    scorer = Counting()
    row = {"prompt": "a" * (CONTEXT * 64), "steps": ["b"]}
    response = TestClient(edge(scorer)).post("/invocations", json={"inputs": [row]})
    assert (response.status_code, scorer.read) == (400, 0)
    assert f"{CONTEXT * 64 + 1} characters of text, and the model reads {CONTEXT} tokens" in response.json()["message"]


@pytest.mark.parametrize(("row", "reason"), [
    ({"prompt": "p", "steps": ["a"] * 6}, "inputs[0]: 6 steps; a trajectory may have 5 (http.max_steps)"),
    ({"messages": [{"role": "user", "content": "a"}] * 21}, "inputs[0]: 21 messages; a trajectory may have 20"),
    ({"messages": [{"role": "user", "content": "q"}, *[{"role": "assistant", "content": "a"}] * 6]},
     "inputs[0]: 6 steps; a trajectory may have 5"),
])
def test_more_steps_than_may_be_are_413(row, reason) -> None:
    response = TestClient(edge(max_steps=5)).post("/invocations", json={"inputs": [row]})
    assert response.status_code == 413
    assert reason in response.json()["message"]


def test_more_trajectories_than_may_be_are_413() -> None:
    client = TestClient(edge(max_trajectories=2))
    assert client.post("/invocations", json={"inputs": [ROW] * 2}).status_code == 200
    assert client.post("/invocations", json={"inputs": [ROW] * 3}).status_code == 413
    assert client.post("/classify", json={"input": ["p<|step|>ok"] * 3}).status_code == 413


def test_a_client_that_stops_sending_is_told_so() -> None:
    async def slow():
        app, sent = edge(body_timeout=0.05), []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "headers":
                 [(b"content-type", b"application/json"), (b"host", b"a")], "server": ("a", 1), "scheme": "http"}
        await app(scope, receive, send)
        return sent

    start, body = asyncio.run(slow())
    assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
    assert b"http.body_timeout" in body["body"]


# Keys


def test_keys_are_asked_for_and_can_be_revoked_while_it_runs(tmp_path, caplog) -> None:
    def written(**keys: str) -> None:
        file.write_text("# who may ask\n\n" + "".join(
            f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n" for name, key in keys.items()))

    file = tmp_path / "keys"
    written(ann="first", bob="second")
    client = TestClient(edge(keys=file))

    def status(**headers: str) -> int:
        return client.post("/invocations", json={"inputs": [ROW]}, headers={
            name.replace("_", "-"): value for name, value in headers.items()}).status_code

    with caplog.at_level(logging.INFO):
        assert status(authorization="Bearer second") == 200
    assert [record.fields["key"] for record in caplog.records if hasattr(record, "fields")] == ["bob"]
    assert status(x_api_key="first") == status(authorization="bearer first") == 200
    assert {status(), status(authorization="Bearer third"), status(authorization="Basic first"),
            status(authorization="Bearer "), status(authorization="second")} == {401}
    assert client.get("/metrics").status_code == client.get("/openapi.json").status_code == 401
    assert client.get("/ready").status_code == client.get("/ping").status_code == 200
    written(ann="first")
    assert (status(authorization="Bearer second"), status(authorization="Bearer first")) == (401, 200)
    file.write_text("first\n")
    assert status(authorization="Bearer first") == 401
    assert "no key is accepted until this is corrected" in caplog.text
    assert "first" not in caplog.text
    file.unlink()
    assert status(authorization="Bearer first") == 401
    written(carl="third")
    assert status(authorization="Bearer third") == 200


# Metrics


def value(client: TestClient, name: str) -> float:
    (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"prm:{name} ")]
    return float(line.split()[-1])


def test_metrics_count_requests_and_what_was_said(client) -> None:
    answered(client, "/invocations", {"inputs": [ROW, {"prompt": "p", "steps": ["ok"] * 3}]})
    client.post("/classify", json={})
    model = 'model_name="prm"'
    assert value(client, f'request_success_total{{finished_reason="stop",{model},path="/invocations"}}') == 1
    assert value(client, f'request_refused_total{{{model},path="/classify",status="400"}}') == 1
    assert value(client, f'step_score_count{{{model}}}') == 5
    assert value(client, f'step_score_sum{{{model}}}') == pytest.approx(3.7)
    assert value(client, f'first_error_position_bucket{{le="1.0",{model}}}') == 1
    assert value(client, f'first_error_position_bucket{{le="0.0",{model}}}') == 0
    assert value(client, f'trajectories_total{{{model},verdict="clean"}}') == 1
    assert value(client, f'trajectories_total{{{model},verdict="error"}}') == 1
    while value(client, f'num_requests_running{{{model}}}'):
        time.sleep(0.001)
    assert value(client, f'num_requests_waiting{{{model}}}') == 0
    assert value(client, f'request_queue_time_seconds_count{{{model}}}') == 1, "what cannot be read waits for no model"


def test_metrics_tell_of_the_engine_and_usage_of_what_it_knew(tmp_path) -> None:
    app = edge(load_scorer(tiny_reward_model(tmp_path / "prm"), device="cpu"), kept=10)
    client, model = TestClient(app), 'model_name="prm"'

    def decided(*steps: str) -> dict[str, Any]:
        body = {"model": "m", "input": "inputs: " + json.dumps({"task": TEXTS[0]}) + "\noutputs: " + json.dumps(
            {"steps": steps}), "questions": [{"type": "predicate", "name": "step_0", "instructions": ""}]}
        return client.post("/v1/decisions", json=body).json()["usage"]

    first, second, again = decided(TEXTS[1]), decided(TEXTS[1], TEXTS[2]), decided(TEXTS[1], TEXTS[2])
    lengths = [usage["input_tokens"] for usage in (first, second, again)]
    assert lengths[0] < lengths[1] == lengths[2]
    assert [usage["input_tokens_details"]["cached_tokens"] for usage in (first, second, again)] == [
        0, lengths[0], lengths[1]]
    told = {name: value(client, f"{name}{{{model}}}") for name in (
        "prompt_tokens_total", "request_prompt_tokens_count", "prefix_cache_queries_total", "prefix_cache_hits_total",
        "iteration_tokens_count", "iteration_tokens_sum", "request_inference_time_seconds_count",
        "result_cache_queries_total", "result_cache_hits_total")}
    assert list(told.values()) == [lengths[0] + lengths[1], 2, lengths[0] + lengths[1], lengths[0], 2, lengths[1], 2, 3,
                                   1]
    assert 0 < value(client, f"kv_cache_usage_perc{{{model}}}") < 1


def test_what_the_engine_refuses_is_503_with_its_cause() -> None:
    scorer = Held()
    client = TestClient(edge(scorer, engine=EngineConfig(deadline=0.05)))
    late = client.post("/invocations", json={"inputs": [ROW]})
    assert (late.status_code, late.json()["message"]) == (503, "no answer within 0.05 seconds")
    assert int(late.headers["retry-after"]) >= 1
    assert value(client, 'admission_rejections_total{model_name="prm",reason="deadline"}') == 1
    scorer.release.set()


def test_the_age_of_the_calibration_is_told() -> None:
    made = TestClient(edge(calibrated=time.time() - 86400))
    assert value(made, 'calibration_age_seconds{model_name="prm"}') == pytest.approx(86400, abs=60)


# How much at once


class Held(FakeScorer):
    """Scores nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.release = threading.Semaphore(0), threading.Event()

    def score(self, chains):
        self.entered.release()
        assert self.release.wait(30)
        return super().score(chains)


def test_a_full_queue_is_503_with_a_time_to_come_back() -> None:
    scorer = Held()

    async def several():
        transport = httpx.ASGITransport(app := edge(scorer, max_running=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            first = asyncio.create_task(client.post("/invocations", json={"inputs": [ROW]}))
            await asyncio.to_thread(scorer.entered.acquire)
            second = asyncio.create_task(client.post("/invocations", json={"inputs": [ROW]}))
            while b'num_requests_waiting{model_name="prm"} 1' not in app.metrics.render():
                await asyncio.sleep(0.01)
            refused, ready = await client.post("/invocations", json={"inputs": [ROW]}), await client.get("/ready")
            scorer.release.set()
            done = [(await task).status_code for task in (first, second)]
            return refused, ready, done, app.metrics.render(), (await client.get("/ready")).status_code

    refused, ready, done, figures, later = asyncio.run(several())
    assert (refused.status_code, refused.headers["retry-after"], ready.status_code) == (503, "1", 503)
    assert (done, later) == ([200, 200], 200)
    assert b'prm:admission_rejections_total{model_name="prm",reason="queue_full"} 1.0' in figures


def test_it_is_not_ready_while_the_engine_has_no_room() -> None:
    scorer = Held()

    async def several():
        app = edge(scorer, engine=EngineConfig(waiting=5))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            before = (await client.get("/ready")).status_code
            first = asyncio.create_task(client.post("/invocations", json={"inputs": [ROW]}))
            await asyncio.to_thread(scorer.entered.acquire)
            refused, full = await client.post("/invocations", json={"inputs": [ROW]}), await client.get("/ready")
            scorer.release.set()
            await first
            while app.current.served.service.has_room is False:
                await asyncio.sleep(0.001)
            return before, refused.status_code, full.status_code, (await client.get("/ready")).status_code

    assert asyncio.run(several()) == (200, 503, 503, 200)


def test_on_sigterm_it_is_not_ready_and_still_answers_until_the_delay_or_a_second_one_ends_it(monkeypatch) -> None:
    ended = []
    monkeypatch.setattr(signal, "getsignal", lambda number: lambda *_: ended.append(number))
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)

    async def life():
        app, messages = edge(drain_delay=60), asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})
        started = asyncio.Event()

        async def send(message):
            started.set()

        running = asyncio.create_task(app({"type": "lifespan"}, messages.get, send))
        await started.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
            before = (await client.get("/ready")).status_code
            handlers[signal.SIGTERM](signal.SIGTERM, None)
            await asyncio.sleep(0.01)
            ready, asked = await client.get("/ready"), await client.post("/invocations", json={"inputs": [ROW]})
            soon = list(ended)
            handlers[signal.SIGTERM](signal.SIGTERM, None)
            while not ended:
                await asyncio.sleep(0.01)
        messages.put_nowait({"type": "lifespan.shutdown"})
        await running
        return before, ready, asked, soon

    before, ready, asked, soon = asyncio.run(life())
    assert (before, ready.status_code, ready.json()["draining"]) == (200, 503, True)
    assert (asked.status_code, asked.headers["connection"], soon) == (200, "close", [])
    assert ended == [signal.SIGTERM]


# Logs


@pytest.mark.parametrize("texts", [False, True])
def test_a_log_line_has_the_request_and_its_text_only_where_asked(texts, caplog) -> None:
    client = TestClient(edge(log_texts=texts))
    with caplog.at_level(logging.INFO):
        client.post("/invocations", json={"inputs": [{"prompt": "a secret", "steps": ["wrong", "ok"]}]},
                    headers={"x-request-id": "r1"})
        client.post("/invocations", json={"inputs": [{"prompt": "a secret", "steps": ["crash"]}]})
    lines = [json.loads(JsonLines(texts).format(record)) for record in caplog.records
             if record.name.startswith("prm_core")]
    first = lines[0]
    assert {name: first[name] for name in ("request_id", "method", "path", "status", "trajectories", "steps", "model")
            } == {"request_id": "r1", "method": "POST", "path": "/invocations", "status": 200, "trajectories": 1,
                  "steps": 2, "model": SOURCE}
    assert ("secret" in json.dumps(lines)) == texts
    (crash,) = [line for line in lines if line["level"] == "error"]
    assert (crash["error"], crash.get("error_text")) == ("RuntimeError", "the model broke" if texts else None)
    assert any("_score" in frame for frame in crash["at"])


def test_a_client_that_goes_away_leaves_the_server_as_it_was() -> None:
    import socket

    with listening(edge()) as address:
        host, port = address.removeprefix("http://").split(":")
        for _ in range(3):
            with socket.create_connection((host, int(port))) as half:
                half.sendall(b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                             b"content-length: 1000\r\n\r\n{")
        assert httpx.post(f"{address}/invocations", json={"inputs": [ROW]}).status_code == 200
        figures = httpx.get(f"{address}/metrics").text
    assert 'num_requests_running{model_name="prm"} 0.0' in figures
    assert 'num_requests_waiting{model_name="prm"} 0.0' in figures
