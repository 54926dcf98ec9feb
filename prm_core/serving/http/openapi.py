"""The OpenAPI document of the server, from the models that its requests and answers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from prm_core.serving.http.endpoints import Endpoint

REFERENCE = "#/components/schemas/{model}"
FAULTS = {
    "400": "what was asked cannot be answered; the message names the field and the way out",
    "401": "no API key, or one that is not known",
    "408": "the request was not sent in time",
    "413": "more at once than is taken",
    "415": "not sent as application/json in UTF-8",
    "500": "a fault of the server's; its log has it under the request's id",
    "503": "no more is taken in for now; Retry-After says when",
}


class Fault(BaseModel):
    """Of an error: a line, under the names that clients of OpenAI know."""

    message: str
    type: str
    code: str
    param: None = None


class ErrorAnswer(BaseModel):
    """What every 4xx and 5xx says: as MLflow's server does, and in `error` as OpenAI's."""

    error_code: str = Field(description="INVALID_PARAMETER_VALUE and other names of MLflow's")
    message: str
    request_id: str
    error: Fault


def document(
    endpoints: Sequence[Endpoint], pages: Sequence[tuple[str, str]], hooks: Sequence[tuple[str, str]], version: str,
    secured: bool
) -> dict[str, Any]:
    """An OpenAPI 3.1 document.

    Args:
        endpoints: what is asked by POST.
        pages: path and summary of what is there by GET.
        hooks: path and summary of what is told by POST, without a body.
        version: of the served model.
        secured: whether an API key is asked for.
    """
    models: list[type[BaseModel]] = [ErrorAnswer]
    models += [model for endpoint in endpoints for model in (endpoint.request, endpoint.answer)]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    faults = {status: _told(why, "ErrorAnswer") for status, why in FAULTS.items() if secured or status != "401"}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths[endpoint.path] = {"post": {
            "operationId": endpoint.path.strip("/").replace("/", "_"),
            "summary": endpoint.summary,
            "requestBody": {"required": True, "content": _json(endpoint.request.__name__)},
            "responses": {"200": _told("the answer", endpoint.answer.__name__), **faults},
        }}
    for path, summary in pages:
        paths[path] = {"get": {"operationId": "get_" + path.strip("/").replace(".", "_"), "summary": summary,
                               "responses": {"200": {"description": summary}}}}
    for path, summary in hooks:
        paths[path] = {"post": {"operationId": path.strip("/"), "summary": summary, "responses": {
            "202": {"description": "it looks"}, **faults}}}
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "Process reward model", "version": version,
                 "description": "Calibrated probabilities that steps are right."},
        "paths": paths,
        "components": {"schemas": found["$defs"]},
    }
    if secured:
        result["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        result["security"] = [{"key": []}]
    return result


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(model=name)}}}


def _told(why: str, name: str) -> dict[str, Any]:
    return {"description": why, "content": _json(name)}
