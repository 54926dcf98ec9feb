"""Servers that answer, refuse or say nothing: told apart in a moment."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from prm_core.platform import tracking
from prm_core.platform.tracking import reachable


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql", "mysql+pymysql"])
def test_nobody_there_is_one_line_at_once(scheme: str, closed: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://ann:secret@127.0.0.1:{closed}/mlflow")
    started = time.monotonic()
    with pytest.raises(reachable.Unreachable) as caught:
        tracking.connect(tmp_path)
    assert time.monotonic() - started < reachable.SECONDS + 5
    said = str(caught.value)
    assert said.startswith(f"the tracking store {scheme}://127.0.0.1:{closed}/mlflow cannot be reached (Connection ref")
    assert "unset it" in said
    assert "secret" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_is_not_waited_for(silent: int) -> None:
    with pytest.raises(reachable.Unreachable, match=r"no answer within 0\.2 s"):
        reachable.check(f"http://127.0.0.1:{silent}", seconds=0.2)


def test_an_error_is_an_answer_and_is_asked_for_once() -> None:
    asked = []

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(2):
            reachable.check(f"http://127.0.0.1:{server.server_port}/base/")
        server.shutdown()
    assert asked == ["/base/health"]


def test_stores_without_a_server_are_not_asked(silent: int) -> None:
    for uri in ("sqlite:///mlflow.db", "databricks", f"postgresql://127.0.0.1:{silent}/mlflow"):
        reachable.check(uri, seconds=0.2)
