"""One of several processes that does what its command line says: MODE FOLDER. What it notes is a file in the folder."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import processes

LONG = 600


def main() -> None:
    mode, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    note = folder / f"rank-{rank}"
    note.write_text(f"{os.environ['LOCAL_RANK']} of {processes.count()}, {os.environ['OMP_NUM_THREADS']} threads, "
                    f"process {os.getpid()}")
    if mode == "crash":
        # Before it comes by the door.
        sys.stdout.write(f"said by {rank}\n")
        sys.stdout.flush()
        sys.exit(3 * rank)
    with processes.member():
        if mode == "refuse" and rank == 1:
            raise InputError("no such thing; name another")
        if mode == "fault" and rank == 1:
            raise ZeroDivisionError("by nothing")
        if mode == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "meet":
            processes.meet({"data/in.txt": (folder / f"data-{rank}").read_text(), "the code": "same"}, on_cpu=True)
            processes.wait_for_all()
        if mode == "bereaved":
            # The first one waits for the second, which never comes.
            if rank == 1:
                processes.meet({}, on_cpu=True)
                os.kill(os.getpid(), signal.SIGKILL)
            processes.meet({}, on_cpu=True)
            processes.wait_for_all()
        if mode in ("refuse", "fault", "killed", "wait"):
            time.sleep(LONG)
    sys.stdout.write(f"said by {rank}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
