"""`prm drift`: served traffic against what the model was calibrated on; what people are to judge of it; a new
calibration from what they say."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prm_core.cli.scoring.judge import parse_since
from prm_core.errors import GateError

if TYPE_CHECKING:
    from prm_core.serving.drift.check import Checked

CHAMPION = "models:/prm@champion"


def check_window(workspace: Path, model: str, since: str | None) -> tuple[Checked, int]:
    """Checks a window of a workspace's served traffic, and draws steps of it for review.

    Args:
        model: as `prm serve` takes it.
        since: as `parse_since` takes it; None for `drift.window_hours`.

    Returns what was found, and how many steps wait for review. Raises InputError, and InUse while another check is at
    work.
    """
    from prm_core import config as configuration
    from prm_core.platform.workspace import DRIFT_LOCK, exclusive
    from prm_core.review.drawn import Drawn, write_drawn
    from prm_core.serving.drift import check, recalibrate

    config, now = configuration.load(workspace), time.time()
    begins = parse_since(since, datetime.now(UTC)) / 1000 if since else now - 3600 * config.drift.window_hours
    with exclusive(workspace, lock=DRIFT_LOCK):
        found = check.check(workspace, config, model, begins, now)
        drawn = [Drawn(*recalibrate.as_records(one, chance, config.domain), one.scores, chance) for one, chance in
                 recalibrate.draw(found.questions, config.drift.review, config.seed)]
        steps = write_drawn(workspace / config.drift.folder / recalibrate.REVIEW, drawn, config.seed) if drawn else 0
    return found, steps


def calibrate_anew(workspace: Path, model: str, since: str | None) -> str:
    """Registers a version calibrated on what people said of served traffic; returns its URI. Arguments and errors as
    for `check_window`, and as `recalibrate` raises them."""
    from prm_core import config as configuration
    from prm_core.labeling.human.labels import read_human
    from prm_core.platform.workspace import DRIFT_LOCK, exclusive
    from prm_core.review.importing import reading
    from prm_core.review.session import HUMAN
    from prm_core.serving.drift import recalibrate

    config, now = configuration.load(workspace), time.time()
    begins = parse_since(since, datetime.now(UTC)) / 1000 if since else now - 3600 * config.drift.window_hours
    folder = workspace / config.drift.folder / recalibrate.REVIEW / HUMAN
    with exclusive(workspace, lock=DRIFT_LOCK):
        with reading(folder):
            human = read_human(folder)
        return recalibrate.recalibrate(workspace, config, human, model, begins, now)


def drift(
    model: Annotated[str, typer.Option(
        help="The model that is served: models:/NAME@ALIAS, models:/NAME/VERSION or a folder.")] = CHAMPION,
    since: Annotated[str | None, typer.Option(
        help="The window begins: 90m, 24h, 7d ago, or at a date; default: drift.window_hours ago.")] = None,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help=
        "Register a version that is calibrated on what people said of served steps, as the challenger.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder that the server was started in.")] = Path("."),
) -> None:
    """Compare what was served with what the model was calibrated on; draw steps of it for people to judge.

    Distances of scores, lengths, first errors, tools and agents, and one test over all of them, whose share of false
    alarms is drift.false_alarms; what accuracy the scores themselves let expect. An MLflow run holds figures and a
    page. An alarm makes the model's calibration stale, which the server says in its answers and `prm promote` refuses,
    until a later check finds none; the exit code is then 1.

    `prm review --workspace served/review` asks about the drawn steps, where drift.texts has texts kept.
    """
    if recalibrate:
        uri = calibrate_anew(workspace, model, since)
        typer.echo(f"{uri} is the challenger; next: prm promote --model {uri}")
        return
    found, steps = check_window(workspace, model, since)
    typer.echo(str(found))
    if steps:
        typer.echo(f"{steps} steps wait for review: prm review --workspace {review_folder(workspace)}")
    if found.alarm:
        raise GateError(f"served traffic has drifted: {found.alarm}")


def review_folder(workspace: Path) -> Path:
    """Where drawn steps wait."""
    from prm_core import config as configuration
    from prm_core.serving.drift.recalibrate import REVIEW

    return workspace / configuration.load(workspace).drift.folder / REVIEW
