"""Rows of JSON arrays, JSON lines and Parquet files, read and written one at a time: no file is held whole."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import store

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, dict[str, Any]]
BATCH_ROWS = 1000
_BOM = b"\xef\xbb\xbf"


def read_rows(path: Path) -> Iterator[Row]:
    """(where, object) of each record: Parquet by suffix, else a JSON array or JSON lines, told apart by content.

    `where` names file and line, or file and record from 0. Raises InputError for a missing, empty or broken file, when
    the reading gets there.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif _is_array(path):
        yield from _array_rows(path)
    else:
        yield from store.read_json_lines(path)


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(_BOM)
        while head and not head.strip():
            head = file.read(4096)
    return head.lstrip().startswith(b"[")


def _array_rows(path: Path) -> Iterator[Row]:
    import ijson

    found = 0
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        try:
            for row in ijson.items(file, "item", use_float=True):
                where = f"{path}: record {found}"
                if not isinstance(row, dict):
                    raise InputError(f"{where} is {type(row).__name__}, expected an object")
                yield where, row
                found += 1
        except ijson.JSONError as error:
            # The message goes on over several lines, with the text around the fault.
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{path}: record {found}: not valid JSON ({reason}); the file is an array of objects"
                             ) from None
    if not found:
        raise InputError(f"{path}: the file holds no records")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    with file:
        if not file.metadata.num_rows:
            raise InputError(f"{path}: the file holds no records")
        found = itertools.count()
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                yield f"{path}: record {next(found)}", row


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema | None) -> int:
    """Writes rows as they come, into a temporary file that takes the name when all are there; returns their number.

    Args:
        path: .parquet for Parquet, .json for a JSON array, anything else for JSON lines.
        schema: columns of a Parquet file, None where the rows have none.

    Raises:
        InputError: no row came, a row holds NaN or infinity, or Parquet without a schema. Nothing is left behind then.
    """
    kinds: dict[str, Callable[[Path, Iterable[dict[str, Any]]], int]] = {".json": _write_array}
    write = kinds.get(path.suffix, _write_lines)
    if path.suffix == ".parquet":
        if schema is None:
            raise InputError(f"{path}: this format is written as JSON; name the file .jsonl or .json")
        write = _parquet_writer(schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        written = write(temporary, rows)
        if not written:
            raise InputError(f"{path}: not written, since no record is left")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _dump(row: dict[str, Any], number: int) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InputError(f"record {number}: JSON cannot hold it ({error})") from None


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            file.write(_dump(row, number - 1) + "\n")
    return number


def _write_array(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            file.write(("[\n" if number == 1 else ",\n") + _dump(row, number - 1))
        file.write("\n]\n")
    return number


def _parquet_writer(schema: pa.Schema) -> Callable[[Path, Iterable[dict[str, Any]]], int]:
    def write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        remaining = iter(rows)
        with pq.ParquetWriter(path, schema) as writer:
            while batch := list(itertools.islice(remaining, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                number += len(batch)
        return number

    return write
