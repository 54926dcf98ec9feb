"""Rows of JSON arrays, JSON lines and Parquet files, written one at a time: no file is held whole.

They are read by `prm_core/platform/records.py`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform.records import BATCH_ROWS

if TYPE_CHECKING:
    import pyarrow as pa


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
