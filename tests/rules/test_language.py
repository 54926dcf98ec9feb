"""The language of predicates: what expressions are worth, what is none, and that there is no way out to Python."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.rules.language import DEEPEST, NAMES, Fault, Undecided, parse

SCOPE = {
    "name": "order", "args": {"boxes": 4, "item": "cups red 7", "to": {"city": "Ulm"}, "count": "12",
                              "tags": ["a", "b"], "sure": True, "free": 0},
    "readable": True, "text": "", "agent": "worker", "prompt": "Mia: order 9 cups.",
    "limits": {"boxes": 3, "names": ["mia", "ben"]},
    "earlier": [{"name": "ask", "args": {"about": "limit"}, "result": "20", "failed": False},
                {"name": "look", "args": {"item": "cups red 7"}, "result": "busy", "failed": True}],
}


@pytest.mark.parametrize(("source", "value"), [
    ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("7 - 2 - 1", 4), ("-args.boxes + 1", -3), ("3 / 2", 1.5),
    ("args.boxes > limits.boxes", True), ("args.boxes <= 3", False), ("args.count >= 12", True),
    ('args.count > "9"', True), ('name == "order" and not readable', False), ("not not readable", True),
    ("true or args.boxes / 0 > 1", True), ("false and 1 < 'x'", False), ("not 1 == 2", True),
    ('"red" in args.item', True), ('"a" in args.tags', True), ('"c" not in args.tags', True), ("1 in [1, 2]", True),
    ("args.to.city == 'Ulm'", True), ("args.to.street == null", True), ("args.boxes.more == null", True),
    ("args.missing > 1", False), ("args.missing < 1", False), ("not args.missing > 1", True), ("null + 1", None),
    # True is no number, and 0 is no false.
    ("args.sure == 1", False), ("args.free == false", False), ("args.free == 0", True), ("[1] == [1]", True),
    ('any(earlier, it.name == "ask" and it.args.about == "limit")', True),
    ("count(earlier, it.failed)", 1), ('all(earlier, it.result != "")', True), ("any(args.item, true)", False),
    ("any(earlier, any(words(it.result), it in ['busy']))", True), ("any(words(prompt), it in limits.names)", True),
    ('lower("ABC")', "abc"), ("len(args.tags)", 2), ("words('Cups, RED-7')", ["cups", "red", "7"]),
    ("words(args.to)", ["ulm"]), ("contains(args.item, 'RED')", True), ("contains(args.item, args.missing)", False),
    ("starts(args.item, 'cups')", True), ("ends(args.item, '7')", True), ('"say \\"no\\""', 'say "no"'),
    ("command('rm -r \"a b\"')", ["rm", "-r", "a b"]), ("without('red  Cups, (7)', ['CUPS', 'none'])", "red (7)"),
    ("without(args.missing, limits.names)", ""), ("without('a b', args.missing)", "a b"),
])
def test_values(source, value):
    found = parse(source)(SCOPE)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("path", "out"), [
    ("a/b", False), ("/work/a", False), ("/work", False), ("a/../b", False), ("a/../../b", True), ("/etc", True),
    ("/workshop", True), ("..", True), ("~/a", True), ("$HOME", True), ("a/{b,/etc}", True), ("`pwd`", True),
    ("/work/../etc", True), (".", False),
])
def test_paths(path, out):
    assert parse("outside(args.path, limits.root)")({"args": {"path": path}, "limits": {"root": "/work"}}) is out


@pytest.mark.parametrize("source", ["1 < 'a lot'", "args.tags > 1", "args.sure > 0", "1 / 0", "'x' * 2",
                                    "command('rm \"')", "1 < 'nan'", "args.to < 1", "args.nan > 1", "1 + args.nan",
                                    "args.long * args.long / 0"])
def test_what_cannot_be_decided_is_told(source):
    with pytest.raises(Undecided):
        parse(source)({**SCOPE, "args": {**SCOPE["args"], "nan": math.nan, "long": 10**4000}})


@pytest.mark.parametrize(("source", "said"), [
    ("", "expected a value, found the end at character 1"), ("1 +", "found the end at character 4"),
    ("boxes > 1", "expected one of name, args"), ("it.name == 1", "found 'it' at character 1"),
    ("any(earlier, true) and it.x", "found 'it'"), ("open('x')", "no function 'open' at character 1"),
    ("len()", "expected a value, found ')'"), ("len(1, 2)", "len at character 1 takes 1, found 2"),
    ("1 < 2 < 3", "expected `and` between two comparisons"), ("name = 'x'", "'=' at character 6 is nothing"),
    ("any(earlier)", "expected ',', found ')'"), ("(1", "expected ')'"), ("1 2", "expected the end, found '2'"),
    ("args.", "expected a field"), ("name is null", "expected the end, found 'is'"), ("not in [1]", "expected a value"),
    ("__import__('os')", "no function '__import__'"), ("lambda: 1", "is nothing that"), ("'open", "is nothing"),
    ("(" * (DEEPEST + 1), f"more than {DEEPEST} deep"),
])
def test_faults_say_where(source, said):
    with pytest.raises(Fault, match=re.escape(said)):
        parse(source)


def test_fields_are_of_values_and_never_of_python():
    for source in ("args.__class__", "name.__len__", "limits.items", "earlier.append", "args.keys"):
        assert parse(source)(SCOPE) is None


@given(st.text(alphabet="abitnordl()[]<>=!+-*/.,\"'01 _", max_size=40))
def test_any_text_is_an_expression_or_a_fault(source):
    try:
        said = str(parse(source))
    except Fault as error:
        said = str(error)
    assert said


@given(st.recursive(
           st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
           lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)),
       st.sampled_from(["args > 1", "args == 1", "any(args, it < 2)", "words(args)", "len(args)", "args in [1, args]",
                        "outside(args, 'a')", "args + 1", "contains(args, args)", "not args", "command(args)"]))
def test_any_value_is_decided_or_told(value, source):
    try:
        said = repr(parse(source)({"args": value}))
    except Undecided as error:
        said = str(error)
    assert said


@given(st.integers(-99, 99), st.integers(-99, 99), st.integers(1, 99))
def test_arithmetic_is_python_s(a, b, c):
    found = parse("args.a + args.b * args.c - args.a / args.c")({"args": {"a": a, "b": b, "c": c}})
    assert math.isclose(found, a + b * c - a / c)


def test_every_name_means_something():
    for name in NAMES[:-1]:
        assert parse(name)({name: "x"}) == "x"
