"""Prefect's server: what a new database begins with."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import server


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
