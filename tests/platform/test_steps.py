"""Steps as JSON and Parquet values: nothing lost, old files read, faults named."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.platform.steps import parse_step, parse_steps, texts, to_record
from prm_core.turns import SPOKEN
from prm_core.types import Call, Message, Step, Trajectory

TEXT = st.text(max_size=5)
CALL = st.builds(Call, TEXT, TEXT, st.none() | TEXT, st.just(False), TEXT) | st.builds(
    Call, TEXT, TEXT, TEXT, st.booleans(), TEXT)
STEP = st.builds(Step, TEXT.filter(bool), TEXT, TEXT, TEXT, st.lists(CALL, max_size=2).map(tuple),
                 st.lists(st.builds(Message, st.sampled_from(sorted(SPOKEN)), TEXT, TEXT), max_size=2).map(tuple), TEXT)


@given(STEP)
def test_a_step_comes_back_as_it_was(step: Step) -> None:
    assert parse_step(json.loads(json.dumps(to_record(step))), "here", 0) == step
    assert step.text in texts(step)


def test_a_trajectory_comes_back_from_parquet_and_old_files_are_read(tmp_path) -> None:
    step = Step("a", calls=(Call("look", "{}", None), Call("buy", '{"n": 1}', "no", True, "c")),
                context=(Message("user", "u"),), ref="7")
    new = Trajectory("t", "p", "me", (step, Step("b")), None, None, 0, tools="[]", source="atif", parent="s/1",
                     meta={"cost": 0.5})
    store.write_shard(tmp_path, 0, Trajectory, [new])
    assert store.read_shards(Trajectory, tmp_path) == [new]
    store.write_jsonl(tmp_path / "t.jsonl", [new])
    assert store.read_jsonl(Trajectory, tmp_path / "t.jsonl") == [new]
    plain = Trajectory("t", "p", "me", (Step("a", "o", "x"),), "7", True, 0)
    old = {"id": "t", "problem_id": "p", "policy": "me", "answer": "7", "outcome": True, "seed": 0,
           "steps": [{"text": "a", "observation": "o", "agent": "x"}]}
    assert store.to_record(plain) == old
    pq.write_table(pa.Table.from_pylist([old]), tmp_path / "part-00000.parquet")
    assert store.read_shards(Trajectory, tmp_path) == [plain]


@pytest.mark.parametrize(("raw", "reason"), [
    ("a", "`steps` must be a non-empty list"),
    ([], "`steps` must be a non-empty list"),
    ([3], "step 0 must be a text or an object of text, "),
    ([{"text": "a", "colour": 1}], "step 0 must be a text or an object"),
    ([{"text": 3}], "text of step 0 is 3, expected a text"),
    (["a", {"observation": "o"}], "step 1 is empty"),
    ([{"text": "a", "calls": {}}], "`calls` is '{}', expected a list"),
    ([{"calls": [3]}], "call 0 of step 0 must be an object of name"),
    ([{"calls": [{"arguments": {}}]}], "call 0 of step 0 has no name"),
    ([{"calls": [{"name": "a", "result": 3}]}], "result is '3', expected a text"),
    ([{"calls": [{"name": "a", "failed": "yes", "result": ""}]}], "failed is 'yes', expected true or false"),
    ([{"calls": [{"name": "a", "failed": True}]}], "failed and has no result"),
    ([{"text": "a", "context": [{"role": "crowd", "text": "x"}]}], "has the role 'crowd'; known are"),
    ([{"text": "a", "context": [{"role": "user", "text": 3}]}], "text is '3', expected a text"),
])
def test_faults_are_named(raw, reason: str) -> None:
    with pytest.raises(InputError, match=r"^here: ") as caught:
        parse_steps(raw, "here")
    assert reason in str(caught.value)
