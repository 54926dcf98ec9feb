"""Kills: what a run comes to that nothing disturbs, and what is asked of all tries."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from benchmarks import kills
from prm_core.platform import store

TRY = {"target": "flow", "next exit code": 0, "old processes": 0, "same figures": True, "flow runs": 0, "task runs": 0,
       "MLflow runs": 0}


def test_figures_are_those_of_every_stage_in_order(tmp_path: Path) -> None:
    checkout = kills.Checkout(tmp_path, None)
    checkout.begin()
    assert checkout.figures() is None
    before = tmp_path / "turn.txt"
    for name in kills.STAGES:
        out = tmp_path / f"artifacts/{name}/out.txt"
        store.write_text(out, kills.outcome(name, before.read_text()))
        assert (checkout.figures() == checkout.expected()) is (name == kills.STAGES[-1])
        before = out
    # What the last turn left is no result of the next one.
    checkout.begin()
    assert checkout.figures() != checkout.expected()


def test_the_smoke_chain_is_compared_with_its_first_run_but_for_times(tmp_path: Path) -> None:
    checkout = kills.SmokeCheckout(tmp_path, None)
    checkout._undisturbed = None
    checkout.begin()
    metrics = tmp_path / "artifacts/evaluate/metrics.json"
    store.write_json(metrics, {"test/prm/auroc": 0.5, "test/prm/latency_ms_per_step": 1.0})
    store.write_text(tmp_path / ".work/flows/note.json", "{}")
    store.write_text(tmp_path / ".work/label/shard", "-")
    checkout.begin()
    assert not metrics.exists()
    assert [path.name for path in (tmp_path / ".work").iterdir()] == ["flows"]
    store.write_json(metrics, {"test/prm/auroc": 0.5, "test/prm/latency_ms_per_step": 2.0})
    assert checkout.figures() == checkout.expected()
    store.write_json(metrics, {"test/prm/auroc": 0.4, "test/prm/latency_ms_per_step": 1.0})
    assert checkout.figures() != checkout.expected()


def test_open_runs_are_counted(tmp_path: Path) -> None:
    (tmp_path / ".prefect").mkdir()
    for file, tables in ((".prefect/prefect.db", {"flow_run": "state_type", "task_run": "state_type"}),
                         ("mlflow.db", {"runs": "status"})):
        with closing(sqlite3.connect(tmp_path / file)) as database, database:
            for number, (table, column) in enumerate(tables.items(), 1):
                database.execute(f"create table {table} ({column} text)")
                rows = [("COMPLETED",), ("FINISHED",), *[("RUNNING",)] * number, ("PENDING",)]
                database.executemany(f"insert into {table} values (?)", rows)
    assert kills.Checkout(tmp_path, None).left_open() == {"flow runs": 2, "task runs": 3, "MLflow runs": 2}


def test_one_bad_try_breaks_its_bar_alone() -> None:
    assert all(bar.holds for bar in kills.bars_of([TRY, TRY]))
    for key, value, name in (("task runs", 1, "task runs after"), ("old processes", 2, "old processes after"),
                             ("next exit code", 1, "next runs that failed"), ("same figures", False, "the figures of")):
        broken = [bar.name for bar in kills.bars_of([TRY, TRY | {key: value}]) if not bar.holds]
        assert len(broken) == 1
        assert broken[0].startswith(name)


def test_what_a_killed_process_leaves_alive_is_counted() -> None:
    line = f"{sys.executable} -c import time; time.sleep(600) "
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        family = {process.pid: line}
        assert kills.descendants(process.pid) == family
        assert kills.alive_after(family, seconds=0) == 1
    finally:
        process.kill()
        process.wait()
    assert kills.alive_after(family, seconds=0) == 0
