"""Prefect's server: what a new database begins with."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import server
from prm_core.errors import InputError
from prm_core.platform import guard


def tables(database: Path) -> set[str]:
    with closing(sqlite3.connect(database)) as opened:
        return {name for name, in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_new_database_begins_as_prefect_would_have_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    # Another database that the user's environment names stays as it is.
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path}/theirs.db")
    server.begin_database(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    server.prepare()
    # Where the database is another one, none is put beside it.
    server.begin_database(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    monkeypatch.delenv("PREFECT_API_DATABASE_CONNECTION_URL")
    server.begin_database(tmp_path / "home")
    database = tmp_path / "home" / server.DATABASE
    assert {"flow_run", "task_run", "alembic_version"} <= tables(database)
    assert {path.name for path in tmp_path.iterdir()} == {"environment", "home"}
    assert [path.name for path in (tmp_path / "home").iterdir()] == [server.DATABASE]


def test_a_database_that_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_template", lambda: tmp_path / "template.db")
    for name in ("template.db", "home.db"):
        with closing(sqlite3.connect(tmp_path / name)) as opened:
            opened.execute(f"CREATE TABLE of_{name[:4]} (id)")
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(tmp_path / "home.db", home / server.DATABASE)
    server.begin_database(home)
    assert tables(home / server.DATABASE) == {"of_home"}


def test_a_database_elsewhere_is_named_where_the_server_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://prm:secret@127.0.0.1:9/prefect")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(InputError, match="PREFECT_API_DATABASE_CONNECTION_URL names its database") as refusal:
        server._wait_until_it_answers(ended, ["connection refused"])
    assert "secret" not in str(refusal.value)


def test_the_guard_is_around_the_server_not_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its automations ask the application itself, under a name that no browser may use."""
    served = []
    monkeypatch.setattr(server, "begin_database", lambda home: None)
    monkeypatch.setattr("uvicorn.Config", lambda app, **_: served.append(app))
    monkeypatch.setattr("uvicorn.Server", lambda _: SimpleNamespace(run=lambda sockets: None, started=True))
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.MonkeyPatch.context() as patch:
        for name in ("PREFECT_UI_API_URL", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
                     "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"):
            # Set by the server for its own process.
            patch.setenv(name, "")
        patch.setattr("prefect.server.api.server.create_app", lambda: "the application")
        server.serve(listener, "127.0.0.1", temporary=False)
    (app,) = served
    assert (type(app), app.app) == (guard.OnlyOwn, "the application")
