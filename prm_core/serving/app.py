"""The server of `prm serve`: POST /invocations as MLflow's own server has it, and stricter about what is asked.

MLflow's server drops a parameter it does not know and hands a null on; here each gets a 4xx of one line. Scoring is in
`service.py`, starting it in `prm_core/cli/scoring/serve.py`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core import config as configuration
from prm_core.config import ServeConfig
from prm_core.errors import InputError
from prm_core.platform.environment import project_root
from prm_core.scoring.conformal import Promises
from prm_core.scoring.foreign import load_any_scorer
from prm_core.serving import model_registry
from prm_core.serving.cache import ScoreCache
from prm_core.serving.service import ScoringRequest, ScoringService, parse_parameters, parse_rows

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

log = logging.getLogger(__name__)

# Where a worker process, which imports this module anew, finds what it serves.
MODEL, WORKSPACE = "PRM_SERVED_MODEL", "PRM_SERVED_WORKSPACE"
LONGEST_MESSAGE = 1000


class UnsupportedMediaType(InputError):
    """A body that is not sent as JSON: 415."""


@dataclass(frozen=True, slots=True)
class Served:
    """What answers: the service, and the parameters of a request that names none."""

    service: ScoringService
    defaults: Mapping[str, Any]


def load(uri: str, workspace: Path) -> Served:
    """The model that a URI or a folder names, ready to answer.

    A registered model brings the settings it was logged with; a folder gets those of the workspace, or the default
    profile's where that is none. What the server may take of the machine the workspace says.

    Raises InputError as `model_registry.reward_model_folder` and `load_any_scorer` do, and for a model without step
    scores.
    """
    folder = model_registry.reward_model_folder(uri, workspace)
    own = (workspace / configuration.PARAMS_FILE).is_file()
    here = configuration.load(workspace if own else project_root())
    settings = model_registry.logged_settings(folder) if uri.startswith(model_registry.SCHEMES) else here.serve
    scorer = load_any_scorer(folder, batch_size=settings.batch_size)
    service = ScoringService(scorer, ScoreCache(settings.cache_size, settings.cache_ttl), Promises.load(folder),
                             here.engine)
    return Served(service, defaults_of(settings))


def defaults_of(settings: ServeConfig) -> dict[str, Any]:
    return {"threshold": settings.threshold, "aggregate": settings.aggregate}


def parse_body(content_type: str | None, body: bytes, defaults: Mapping[str, Any]) -> tuple[
        list[ScoringRequest], dict[str, Any]]:
    """Trajectories and parameters of a request.

    Raises UnsupportedMediaType for what is not sent as UTF-8 JSON, InputError for what the JSON may not hold.
    """
    header = Message()
    header["content-type"] = content_type or ""
    # A header that is missing or broken reads as text/plain.
    if header.get_content_type() != "application/json" or header.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("the request must be sent with the header Content-Type: application/json, in UTF-8")
    try:
        values = json.loads(body.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise InputError("the request is not UTF-8 text") from None
    except RecursionError:
        raise InputError("the request is nested too deep; it is an object of `inputs` and `params`") from None
    except json.JSONDecodeError as error:
        raise InputError(f"the request is not valid JSON ({error.msg}, character {error.pos})") from None
    except ValueError:
        raise InputError("the request holds a number of thousands of digits") from None
    if not isinstance(values, dict):
        raise InputError("the request must be an object with `inputs`, a list of objects with `prompt` and `steps`")
    for name in values:
        if name in defaults:
            raise InputError(f"`{name}` is a parameter; put it into `params`, beside `inputs`")
        if name not in ("inputs", "params"):
            raise InputError(f"unknown field {name[:80]!r}; a request has `inputs` and may have `params`")
    return parse_rows(values.get("inputs")), parse_parameters(values.get("params", {}), defaults)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the request names {twice[:80]!r} twice in one object")
    return result


def answer(served: Served, content_type: str | None, body: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the answer to a request."""
    try:
        requests, parameters = parse_body(content_type, body, served.defaults)
        answers = served.service.answer(requests, **parameters)
    except InputError as error:
        status = 415 if isinstance(error, UnsupportedMediaType) else 400
        return status, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)[:LONGEST_MESSAGE]}
    except Exception as error:
        log.exception("scoring failed")
        return 500, {"error_code": "INTERNAL_ERROR",
                     "message": f"scoring failed ({type(error).__name__}); the server's log has the traceback"}
    return 200, {"predictions": [one.analysis.model_dump() for one in answers]}


def build(served: Served) -> Starlette:
    """The application: POST /invocations, GET /ping and /health."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def invocations(request: Request) -> Response:
        body = await request.body()
        status, content = await run_in_threadpool(answer, served, request.headers.get("content-type"), body)
        return JSONResponse(content, status)

    async def ping(_: Request) -> Response:
        return PlainTextResponse("\n")

    return Starlette(routes=[Route("/invocations", invocations, methods=["POST"]), Route("/ping", ping),
                             Route("/health", ping)])


def create_app() -> Starlette:
    """The application of one of several worker processes."""
    return build(load(os.environ[MODEL], Path(os.environ[WORKSPACE])))
