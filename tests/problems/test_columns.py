"""Whose column is what: published layouts are read as their authors mean them, and what is no value is refused."""

from __future__ import annotations

from typing import Any

import pytest

from prm_core.errors import InputError
from prm_core.problems.columns import number_text, take

GSM8K = {"question": "How many clips?", "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips.\n"
         "She sold 48+24 = <<48+24=72>>72 in all.\n#### 1,072"}
MATH = {"problem": "What is $x$?", "level": "Level 2", "type": "Algebra",
        "solution": "We halve.\nSo $x = \\boxed{\\frac{1}{2}}$."}
STEPS = ["Natalia sold 48/2 = 24 clips.", "She sold 48+24 = 72 in all.", "The answer is 1072."]


@pytest.mark.parametrize(("record", "prompt", "answer", "solution"), [
    (GSM8K, "How many clips?", "1072", STEPS),
    ({"prompt": "How many clips?", "answer": GSM8K["answer"]}, "How many clips?", "1072", STEPS),
    # However long, and longer than any answer may be.
    ({**GSM8K, "answer": "It is long.\n" * 500 + "#### 7"}, "How many clips?", "7",
     ["It is long."] * 500 + ["The answer is 7."]),
    # The text calls another number an answer before the mark.
    ({**GSM8K, "answer": "Confirming that 80 is the answer we need.\n#### 40"}, "How many clips?", "40",
     ["Confirming that 80 is the answer we need.", "The answer is 40."]),
    (MATH, "What is $x$?", r"\frac{1}{2}", ["We halve.", r"So $x = \boxed{\frac{1}{2}}$."]),
    ({**MATH, "answer": r"\frac{1}{2}", "unique_id": "test/1.json"}, "What is $x$?", r"\frac{1}{2}",
     ["We halve.", r"So $x = \boxed{\frac{1}{2}}$."]),
    ({"Problem": "p", "Final Answer": 25}, "p", "25", None),
    ({"query": "p", "response": "2 + 2 = 4\nThe answer is: 4"}, "p", "4", ["2 + 2 = 4", "The answer is: 4"]),
    ({"problem": "p", "solution": "$2/3$"}, "p", "$2/3$", None),
    ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, "Add.\n2 and 3", "5", None),
    ({"instruction": "Add 2 and 3.", "input": "", "output": "5"}, "Add 2 and 3.", "5", None),
    ({"Body": "Ann has 3.", "Question": "How many?", "Answer": 3.0}, "Ann has 3.\nHow many?", "3", None),
    ({"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
      "reward_model": {"ground_truth": "34", "style": "rule"}}, "p", "34", None),
    ({"question": "p", "final_answer": ["2"]}, "p", "2", None),
    ({"prompt": "p", "answer": "5", "question": "another", "target": "6", "solution": ["a", " ", "b"]}, "p", "5",
     ["a", "b"]),
    ({"prompt": "p", "answer": "None of them"}, "p", "None of them", None),
])
def test_published_layouts(record: dict[str, Any], prompt: str, answer: str, solution: list[str] | None) -> None:
    taken = take(record, "f:1")
    assert (taken.prompt, taken.answer, taken.solution) == (prompt, answer, solution)


def test_what_was_taken_is_said_and_the_rest_kept() -> None:
    taken = take({**GSM8K, "id": 7, "level": 3}, "f:1")
    assert taken.origins == {"prompt": "`question`", "answer": "`answer` (after ####)", "solution": "`answer`",
                             "id": "`id`"}
    assert (taken.identity, taken.rest) == ("7", {"level": 3})
    assert take(MATH, "f:1").origins["answer"] == r"`solution` (in \boxed)"
    assert take(MATH, "f:1").rest == {"level": "Level 2", "type": "Algebra"}


@pytest.mark.parametrize(("value", "text"), [
    (0.00002, "0.00002"), (1e16, "10000000000000000"), (1e22, "1" + "0" * 22), (5.0, "5"), (-0.0, "0"), (0.1, "0.1"),
    (100.0, "100"), (100, "100"), (-2.50, "-2.5"), (2**80 + 1, str(2**80 + 1)), (1.5e-7, "0.00000015"),
])
def test_numbers_are_written_as_people_do(value: float, text: str) -> None:
    assert number_text(value) == text
    assert take({"prompt": "p", "answer": value}, "f:1").answer == text


@pytest.mark.parametrize(("changes", "message"), [
    ({"answer": "nan"}, "field answer is 'nan', expected a text or a number; a missing value is none: give it"),
    ({"answer": "None"}, "field answer is 'None'"),
    ({"prompt": None}, "field prompt is None"),
    ({"id": "<NA>"}, "field id is '<NA>'"),
    ({"answer": False}, "field answer is False, expected a text or a number; write it as a text"),
    ({"answer": ["1", "2"]}, "field answer is a list of 2; a problem has one answer"),
    ({"answer": {"value": 1}}, "field answer is {'value': 1}, expected a text or a number"),
    ({"answer": "x" * 301}, "field answer is 301 characters long, and 300 are the most"),
    ({"answer": 10**400}, "field answer is 401 characters long"),
    ({"answer": "so it is\n####\n"}, "field answer has nothing after ####"),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
     "field prompt is a conversation of 2 turns"),
    ({"prompt": "Halve $\frac{1}{2}$"}, r"field prompt holds a control character where LaTeX has \frac: JSON read a"),
    ({"answer": "\binom{5}{2}"}, r"field answer holds a control character where LaTeX has \binom"),
    ({"solution": ["a", "2 \times 3"]}, r"field solution holds a control character where LaTeX has \times"),
    ({"solution": "a\n2 \frac13"}, r"field solution holds a control character where LaTeX has \frac"),
    ({"answer": "as\n2 \right)\n#### 5"}, r"field answer holds a control character where LaTeX has \right"),
])
def test_what_is_no_value_is_refused_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        take({"prompt": "p", "answer": "1", **changes}, "f:3")
    assert str(caught.value).startswith(f"f:3: {message}")


def test_one_broken_command_among_whole_ones_is_repaired_and_said() -> None:
    # As in one problem of the published MATH.
    taken = take({"problem": "$\\qquad\textbf{(C)}$", "answer": "\\sqrt{2} \times 3",
                  "solution": ["\\pi \n\\cdot \frac12"]}, "f:1")
    assert (taken.prompt, taken.answer) == (r"$\qquad\textbf{(C)}$", r"\sqrt{2} \times 3")
    assert taken.solution == ["\\pi \n\\cdot \\frac12"]
    assert taken.repaired == [r"\textbf in f:1: field problem", r"\times in f:1: field answer",
                              r"\frac in f:1: field solution"]


@pytest.mark.parametrize(("record", "message"), [
    ({"text": "p", "answer": "1"}, "field prompt is missing; .* question, problem, .*; this record has text, answer"),
    ({"question": "p", "answerKey": "B"}, "field answer is missing"),
    ({"question": "p", "solution": "We think.\nAnd think."}, "field solution states no final answer; end it with"),
])
def test_records_without_a_part(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"f:3: {message}"):
        take(record, "f:3")
