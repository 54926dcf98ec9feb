"""`prm run`: the flow in this process, with a Prefect server for it.

    python -m flows.run [--profile P] [--problems FILE] [--review]

The server starts up while this process imports Prefect; hence the flow is imported last.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from flows import server
from prm_core.cli import failures
from prm_core.errors import InputError
from prm_core.platform import command_server, environment, workspace


def main() -> None:
    """Runs the flow here; exits with 0, 2 on bad input, 130 when interrupted, else 1."""
    parser = argparse.ArgumentParser(prog="python -m flows.run", description=__doc__)
    parser.add_argument("--profile", default="default")
    parser.add_argument("--problems")
    parser.add_argument("--review", action="store_true")
    parser.add_argument("--review-hours", type=float, default=24)
    given = parser.parse_args()
    with failures.told():
        sys.exit(_run(given))


def _run(given: argparse.Namespace) -> int:
    # The server of the commands comes first, so that the two start side by side.
    with command_server.started():
        server.start()
        from prefect import tags

        from flows import leftovers, pipeline

        folder = workspace.locate(environment.project_root(), given.profile,
                                  None if given.problems is None else Path(given.problems))
        mark = leftovers.note_before(folder)
        try:
            with tags(mark):
                state = pipeline.pipeline(given.profile, given.problems, given.review, given.review_hours,
                                          return_state=True)
        except Exception as error:
            if not server.is_unreachable(error):
                raise
            raise InputError(f"Prefect's server at {server.address()} does not answer any more; what was finished is "
                             "kept: run the same command again") from error
    # The last words on the terminal, after Prefect's own.
    if state.is_completed():
        Console(soft_wrap=True).print(state.message, markup=False, highlight=False)
        return 0
    Console(stderr=True, soft_wrap=True).print(f"error: {state.message}", markup=False, highlight=False)
    return 2 if state.name == pipeline.BAD_INPUT else 1


if __name__ == "__main__":
    main()
