"""Files people keep records in: each kind gives the same records, by line, and broken ones are named."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prm_core.errors import InputError
from prm_core.platform.tables import read_table

ROWS = [{"question": "2, 3\nor \"4\"?", "answer": "$\\frac{1}{2}$"}, {"question": "Wie viel?", "answer": "½"}]
CSV = '"question","answer"\n"2, 3\nor ""4""?",$\\frac{1}{2}$\n\nWie viel?,½\n'


def _export(folder: Path) -> None:
    """As `save_to_disk` of datasets writes a DatasetDict."""
    for split, row in zip(("test", "train"), ROWS, strict=True):
        (folder / split).mkdir(parents=True)
        with pa.ipc.new_stream(folder / split / "data-00000-of-00001.arrow", pa.Table.from_pylist([row]).schema) as out:
            out.write_table(pa.Table.from_pylist([row]))
        (folder / split / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
        (folder / split / "cache-1234.arrow").write_text("left by a map")
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


@pytest.mark.parametrize(("name", "text", "first"), [
    ("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS), ":1"),
    ("a.JSON", json.dumps(ROWS), ": record 0"),
    ("a.txt", "\n".join(map(json.dumps, ROWS)), ":1"),
    ("a.json", json.dumps({"version": 1, "data": ROWS}, indent=1), ": data[0]"),
    ("a.json", json.dumps({"train": ROWS[:1], "test": ROWS[1:]}), ": train[0]"),
    ("a.json", json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}), ": record 0"),
    ("a.json", json.dumps({name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}), ": record 0"),
    ("a.csv", CSV, ":2"),
    ("a.csv", "\ufeff" + CSV.replace(",$", ";$").replace('",', '";').replace("?,", "?;").replace("\n", "\r\n"), ":2"),
    ("a.tsv", CSV.replace(",$", "\t$").replace('",', '"\t').replace("?,", "?\t"), ":2"),
])
def test_every_kind_gives_the_same_records(tmp_path: Path, name: str, text: str, first: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    rows = list(read_table(tmp_path / name))
    assert [{key: value.replace("\r", "") for key, value in row.items()} for _, row in rows] == ROWS
    assert rows[0][0] == f"{tmp_path / name}{first}"


def test_tables_of_columns_and_exports(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as out:
        out.write_table(table)
    _export(tmp_path / "export")
    for name in ("a.parquet", "a.arrow", "export"):
        assert [row for _, row in read_table(tmp_path / name)] == ROWS
    # A folder is read in the order of its names; what is no table is left alone.
    (tmp_path / "README.md").write_text("x")
    assert len(list(read_table(tmp_path))) == 6


def test_values_become_those_of_json(tmp_path: Path) -> None:
    table = pa.table({
        "short": pa.array([0.1, float("nan")], pa.float32()), "cents": pa.array([Decimal("1.50"), Decimal("2.00")]),
        "day": [datetime.date(2026, 1, 2), None], "image": [b"abc", None], "parts": [[{"x": float("nan")}], None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row for _, row in read_table(tmp_path / "a.parquet")] == [
        {"short": 0.1, "cents": 1.5, "day": "2026-01-02", "image": "(3 bytes)", "parts": [{"x": None}]},
        {"short": None, "cents": 2, "day": None, "image": None, "parts": None}]
    (tmp_path / "a.csv").write_text(",question,answer\n0,What?,\n1, ,5\n")
    assert [row for _, row in read_table(tmp_path / "a.csv")] == [
        {"question": "What?", "answer": None}, {"question": None, "answer": "5"}]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "question,answer\nIs it 2, 3 or 4?,3\n", r"a.csv:2: 3 cells, but the header has 2 columns; put a cell"),
    ("a.csv", "question,answer\n\"a\nb\",1\nonly\n", r"a.csv:4: 1 cells, but the header has 2"),
    ("a.csv", 'question,answer\na,1\n"b,2\nc,3\n', r"a.csv:3: not valid CSV"),
    ("a.csv", "a,b,a\n1,2,3\n", r"a.csv:1: two columns are named 'a'"),
    ("a.csv", "question,answer\n", "the file holds no records; its first line names the columns"),
    ("a.csv", b"question,answer\nx,1\ncaf\xe9,2\n", r"a.csv:3: not UTF-8 text; save the file as CSV in UTF-8"),
    ("a.json", '{"data": [\n {"a": 1},\n', "a.json: not valid JSON"),
    ("a.jsonl", '{"a": 1}\n{"a"\n', r"a.jsonl:2: not valid JSON"),
    ("a.arrow", "no", "a.arrow: not an Arrow file"),
    ("a.parquet", "no", "a.parquet: not a Parquet file"),
    ("a.jsonl.gz", "no", "is packed; unpack it first"),
    ("a.xlsx", "no", "is a workbook; save its sheet as CSV"),
])
def test_broken_files_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        list(read_table(tmp_path / name))


def test_a_table_handed_back_may_be_as_tools_save_it(tmp_path: Path, caplog) -> None:
    """NaN for what is missing, other encodings, a line that names the separator, rows cut short; elsewhere refused."""
    for name, raw, first, refused in [
        ("a.jsonl", b'{"a": NaN, "b": "x"}\n', {"a": None, "b": "x"}, "field a is NaN"),
        ("a.json", b'[{"a": NaN}]', {"a": None}, "NaN"),
        ("a.csv", "sep=;\r\na;b\r\n1,5;2\r\n".encode("utf-16"), {"a": "1,5", "b": "2"}, "not UTF-8"),
        ("a.csv", "a,b\ncafé,\n".encode("cp1252"), {"a": "café", "b": None}, "not UTF-8"),
        ("a.csv", b"a,b\n1\n", {"a": "1", "b": None}, "1 cells, but the header has 2"),
    ]:
        (tmp_path / name).write_bytes(raw)
        [(where, row)] = read_table(tmp_path / name, handed_back=True)
        assert row == first
        if raw[:2] == b"\xff\xfe":
            assert where.endswith(":3")
        with pytest.raises(InputError, match=refused):
            list(read_table(tmp_path / name))
    assert caplog.messages == [f"{tmp_path / 'a.csv'}: not UTF-8; read as Windows-1252"]
    (tmp_path / "a.jsonl").write_text('{"a": Infinity}')
    with pytest.raises(InputError, match="field a is infinity"):
        list(read_table(tmp_path / "a.jsonl", handed_back=True))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_table(tmp_path / "gone.csv"))
    with pytest.raises(InputError, match=r"no \.jsonl, .* file in this folder"):
        list(read_table(tmp_path))
