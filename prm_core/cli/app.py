"""`prm`, the command line: a command per module of this package and of `scoring`; errors turn into a line and a code.

Commands import what they need when they run, so that `prm --help` answers at once.
"""

from __future__ import annotations

import logging
import sys

import typer

from prm_core.cli import failures
from prm_core.cli.adapt import app as adapt_app
from prm_core.cli.adapt import forget, outcome
from prm_core.cli.data import app as data_app
from prm_core.cli.export import export
from prm_core.cli.promote import promote
from prm_core.cli.report import report
from prm_core.cli.retention import retention
from prm_core.cli.review import app as review_app
from prm_core.cli.rules import app as rules_app
from prm_core.cli.run import run
from prm_core.cli.scoring.adversarial import adversarial
from prm_core.cli.scoring.compare import compare
from prm_core.cli.scoring.drift import drift
from prm_core.cli.scoring.evaluate import evaluate
from prm_core.cli.scoring.judge import judge
from prm_core.cli.scoring.probe import probe
from prm_core.cli.scoring.score import score
from prm_core.cli.scoring.search import search
from prm_core.cli.scoring.serve import serve
from prm_core.cli.stage import stage
from prm_core.cli.train import train
from prm_core.platform import environment

app = typer.Typer(
    name="prm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Process reward models, operated: label steps, train, evaluate, register, promote and serve.\n\n"
    "`prm run` runs the whole chain; the other commands are its parts. Exit codes: 0 done, 1 a gate said no or "
    "something broke, 2 bad input or a wrong command line.",
)
app.command("run")(run)
app.command("stage")(stage)
app.add_typer(data_app, name="data")
app.add_typer(review_app, name="review")
app.add_typer(rules_app, name="rules")
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("promote")(promote)
app.command("report")(report)
app.command("score")(score)
app.command("search")(search)
app.command("serve")(serve)
app.command("judge")(judge)
app.command("retention")(retention)
app.command("drift")(drift)
app.add_typer(adapt_app, name="adapt")
app.command("outcome")(outcome)
app.command("forget")(forget)
app.command("train")(train)
app.command("export")(export)
app.command("adversarial")(adversarial)
app.command("probe")(probe)


class _Lines(logging.Formatter):
    """Progress as it is; from warnings on, with the level and who says it."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname} {record.name}: {text}"


def _worth_showing(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.startswith("prm_core")


def configure_logging() -> None:
    """Messages to stderr; other libraries' only from warnings on, whatever level they set for themselves."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    handler.addFilter(_worth_showing)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("prm_core").setLevel(logging.INFO)


def run_command_line() -> None:
    """Runs the command in `sys.argv`; ends the process with its exit code."""
    environment.apply()
    configure_logging()
    with failures.told():
        app()
