"""`prm score`: step scores for a file of trajectories in any format, with the same analysis the server gives."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.config import WorkersConfig
    from prm_core.formats import LabelledChain
    from prm_core.scoring.conformal import Promises
    from prm_core.scoring.scorer import LoadedScorer
    from prm_core.serving.service import ScoringAnswer, ScoringRequest

log = logging.getLogger(__name__)

LINES_PER_BATCH = 256


@dataclass(frozen=True, slots=True)
class Scored:
    """A trajectory with its scores.

    Attributes:
        request: what was scored.
        record: what its line says of it, beside the scores.
        chain: where it comes from another project's format, else None.
        answer: None where the model has no room for it.
    """

    request: ScoringRequest
    record: dict[str, Any]
    chain: LabelledChain | None
    answer: ScoringAnswer | None = None


def read_lines(file: Path) -> Iterator[Scored]:
    """The trajectories of JSON lines with `prompt` and `steps`, or `messages`."""
    from prm_core.platform import store
    from prm_core.serving.service import parse_request

    for where, record in store.read_json_lines(file):
        yield Scored(parse_request(record, where), record, None)


def read_chains(file: Path, chains: Iterator[LabelledChain]) -> Iterator[Scored]:
    """The trajectories of another project's file; a line says from where each comes."""
    from prm_core.serving.service import checked_request

    for number, chain in enumerate(chains):
        where = f"{file}: {chain.id}" if chain.id else f"{file}: chain {number}"
        record = {"source": chain.source, "id": chain.id} | ({"parent": chain.parent} if chain.parent else {})
        yield Scored(checked_request(where, chain.asked, chain.steps), record, chain)


def scored_record(scored: Scored) -> dict[str, Any]:
    """A line with its scores; steps that did not fit the context have null scores and are counted.

    What the line says of another model's scores, from when it was scored before, is left out.
    """
    assert scored.answer is not None
    assert scored.answer.analysis is not None
    # Only some answers have these.
    optional = ("truncated_steps", "in_domain", "out_of_domain", "outcome_score", "step_reliabilities",
                "step_intervals", "alarm_step", "clean_prefix", "step_refs")
    kept = {name: value for name, value in scored.record.items() if name not in optional}
    result = {**kept, **scored.answer.analysis.model_dump()}
    if scored.answer.truncated_steps:
        blank = [None] * scored.answer.truncated_steps
        for name in ("step_scores", "step_confidences", "step_reliabilities", "step_intervals"):
            if name in result:
                result[name] = [*result[name], *blank]
        result["truncated_steps"] = scored.answer.truncated_steps
    if any(step.ref for step in scored.request.steps):
        result["step_refs"] = [step.ref for step in scored.request.steps]
    return result


def scored_chain(scored: Scored, version: str) -> LabelledChain:
    """The chain with the scores of the model of this version, in place of another's; without any where it does not fit
    the context."""
    assert scored.chain is not None
    answer = scored.answer
    scores = tuple(answer.analysis.step_scores) if answer and answer.analysis else ()
    if not scores:
        return replace(scored.chain, scores=(), scorer="")
    return replace(scored.chain, scores=(*scores, *(None,) * (len(scored.chain.steps) - len(scores))), scorer=version)


def score_all(
    scorer: LoadedScorer, promises: Promises, found: Iterator[Scored], left_out: list[str], who: WorkersConfig, *,
    threshold: float, aggregate: str, truncate: bool,
) -> Iterator[Scored]:
    """Scores trajectories batch by batch, yielding them in order; `who` works on the batches.

    Those that do not fit the model's context have no answer and are named in `left_out`; with `truncate` only those of
    which not even the first step does.
    """
    from prm_core.platform import shards
    from prm_core.serving.cache import ScoreCache
    from prm_core.serving.service import ScoringService

    # Of its own for each process that works: it has a thread.
    started: list[ScoringService] = []

    def answer(batch: Sequence[Scored]) -> list[ScoringAnswer]:
        if not started:
            started.append(ScoringService(scorer, ScoreCache(0, 1.0), promises))
        return started[0].answer([scored.request for scored in batch], threshold=threshold, aggregate=aggregate,
                                 truncate=True)

    batches = iter(lambda: list(itertools.islice(found, LINES_PER_BATCH)), [])
    for batch, answers in shards.in_order(answer, batches, who, "scoring"):
        for scored, answer in zip(batch, answers, strict=True):
            if answer.analysis is None or (answer.truncated_steps and not truncate):
                left_out.append(scored.request.where)
                yield scored
            else:
                yield replace(scored, answer=answer)


def _counted(found: Iterator[Scored], counts: Counter[str]) -> Iterator[Scored]:
    """Counts the steps that did not fit the context, and the trajectories that the model cannot judge, or has to judge
    without a question."""
    for scored in found:
        counts["unasked"] += not scored.request.prompt.strip()
        if scored.answer is not None and scored.answer.analysis is not None:
            counts["truncated"] += scored.answer.truncated_steps
            counts["strange"] += scored.answer.analysis.in_domain is False
        yield scored


def _write_lines(found: Iterator[Scored], out: TextIO) -> None:
    for scored in found:
        if scored.answer is not None:
            out.write(json.dumps(scored_record(scored), ensure_ascii=False) + "\n")


def score(
    file: Annotated[Path, typer.Argument(help="JSONL: a trajectory per line, with `prompt` and `steps`; or what "
                                         "--format says.")],
    model: Annotated[str, typer.Option(help="Reward model: models:/prm@champion, runs:/ID/reward_model or a folder.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; default: standard output.")] = None,
    threshold: Annotated[float, typer.Option(help="A step scoring below it is judged wrong.")] = 0.5,
    aggregate: Annotated[str, typer.Option(help="How step scores make overall_score: min, prod, mean, last.")] = "min",
    truncate: Annotated[bool, typer.Option(help="Score what fits of a chain longer than the model's context.")] = False,
    workspace: Annotated[Path, typer.Option(help="Folder whose model store (mlflow.db) knows the model.")] = Path("."),
    from_format: Annotated[str | None, typer.Option("--format", help="Format of FILE, as `prm data convert` knows "
                                                    "them: atif, mlflow_trace, otlp, chat, ...")] = None,
    to_format: Annotated[str | None, typer.Option("--to", help="Write the records of --format with the scores in them, "
                                                  "in this format, instead of lines.")] = None,
) -> None:
    """Score every step of the trajectories in a file.

    Each line comes back with all its fields and step_scores, step_confidences, overall_score, first_error_step,
    error_steps, improvements, and in_domain (whether the model can judge it at all), which take the place of another
    model's. The whole file is checked and scored before anything is written. A chain longer than the model's context is
    left out and named, unless --truncate is given, which leaves null scores at its last steps.

    With --format a line has `source` (the format), `id` (of the trace, run or sample; `parent`, where another's step
    started it), the scores, and `step_refs`: the span, message, step or event that each is about. With --to the records
    come back as they were, a score at each step: atif, mlflow_trace, otlp, chat and others take them; evaluation_events
    makes OpenTelemetry events of them.

    Example:  prm score run.json --format atif --to atif --model models:/prm@champion --out scored.json
    """
    from prm_core import config as configuration
    from prm_core.formats import FORMATS
    from prm_core.platform.progress import some, track
    from prm_core.scoring.conformal import Promises
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.serving.analysis import check_parameters
    from prm_core.serving.model_registry import reward_model_folder
    from prm_core.serving.service import check_kind

    check_parameters(threshold, aggregate)
    if out and out.is_dir():
        raise InputError(f"--out {out}: that is a folder; name a file")
    reader = None if from_format is None else FORMATS[from_format]
    writer = None if to_format is None else FORMATS[to_format]
    if writer is not None and reader is None:
        raise InputError(f"--to {to_format} needs --format: lines have no record to put a score into")
    if writer is not None and not writer.scored:
        raise InputError(f"--to {to_format} has no place for scores; those that have: "
                         f"{', '.join(sorted(name for name in FORMATS if FORMATS[name].scored))}")
    # Before the model loads: a bad line should not cost a minute. What is left out is told when it is read again.
    lines = sum(1 for _ in (read_lines(file) if reader is None else read_chains(file, reader.check(file))))
    loaded = reward_model_folder(model, workspace)
    scorer, who = load_any_scorer(loaded), configuration.workers_of(workspace)
    check_kind(scorer)
    left_out: list[str] = []
    counts = Counter[str]()
    found = read_lines(file) if reader is None else read_chains(file, reader.read(file))
    shown = iter(track(found, "scoring", total=lines, unit="line"))
    scored = _counted(score_all(scorer, Promises.load(loaded), shown, left_out, who, threshold=threshold,
                                aggregate=aggregate, truncate=truncate), counts)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent if out else None, prefix=".prm-score-") as folder:
        finished = Path(folder) / (out.name if out else "scored.jsonl")
        if writer is not None:
            writer.write(finished, (scored_chain(one, scorer.version) for one in scored))
        else:
            with finished.open("w", encoding="utf-8") as temporary:
                _write_lines(scored, temporary)
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
    if counts["truncated"]:
        log.warning("%d trailing steps did not fit the model's context and have no score", counts["truncated"])
    if counts["unasked"]:
        log.warning("%d of %d trajectories hold no question, so their steps are judged without one", counts["unasked"],
                    lines)
    if counts["strange"]:
        log.warning("%d of %d trajectories are unlike what the model was trained on, their scores mean nothing: see "
                    "their out_of_domain", counts["strange"], lines)
