"""Reading and writing the domain's types: round trips, atomicity, and what malformed files are told."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory

SCALARS = st.none() | st.booleans() | st.integers(-10**9, 10**9) | st.floats(allow_nan=False, allow_infinity=False)
META = st.dictionaries(st.text(max_size=5), SCALARS | st.text(max_size=5) | st.lists(SCALARS, max_size=3), max_size=3)
PROBLEMS = st.builds(Problem, st.text(), st.text(), st.text(), st.text(), META)
STEPS = st.builds(Step, st.text(min_size=1).filter(str.strip), st.text(), st.text())
INT64 = st.integers(-(2**63), 2**63 - 1)
TRAJECTORIES = st.builds(
    Trajectory, st.text(), st.text(), st.text(), st.lists(STEPS, min_size=1, max_size=4).map(tuple),
    st.none() | st.text(), st.none() | st.booleans(), INT64,
)
UNIT = st.floats(0, 1)
LABELS = st.builds(StepLabel, st.text(), st.integers(0, 2**31 - 1), st.text(), st.none() | UNIT,
                   st.none() | st.booleans(), UNIT, INT64, st.text(), st.text())
PREFERENCES = st.builds(StepPreference, st.text(), st.lists(STEPS, max_size=3).map(tuple), STEPS, STEPS, UNIT, UNIT,
                        INT64, INT64)
ROWS = [(Problem, PROBLEMS), (Trajectory, TRAJECTORIES), (StepLabel, LABELS), (StepPreference, PREFERENCES)]
TRAJECTORY = Trajectory("t", "p", "policy", (Step("one"), Step("two", "seen", "ann")), None, None, 3)


@pytest.mark.parametrize(("kind", "rows"), ROWS)
@settings(max_examples=40)
@given(data=st.data())
def test_rows_survive_parquet_and_json_lines(kind, rows, data):
    values = data.draw(st.lists(rows, min_size=1, max_size=4))
    with tempfile.TemporaryDirectory() as folder:
        store.write_shard(Path(folder) / "shards", 0, kind, values)
        store.write_jsonl(Path(folder) / "rows.jsonl", values)

        assert store.read_shards(kind, Path(folder) / "shards") == values
        assert store.read_jsonl(kind, Path(folder) / "rows.jsonl") == values


def test_shards_are_read_in_order_and_unfinished_ones_not_at_all(tmp_path):
    labels = [StepLabel("t", index, "s", None, None, 0.0, 0, "") for index in range(12)]
    for shard in (11, 2, 0, 10):
        store.write_shard(tmp_path, shard, StepLabel, [labels[shard]])
    (tmp_path / ".part-00005.parquet.tmp").write_bytes(b"half")

    assert [row.step_index for row in store.read_shards(StepLabel, tmp_path)] == [0, 2, 10, 11]


def test_a_crash_while_a_shard_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    store.write_shard(tmp_path, 0, Trajectory, [TRAJECTORY])

    def half_written(table, path):
        Path(path).write_bytes(b"PAR1 half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half_written)
        with pytest.raises(OSError, match="disk full"):
            store.write_shard(tmp_path, 0, Trajectory, [TRAJECTORY, TRAJECTORY])
        with pytest.raises(OSError, match="disk full"):
            store.write_shard(tmp_path, 1, Trajectory, [TRAJECTORY])

    assert store.read_shards(Trajectory, tmp_path) == [TRAJECTORY]
    assert not store.shard_path(tmp_path, 1).exists()
    # The next try overwrites what the crash left.
    store.write_shard(tmp_path, 0, Trajectory, [TRAJECTORY, TRAJECTORY])
    assert len(store.read_shards(Trajectory, tmp_path)) == 2


def test_a_crash_while_text_is_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    store.write_json(path, {"a": 1})
    whole = Path.write_bytes

    def half_written(self, content):
        whole(self, content[: len(content) // 2])
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half_written)
        with pytest.raises(OSError, match="disk full"):
            store.write_json(path, {"a": 2, "b": 3})

    assert store.read_json(path) == {"a": 1}


def test_nan_is_no_json(tmp_path):
    store.write_json(tmp_path / "metrics.json", {"a": 1})

    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write_json(tmp_path / "metrics.json", {"a": math.nan})

    assert store.read_json(tmp_path / "metrics.json") == {"a": 1}


GOOD = store.to_record(TRAJECTORY)


@pytest.mark.parametrize(("line", "reason"), [
    ('{"id": "t", ', "not valid JSON"),
    ("[1, 2]", "expected a JSON object, found list"),
    (json.dumps({k: v for k, v in GOOD.items() if k not in ("seed", "steps")}), "missing field steps, seed"),
    (json.dumps({**GOOD, "colour": "red"}), "unknown field colour"),
    (json.dumps({**GOOD, "seed": True}), "field seed is True, expected int"),
    (json.dumps({**GOOD, "outcome": "yes"}), "field outcome is 'yes', expected bool or null"),
    (json.dumps({**GOOD, "steps": []}), "`steps` must be a non-empty list"),
    (json.dumps({**GOOD, "steps": ["one", ""]}), "step 1 is empty"),
    (json.dumps({**GOOD, "steps": ["one", {"observation": "x"}]}), "step 1 is empty"),
    (json.dumps({**GOOD, "steps": ["one", 2]}), "step 1 must be a text or an object"),
    (json.dumps({**GOOD, "steps": [{"text": "one", "observation": 5}]}), "observation of step 0 is 5"),
    (json.dumps({**GOOD, "steps": [{"text": "one", "colour": "red"}]}), "step 0 must be a text or an object"),
])
def test_a_malformed_line_is_named_with_its_number(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    # Blank lines count as lines but hold no record.
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")

    with pytest.raises(InputError) as raised:
        store.read_jsonl(Trajectory, path)

    message = str(raised.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert "\n" not in message


def test_a_line_that_is_no_utf8_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"id": "café"}'.encode("latin-1") + b"\n")

    with pytest.raises(InputError, match=r"rows\.jsonl:2: not UTF-8"):
        store.read_jsonl(Trajectory, path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")

    assert store.read_jsonl(Trajectory, path) == [TRAJECTORY, TRAJECTORY]


@pytest.mark.parametrize("content", [None, "", "\n \n"])
def test_a_missing_or_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)

    with pytest.raises(InputError, match="no such file" if content is None else "the file holds no records"):
        store.read_jsonl(Trajectory, path)


LABEL = StepLabel("t", 0, "rollout", 0.5, True, 0.75, 12, "because", '{"strategy": "rollout@2"}')


def test_labels_from_people_need_no_lineage(tmp_path):
    path = tmp_path / "labels.jsonl"
    record = store.to_record(LABEL)
    del record["lineage"]
    path.write_text(f"{json.dumps(store.to_record(LABEL))}\n{json.dumps(record)}\n")

    assert [row.lineage for row in store.read_jsonl(StepLabel, path)] == ['{"strategy": "rollout@2"}', ""]
    with pytest.raises(InputError, match="field lineage is None, expected str"):
        store.from_record(StepLabel, {**record, "lineage": None}, "here")
    # Every other field is needed.
    for name in record:
        with pytest.raises(InputError, match=f"missing field {name}"):
            store.from_record(StepLabel, {k: v for k, v in record.items() if k != name}, "here")


def test_a_shard_of_labels_without_lineage_was_written_by_other_code(tmp_path):
    store.write_shard(tmp_path, 0, StepLabel, [LABEL])
    table = pq.read_table(store.shard_path(tmp_path, 0))
    pq.write_table(table.drop(["lineage"]), store.shard_path(tmp_path, 0))

    with pytest.raises(InputError, match="missing column lineage of the StepLabel schema"):
        store.read_shards(StepLabel, tmp_path)


PREFERENCE = StepPreference("p", (Step("one", "seen", "ann"),), Step("good"), Step("bad", "", "bob"), 0.75, 0.0, 8, 4)


def test_preferences_may_begin_with_the_bare_question(tmp_path):
    record = json.loads(json.dumps(store.to_record(PREFERENCE)))
    assert record["chosen"] == {"text": "good", "observation": "", "agent": ""}

    assert store.from_record(StepPreference, {**record, "steps": []}, "here").steps == ()
    store.write_shard(tmp_path, 0, StepPreference, [])
    assert store.read_shards(StepPreference, tmp_path) == []


@pytest.mark.parametrize(("changes", "reason"), [
    ({"chosen": {"text": ""}}, r"here: chosen: step 0 is empty"),
    ({"rejected": "bad"}, r"here: field rejected is 'bad', expected dict"),
    ({"rejected": {"text": "bad", "colour": "red"}}, r"here: rejected: step 0 must be a text or an object"),
    ({"steps": ["one", ""]}, r"here: step 1 is empty"),
    ({"chosen_rollouts": 1.5}, r"here: field chosen_rollouts is 1\.5, expected int"),
    ({"chosen_value": None}, r"here: field chosen_value is None, expected int or float"),
])
def test_a_malformed_preference_says_what_is_wrong(changes, reason):
    record = json.loads(json.dumps(store.to_record(PREFERENCE)))

    with pytest.raises(InputError, match=reason):
        store.from_record(StepPreference, {**record, **changes}, "here")


def test_steps_may_be_plain_texts():
    record = {**GOOD, "steps": ["one", {"text": "two", "agent": "ann"}]}

    assert store.from_record(Trajectory, record, "here").steps == (Step("one"), Step("two", "", "ann"))


def test_a_folder_without_shards_or_columns_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no shard"):
        store.read_shards(StepLabel, tmp_path)
    pq.write_table(pa.table({"trajectory_id": ["t"], "step_index": [0]}), store.shard_path(tmp_path, 0))

    with pytest.raises(InputError, match=r"part-00000\.parquet: missing column strategy, value, .* of the StepLabel"):
        store.read_shards(StepLabel, tmp_path)


def test_broken_or_missing_json_is_an_error(tmp_path):
    (tmp_path / "broken.json").write_text("{")

    with pytest.raises(InputError, match=r"broken\.json: not valid JSON"):
        store.read_json(tmp_path / "broken.json")
    with pytest.raises(InputError, match=r"absent\.json: no such file; run the stage"):
        store.read_json(tmp_path / "absent.json")


def test_digests_follow_names_and_contents(tmp_path):
    for name in ("one", "same"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a").write_text("a")
        (tmp_path / name / "sub" / "b").write_text("b")
    first = store.digest(tmp_path / "one")
    assert first == store.digest(tmp_path / "same")

    (tmp_path / "one" / ".part.tmp").write_text("left by a crash")
    assert store.digest(tmp_path / "one") == first
    (tmp_path / "one" / "sub" / "b").write_text("c")
    changed = store.digest(tmp_path / "one")
    assert changed != first
    (tmp_path / "one" / "sub" / "b").write_text("b")
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "d")
    assert store.digest(tmp_path / "one") not in (first, changed)
    # The work key of a stage passes several paths.
    assert store.digest(tmp_path / "same" / "a", tmp_path / "same" / "sub" / "b") != store.digest(tmp_path / "same/a")
