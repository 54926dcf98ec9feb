"""How a server is asked over HTTP, against one that sends the bytes it is told to: answers, pauses, faults, proxies."""

from __future__ import annotations

import email.utils
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.platform import endpoint
from prm_core.platform.endpoint import Endpoint, Failure
from tests.builders.local_server import running


class Server(ThreadingTCPServer):
    """Sends the bytes of `script(body, how many requests came before)`; `asked` has the first line, the headers and the
    body of each request."""

    daemon_threads = True

    def __init__(self, script: Callable[[Any, int], bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up break pipes."""


class Handler(StreamRequestHandler):
    def handle(self) -> None:
        first = self.rfile.readline().decode().strip()
        lines = iter(lambda: self.rfile.readline().decode().strip(), "")
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = json.loads(self.rfile.read(int(headers.get("Content-Length", 0))) or "null")
        if first.startswith("POST"):
            before = len(self.server.asked)
            self.server.asked.append((first, headers, body))
            self.wfile.write(self.server.script(body, before))
        else:
            self.wfile.write(http(404, {}))


def http(status: int, value: Any, *headers: str, length: int | None = None) -> bytes:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    lines = [f"HTTP/1.1 {status} Said", "Content-Type: application/json", "Connection: close",
             f"Content-Length: {len(content) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


@contextmanager
def serving(script: Callable[[Any, int], bytes]) -> Iterator[Server]:
    with running(server := Server(script)):
        yield server


def client(url: str, **settings: Any) -> Endpoint:
    given = {"key_env": "", "timeout": 5.0, "retries": 2, "concurrency": 4, "section": "sampling"}
    return Endpoint(url, **given | settings)


def ask(script: Callable[[Any, int], bytes], bodies: Sequence[Any] = ({},), **settings: Any
        ) -> tuple[list[Any], int, Server]:
    """Answers, how many requests were sent, and the server."""
    with serving(script) as server:
        answers, sent = client(server.url, **settings).ask("/completions", bodies)
    return answers, sent, server


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


def test_answers_come_in_the_order_of_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRM_TEST_KEY", "secret-1")
    bodies = [{"number": number, "text": "½ ∞"} for number in range(9)]

    answers, sent, server = ask(lambda body, before: http(200, {"given": body}), bodies, key_env="PRM_TEST_KEY")

    assert answers == [{"given": body} for body in bodies]
    assert (sent, len(server.asked)) == (9, 9)
    first, headers, _ = server.asked[0]
    assert first == "POST /v1/completions HTTP/1.1"
    assert (headers["Authorization"], headers["Content-Type"]) == ("Bearer secret-1", "application/json")
    _, _, server = ask(lambda body, before: http(200, {}))
    assert "Authorization" not in server.asked[0][1]


@pytest.mark.parametrize("trouble", [
    b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"nonsense\r\n\r\n", http(200, b'{"half": ', length=400),
    http(200, b"no gzip", "Content-Encoding: gzip"), http(500, {}), http(503, {}), http(408, {}), http(409, {}),
    http(429, {}), http(429, {}, "Retry-After: soon"), http(429, {}, "Retry-After: nan"),
    http(429, {}, "Retry-After: -3"), http(429, {}, "Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"),
    http(429, {}, "Retry-After: Thu, 99 Foo 1970 00:00:00 GMT"),
])
def test_trouble_is_asked_about_again_and_then_told(trouble: bytes) -> None:
    [good], sent, _ = ask(lambda body, before: http(200, {"a": 1}) if before else trouble)
    assert (good, sent) == ({"a": 1}, 2)

    [failure], sent, server = ask(lambda body, before: trouble, retries=1)
    assert isinstance(failure, Failure)
    assert failure.reason
    assert (sent, len(server.asked)) == (2, 2)


@pytest.mark.parametrize(("answer", "told"), [
    (http(400, {"error": "too long"}), 'the server answers 400: {"error": "too long"}'),
    (http(401, {}), "the server answers 401: {}"),
    (http(422, b""), "the server answers 422: Said"),
    (http(400, b"\xff\xfe" + b"x" * 999), "the server answers 400: \ufffd\ufffd" + "x" * 298),
    (http(200, b"<html>"), "the answer is no JSON (Expecting value"),
    (http(200, b"\xff\xfe\xfd"), "the answer is no JSON ("),
    (http(200, b'{"a": 1'), "the answer is no JSON ("),
    (http(200, b""), "the answer is no JSON ("),
    (http(200, b"[" * 100_000), "the answer is no JSON ("),
])
def test_what_would_be_the_same_again_is_told_at_once(answer: bytes, told: str) -> None:
    [failure], sent, _ = ask(lambda body, before: answer)
    assert failure.reason.startswith(told)
    assert sent == 1


def test_packed_answers_are_read() -> None:
    packed = http(200, gzip.compress(b'{"a": 1}'), "Content-Encoding: gzip")
    assert ask(lambda body, before: packed)[0] == [{"a": 1}]


@pytest.mark.parametrize("asked", [
    lambda: "0.7", lambda: email.utils.formatdate(time.time() + 2, usegmt=True)], ids=["seconds", "date"])
def test_a_server_says_how_long_to_wait(asked: Callable[[], str]) -> None:
    start = time.monotonic()
    answers, _, _ = ask(lambda body, before: http(200, {}) if before else http(429, {}, f"Retry-After: {asked()}"))
    assert answers == [{}]
    # A date has whole seconds.
    assert time.monotonic() - start > 0.65


def test_a_pause_that_would_never_fit_is_not_waited_for() -> None:
    [failure], sent, _ = ask(lambda body, before: http(429, {"error": "full"}, "Retry-After: 3600"))
    assert failure.reason == ('the server answers 429: {"error": "full"}; a pause of 3600 s, as it asks for, is longer '
                              "than all tries may take (39 s)")
    assert sent == 1


def test_pauses_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(endpoint.random, "random", lambda: 0.0)
    assert [endpoint._backoff(failed) for failed in (0, 1, 2, 3, 4, 5, 9999)] == [0.5, 1, 2, 4, 8, 8, 8]
    monkeypatch.setattr(endpoint.random, "random", lambda: 1.0)
    assert endpoint._backoff(0) == 0.375


def test_what_looks_at_an_answer_ends_all() -> None:
    def look(number: int, answer: Any) -> None:
        seen.append((number, answer))
        raise InputError("bad")

    seen: list[Any] = []
    with serving(lambda body, before: http(200, before)) as server:
        with pytest.raises(InputError, match="bad"):
            client(server.url, concurrency=1).ask("/completions", [{}] * 50, check=look)
        assert seen == [(0, 0)]
        assert len(server.asked) < 50


@pytest.mark.parametrize(("listed", "names"), [
    ({"data": [{"id": "a"}, {"id": "b"}]}, ("a", "b")), ({"data": []}, None), ({"data": "x"}, None), ([], None),
    ({"data": [{"id": 3}, "x", {"id": "c"}]}, ("c",))])
def test_models_are_listed(listed: Any, names: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "handle", lambda self: self.wfile.write(http(200, listed)))
    with serving(lambda body, before: b"") as server:
        assert client(server.url + "/").models == names


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(lambda body, before: http(200, {"by": "proxy"})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert client("http://nowhere.invalid:9/v1").ask("/completions", [{}])[0] == [{"by": "proxy"}]
        assert proxy.asked[0][0] == "POST http://nowhere.invalid:9/v1/completions HTTP/1.1"
        monkeypatch.setenv("no_proxy", "nowhere.invalid")
        [failure], _ = client("http://nowhere.invalid:9/v1", retries=0).ask("/completions", [{}])
        assert "Cannot connect to host nowhere.invalid:9" in failure.reason
    monkeypatch.setenv("http_proxy", "socks5://me:secret@127.0.0.1:1")
    with pytest.raises(InputError, match="http_proxy names, and that is no http") as error:
        client("http://elsewhere.invalid/v1")
    assert "secret" not in str(error.value)
