"""Which of the processes of a distributed run this is, known before torch is: launchers say it in the environment."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process writes what the run gives: the only one, or the first of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """Which of this machine's processes of the run it is."""
    return int(os.environ.get("LOCAL_RANK", "0"))
