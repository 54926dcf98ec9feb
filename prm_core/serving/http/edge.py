"""The ASGI application: who may ask, how much at once, what is answered, counted and logged."""

from __future__ import annotations

import asyncio
import difflib
import importlib.metadata
import json
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from prm_core.config import HttpConfig
from prm_core.errors import InputError, OverloadError
from prm_core.serving.drift.watch import Watch
from prm_core.serving.http import body, openapi
from prm_core.serving.http.admission import Admission
from prm_core.serving.http.asked import Asked
from prm_core.serving.http.endpoints import ENDPOINTS, Endpoint
from prm_core.serving.http.keys import ApiKeys
from prm_core.serving.http.logs import FIELDS, request_id
from prm_core.serving.http.webhook import SIGNATURE, Webhook
from prm_core.serving.metrics import Metrics
from prm_core.serving.swap.current import Current, Served
from prm_core.serving.swap.recent import Recent
from prm_core.serving.swap.watcher import Watcher

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LONGEST_MESSAGE = 500
# Bytes of a body that is read and answered aside from the event loop, which would answer nobody meanwhile.
LONG = 2**15
# Of a body, in the log, where texts are asked for.
LOGGED_BODY = 2000
CODES = {400: "INVALID_PARAMETER_VALUE", 401: "UNAUTHENTICATED", 404: "ENDPOINT_NOT_FOUND", 405: "ENDPOINT_NOT_FOUND",
         408: "REQUEST_TIMEOUT", 413: "INVALID_PARAMETER_VALUE", 415: "INVALID_PARAMETER_VALUE", 500: "INTERNAL_ERROR",
         503: "TEMPORARILY_UNAVAILABLE"}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 500: "server_error",
         503: "overloaded_error"}
# Nobody reads it: the client has gone.
GONE = 499
PAGES = (("/ping", "Whether the server is there"), ("/health", "Whether the server is there"),
         ("/ready", "Whether it takes requests"), ("/version", "Version of MLflow"),
         ("/metrics", "Figures for Prometheus"), ("/openapi.json", "This document"))
RELOAD = "/reload"
HOOKS = ((RELOAD, "Has the server look now whether another version is to be served; the body is not read"),)
# Asked by what knows no key.
OPEN = ("/ping", "/health", "/ready")


class Refusal(Exception):
    """A request that is refused before it is read.

    Attributes:
        status, headers: of the answer.
    """

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers or {}


class Edge:
    """The server of one model, as an ASGI application.

    Args:
        current: which version answers.
        limits: what a request may be.
        keys: who may ask; None lets everybody.
        metrics: where all of it is counted.
        recent: where what was asked is kept for a while.
        watch: what keeps samples of it, and knows whether the calibration is stale.
        watcher: what has new versions take over, while the application lives; None of a server that stays with one.
        webhook: who may, besides those with a key, have it look for one.
    """

    def __init__(
        self, current: Current, limits: HttpConfig, keys: ApiKeys | None, metrics: Metrics, recent: Recent,
        watch: Watch, watcher: Watcher | None = None, webhook: Webhook | None = None,
    ) -> None:
        self.metrics = metrics
        self.current = current
        current.served.service.report_to(metrics)
        self._limits = limits
        self._keys = keys
        self._recent = recent
        self._watch = watch
        self._watcher = watcher
        self._webhook = webhook
        self._admission = Admission(limits.max_running)
        self._endpoints = {endpoint.path: endpoint for endpoint in ENDPOINTS}
        self._pages = {path: getattr(self, "_" + path.strip("/").replace(".", "_")) for path, _ in PAGES}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(Request(scope, receive), receive, send)

    async def _http(self, request: Request, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        path, id = request.url.path, request_id(request.headers.get("x-request-id"))
        entry: dict[str, Any] = {"request_id": id, "method": request.method, "path": path[:200]}
        with self.current.request() as served:
            response = await self._answer(request, served, entry)
        response.headers["x-request-id"] = id
        response.headers["x-model"] = quote(served.source, safe=":/@")
        response.headers["x-model-version"] = served.service.version
        doubt = self._watch.doubt(served)
        if doubt is not None:
            response.headers["x-calibration-stale"] = doubt.kind
        if self._admission.draining:
            response.headers["connection"] = "close"
        await response(request.scope, receive, send)
        seconds = time.perf_counter() - began
        known = path in self._endpoints or path in self._pages or path == RELOAD
        if path not in self._pages:
            self.metrics.answered(path if known else "other", response.status_code, seconds)
            entry |= {"status": response.status_code, "seconds": round(seconds, 6), "model": served.source,
                      "model_version": served.service.version}
            log.info("request", extra={FIELDS: entry})

    async def _answer(self, request: Request, served: Served, entry: dict[str, Any]) -> Response:
        """What a request is answered, whatever happens."""
        try:
            self._admit(request, entry)
            page = self._pages.get(request.url.path)
            if page is not None:
                return page(served)
            content = await self._body(request)
            entry["bytes"] = len(content)
            if request.url.path == RELOAD:
                return self._reload(request, content, served, entry)
            endpoint = self._endpoints[request.url.path]
            if self._limits.log_texts:
                entry["body"] = content[:LOGGED_BODY].decode(errors="replace")
            asked = Asked(served, self._limits, self.metrics, self._recent, self._watch,
                          entry.get("key", ""))
            said = await self._admission.run(
                _respond(endpoint, asked, request.headers.get("content-type"), content),
                aside=len(content) > LONG or endpoint.writes or served.service.waits_for_a_judge)
            entry |= {"trajectories": asked.trajectories, "steps": asked.steps}
            return Response(said, media_type="application/json")
        except Refusal as refusal:
            return _fault(refusal.status, str(refusal), entry, {**refusal.headers, "connection": "close"})
        except body.UnsupportedMediaType as error:
            return _fault(415, str(error), entry)
        except body.TooLarge as error:
            return _fault(413, str(error), entry)
        except InputError as error:
            return _fault(400, str(error), entry)
        except OverloadError as error:
            self.metrics.rejected(error.cause)
            return _fault(503, str(error), entry, {"retry-after": str(max(1, round(error.retry_after)))})
        except ClientDisconnect:
            return Response(status_code=GONE)
        except Exception as error:
            log.exception("scoring failed", extra={FIELDS: {"request_id": entry["request_id"]}})
            return _fault(500, f"scoring failed ({type(error).__name__}); the server's log has the traceback", entry)

    def _admit(self, request: Request, entry: dict[str, Any]) -> None:
        """Raises Refusal where what a request's head says is enough for one."""
        path = request.url.path
        # What is signed instead is looked at when its body is there.
        signed = path == RELOAD and self._webhook is not None and SIGNATURE in request.headers
        if self._keys is not None and path not in OPEN and not signed:
            name = self._keys.name(request.headers)
            if name is None:
                raise Refusal(401, "no API key, or one that is not known; send it as Authorization: Bearer KEY",
                              {"www-authenticate": "Bearer"})
            entry["key"] = name
        method = "POST" if path in self._endpoints or path == RELOAD else "GET"
        if path not in self._endpoints and path not in self._pages and path != RELOAD:
            near = difflib.get_close_matches(path[:80], [*self._endpoints, *self._pages, RELOAD], 1)
            raise Refusal(404, "nothing is here" + (f"; did you mean {near[0]}?" if near else "; see /openapi.json"))
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            raise Refusal(405, f"{path} is asked by {method}", {"allow": method})
        if method == "GET":
            return
        if request.url.query:
            raise InputError("parameters in the URL are not read; put them into the body")
        if path != RELOAD:
            body.check_type(request.headers.get("content-type"))
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self._limits.max_body:
            raise self._too_long()

    async def _body(self, request: Request) -> bytes:
        """The bytes of a request. Raises Refusal where they are too many or too slow, ClientDisconnect where they end
        early."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > self._limits.max_body:
                        raise self._too_long()
                    parts.append(part)
        except TimeoutError:
            raise Refusal(408, f"the request was not sent within {self._limits.body_timeout:g} s "
                               "(http.body_timeout)") from None
        return b"".join(parts)

    def _too_long(self) -> Refusal:
        return Refusal(413, f"the request is longer than {self._limits.max_body} bytes (http.max_body)")

    def _reload(self, request: Request, content: bytes, served: Served, entry: dict[str, Any]) -> Response:
        """Has the watcher look now."""
        if self._webhook is not None and "key" not in entry:
            if not self._webhook.sent(request.headers, content):
                raise Refusal(401, "not signed by MLflow's webhook with the secret of swap.webhook_secret, or not now")
            entry["key"] = "webhook"
        if self._watcher is None:
            raise InputError("this server was started with a version and stays with it; start it with an alias")
        self._watcher.ring()
        return JSONResponse({"model": served.source}, 202)

    def _ping(self, _: Served) -> Response:
        return PlainTextResponse("\n")

    _health = _ping

    def _ready(self, served: Served) -> Response:
        room = self._admission.has_room and served.service.has_room
        ready = room and not self._admission.draining
        return JSONResponse({"ready": ready, "draining": self._admission.draining, "model": served.source,
                             "alert": self._watcher.alert if self._watcher else None}, 200 if ready else 503)

    def _version(self, _: Served) -> Response:
        return PlainTextResponse(importlib.metadata.version("mlflow"))

    def _metrics(self, _: Served) -> Response:
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _openapi_json(self, served: Served) -> Response:
        return JSONResponse(openapi.document(ENDPOINTS, PAGES, HOOKS, served.source, self._keys is not None))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._watch_for_the_end()
                if self._watcher is not None:
                    self._watcher.start()
            else:
                if self._watcher is not None:
                    await anyio.to_thread.run_sync(self._watcher.stop)
                await anyio.to_thread.run_sync(self._watch.close)
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    def _watch_for_the_end(self) -> None:
        """Puts a delay before what the server does on SIGTERM, which is to finish what it has begun and end."""
        ends = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or not callable(ends):
            return
        loop = asyncio.get_running_loop()

        def drain(number: int, _: Any) -> None:
            log.info("draining")
            loop.call_soon_threadsafe(self._admission.drain, partial(ends, number, None), self._limits.drain_delay)

        signal.signal(signal.SIGTERM, drain)


async def _respond(endpoint: Endpoint, asked: Asked, content_type: str | None, content: bytes) -> bytes:
    values = body.parse(content_type, content, asked.limits.max_depth)
    return json.dumps(await endpoint.respond(asked, values), ensure_ascii=False, allow_nan=False).encode()


def _fault(status: int, reason: str, entry: Message, headers: dict[str, str] | None = None) -> Response:
    """An error as MLflow's clients and OpenAI's read one; of what was sent at most a bounded excerpt is in it."""
    message = " ".join(reason.split())[:LONGEST_MESSAGE]
    code = CODES[status]
    return JSONResponse({"error_code": code, "message": message, "request_id": entry["request_id"],
                         "error": {"message": message, "type": TYPES.get(status, TYPES[400]), "param": None,
                                   "code": code.lower()}}, status, headers)
