"""`prm`, the command line: `app.py` has its commands, one module of this package each."""

from __future__ import annotations

import sys

from prm_core.platform import command_server, environment


def main() -> None:
    """Entry point of `prm`: in the server of the flow that called it, if there is one, else here."""
    environment.apply()
    code = command_server.forward()
    if code is not None:
        sys.exit(code)
    # A command that is forwarded does without these imports.
    from prm_core.cli.app import run_command_line

    run_command_line()
