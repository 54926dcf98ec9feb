"""`prm score`: step scores for a file of trajectories, with the same analysis the server gives."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.serving.service import ScoringAnswer, ScoringService

log = logging.getLogger(__name__)

LINES_PER_BATCH = 256


def scored_record(record: dict[str, Any], answer: ScoringAnswer) -> dict[str, Any]:
    """A line with its scores; steps that did not fit the context have null scores and are counted.

    What the line says of another model's scores, from when it was scored before, is left out.
    """
    assert answer.analysis is not None
    # Only some answers have these.
    optional = ("truncated_steps", "in_domain", "out_of_domain", "outcome_score", "step_reliabilities",
                "alarm_step", "clean_prefix", "step_refs")
    kept = {name: value for name, value in record.items() if name not in optional}
    result = {**kept, **answer.analysis.model_dump()}
    if answer.truncated_steps:
        blank = [None] * answer.truncated_steps
        result["step_scores"] = [*result["step_scores"], *blank]
        result["step_confidences"] = [*result["step_confidences"], *blank]
        if "step_reliabilities" in result:
            result["step_reliabilities"] = [*result["step_reliabilities"], *blank]
        result["truncated_steps"] = answer.truncated_steps
    return result


def score_lines(
    service: ScoringService, file: Path, lines: int, left_out: list[str], *, threshold: float, aggregate: str,
    truncate: bool,
) -> Iterator[tuple[dict[str, Any], ScoringAnswer]]:
    """Scores a checked file batch by batch, yielding its lines with their scores, and the answers, in order.

    Chains that do not fit the model's context are named in `left_out` instead; with `truncate` only those of which not
    even the first step does.
    """
    from prm_core.platform import store
    from prm_core.platform.progress import track
    from prm_core.serving.service import parse_request

    rows = iter(track(store.read_json_lines(file), "scoring", total=lines, unit="line"))
    while batch := list(itertools.islice(rows, LINES_PER_BATCH)):
        requests = [parse_request(record, where) for where, record in batch]
        answers = service.answer(requests, threshold=threshold, aggregate=aggregate, truncate=True)
        for (where, record), answer in zip(batch, answers, strict=True):
            if answer.analysis is None or (answer.truncated_steps and not truncate):
                left_out.append(where)
            else:
                yield scored_record(record, answer), answer


def _write(records: Iterator[tuple[dict[str, Any], ScoringAnswer]], out: TextIO) -> tuple[int, int]:
    """Writes the lines; returns how many steps did not fit the context, and how many trajectories the model cannot
    judge."""
    truncated = strange = 0
    for record, answer in records:
        truncated += answer.truncated_steps
        strange += record.get("in_domain") is False
        out.write(json.dumps(record, ensure_ascii=False) + "\n")
    return truncated, strange


def score(
    file: Annotated[Path, typer.Argument(help="JSONL: a trajectory per line, with `prompt` and `steps`.")],
    model: Annotated[str, typer.Option(help="Reward model: models:/prm@champion, runs:/ID/reward_model or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: standard output.")] = None,
    threshold: Annotated[float, typer.Option(help="A step scoring below it is judged wrong.")] = 0.5,
    aggregate: Annotated[str, typer.Option(help="How step scores make overall_score: min, prod, mean, last.")] = "min",
    truncate: Annotated[bool, typer.Option(help="Score what fits of a chain longer than the model's context.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the model.")] = Path("."),
) -> None:
    """Score every step of the trajectories in a file.

    Each line comes back with all its fields and step_scores, step_confidences, overall_score, first_error_step,
    error_steps, improvements, and in_domain (whether the model can judge it at all), which take the place of another
    model's. The whole file is checked and scored before anything is written. A chain longer than the model's context is
    left out and named, unless --truncate is given, which leaves null scores at its last steps.
    """
    from prm_core.platform import store
    from prm_core.platform.progress import some
    from prm_core.scoring.conformal import Promises
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.serving.analysis import check_parameters
    from prm_core.serving.cache import ScoreCache
    from prm_core.serving.model_registry import reward_model_folder
    from prm_core.serving.service import ScoringService, parse_request

    check_parameters(threshold, aggregate)
    if out and out.is_dir():
        raise InputError(f"--out {out}: that is a folder; name a file")
    # Before the model loads: a bad line should not cost a minute.
    lines = 0
    for where, record in store.read_json_lines(file):
        parse_request(record, where)
        lines += 1
    folder = reward_model_folder(model, workspace)
    service = ScoringService(load_any_scorer(folder), ScoreCache(0, 1.0), Promises.load(folder))
    left_out: list[str] = []
    records = score_lines(service, file, lines, left_out, threshold=threshold, aggregate=aggregate, truncate=truncate)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent if out else None, prefix=".prm-score-") as folder:
        finished = Path(folder) / "scored.jsonl"
        with finished.open("w", encoding="utf-8") as temporary:
            truncated, strange = _write(records, temporary)
        if len(left_out) == lines:
            raise InputError(f"{file}: no chain fits the model's context; shorten the prompts or the steps, or name a "
                             "model with a longer one")
        if out:
            os.replace(finished, out)
        else:
            with finished.open(encoding="utf-8") as done:
                shutil.copyfileobj(done, sys.stdout)
    if left_out:
        hint = "" if truncate else "; --truncate scores the steps that fit"
        log.warning("%d of %d chains are longer than the model's context and left out: %s%s", len(left_out), lines,
                    some(left_out), hint)
    if truncated:
        log.warning("%d trailing steps did not fit the model's context and have no score", truncated)
    if strange:
        log.warning("%d of %d trajectories are unlike what the model was trained on, their scores mean nothing: see "
                    "their out_of_domain", strange, lines)
