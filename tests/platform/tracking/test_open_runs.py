"""Locks of open runs: whose process lives, and what a dead one leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from prm_core.platform.tracking import open_runs
from tests import ROOT

# Holds a lock, has a child that lives on, says so, and waits to be killed.
HOLDER = """
import os, sys
from pathlib import Path
from prm_core.platform.tracking import open_runs
name = open_runs.hold(Path(sys.argv[1]))
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(name, flush=True)
sys.stdin.read()
"""


def test_a_lock_lasts_as_long_as_its_process_and_no_child_of_it_keeps_it(tmp_path: Path) -> None:
    mine = open_runs.hold(tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    theirs = holder.stdout.readline().strip()
    assert open_runs.abandoned(tmp_path) == []
    holder.kill()
    holder.wait()
    assert open_runs.abandoned(tmp_path) == [theirs]
    open_runs.release(tmp_path, theirs)
    open_runs.release(tmp_path, mine)
    assert open_runs.abandoned(tmp_path) == []
    assert list((tmp_path / open_runs.FOLDER).iterdir()) == []
    holder.stdin.close()
    holder.stdout.close()


def test_where_nothing_was_run_nothing_is_open(tmp_path: Path) -> None:
    assert open_runs.abandoned(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
