"""prm_core/platform/guard.py: whose requests a server here answers."""

from __future__ import annotations

import asyncio

import pytest

from prm_core.platform.guard import OnlyOwn, is_loopback


async def answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"secret"})


def ask(bound: str, kind: str = "http", **headers: str) -> list[dict]:
    """What a server bound to an address, port 4200, sends to a request with these headers."""
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": f"{kind}.connect"}

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(OnlyOwn(answer, bound, 4200)(scope, receive, send))
    return sent


@pytest.mark.parametrize(("bound", "host", "origin", "status"), [
    ("127.0.0.1", "127.0.0.1:4200", None, 200),
    ("127.0.0.1", "localhost:4200", "http://localhost:4200", 200),
    ("127.0.0.1", "LOCALHOST:4200", "http://127.0.0.1:4200", 200),
    ("127.0.0.1", "[::1]:4200", None, 200),
    ("127.0.0.1", "pages.example:4200", None, 403),
    ("127.0.0.1", "127.0.0.1:4201", None, 403),
    ("127.0.0.1", "", None, 403),
    ("127.0.0.1", "127.0.0.1:4200", "http://pages.example", 403),
    ("127.0.0.1", "127.0.0.1:4200", "http://127.0.0.1:9999", 403),
    ("127.0.0.1", "127.0.0.1:4200", "null", 403),
    ("10.1.2.3", "10.1.2.3:4200", "http://10.1.2.3:4200", 200),
    ("10.1.2.3", "localhost:4200", None, 403),
    ("0.0.0.0", "box.example:4200", "http://box.example:4200", 200),
    ("0.0.0.0", "box.example:4200", "http://pages.example", 403),
])
def test_only_requests_that_name_the_server_and_come_from_its_own_pages_are_answered(bound, host, origin, status):
    headers = {"host": host} | ({} if origin is None else {"origin": origin})
    sent = ask(bound, **headers)
    assert sent[0]["status"] == status
    assert (b"secret" in sent[1]["body"]) is (status == 200)


def test_a_foreign_page_gets_no_websocket():
    assert ask("127.0.0.1", "websocket", host="127.0.0.1:4200", origin="http://pages.example") == [
        {"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(("host", "loopback"), [
    ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False),
    ("10.1.2.3", False), ("box.example", False), ("", False)])
def test_what_is_loopback(host, loopback):
    assert is_loopback(host) is loopback
