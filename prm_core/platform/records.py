"""Records of other people's files, one at a time: JSON lines, JSON arrays and Parquet, told apart by content or suffix.

No file of several records is held whole. What the records mean is the callers' business.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import json_text, store

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, dict[str, Any]]
BATCH_ROWS = 1000
_BOM = b"\xef\xbb\xbf"


def read_rows(path: Path, *, nan_is_null: bool = False) -> Iterator[Row]:
    """(where, object) of each record: Parquet by suffix, else a JSON array, JSON lines or one JSON object over several
    lines, told apart by content.

    `where` names file and line, or file and record from 0; `nan_is_null` as in `json_text.parse`. Raises InputError for
    a missing, empty or broken file, when the reading gets there.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif (head := _head(path)).startswith(b"["):
        yield from _array_rows(path, nan_is_null)
    elif head == b"{":
        # As OmegaPRM v2 saves a question: one object, indented. It is held whole.
        yield str(path), json_text.parse(path.read_bytes(), str(path), "its first line opens one JSON object",
                                        nan_is_null=nan_is_null)
    else:
        yield from store.read_json_lines(path, nan_is_null=nan_is_null)


def _head(path: Path) -> bytes:
    """The start of the first line that is not blank."""
    with path.open("rb") as file:
        head = file.readline(4096).removeprefix(_BOM).strip()
        while not head and (line := file.readline(4096)):
            head = line.strip()
    return head


def _array_rows(path: Path, nan_is_null: bool) -> Iterator[Row]:
    found = False
    with path.open("rb") as file:
        for where, item in json_text.array_items(file, str(path)):
            row = json_text.parse(item, where, "the file is an array of objects", nan_is_null=nan_is_null)
            if not isinstance(row, dict):
                raise InputError(f"{where} is {type(row).__name__}, expected an object")
            found = True
            yield where, row
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
            for row in rows_of(batch):
                yield f"{path}: record {next(found)}", row


def rows_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of an Arrow batch. A float of 32 bits is the shortest number that names it: 0.1, not 0.10000000149."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for index, field in enumerate(batch.schema):
        if pa.types.is_float32(field.type):
            values = pc.cast(pc.cast(batch.column(index), pa.string()), pa.float64())
            batch = batch.set_column(index, field.name, values)
    return batch.to_pylist()
