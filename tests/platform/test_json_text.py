"""The parser of JSON from outside: what is exact, and what is refused by field instead of breaking a run later."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import json_text
from prm_core.platform.json_text import MAX_DEPTH, MAX_DIGITS, array_items, check, parse

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
VALUES = st.recursive(st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False,
                      allow_infinity=False) | TEXTS,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))


@given(VALUES, st.booleans())
def test_what_json_can_hold_is_read_as_it_was_written(value: Any, escaped: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=escaped).encode(), "f:1") == value


@pytest.mark.parametrize(("text", "message"), [
    (r'{"id": 1, "meta": {"note": ["a", "great \ud83d"]}}', r"field meta.note[1] holds half a character, \ud83d"),
    (r'{"a \uDE00": 1}', r"field .(name) holds half a character, \ude00"),
    (r'["\ude00\ud83d"]', r"field [0] holds half a character, \ude00"),
    ('{"a": 1, "score": NaN}', "field score is NaN, which JSON does not have"),
    ('{"a": [1, -Infinity]}', "field a[1] is infinity"),
    ('{"a": 1e999}', "field a is infinity, or too large for a number"),
    ('{"a": ' + "9" * 400 + ".0}", "field a is infinity"),
    ('{"b": 2, "a": -' + "9" * (MAX_DIGITS + 1) + "}", f"field a is a number of {MAX_DIGITS + 1} digits"),
    ('{"b": {"x}": 1}, "deep": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "field deep is nested deeper than 100"),
    ('{"b": {"x}": 1}, "deep": ' + '{"a":[' * 99_999 + "]}" * 99_999 + "}", "field deep is nested deeper than"),
    ("[" * 99_999, "field (the whole) is nested deeper than"),
    (r'{"a": "$\sqrt 2$"}', r"not valid JSON (Invalid \escape at \sqrt: JSON writes a backslash, as of LaTeX, as"),
    (r'{"a": "\underline 2"}', r"not valid JSON (Invalid \uXXXX escape at \underline: JSON"),
    ('{"a": NaN, "b": ', "not valid JSON (Expecting value); x"),
    ('{"a": NaN, "b": ' + "[" * 99_999, "field b is nested deeper than"),
    ("nope", "not valid JSON (Expecting value); x"),
])
def test_what_could_not_be_kept_is_refused_by_field(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text.encode(), "f:3", "x")
    assert str(caught.value).startswith(f"f:3: {message}")
    assert "\n" not in str(caught.value)


def test_the_largest_that_is_read() -> None:
    whole = parse(('{"a": ' + "9" * MAX_DIGITS + "}").encode(), "f:1")["a"]
    assert str(whole) == "9" * MAX_DIGITS
    assert parse(b'{"a": 9223372036854775808, "b": "\\ud83d\\ude00 NaN 1e999"}', "f:1") == {
        "a": 2**63, "b": "😀 NaN 1e999"}
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse(nested.encode(), "f:1") == json.loads(nested)


def test_values_that_were_not_parsed_here_are_checked_alike() -> None:
    check({"a": ["b", {"c": 1.5}]}, "row 1")
    with pytest.raises(InputError, match=r"row 1: field a\[1\]\.c is NaN"):
        check({"a": ["b", {"c": float("nan")}]}, "row 1")


@given(st.lists(VALUES, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))
def test_items_of_an_array_in_pieces_of_any_size(items: list[Any], size: int, indent: int | None) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "CHUNK", size)
        found = list(array_items(io.BytesIO(b" \n" + text + b"\n "), "f"))
    assert [(where, parse(item, where)) for where, item in found] == [
        (f"f: record {number}", item) for number, item in enumerate(items)]


@pytest.mark.parametrize(("text", "read", "message"), [
    ('[{"a": 1}, {"b": "x', 1, "f: record 1: not valid JSON (the file ends inside it)"),
    ('[{"a": 1}', 0, "f: record 0: not valid JSON (the file ends inside it)"),
    ('[{"a": 1}] x', 1, "f: record 1: not valid JSON (more text after the array's end)"),
    ("[1, ]", 1, "f: record 1: not valid JSON (Expecting value)"),
    ("[1 2]", 0, "f: record 0: not valid JSON (Extra data)"),
    ('[{"a": 1], 2]', 0, "f: record 0: not valid JSON"),
])
def test_an_array_that_does_not_end_as_it_should(text: str, read: int, message: str) -> None:
    items = (parse(item, where) for where, item in array_items(io.BytesIO(text.encode()), "f"))
    for _ in range(read):
        next(items)
    with pytest.raises(InputError) as caught:
        next(items)
    assert str(caught.value).startswith(message)
