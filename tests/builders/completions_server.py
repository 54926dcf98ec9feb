"""A completions server that answers with a policy of this process, in known servers' shapes, and as badly as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from tests.builders.local_server import running

NAME = "served"
# (the answer as it would be, the request's body, how many requests came before) → what is sent: JSON, or (status, JSON)
# or bytes.
Spoil = Callable[[dict[str, Any], dict[str, Any], int], Any]


class Server(ThreadingHTTPServer):
    """Answers by a policy; `bodies` lists what was posted, `busiest` the most continuations under way at once."""

    daemon_threads = True

    def __init__(self, policy: Policy, shape: str, spoil: Spoil | None, name: str = NAME,
                 temperature: float | None = None, shows: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.policy, self.shape, self.spoil, self.name = policy, shape, spoil, name
        self.temperature, self.shows = temperature, shows
        self.bodies: list[dict[str, Any]] = []
        self.under_way = self.busiest = 0
        self.lock = threading.Condition()
        # The sampler is not for two threads with one model.
        self.model = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up break pipes."""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        encoder, prompt = self.policy.encoder, body["prompt"]
        ids = encoder.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        given = json.loads(body.get("generation_config", "{}"))
        stops = [token for token in (*body.get("stop_token_ids", ()), *given.get("eos_token_id", ()))
                 if token != encoder.eos_id]
        stops += [encoder.from_text(text)[0] for text in body.get("stop", ())]
        if "logit_bias" in body:
            drawn = [Continuation([int(next(iter(body["logit_bias"])))], [0.0], False)]
        else:
            temperature = body["temperature"] if self.temperature is None else self.temperature
            with self.model:
                drawn = self.policy.continue_chains(
                    [ids], [Prefix(0, len(ids))] * body.get("n", 1), temperature=temperature,
                    max_new_tokens=body["max_tokens"], batch_size=64, seed=body.get("seed", 0), stop_ids=stops)
        return {"id": "1", "object": "text_completion", "created": 0, "model": self.name,
                "choices": [self.choice(one, place, stops) for place, one in enumerate(drawn)],
                "usage": {"prompt_tokens": len(ids), "completion_tokens": sum(len(one.ids) for one in drawn),
                          "prompt_tokens_details": {"cached_tokens": 2}}}

    def choice(self, one: Continuation, place: int, stops: Sequence[int]) -> dict[str, Any]:
        encoder = self.policy.encoder
        last = one.ids[-1]
        reason = "stop" if last in (encoder.eos_id, *stops) else "length"
        shown = [token for token in one.ids if token != encoder.eos_id]
        text = encoder.tokenizer.decode(shown, skip_special_tokens=not self.shows)
        found: dict[str, Any] = {"index": place, "text": text, "finish_reason": reason}
        if self.shape == "transformers":
            return found
        found["stop_reason"] = last if last in stops else None
        if self.shape == "vllm":
            return found | {"token_ids": one.ids, "logprobs": {
                "tokens": [f"token_id:{token}" for token in one.ids], "token_logprobs": one.logprobs}}
        if self.shape == "named":
            return found | {"logprobs": {"tokens": [f"token_id:{token}" for token in one.ids],
                                         "token_logprobs": one.logprobs}}
        assert self.shape == "listed"
        return found | {"logprobs": {"content": [{"id": token, "token": "", "logprob": value}
                                                 for token, value in zip(one.ids, one.logprobs, strict=True)]}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, status: int, value: Any, headers: Sequence[tuple[str, str]] = ()) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers):
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": self.server.name, "object": "model", "created": 0,
                                                    "owned_by": "test"}]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            before = len(server.bodies)
            server.bodies.append(body)
            server.under_way += body.get("n", 1)
            server.busiest = max(server.busiest, server.under_way)
        try:
            answer = server.answer(body)
            answer = answer if server.spoil is None else server.spoil(answer, body, before)
            if isinstance(answer, tuple):
                self.send(*answer)
            else:
                self.send(200, answer)
        finally:
            with server.lock:
                server.under_way -= body.get("n", 1)


@contextmanager
def serving(policy: Policy, shape: str = "vllm", spoil: Spoil | None = None, **more: Any) -> Iterator[Server]:
    server = Server(policy, shape, spoil, **more)
    with running(server):
        yield server
