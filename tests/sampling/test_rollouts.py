"""Which problems a policy is given: those whose prompt its context can hold."""

from __future__ import annotations

import dataclasses

import pytest

from prm_core.errors import InputError
from prm_core.sampling.rollouts import without_long
from tests.builders.tiny import make_encoder, mia


def test_problems_longer_than_the_context_are_left_out_and_named(caplog) -> None:
    length = len(make_encoder().encode_prompt(mia().prompt))
    problems = [mia("a"), dataclasses.replace(mia("long-one"), prompt=mia().prompt + " Mia"), mia("b")]
    # A step of one token and its separator have room behind the shorter prompts.
    assert [problem.id for problem in without_long(problems, make_encoder(length + 2))] == ["a", "b"]
    assert "1 of 3 problems are left out, " in caplog.text
    assert f"no room for a step in encoder.max_length {length + 2}: long-one" in caplog.text
    assert without_long(problems, make_encoder(length + 3)) == problems
    with pytest.raises(InputError, match=r"no problem leaves room for a step in .*: a, long-one, b;"):
        without_long(problems, make_encoder(length + 1))
