"""Records of a person's file of any usual kind: what `records.py` reads, CSV, TSV, one JSON object with the records in
it, Arrow, and folders of these, as Hugging Face's `datasets` exports them.

Values come as JSON values. What they mean is the callers' business.
"""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import json_text, store
from prm_core.platform.records import Row, read_rows, rows_of

log = logging.getLogger(__name__)

# What datasets lays beside its tables.
_NO_TABLES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_PACKED = (".gz", ".zip", ".xz", ".bz2", ".zst", ".7z", ".tar")
_WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")
# As long as a cell may be; the default of 128 KiB is less than some worked solutions take.
_LONGEST_CELL = 1 << 24
# Excel's, before the header.
_SEPARATOR_LINE = re.compile(r'("?sep=[,;\t|]"?)\r?\n', re.IGNORECASE)


def read_table(path: Path, *, handed_back: bool = False) -> Iterator[Row]:
    """(where, object) of each record of a file, or of all files of a folder in the order of their names.

    `where` names file and line, or file and record from 0. A cell that CSV leaves empty, and a float that a table of
    columns leaves NaN, is None.

    Args:
        path: the file or folder.
        handed_back: one of our own tables, as people's tools save it again: JSON with NaN for what is missing, CSV in
            UTF-16 or Windows-1252, as .txt, with a line before the header that names the separator, with rows cut
            short.

    Raises InputError for a missing, empty or broken file, one of another kind, and a folder without any.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*")
                       if file.suffix.lower() in _READERS and file.name not in _NO_TABLES
                       and not any(part.startswith((".", "cache-")) for part in file.relative_to(path).parts))
        if not files:
            raise InputError(f"{path}: no {', '.join(_READERS)} file in this folder")
        for file in files:
            yield from read_table(file)
        return
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix.lower() in _PACKED:
        raise InputError(f"{path}: is packed; unpack it first")
    if path.suffix.lower() in _WORKBOOKS:
        raise InputError(f"{path}: is a workbook; save its sheet as CSV (UTF-8)")
    reader = _READERS.get(path.suffix.lower(), _json_rows)
    if handed_back and path.suffix.lower() == ".txt" and not _is_json(path):
        reader = _csv_rows
    yield from reader(path, handed_back)


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"["))


def _decoded(path: Path, handed_back: bool) -> str:
    raw = path.read_bytes()
    try:
        if handed_back and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return raw.decode("utf-16")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if handed_back and "\0" not in (text := raw.decode("cp1252", errors="replace")):
            log.warning("%s: not UTF-8; read as Windows-1252", path)
            return text
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: not UTF-8 text; save the file as CSV in UTF-8") from None


def _csv_rows(path: Path, handed_back: bool) -> Iterator[Row]:
    text = _decoded(path, handed_back)
    named = _SEPARATOR_LINE.match(text) if handed_back else None
    # An empty line in its place, so that lines keep their numbers.
    text = text[named.end(1):] if named else text
    first = next((line for line in text.splitlines() if line.strip()), "")
    # A semicolon where commas are decimal; the header has no values in it that could mislead.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    found = False
    while True:
        # A quoted cell may span lines: a row is named by the line it starts on.
        where = f"{path}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(f"{where}: not valid CSV ({error}); a cell that holds quotes, {delimiter!r} or line "
                             'breaks stands in quotes, and a quote in it is written ""') from None
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [name.strip() for name in cells]
            twice = {name for name in header if name and header.count(name) > 1}
            if twice:
                raise InputError(f"{where}: two columns are named {min(twice)!r}; rename one")
            continue
        if handed_back:
            cells = [*cells, *[""] * (len(header) - len(cells))]
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns; put a cell that "
                             f"holds {delimiter!r} in quotes")
        found = True
        yield where, {name: cell if cell.strip() else None for name, cell in zip(header, cells, strict=True) if name}
    if not found:
        raise InputError(f"{path}: the file holds no records; its first line names the columns")


def _json_rows(path: Path, handed_back: bool) -> Iterator[Row]:
    if not _is_one_object(path):
        yield from read_rows(path, nan_is_null=handed_back)
        return
    whole = json_text.parse(path.read_bytes(), str(path), nan_is_null=handed_back)
    yield from _rows_of_object(path, whole)


def _is_one_object(path: Path) -> bool:
    """Whether a file is a JSON object that is more than the first of several lines."""
    with path.open("rb") as file:
        lines = (line.strip() for line in file)
        first = next((line for line in lines if line), b"").removeprefix(b"\xef\xbb\xbf")
        return first.startswith(b"{") and (not first.endswith(b"}") or not any(lines))


def _rows_of_object(path: Path, whole: dict[str, Any]) -> Iterator[Row]:
    lists = {name: value for name, value in whole.items() if isinstance(value, list) and value
             and all(isinstance(item, dict) for item in value)}
    columns = _columns(whole)
    if lists:
        for name, items in lists.items():
            yield from ((f"{path}: {name}[{number}]", item) for number, item in enumerate(items))
    elif columns:
        for number in range(len(next(iter(columns.values())))):
            yield f"{path}: record {number}", {name: values[number] for name, values in columns.items()}
    elif whole and all(isinstance(value, dict) for value in whole.values()):
        yield from ((f"{path}: {name}", {"id": name, **value}) for name, value in whole.items())
    else:
        yield f"{path}", whole


def _columns(whole: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """Columns of equal length, as `Dataset.to_dict` (lists) or pandas' `to_json` (objects of the same keys) writes
    them; empty where the object is none.
    """
    values = list(whole.values())
    if len(values) < 2:
        return {}
    if all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        return dict(whole)
    if all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values) and all(
            not isinstance(cell, dict) for value in values for cell in value.values()) and all(
            key.isdigit() for key in values[0]):
        return {name: list(value.values()) for name, value in whole.items()}
    return {}


def _json_lines(path: Path, handed_back: bool) -> Iterator[Row]:
    return store.read_json_lines(path, nan_is_null=handed_back)


def _parquet_rows(path: Path, _: bool) -> Iterator[Row]:
    for where, row in read_rows(path):
        yield where, _json_values(row, where)


def _arrow_rows(path: Path, _: bool) -> Iterator[Row]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            # `save_to_disk` writes streams, other tools files.
            try:
                batches: Any = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            number = 0
            for batch in batches:
                for row in rows_of(batch):
                    where = f"{path}: record {number}"
                    yield where, _json_values(row, where)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an Arrow file ({str(error).splitlines()[0]})") from None
    if not number:
        raise InputError(f"{path}: the file holds no records")


def _json_values(row: dict[str, Any], where: str) -> dict[str, Any]:
    plain = _plain(row)
    json_text.check(plain, where)
    return plain


def _plain(value: Any) -> Any:
    """A cell of a table of columns as a JSON value."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return value


_READERS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_rows, ".csv": _csv_rows,
    ".tsv": _csv_rows, ".parquet": _parquet_rows, ".arrow": _arrow_rows}
