"""The OpenAPI document: valid, whole, and true of what is answered."""

from __future__ import annotations

import hashlib
from typing import Any

import jsonschema
import pytest
from fastapi.openapi.models import OpenAPI
from starlette.testclient import TestClient

from prm_core.serving.http.edge import HOOKS, PAGES
from prm_core.serving.http.endpoints import ENDPOINTS
from tests.builders.edge import edge

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "wrong"}]
REQUESTS: dict[str, Any] = {
    "/invocations": {"inputs": [{"prompt": "p", "steps": ["ok", "wrong"]}]},
    "/score_step": {"prompt": "p", "steps": ["ok"], "step": "wrong"},
    "/analyze_trajectory": {"messages": TURNS},
    "/v1/decisions": {"model": "m", "input": TURNS, "questions": [
        {"type": "predicate", "name": "step_0", "instructions": "Is step 0 right?"}]},
    "/v1/systemone": {"model": "m", "state": {"messages": TURNS}, "questions": {"step_0": {"type": "noul"}}},
    "/classify": {"input": "p<|step|>ok"}, "/pooling": {"messages": TURNS},
    "/get_reward": {"query": ["p ok"], "prompts": ["p"]},
    "/outcome": {"outcomes": [{"prompt": "p", "steps": ["ok"], "success": True, "reporter": "agent", "chance": 0.5}]},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> TestClient:
    return TestClient(edge(workspace=tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def document(client) -> dict[str, Any]:
    return client.get("/openapi.json").json()


def test_the_document_is_valid_and_has_every_path(document) -> None:
    OpenAPI.model_validate(document)
    assert set(document["paths"]) == {endpoint.path for endpoint in ENDPOINTS} | {
        path for path, _ in (*PAGES, *HOOKS)}
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    assert "security" not in document


def test_with_keys_it_says_that_one_is_needed(tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann {hashlib.sha256(b'k').hexdigest()}\n")
    document = TestClient(edge(keys=keys)).get("/openapi.json", headers={"authorization": "Bearer k"}).json()
    OpenAPI.model_validate(document)
    assert document["security"] == [{"key": []}]


@pytest.mark.parametrize("path", REQUESTS)
def test_requests_and_answers_are_as_it_says(client, document, path) -> None:
    def schema(content: Any) -> jsonschema.Draft202012Validator:
        reference = content["content"]["application/json"]["schema"]["$ref"]
        return jsonschema.Draft202012Validator({"$ref": reference, "components": document["components"]})

    operation = document["paths"][path]["post"]
    schema(operation["requestBody"]).validate(REQUESTS[path])
    good, bad = client.post(path, json=REQUESTS[path]), client.post(path, json={**REQUESTS[path], "extra": 1})
    assert (good.status_code, bad.status_code) == (200, 400)
    schema(operation["responses"]["200"]).validate(good.json())
    schema(operation["responses"]["400"]).validate(bad.json())
    with pytest.raises(jsonschema.ValidationError):
        schema(operation["requestBody"]).validate({**REQUESTS[path], "extra": 1})


def test_every_path_is_asked_above() -> None:
    assert set(REQUESTS) == {endpoint.path for endpoint in ENDPOINTS}
