"""Reading and writing the domain's types: Parquet shards (atomic), JSONL in and out. One schema per type."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import prm_core
from prm_core.errors import InputError
from prm_core.platform import json_text, steps
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row", Problem, Trajectory, StepLabel, StepPreference)

_TYPES: dict[type, dict[str, tuple[type, ...]]] = {
    Problem: {"id": (str,), "domain": (str,), "prompt": (str,), "answer": (str,), "meta": (dict,)},
    Trajectory: {"id": (str,), "problem_id": (str,), "policy": (str,), "steps": (list,),
                 "answer": (str, type(None)), "outcome": (bool, type(None)), "seed": (int,), "tools": (str,),
                 "source": (str,), "parent": (str,), "meta": (dict,)},
    StepLabel: {"trajectory_id": (str,), "step_index": (int,), "strategy": (str,),
                "value": (int, float, type(None)), "is_correct": (bool, type(None)), "confidence": (int, float),
                "tokens": (int,), "reasoning": (str,), "lineage": (str,)},
    StepPreference: {"problem_id": (str,), "steps": (list,), "chosen": (dict,), "rejected": (dict,),
                     "chosen_value": (int, float), "rejected_value": (int, float), "chosen_rollouts": (int,),
                     "rejected_rollouts": (int,)},
}
# Fields that files may lack, those from people and those written before there were such; the type's default stands in.
_OPTIONAL = {StepLabel: {"lineage"}, Trajectory: {"tools", "source", "parent", "meta"}}
# Digests by device, inode, size and times of the file; the times of files on disk tick coarsely, in nanoseconds.
_DIGESTS: dict[tuple[int, ...], str] = {}
_CLOCK_TICK = 2_000_000_000


@cache
def schemas() -> dict[type, pa.Schema]:
    """The Parquet schema of each type."""
    import pyarrow as pa

    step = steps.schema()
    return {
        Problem: pa.schema(
            [("id", pa.string()), ("domain", pa.string()), ("prompt", pa.string()), ("answer", pa.string()),
             ("meta", pa.string())]
        ),
        Trajectory: pa.schema(
            [("id", pa.string()), ("problem_id", pa.string()), ("policy", pa.string()), ("steps", pa.list_(step)),
             ("answer", pa.string()), ("outcome", pa.bool_()), ("seed", pa.int64()), ("tools", pa.string()),
             ("source", pa.string()), ("parent", pa.string()), ("meta", pa.string())]
        ),
        StepLabel: pa.schema(
            [("trajectory_id", pa.string()), ("step_index", pa.int32()), ("strategy", pa.string()),
             ("value", pa.float64()), ("is_correct", pa.bool_()), ("confidence", pa.float64()), ("tokens", pa.int64()),
             ("reasoning", pa.string()), ("lineage", pa.string())]
        ),
        StepPreference: pa.schema(
            [("problem_id", pa.string()), ("steps", pa.list_(step)), ("chosen", step), ("rejected", step),
             ("chosen_value", pa.float64()), ("rejected_value", pa.float64()), ("chosen_rollouts", pa.int64()),
             ("rejected_rollouts", pa.int64())]
        ),
    }


def to_record(row: Problem | Trajectory | StepLabel | StepPreference) -> dict[str, Any]:
    """A row as plain JSON values, field names as in `types.py`."""
    found = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    empty = _OPTIONAL.get(type(row), set()) - {"lineage"}
    return {name: _json(value) for name, value in found.items() if value or name not in empty}


def _json(value: Any) -> Any:
    if isinstance(value, Step):
        return steps.to_record(value)
    return [_json(one) for one in value] if isinstance(value, tuple) else value


def from_record(kind: type[Row], record: Mapping[str, Any], where: str) -> Row:
    """A row from JSON values. Raises InputError naming `where` and the field at fault."""
    expected = _TYPES[kind]
    missing = [name for name in expected if name not in record and name not in _OPTIONAL.get(kind, ())]
    if missing:
        raise InputError(f"{where}: missing field {', '.join(missing)}; a {kind.__name__} has {', '.join(expected)}")
    unknown = sorted(set(record) - set(expected))
    if unknown:
        raise InputError(f"{where}: unknown field {', '.join(unknown)}; a {kind.__name__} has {', '.join(expected)}")
    for name, value in record.items():
        types = expected[name]
        # bool is an int in Python, but `seed: true` is a mistake.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise InputError(f"{where}: field {name} is {value!r}, expected {wanted}")
    values = dict(record)
    if kind is Trajectory:
        values["steps"] = steps.parse_steps(values["steps"], where)
    elif kind is StepPreference:
        # The prefix before the first step is empty.
        values["steps"] = steps.parse_steps(values["steps"], where) if values["steps"] else ()
        for name in ("chosen", "rejected"):
            values[name] = steps.parse_steps([values[name]], f"{where}: {name}")[0]
    return kind(**values)


def read_json_lines(path: Path, *, nan_is_null: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) for each line, `where` being `file:line`; `nan_is_null` as in `json_text.parse`.

    Raises InputError on a missing or empty file, and on a bad line by what `json_text.parse` names.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = False
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            record = json_text.parse(line, where, "each line is one JSON object", nan_is_null=nan_is_null)
            if not isinstance(record, dict):
                raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
            found = True
            yield where, record
    if not found:
        raise InputError(f"{path}: the file holds no records")


def read_jsonl(kind: type[Row], path: Path) -> list[Row]:
    """All rows of a JSONL file."""
    return [from_record(kind, record, where) for where, record in read_json_lines(path)]


def write_jsonl(
    path: Path, rows: Iterable[Problem | Trajectory | StepLabel | StepPreference | Mapping[str, Any]]
) -> None:
    """Writes one JSON object per line, atomically."""
    lines = (row if isinstance(row, Mapping) else to_record(row) for row in rows)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: a reader sees the old content or the new, never half."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically, as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write that takes `path`'s place when the block is through; of one that fails nothing stays.

    A full disk is told without a file's name by the system: an OSError that passes through names `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno is not None:
            error.filename = str(path)
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN is refused, since other readers choke on it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file. Raises InputError when it is missing or broken."""
    try:
        return json_text.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run the stage that writes it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); put the file back") from None


def _to_table(rows: Sequence[Row], kind: type[Row]) -> pa.Table:
    import pyarrow as pa

    records = [to_record(row) for row in rows]
    for record in records:
        if "meta" in record:
            record["meta"] = json.dumps(record["meta"], sort_keys=True)
    return pa.Table.from_pylist(records, schema=schemas()[kind])


def shard_path(folder: Path, index: int) -> Path:
    """The file of shard `index`."""
    return folder / f"part-{index:05d}.parquet"


def shard_paths(folder: Path, count: int, first: int = 0) -> list[Path]:
    """The files of `count` shards from `first` on."""
    return [shard_path(folder, first + index) for index in range(count)]


def write_shard(folder: Path, index: int, kind: type[Row], rows: Sequence[Row]) -> Path:
    """Writes one whole Parquet shard, atomically (temporary file, then rename)."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    path = shard_path(folder, index)
    with whole(path) as temporary:
        pq.write_table(_to_table(rows, kind), temporary)
    return path


def read_table(path: Path) -> pa.Table:
    """A Parquet file as it is. Raises InputError naming it where it is missing, broken or none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: no readable Parquet file ({reason}); run the stage that writes it again, or "
                         "`dvc checkout --force` where DVC has it whole") from None


def read_shards(kind: type[Row], folder: Path) -> list[Row]:
    """All rows of a folder of shards, in shard order.

    Raises InputError when the folder has no shard or a shard lacks a column of the schema.
    """
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise InputError(f"{folder}: no shard (part-*.parquet) there; run the stage that writes it")
    rows: list[Row] = []
    for path in paths:
        table = read_table(path)
        names, optional = schemas()[kind].names, _OPTIONAL.get(kind, set()) - {"lineage"}
        missing = [name for name in names if name not in table.column_names and name not in optional]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)} of the {kind.__name__} schema")
        for record in table.select([name for name in names if name in table.column_names]).to_pylist():
            for name in optional & record.keys():
                if record[name] is None:
                    del record[name]
            if "meta" in record:
                record["meta"] = json.loads(record["meta"])
            if kind in (Trajectory, StepPreference):
                record["steps"] = tuple(map(steps.written_step, record["steps"]))
            if kind is StepPreference:
                record |= {name: steps.written_step(record[name]) for name in ("chosen", "rejected")}
            rows.append(kind(**record))
    return rows


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents, hex; a file that is read again unchanged by this process is hashed once.

    Raises InputError when it cannot be read.
    """
    try:
        state = path.stat()
        key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        known = _DIGESTS.get(key)
        if known is None:
            with path.open("rb") as content:
                known = hashlib.file_digest(content, "sha256").hexdigest()
            # A file changed twice within a tick of the disk's clock looks the same both times.
            if time.time_ns() - state.st_ctime_ns > _CLOCK_TICK:
                _DIGESTS[key] = known
        return known
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it anew") from None


def digest(*paths: Path) -> str:
    """SHA-256 over the names and contents of files and folders, hex. Temporary files do not count."""
    sha = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.name.startswith("."):
                continue
            sha.update(str(file.relative_to(path) if path.is_dir() else file.name).encode() + b"\0")
            sha.update(bytes.fromhex(file_digest(file)))
    return sha.hexdigest()


def code_digest() -> str:
    """SHA-256 over all modules of this package, hex."""
    return digest(*sorted(Path(prm_core.__file__).parent.rglob("*.py")))
