"""What keeps a rule: how a step of a rules file is filled in for a call, and what is wrong with one."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.rules import language, remedy
from prm_core.rules.constitution import load
from prm_core.rules.examples import try_examples
from prm_core.types import Call, Message, Step
from tests.rules.test_constitution import GOOD, written

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_leaves=4,
    extend=lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2))


def calling(**arguments):
    return Step("", calls=(Call("confirm", json.dumps(arguments)),))


@pytest.mark.parametrize(("given", "args", "found"), [
    ({"question": "Pay {args.amount} to {args.to}?"}, {"amount": 250, "to": "shop"}, {"question": "Pay 250 to shop?"}),
    ({"amount": "{args.amount}"}, {"amount": 250}, {"amount": 250}),
    ({"amount": "{args.amount / 2} coins"}, {"amount": 5}, {"amount": "2.5 coins"}),
    ({"words": "{without(args.words, limits.names)}"}, {"words": "cups red, Ben"}, {"words": "cups red,"}),
    ({"deep": [{"to": "{args.to}"}, 3, True, None]}, {"to": ["a", "b"]}, {"deep": [{"to": ["a", "b"]}, 3, True, None]}),
    ({"code": "{{x}} {args.to}"}, {"to": "é"}, {"code": "{x} é"}),
    ({"question": "Pay {args.amount}?"}, {}, None),
    ({"question": "{args.amount - 1}"}, {"amount": "lots"}, None),
])
def test_a_step_is_filled_in_for_a_call(given, args, found):
    one = remedy.read(calling(**given), first=True)
    filled = one.fill({"args": args, "limits": {"names": ["ben"]}})
    assert filled == (None if found is None else Step("", calls=(
        Call("confirm", json.dumps(found, ensure_ascii=False)),)))
    assert filled is None or one.may_be(filled)


def test_a_text_is_one_too_unless_nothing_is_left_of_it():
    one = remedy.read(Step("{args.text}"), first=False)
    assert one.fill({"args": {"text": "Not possible."}}) == Step("Not possible.")
    assert one.fill({"args": {"text": ""}}) is None
    assert one.may_be(Step("anything"))
    assert not one.may_be(Step("anything", calls=(Call("x"),)))


@pytest.mark.parametrize("other", [
    calling(question="Pay 3 to you?", more=1), calling(question="Pay?"), calling(), calling(question=3),
    Step("", calls=(Call("ask", '{"question": "Pay 3 to you?"}'),)), Step("", calls=(Call("confirm", "no JSON"),)),
    Step("So.", calls=calling(question="Pay 3 to you?").calls), Step(""),
    Step("", calls=calling(question="Pay 3 to you?").calls * 2)])
def test_another_step_is_none(other):
    one = remedy.read(calling(question="Pay {args.amount} to {args.to}?"), first=True)
    assert one.may_be(calling(question="Pay 3 to you?"))
    assert not one.may_be(other)


@given(st.lists(st.sampled_from(["a", "b", "ab", "{text}", "{{"]), max_size=6), st.text("ab{", max_size=8))
def test_a_text_may_be_what_its_pattern_matches(parts, value):
    """Held against a regular expression, which on long texts takes too long."""
    one = remedy.read(Step("".join(parts), calls=calling().calls), first=True)
    pattern = "".join({"{text}": ".*", "{{": re.escape("{")}.get(part, part) for part in parts)
    assert one.may_be(Step(value, calls=calling().calls)) == (re.fullmatch(pattern, value) is not None)


def test_a_long_text_is_read_at_once():
    one = remedy.read(Step(" ".join(["{text}"] * 20) + "!"), first=True)
    assert not one.may_be(Step(" " * 100_000))


@given(st.dictionaries(st.sampled_from("abc"), VALUES), st.sampled_from(
    ["{args.a}", "x {args.a}, {args.b}", "{{{args.c}}}", "{args.a.b}"]))
def test_what_is_filled_in_may_be_it(args, text):
    one = remedy.read(calling(text=text, more=[text]), first=True)
    filled = one.fill({"args": args})
    assert filled is None or one.may_be(filled)


@pytest.mark.parametrize(("step", "said"), [
    (Step("{args.x"), r"the brace at character 1 of '\{args.x' has no other"),
    (Step("a } b"), "the brace at character 3"),
    (Step("{args..x}"), "expected a field, found '.' at character 6"),
    (Step("x", observation="y"), "it is still to be taken"),
    (Step("x", context=(Message("user", "y"),)), "it is still to be taken"),
    (Step("", calls=(Call("x", "{}", "a result"),)), "it is still to be taken"),
    (Step("", calls=(Call("x", "[1]"),)), "the arguments of its call x are no mapping"),
])
def test_what_is_wrong_with_one_is_said(step, said):
    with pytest.raises(language.Fault, match=said):
        remedy.read(step, first=True)


@pytest.mark.parametrize(("lines", "said"), [
    ("first: Ask.\n    instead: No.", "rules.yaml:3: rule few-boxes: has both first and instead"),
    ("instead: {text: a, observation: b}", "rules.yaml:7: rule few-boxes: `instead`: it is still to be taken"),
    ("first: 3", "rules.yaml:3: rule few-boxes: `first`: the step: step 0 must be a text or an object"),
    ('first: "{args.}"', "rules.yaml:3: rule few-boxes: `first`: expected a field"),
])
def test_faults_name_the_line_and_the_rule(tmp_path, lines, said):
    with pytest.raises(InputError) as raised:
        load(written(tmp_path, GOOD.replace("    right:", f"    {lines}\n    right:")))
    assert said in str(raised.value)


@pytest.mark.parametrize(("line", "said"), [
    ("first: Shall I?", []),
    ("instead: {calls: [{name: order, arguments: {boxes: 3}}]}", []),
    ("instead: {calls: [{name: order, arguments: {boxes: \"{args.boxes + 1}\"}}]}",
     ["rule few-boxes: its `instead` breaks it too (order({\"boxes\": 5}): No more than three boxes.)"]),
    ("first: {calls: [{name: ask, arguments: {about: \"{args.amout}\"}}]}",
     ["rule few-boxes: its `first` speaks of what no example of `wrong` has"]),
])
def test_a_remedy_is_tried_in_place_of_what_is_wrong(tmp_path, line, said):
    rules = load(written(tmp_path, GOOD.replace("    right:", f"    {line}\n    right:")))
    assert [one.partition("rules.yaml:3: ")[2] for one in try_examples(rules).failed] == said
