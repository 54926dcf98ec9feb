"""The review queue as files for people (JSONL, CSV), and the answers they hand back. Label Studio's files are in
label_studio.py, what becomes of the answers in review_import.py.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import store, tables

# What an answer must carry to be matched to its step; the rest of a queue row is for the reader.
ANSWER_FIELDS = ("trajectory_id", "step_index", "chain", "is_correct")
_RIGHT, _WRONG = ("true", "yes", "right", "1"), ("false", "no", "wrong", "0")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reviewer says of a step of the queue.

    Attributes:
        where: the place it was read from, for messages.
        trajectory_id, step_index, chain: as in the queue; `chain` is the digest of the chain that was judged.
        verdict: whether the step is right, None where that was left open.
        note: the reviewer's remark.
        reviewer: a name as `reviewer_name` returns it.
        chance: with which chance the step was picked for review; None where that is not known.
    """

    where: str
    trajectory_id: str
    step_index: int
    chain: str
    verdict: bool | None
    note: str
    reviewer: str
    chance: float | None = None


def reviewer_name(raw: str) -> str:
    """A reviewer's name without the blanks around it. Raises InputError for one that cannot be part of a strategy's
    name."""
    name = raw.strip()
    if not name or ":" in name:
        raise InputError(f"reviewer {raw!r}: give a name without a colon")
    return name


def read_queue(path: Path) -> list[dict[str, Any]]:
    """The review queue of a workspace; empty where nothing was left to review.

    Raises InputError when the calibrate stage has not run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no review queue there; run the chain (`prm run`) first")
    return [row for _, row in store.read_json_lines(path)] if path.stat().st_size else []


def holds_work(path: Path) -> bool:
    """Whether a file that an export would overwrite holds a person's answer or note, or is anything but an export."""
    if not path.exists() or not path.stat().st_size:
        return False
    try:
        rows = [{**row, **row["data"]} if isinstance(row.get("data"), dict) else row
                for _, row in tables.read_table(path)]
    except InputError:
        return True
    filled = ("is_correct", "note", "annotations")
    return any(set(ANSWER_FIELDS[:3]) - set(row) or any(row.get(name) not in (None, "", []) for name in filled)
               for row in rows)


def verdict_line(strategy: Mapping[str, Any]) -> str:
    """A strategy's verdict on a step in one line."""
    said = {None: "undecided", True: "right", False: "wrong"}[strategy["is_correct"]]
    return f"{strategy['strategy']}: {said} ({strategy['reasoning']})"


def queue_as_csv(queue: Sequence[Mapping[str, Any]]) -> str:
    """The queue as a spreadsheet: lists become lines of one cell, the empty `is_correct` waits for true or false."""
    text = io.StringIO()
    columns = list(queue[0]) if queue else list(ANSWER_FIELDS)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in queue:
        verdicts = "\n".join(verdict_line(strategy) for strategy in row["strategies"])
        writer.writerow({**row, "steps_before": "\n".join(row["steps_before"]), "strategies": verdicts})
    return text.getvalue()


def read_answers(path: Path, reviewer: str) -> Iterator[Answer]:
    """The answers in a JSONL or CSV file that `prm review export` wrote, those left open included.

    Raises InputError naming file and line of a row that is none.
    """
    rows = _csv_rows(path) if path.suffix == ".csv" else store.read_json_lines(path)
    for where, row in rows:
        yield parse_answer(row, where, reviewer)


def parse_answer(row: Mapping[str, Any], where: str, reviewer: str) -> Answer:
    """A queue row with `is_correct` filled in. Raises InputError naming `where` and what is wrong with it."""
    missing = [name for name in ANSWER_FIELDS if name not in row]
    if missing:
        raise InputError(f"{where}: missing field {', '.join(missing)}; answer in the file `prm review export` wrote "
                         "and keep its fields")
    trajectory_id, chain, index = row["trajectory_id"], row["chain"], row["step_index"]
    if not isinstance(trajectory_id, str) or not isinstance(chain, str):
        raise InputError(f"{where}: trajectory_id and chain must be texts; keep them as exported")
    if not isinstance(index, int) or isinstance(index, bool):
        raise InputError(f"{where}: step_index is {index!r}, expected a number")
    verdict, chance = _parse_verdict(row["is_correct"], where), _parse_chance(row.get("chance"), where)
    return Answer(where, trajectory_id, index, chain, verdict, str(row.get("note") or ""), reviewer, chance)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    # utf-8-sig: spreadsheets put a byte-order mark in front.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        before = 1
        for row in reader:
            # A quoted cell may span lines: a row is named by the line it starts on.
            where, before = f"{path}:{before + 1}", reader.line_num
            try:
                yield where, {**row, "step_index": int(row.get("step_index") or "")}
            except ValueError:
                raise InputError(f"{where}: step_index is {row.get('step_index')!r}, expected a number") from None


def _parse_chance(raw: Any, where: str) -> float | None:
    """A chance above 0, None where it was left out. Raises InputError on anything else."""
    try:
        chance = float(raw) if raw not in (None, "") else None
    except (TypeError, ValueError):
        chance = -1.0
    if chance is not None and not 0 < chance <= 1:
        raise InputError(f"{where}: chance is {raw!r}, expected a number above 0 and at most 1; keep it as exported")
    return chance


def _parse_verdict(raw: Any, where: str) -> bool | None:
    """An answer; None where it was left empty. Raises InputError on anything that is neither."""
    if raw is None or isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text and text not in _RIGHT + _WRONG:
        raise InputError(f"{where}: is_correct is {raw!r}; write true or false, or leave it empty")
    return text in _RIGHT if text else None
