"""A server that speaks the chat-completions protocol as it is told, for judges to ask."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.builders.local_server import running


def verdicts(*correct, confidence=0.9):
    return json.dumps({"steps": [{"step": n, "reason": f"because\n{n}", "correct": one, "confidence": confidence}
                                 for n, one in enumerate(correct, 1)]})


def reply(content, prompt=100, completion=20, **message):
    """A chat completion; None as `prompt` leaves the usage out."""
    usage = {} if prompt is None else {"usage": {
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}}
    finish = message.pop("finish_reason", "stop")
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
        {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}]} | usage


class Server(ThreadingHTTPServer):
    """Answers by `script(body, how many requests on this chain came before)`: (status, JSON), bytes, or an exception.

    `bodies` and `headers` list what was posted; `busiest` is the most requests that were ever under way at once.
    """

    daemon_threads = True

    def __init__(self, script, models=(200, {"object": "list", "data": []})):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.models = script, models
        self.bodies, self.headers, self.seen, self.under_way, self.busiest = [], [], {}, 0, 0
        self.lock = threading.Condition()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that give up break pipes."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send(self, status, value, headers=()):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers):
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.send(*(self.server.models if self.path == "/v1/models" else (404, {})))

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            data = body["messages"][1]["content"]
            before = server.seen.get(data, 0)
            server.seen[data] = before + 1
            server.bodies.append(body)
            server.headers.append(self.headers)
            server.under_way += 1
            server.busiest = max(server.busiest, server.under_way)
            server.lock.notify_all()
        try:
            self.send(*(server.script(body, before) if self.path == "/v1/chat/completions" else (404, {})))
        finally:
            with server.lock:
                server.under_way -= 1
                server.lock.notify_all()


@contextmanager
def serving(script, **settings):
    server = Server(script, **settings)
    with running(server):
        yield server
