"""Formats as files: streams in bounded memory, whole or absent results, `prm data convert`, and the published data."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prm_core.cli.data import app
from prm_core.errors import InputError
from prm_core.formats import FORMATS, LabelledChain
from prm_core.platform.records import read_rows
from prm_core.types import Step

WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
    lambda text: text.strip() == text and "ки" not in text and "tep 1" not in text and "?" not in text)


def chains_of(labels: st.SearchStrategy[float | None]) -> st.SearchStrategy[list[LabelledChain]]:
    pairs = st.lists(st.tuples(WORDS, labels), min_size=1, max_size=4)
    chain = st.builds(lambda prompt, steps: LabelledChain(
        prompt, tuple(Step(text) for text, _ in steps), tuple(label for _, label in steps), "4"), WORDS, pairs)
    return st.lists(chain, min_size=1, max_size=4)


HARD = st.sampled_from([0.0, 1.0])
HELD = {"trl": st.none() | st.floats(0, 1), "math_aps": st.floats(0, 1), "math_shepherd": HARD,
        "agentprocessbench": st.none() | HARD, "openrlhf": st.floats(0, 1), "rlhflow": HARD, "paddle": HARD,
        "prm800k": st.none() | HARD, "prm800k_flat": st.none() | HARD, "atif": st.none() | st.floats(0, 1)}


@pytest.mark.parametrize("name", HELD)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_chain_a_format_holds_comes_back(name, tmp_path, data):
    chains = data.draw(chains_of(HELD[name]))
    FORMATS[name].write(tmp_path / "x.jsonl", chains)
    back = list(FORMATS[name].read(tmp_path / "x.jsonl"))
    numbered = name in ("math_shepherd", "openrlhf", "rlhflow")
    assert [(c.prompt, [s.text for s in c.steps], c.labels) for c in back] == [
        (c.prompt, [f"Step {i}: {s.text}" if numbered else s.text for i, s in enumerate(c.steps, 1)], c.labels)
        for c in chains]
    # What it wrote it reads and writes again, byte for byte.
    FORMATS[name].write(tmp_path / "y.jsonl", back)
    rows = [[row for _, row in read_rows(tmp_path / file)] for file in ("x.jsonl", "y.jsonl")]
    assert rows[0] == rows[1]


def many(count: int) -> Iterator[LabelledChain]:
    for index in range(count):
        yield LabelledChain(f"problem {index}", tuple(Step(f"{index} {step} " + "x" * 1000) for step in range(4)),
                            (1.0, 1.0, 0.0, 0.0), "4", False)


@pytest.mark.parametrize(("name", "suffix"), [
    ("trl", ".jsonl"), ("processbench", ".jsonl"), ("prm800k_flat", ".jsonl"), ("prm800k", ".jsonl"),
    ("math_aps", ".jsonl"), ("trl", ".json")])
def test_files_stream_both_ways(name, suffix, tmp_path):
    path, again = tmp_path / f"big{suffix}", tmp_path / f"again{suffix}"
    # What a first use imports stays in memory.
    FORMATS[name].write(again, many(1))
    list(FORMATS[name].read(again))
    tracemalloc.start()
    try:
        FORMATS[name].write(path, many(300))
        written_at = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        FORMATS[name].write(again, FORMATS[name].read(path))
        copied_at = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 1_200_000
    assert path.read_bytes() == again.read_bytes()
    # The peak does not know how long the file is.
    assert max(written_at, copied_at) < 600_000


def test_parquet_streams_by_batches(tmp_path):
    path, again = tmp_path / "big.parquet", tmp_path / "again.parquet"
    FORMATS["prm800k_flat"].write(path, many(1))
    tracemalloc.start()
    try:
        FORMATS["prm800k_flat"].write(path, many(2000))
        FORMATS["prm800k_flat"].write(again, FORMATS["prm800k_flat"].read(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pq.ParquetFile(path).num_row_groups == 8
    # The text of all 8,000 rows with their prefixes is 20 MB; a batch of 1,000 is some 2.5.
    assert peak < 10_000_000
    assert pq.read_table(path) == pq.read_table(again)


def test_any_format_is_read_from_parquet(tmp_path):
    table = pa.table({"prompt": ["p", "q"], "completions": [["a"], ["b", "c"]], "labels": [[True], [False, True]]})
    pq.write_table(table, tmp_path / "trl.parquet")
    assert [chain.labels for chain in FORMATS["trl"].read(tmp_path / "trl.parquet")] == [(1.0,), (0.0, 1.0)]
    with pytest.raises(InputError, match=r"x\.parquet: this format is written as JSON"):
        FORMATS["trl"].write(tmp_path / "x.parquet", many(1))


def test_one_object_over_several_lines_is_a_record(tmp_path):
    row = {"prompt": "p", "completions": ["a"], "labels": [True]}
    (tmp_path / "one.json").write_text("\ufeff\n" + json.dumps(row, indent=4))
    assert list(read_rows(tmp_path / "one.json")) == [(str(tmp_path / "one.json"), row)]
    (tmp_path / "one.json").write_text(json.dumps(row, indent=4)[:-3])
    with pytest.raises(InputError, match=r"one\.json: not valid JSON .*its first line opens one JSON object"):
        list(read_rows(tmp_path / "one.json"))
    (tmp_path / "array.json").write_text(f"[{json.dumps(row | {'id': 2**63})}]")
    chain, = FORMATS["trl"].read(tmp_path / "array.json")
    assert chain.meta["rest"] == {"id": 2**63}


def test_records_come_before_a_fault_further_on(tmp_path):
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.json"
    row = json.dumps({"prompt": "p", "completions": ["a"], "labels": [1]})
    lines.write_text(f"{row}\n{row}\n{{oops")
    # Longer than the parser's buffer, so that the fault is not met at once.
    array.write_text(f"\ufeff \n[{','.join([row] * 5000)}, {{oops")
    for path, good, where in ((lines, 2, r"a\.jsonl:3: not valid JSON"), (array, 4000, "record [45]...: not valid")):
        chains = FORMATS["trl"].read(path)
        assert len(list(islice(chains, good))) == good
        with pytest.raises(InputError, match=where):
            list(chains)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.json", "[]", "holds no records"), ("x.jsonl", "", "holds no records"), ("x.json", "[3]", "record 0 is int"),
    ("x.json", '[{"a": 1}] x', "record 1: not valid JSON"), ("x.parquet", "no", "not a Parquet file"),
    ("x.jsonl", "3", "x.jsonl:1: expected a JSON object")])
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))
    with pytest.raises(InputError, match="gone: no such file"):
        list(read_rows(tmp_path / "gone"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, name):
    def broken() -> Iterator[LabelledChain]:
        yield from many(3)
        raise InputError("the source broke")

    (tmp_path / name).write_text("before")
    for chains, message in ((broken(), "the source broke"), (iter(()), "no record is left")):
        with pytest.raises(InputError, match=message):
            FORMATS["prm800k_flat"].write(tmp_path / name, chains)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "before")]


def test_nan_is_refused(tmp_path):
    chain = LabelledChain("p", (Step("a"),), (1.0,), source="trl", meta={"rest": {"score": float("nan")}})
    with pytest.raises(InputError, match="record 0: JSON cannot hold it"):
        FORMATS["trl"].write(tmp_path / "x.jsonl", [chain])


def test_convert_ends_with_counts(tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    flat = {"instruction": "P", "answer": None, "is_human_response": False, "is_solution": False,
            "is_preferred_response": False}
    source.write_text("".join(json.dumps(flat | row) + "\n" for row in (
        {"responses": [], "next_response": "a", "rating": 1}, {"responses": [], "next_response": "b", "rating": -1},
        {"responses": ["a"], "next_response": "c", "rating": 0}, {"responses": ["a"], "next_response": "d"})))
    result = CliRunner().invoke(app, ["convert", str(source), str(out), "--from", "prm800k_flat", "--to", "trl",
                                      "--neutral", "wrong"])
    assert result.exit_code == 0, result.output
    assert f"{out}: 3 records of 3 chains with 4 labelled steps" in result.output
    assert [(row["completions"], row["labels"]) for _, row in read_rows(out)] == [
        (["b"], [0.0]), (["a", "c"], [1.0, 0.0]), (["a", "d"], [1.0, -100.0])]


@pytest.mark.parametrize(("options", "labels", "warns"), [
    ([], [[0.94, 0.5, 0.25], [1.0, -100.0, 0.0]], True),
    (["--threshold", "0.5"], [[1.0, 1.0, 0.0], [1.0, -100.0, 0.0]], False)])
def test_what_trl_would_cut_is_said_and_can_be_made_hard(tmp_path, caplog, options, labels, warns):
    """TRL 1.13 trains on int(label): every soft label, 0.94 too, as wrong."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"prompt": "p", "completions": ["a", "b", "c"], "labels": given}
            for given in ([0.94, 0.5, 0.25], [1, -100, 0])]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["convert", str(source), str(out), "--from", "trl", "--to", "trl", *options])
    assert result.exit_code == 0, result.output
    assert [row["labels"] for _, row in read_rows(out)] == labels
    assert ("trainer cuts to 0 (wrong); --threshold 0.5 writes hard ones: 3" in caplog.text) == warns
    written = [int(label) for row in labels for label in row]
    assert (written == [1, 1, 0, 1, -100, 0]) != warns


@pytest.mark.parametrize(("options", "message"), [
    (["--from", "trl", "--to", "math_aps"], "math_aps needs the reference answer"),
    (["--from", "trl", "--to", "csv"], "unknown format 'csv'"),
    (["--from", "trl", "--to", "trl", "--neutral", "wrong"], "trl has no neutral ratings"),
    (["--from", "processbench", "--to", "trl"], r"in.jsonl:1: field problem is missing")])
def test_a_conversion_that_cannot_be_leaves_nothing(tmp_path, options, message):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt": "p", "completions": ["a"], "labels": [True]}) + "\n")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "out.jsonl"), *options])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == [source]
    # The source is no place for the result.
    before = source.read_bytes()
    result = CliRunner().invoke(app, ["convert", str(source), str(source), "--from", "trl", "--to", "trl"])
    assert "is the file to convert; name another" in str(result.exception)
    assert source.read_bytes() == before


# File, format, chains, records, first errors (at a step, nowhere, unknown), and what is left out.
PUBLISHED = [
    ("formats/samples_math-shepherd.jsonl", "math_shepherd", 7, 7, (7, 0, 0), {}),
    ("formats/samples_math-aps.jsonl", "math_aps", 124, 3, (39, 85, 0), {"second values of a prefix left out": 10}),
    ("processbench/gsm8k.json", "processbench", 400, 400, (207, 193, 0), {}),
    ("bigbench_mistake/dyck_languages.jsonl", "bigbench_mistake", 986, 986, (650, 336, 0), {"blank steps left out": 1}),
    ("bigbench_mistake/multistep_arithmetic.jsonl", "bigbench_mistake", 300, 300, (238, 62, 0), {}),
    ("bigbench_mistake/word_sorting.jsonl", "bigbench_mistake", 300, 300, (266, 34, 0), {}),
    ("agentprocessbench/hotpotqa_first100.jsonl", "agentprocessbench", 100, 100, (37, 63, 0), {}),
    ("prm800k/phase1_train.parquet", "prm800k_flat", 37466, 51835, (19658, 16986, 822), {}),
]


@pytest.mark.shared
@pytest.mark.parametrize(("file", "name", "chains", "records", "errors", "left_out"), PUBLISHED)
def test_published_data_makes_the_round_trip(tmp_path, file, name, chains, records, errors, left_out):
    folder = os.environ.get("PRM_SHARED_DATA")
    path = Path(folder or "") / file
    if not folder or not path.is_file():
        pytest.skip(f"PRM_SHARED_DATA names no folder with {file}")
    counts: Counter[str] = Counter()
    read = list(FORMATS[name].read(path, noted=counts))
    out = tmp_path / f"out{path.suffix}"
    assert (len(read), FORMATS[name].write(out, read), counts) == (chains, records, left_out)
    first = [chain.first_error for chain in read]
    found = (sum(error is not None and error >= 0 for error in first), first.count(-1), first.count(None))
    assert found == errors
    assert all(one[1] == other[1] for one, other in zip(read_rows(path), read_rows(out), strict=True))


@pytest.mark.shared
def test_each_rating_of_prm800k_is_a_label():
    from prm_core.formats import labelled_once

    path = Path(os.environ.get("PRM_SHARED_DATA") or "") / "prm800k" / "phase1_train.parquet"
    if not os.environ.get("PRM_SHARED_DATA") or not path.is_file():
        pytest.skip("PRM_SHARED_DATA names no folder with prm800k/phase1_train.parquet")
    for neutral, right in (("right", 18782 + 10234 + 2341), ("wrong", 18782 + 2341)):
        labels = Counter(label for chain in labelled_once(FORMATS["prm800k_flat"].read(path, neutral=neutral))
                         for label in chain.labels if label is not None)
        # 2,341 of the 3,163 rows without a rating are steps people wrote.
        assert labels == {1.0: right, 0.0: 51835 - 822 - right}
