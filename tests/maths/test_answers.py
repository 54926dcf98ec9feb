"""Reading stated answers, and comparing answers by value, never by substring."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.maths.answers import MAX_EXPRESSION, read_stated_answer, same_value


@pytest.mark.parametrize(("step", "answer"), [
    ("The answer is 12.", "12"),
    ("the final answer is: 12", "12"),
    ("Answer: 3.5.", "3.5"),
    ("So the answer is 1,000", "1,000"),
    ("The answer is 4, no, the answer is 5.", "5"),
    ("The answer is 5.\nThank you for asking.", "5"),
    ("The answer is\n\n 7.", "7"),
    ("Final Answer: The answer is 12.", "12"),
    ("She sold 48 + 24 = 72 clips.\n#### 72", "72"),
    ("#### 1\n#### 2", "2"),
    ("####72", "72"),
    (r"Hence \boxed{42}.", "42"),
    (r"\boxed{1} and then \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\boxed{x \in \{1, \{2\}\}}", r"x \in \{1, \{2\}\}"),
    (r"The answer is \boxed{7}.", "7"),
    (r"\boxed{7", None),
    (r"\boxed{}", None),
    ("The answer is", None),
    ("The answer isn't 5", None),
    ("That answers it: 5", None),
    ("Mia buys 5 more: 7 + 5 = 12.", None),
    ("", None),
])
def test_reading_the_stated_answer(step, answer):
    assert read_stated_answer(step) == answer


@pytest.mark.parametrize("step", [
    "the answer is" + " " * 20_000 + "x y" + " " * 20_000 + "z", " " * 50_000, "answer" * 10_000,
    "answer is " * 5_000, r"\boxed{" * 10_000, "####" * 10_000, "####" + " " * 50_000 + "x",
])
def test_reading_is_linear_in_the_step(step):
    """A policy that loops writes such steps; a pattern that trims takes minutes on the first one."""
    start = time.process_time()
    read_stated_answer(step)

    # Of the processor: a busy machine makes nothing longer.
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(("left", "right"), [
    ("1/2", "0.5"), ("50 %", "0.5"), ("50%", "1/2"), (r"50\%", "0.50"), ("1,000", "1000"), ("$7", "7.0"),
    ("-$1,250.50", "-1250.5"), (r"\$7", "7"), ("12.", "12"), ("+3", "3"), ("-0", "0"), (".5", "0.5"), ("6/4", "3/2"),
    (r"\frac{1}{2}", "0.5"), (r"\frac{\sqrt{4}}{4}", "1/2"), (r"\sqrt{4}", "2"), ("x+1", "1+x"), ("{1,2}", "{2,1}"),
    ("12 coins", "12"), ("x = 5", "5"), ("xy", "yx"), ("Paris", " paris "), ("New  York", "new york"),
])
def test_equal_by_value(left, right):
    assert same_value(left, right)
    assert same_value(right, left)


@pytest.mark.parametrize(("left", "right"), [
    ("11", "1"), ("1", "11"), ("1", "-1"), ("0.5", "5"), ("50", "50%"), ("1,00", "100"), ("1/0", "1"), ("", "0"),
    ("3", ""), ("12", "1 2"), (r"\frac{1}{3}", "0.33"), (r"\sqrt{2}", "1.41"), ("x+1", "x"), ("Paris", "London"),
    ("New York", "NewYork"), ("listen", "silent"), ("Ana", "Naa"), ("%", "0"), ("/", "1"), ("two", "2"),
])
def test_unequal_by_value(left, right):
    assert not same_value(left, right)
    assert not same_value(right, left)


@given(st.fractions(), st.fractions())
def test_fractions_are_equal_when_their_values_are(left, right):
    """Exactly, however close: 1/3 is not 0.333."""
    assert same_value(f"{left.numerator}/{left.denominator}", f"{right.numerator}/{right.denominator}") is (
        left == right)
    assert same_value(f"{2 * left.numerator}/{2 * left.denominator}", str(left))


@given(st.decimals(-10**6, 10**6, places=3))
def test_a_number_equals_its_other_spellings(number):
    exact = Fraction(number)

    assert same_value(f"{number:f}", f"{exact.numerator}/{exact.denominator}")
    assert same_value(f"{number:,f}", f"{number:f}")
    assert same_value(f"{number * 100:f}%", f"{number:f}")
    assert not same_value(f"{number:f}", f"{number + 1:f}")


@given(st.text(alphabet="0123456789+-*/.,%$\\{}() xe", max_size=12))
def test_any_text_equals_itself_and_reading_it_never_fails(text):
    assert same_value(text, text)
    read_stated_answer(f"The answer is {text}")


def test_very_long_answers_are_compared_as_texts():
    """A policy that loops on digits: Python itself refuses to read such a number."""
    assert same_value("9" * 10_000, "9" * 10_000)
    assert not same_value("9" * 10_000, "9" * 9_999)
    assert not same_value("1+" * MAX_EXPRESSION + "1", str(MAX_EXPRESSION + 1))


def test_answers_are_compared_from_threads_too():
    """math-verify's time-outs use signals, which only the main thread may (STACK)."""
    # Pairs no other test compares, so that none comes from the cache.
    pairs = [(rf"\frac{{{n}}}{{{2 * n + 1}}}", f"{n}/{2 * n + 1}") for n in range(30, 36)]
    results: list[bool] = []

    def compare():
        results.extend(same_value(*pair) for pair in pairs)
        results.append(same_value(r"\frac{77}{3}", "26"))

    threads = [threading.Thread(target=compare) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert results.count(True) == 12
    assert results.count(False) == 2
