"""The verifier: which equations it reads, that they are exact, that hostile steps end, what its confidence rests on."""

from __future__ import annotations

import dataclasses
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.labeling.strategies.base import STRATEGIES
from prm_core.labeling.strategies.verifier import VerifierLabeler
from prm_core.maths.equations import MAX_TEXT, find_equations
from prm_core.maths.exact import Undecided, evaluate
from prm_core.maths.symbolic import SympyProcess
from tests.builders import tiny
from tests.builders.tiny import RIGHT, WRONG, chain

SECONDS = 5.0


def labeler(timeout=SECONDS):
    return VerifierLabeler(tiny.make_tools(tiny.make_policy(), verifier={"timeout": timeout}))


@pytest.fixture(scope="module")
def verifier():
    made = labeler()
    yield made
    made.sympy.close()


@pytest.mark.parametrize("text", [
    "7 + 5 = 12",
    "Mia buys 5 more: 7 + 5 = 12.",
    "3 × 4 = 12 apples",  # noqa: RUF001
    "$5*3=15",
    "So $5 * 3 = $15 in total.",
    "12/4 = 3, so",
    "<<3*4=12>>",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.",
    "50% of 80 = 40",
    "3/4 of 12 = 9",
    "1/2 + 1/3 = 5/6",
    r"\frac{1}{2} + \frac{1}{3} = \frac{5}{6}",
    r"$\dfrac34 \times 8 = 6$",
    r"\[3 \cdot 4 = 12\]",
    "We get $3 + 4 = 7$ apples.",
    "2 + 3 = 5 = 10/2",
    "1,000 + 250 = 1,250",
    "5{,}000 / 2 = 2{,}500",
    "0.1 + 0.2 = 0.3",
    "x = 10 - 4 = 6",
    "(3 + 4) * 2 = 14",
    "2(3 + 4) = 14",
    "3 - (-4) = 7",
    "-2^2 = -4",
    "2^{10} = 1024",
    "2**3**2 = 512",
    "3² = 9",
    "5! = 120",
    "3 + 4 = 7!",
    "3 x 4 = 12",
    "30/120 * 100 = 25%",
    "5 apples + 3 apples = 8 apples",
    "5 quarters = 5 * 25 = 125 cents",
    "60 miles/hour * 2 hours = 120 miles",
    "2 cm * 3 cm = 6 cm^2",
    "**7 + 5 = 12**",
    "1. 3 + 4 = 7",
    "12 = 3 * 4 (boxes)",
    "3 + 4 = 7 and 2 + 2 = 4",
    "3 + 4 = 7 => 7 * 2 = 14",
    "√16 = 4",
    r"\sqrt{16} + 1 = 5",
    r"2\binom{3}{2} = 6",
])
def test_equations_that_hold_make_a_step_right(verifier, text):
    assert verifier.check(text).is_correct is True


@pytest.mark.parametrize(("text", "named"), [
    ("7 + 5 = 13", "7 + 5 = 13"),
    ("Mia buys 5 more: 7 + 5 = 13.", "7 + 5 = 13"),
    ("So $5*3=$16 in total", "$5*3 = $16"),
    ("3 × 4 = 13 apples", "3 * 4 = 13 apples"),  # noqa: RUF001
    ("<<3*4=11>>", "3*4 = 11"),
    ("Natalia sold 48/2 = <<48/2=25>>25 clips", "48/2 = 25"),
    ("50% of 80 = 41", "50% * 80 = 41"),
    (r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}", r"\frac{1}{2} + \frac{1}{3} = \frac{2}{5}"),
    ("2 + 3 = 5 = 11/2", "5 = 11/2"),
    ("x = 10 - 4 = 5", "10 - 4 = 5"),
    ("2 + 2 = 4. 2 + 3 = 6.", "2 + 3 = 6"),
    ("3 + 4 = 7 and 2 + 2 = 5", "2 + 2 = 5"),
    ("7/2 = 3", "7/2 = 3"),
    ("0.1+0.2=0.4", "0.1+0.2 = 0.4"),
    ("-2^2 = 4", "-2^2 = 4"),
    ("19.99 * 3 = 59.98", "19.99 * 3 = 59.98"),
    (r"\sqrt{16} + 1 = 6", r"\sqrt{16} + 1 = 6"),
])
def test_one_false_equation_makes_it_wrong_and_is_named(verifier, text, named):
    finding = verifier.check(text)

    assert finding.is_correct is False
    assert finding.reason == f"{named} does not hold"


@pytest.mark.parametrize("text", [
    "No equation here.", "", "= = =", "3 + = 4", "3 + 4 = ?", "3 + 4 > 5", "3 + 4 != 8",
    # unknowns and functions
    "x + 3 = 7", "2x + 3 = 7", "x^2 = 9", "3 + 4 = 8x", "f(3) = 7", "C(5,2) = 11", r"\sqrt{x} = 3", "EQ + 1 = 3",
    "gcd(12, 18) = 7", "(1, 2) + (3, 4) = (4, 7)", "17 mod 5 = 3",
    # an expression that goes on in words
    "2 groups of 4 + 1 = 10", "3 apples plus 4 = 8", "17 / 5 = 3 remainder 2", "5 + 1 = 3 dozen", "7/2 = 3 and 1/2",
    # units
    "1 hour + 30 minutes = 90 minutes", "3 hours = 180 minutes", "4 hours = 4 * 60 minutes", "$5 + 50 cents = $5.50",
    # rounding
    "10/3 = 3.33", "10/3 ≈ 3.4", "10 / 3 = about 3.4", "about 22/7 = 3.4", "3.33 * 3 = 10", "1/3 = 33%",
    "1/3 * 100 = 33.333...%",
    # two readings
    "80 + 20% = 96", "6/2(1+2) = 1", "60 / 3/4 = 80", "2 1/2 + 1 = 4", "- 3 + 5 = 8", "0900 - 0130 = 0730", "3 = 7",
    "Step 3 = 4 + 5", "14, 400 / 80 = 180", "5/0 = 0",
    # not claimed
    "If 3 + 4 = 8, then", "It is not true that 3 + 4 = 8",
])
def test_it_abstains_where_nothing_can_be_checked(verifier, text):
    assert verifier.check(text).is_correct is None


@pytest.mark.parametrize("text", [
    "9**9**9**9 = 1", "999999999! = 5", "((((9!)!)!)!)! = 1", "(" * 9000 + "1" + ")" * 9000 + " = 2",
    "1" + "+1" * 9000 + " = 3", "9" * 15000 + " * 2 = 3", "=" * 19000, "1 = " * 4000, "1" * 19000 + "=",
    "\\frac{" * 3000 + "1 = 2", "$" * 19000 + "= 1", "<<" * 9000 + "= 1", "a" * 19000 + " = 1", " " * 19000 + "= 1",
    "\\text{" * 3000 + "= 1", "1 + 1 = 3" * (MAX_TEXT // 9 + 1), "√" * 9000 + "9 = 3", "1,111" * 3900 + " = 2",
    "\\" * 19000 + "= 1", "\\$" * 9000 + "= 1", "$\\a" * 6000 + "= 1", "9!" * 9000 + "= 1", "mod 7 " * 3000 + "= 1",
    "√(" * 9000 + "9 = 3", "1/2 of " * 2500 + "3 = 1", "2^" * 95 + "2 = 3",
    "2(3)" * 90 + " = 1", "3 :" * 6000 + "= 1",
    "\\binom{300}{150}!" * 40 + " = 1",
])
def test_hostile_steps_end_at_once_without_a_verdict(text):
    made = labeler()
    start = time.process_time()

    finding = made.check(text)

    assert finding.is_correct is None
    # Of the processor: a busy machine makes nothing longer.
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", [
    # rounding is looked for in each decimal, and from the beginning of the chain
    "1/3 = " + "0.1+" * 95 + "1", ("1.1 + " * 20 + "1 = ") * 150 + "2", "17 / 5 = " * 900 + "5 * 1.5",
])
def test_long_false_equations_are_called_so_at_once(text):
    made = labeler()
    start = time.process_time()

    assert made.check(text).is_correct is False
    assert time.process_time() - start < 1


def test_an_expression_that_sympy_would_never_finish_is_cut_off():
    made = labeler(timeout=60)
    assert made.check(r"\sqrt{4} = 2").is_correct is True
    made.settings = dataclasses.replace(made.settings, timeout=0.5)

    # Were it not cut off, this would not return.
    finding = made.check(r"\sqrt{7^{7^{7^{7}}}} + \binom{999999999}{499999999} = 3")

    assert finding.is_correct is None
    assert made.sympy._process is None
    # The next one gets a new process.
    made.settings = dataclasses.replace(made.settings, timeout=60)
    assert made.check(r"\sqrt{9} = 4").is_correct is False
    made.sympy.close()


def test_the_time_of_a_step_is_bounded_over_all_its_equations():
    made = labeler(timeout=1e-9)

    assert made.check("7 + 5 = 12").reason == "not checked within 1e-09 s"


def test_sympy_answers_exactly_or_not_at_all():
    process = SympyProcess()

    assert process.equal(r"0.1 + 0.2", "0.3", 10) is True
    assert process.equal(r"\pi", "3.14159265358979", 10) is False
    assert process.equal(r"\sqrt{x}", "3", 10) is None
    assert process.equal(r"\frac{", "3", 10) is None
    assert process.equal(r"\ln 1", "0", 10) is True
    process.close()


# Expressions and their exact values: numbers joined by operators, everything in brackets.
_EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))
    | st.integers(0, 999).map(lambda n: (f"{n // 10}.{n % 10}", Fraction(n, 10))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).filter(lambda t: t[1] != "/" or t[2][1] != 0).map(
        lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})",
                   {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]] if t[1] != "/"
                   else t[0][1] / t[2][1])),
    max_leaves=8)


@given(_EXPRESSIONS)
def test_values_are_exact(expression):
    text, value = expression
    (equation,) = find_equations(f"{text} + 0 = 1")

    assert evaluate(equation.left) == value


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data())
def test_values_follow_the_precedence_of_sympy(numbers, data):
    import sympy

    operators = [data.draw(st.sampled_from(["+", "-", "*", "/"])) for _ in numbers[1:]]
    text = str(numbers[0]) + "".join(f" {o} {n}" for o, n in zip(operators, numbers[1:], strict=True))
    (equation,) = find_equations(f"{text} + 1 = 1")
    expected = sympy.sympify(f"{text} + 1", rational=True)

    assert evaluate(equation.left) == Fraction(int(expected.p), int(expected.q))


@given(st.text(alphabet="0123456789+-*/^()=.,%!$ xab\\{}\n", max_size=80))
def test_any_text_gives_a_finding(text):
    for equation in find_equations(text):
        for side in (equation.left, equation.right):
            try:
                evaluate(side)
            except Undecided:
                continue


def test_confidence_is_estimated_from_outcomes_alone():
    """Wrong: (ended wrong + 1) / (n + 2). Right: chains that ended wrong hide (m + 1) / 2 wrong steps each."""
    slip = ("Mia loses 2: 3 - 2 = 1.", "Mia buys 4 more: 3 + 4 = 7.", "The answer is 7.")
    lucky = ("Mia buys 4 more: 3 + 4 = 8.", "Mia loses 2: 7 - 2 = 5.", "The answer is 5.")
    made = labeler()
    shard = [chain(steps, trajectory_id=f"t{n}") for n, steps in enumerate([RIGHT, RIGHT, slip, WRONG, WRONG, lucky])]
    unknown = chain(slip, trajectory_id="u")
    shard.append(dataclasses.replace(unknown, trajectory=dataclasses.replace(unknown.trajectory, outcome=None)))

    made.prepare(shard, seed=1)
    labels = made.label([shard[0], shard[5]], seed=1)

    # Two of three chains with a false equation end wrong; six steps pass in the others, one of which ends wrong.
    wrong, right = (2 + 1) / (3 + 2), 1 - (1.5 + 1) / (6 + 2)
    assert [(row.trajectory_id, row.step_index, row.strategy, row.is_correct, row.tokens) for row in labels] == [
        ("t0", 0, "verifier", True, 0), ("t0", 1, "verifier", True, 0), ("t0", 2, "verifier", None, 0),
        ("t5", 0, "verifier", False, 0), ("t5", 1, "verifier", True, 0), ("t5", 2, "verifier", None, 0)]
    assert [row.confidence for row in labels] == pytest.approx([right, right, 0, wrong, right, 0])
    assert [row.value for row in labels] == pytest.approx([right, right, None, 1 - wrong, right, None])
    assert labels[2].reasoning == "no equation"
    assert labels[0].reasoning == "1 of 1 equations checked, all hold"


def test_without_outcomes_confidence_is_the_prior():
    made = labeler()
    made.prepare([], seed=1)

    assert made.confidence == {True: 0.5, False: 0.5}


def test_it_registers_and_says_what_made_its_labels():
    made = STRATEGIES["verifier"](tiny.make_tools(tiny.make_policy(), verifier={"timeout": 2}))

    assert (made.version, made.model, made.parameters) == (2, "", {"timeout": 2.0})


def test_thousands_of_different_steps_a_second():
    texts = [f"Mia buys {n % 7} more: {n} + {n % 7} = {n + n % 7}." for n in range(3000)]
    made = labeler()
    start = time.process_time()

    assert all(made.check(text).is_correct for text in texts)
    assert time.process_time() - start < 3
    assert len(made.findings) == 3000
