"""The review queue as files for people (JSONL, CSV), and the answers they hand back. Label Studio's files are in
label_studio.py, what becomes of the answers in importing.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.labeling.human.labels import DIGEST_DIGITS
from prm_core.platform import store
from prm_core.platform.tables import read_table

# What an answer must carry to be matched to its step; the rest of a queue row is for the reader.
ANSWER_FIELDS = ("trajectory_id", "step_index", "chain", "is_correct")
# Also as spreadsheets in other languages write true and false.
_RIGHT = ("true", "yes", "right", "correct", "t", "y", "wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar",
          "prawda", "sant", "sand", "tosi", "pravda", "igaz", "истина")
_WRONG = ("false", "no", "wrong", "incorrect", "f", "n", "falsch", "faux", "falso", "onwaar", "fałsz", "falskt",
          "falsk", "epätosi", "nepravda", "hamis", "ложь")
_OPEN = ("", "nan", "na", "n/a", "<na>", "none", "null")


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
        given_at: when, ISO 8601; empty where that is not known.
    """

    where: str
    trajectory_id: str
    step_index: int
    chain: str
    verdict: bool | None
    note: str
    reviewer: str
    chance: float | None = None
    given_at: str = ""


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
                for _, row in read_table(path)]
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
    """The queue as a spreadsheet: lists become lines of one cell, the empty `is_correct` waits for true or false.

    What a spreadsheet would take for a formula, or an identifier for a number, gets an apostrophe before it, which
    `read_answers` takes off.
    """
    text = io.StringIO()
    columns = list(queue[0]) if queue else list(ANSWER_FIELDS)
    # Lines end as in the standard: otherwise the writer does not quote a cell with a carriage return.
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    for row in queue:
        verdicts = "\n".join(verdict_line(strategy) for strategy in row["strategies"])
        cells = {**row, "steps_before": "\n".join(row["steps_before"]), "strategies": verdicts}
        writer.writerow({name: _guarded(name, value) for name, value in cells.items()})
    return text.getvalue()


# Any number of apostrophes before it, so that one of the text's own stays.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"'*\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?$")
_IDENTIFIERS = ("trajectory_id", "chain")


def _is_guarded(name: str, text: str) -> bool:
    return bool(_FORMULA.match(text) or (name in _IDENTIFIERS and _NUMBER.match(text)))


def _guarded(name: str, value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _is_guarded(name, value) else value


def _unguarded(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith("'") and _is_guarded(name, value[1:]):
        return value[1:]
    return value


def read_answers(path: Path, reviewer: str) -> Iterator[Answer]:
    """The answers in a file that `prm review export` wrote (JSONL, CSV), however people's tools have saved it since;
    those left open included.

    Raises InputError naming file and line of a row that is none.
    """
    annotators: set[str] = set()
    for where, row in read_table(path, handed_back=True):
        given = {name.strip().lower(): value for name, value in row.items()}
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            given = {name: _unguarded(name, value) for name, value in given.items()}
        # Label Studio's flat exports, JSON-MIN and CSV.
        annotators.add(str(given.get("annotator")))
        if len(annotators) > 1:
            raise InputError(f"{where}: answers by several annotators ({', '.join(sorted(annotators))}); choose "
                             "Export, JSON, and name each")
        yield parse_answer(given, where, reviewer)


def parse_answer(row: Mapping[str, Any], where: str, reviewer: str) -> Answer:
    """A queue row with `is_correct` filled in. Raises InputError naming `where` and what is wrong with it."""
    missing = [name for name in ANSWER_FIELDS if name not in row]
    if missing:
        raise InputError(f"{where}: missing field {', '.join(missing)}; answer in the file `prm review export` wrote "
                         "and keep its fields, in a CSV file parted by commas, semicolons or tabs")
    trajectory_id, chain = _text(row["trajectory_id"]), _text(row["chain"])
    if trajectory_id is None or chain is None:
        raise InputError(f"{where}: trajectory_id and chain must be texts; keep them as exported")
    # A tool that made a number of it has dropped zeros before it.
    chain = chain.zfill(DIGEST_DIGITS) if chain.isdigit() else chain
    index = _number(row["step_index"])
    if index is None or not index.is_integer():
        raise InputError(f"{where}: step_index is {row['step_index']!r}, expected a number")
    verdict, chance = _parse_verdict(row["is_correct"], where), _parse_chance(row.get("chance"), where)
    note = "" if _is_empty(row.get("note")) else str(row["note"])
    given_at = row.get("updated_at") or row.get("created_at")
    return Answer(where, trajectory_id, int(index), chain, verdict, note, reviewer, chance,
                  given_at if isinstance(given_at, str) else "")


def _is_empty(raw: Any) -> bool:
    """Whether a cell was left open, as people's tools write that."""
    return raw is None or (isinstance(raw, float) and math.isnan(raw)) or (
        isinstance(raw, str) and raw.strip().lower() in _OPEN)


def _text(raw: Any) -> str | None:
    """A text, which a tool may have turned into a number; None for anything else."""
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    return str(raw) if isinstance(raw, str | int) and not isinstance(raw, bool) else None


def _number(raw: Any) -> float | None:
    """A number, which may be a text with a decimal comma; None for anything else."""
    try:
        number = None if isinstance(raw, bool) else float(raw.replace(",", ".") if isinstance(raw, str) else raw)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _parse_chance(raw: Any, where: str) -> float | None:
    """A chance above 0, None where it was left out. Raises InputError on anything else."""
    if _is_empty(raw):
        return None
    chance = _number(raw)
    if chance is None or not 0 < chance <= 1:
        raise InputError(f"{where}: chance is {raw!r}, expected a number above 0 and at most 1; keep it as exported")
    return chance


def plain(value: Any) -> Any:
    """A value that may stand as JSON text in a text."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _parse_verdict(raw: Any, where: str) -> bool | None:
    """An answer; None where it was left empty. Raises InputError on anything that is neither."""
    given = plain(raw)
    if isinstance(given, dict):
        given = given.get("choices", given)
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, bool) or _is_empty(given):
        return None if _is_empty(given) else given
    word = given.strip().lower() if isinstance(given, str) else given
    number = _number(word)
    if word in _RIGHT or number == 1:
        return True
    if word in _WRONG or number == 0:
        return False
    raise InputError(f"{where}: is_correct is {raw!r}; write true or false, or leave it empty")
