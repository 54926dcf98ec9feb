"""What the tool makes of a check: the value it comes to, beside what the step states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.scoring.generative.checks import NOTHING, UNDECIDED, VERIFIER, Check, execute, verdict_turn
from prm_core.types import Step

BUYS = "Mia buys 5 more: 7 + 5 = "


@pytest.mark.parametrize(("written", "step", "check"), [
    # The step is wrong; the check calculates wrong itself, which the tool puts right.
    (f"{BUYS}11.", f"{BUYS}13.", Check(f"{BUYS.strip()}", "12 , 13 -", False, f"{BUYS}12.")),
    (f"{BUYS}11.", f"{BUYS}12.", Check(f"{BUYS.strip()}", "12 , 12 +", True, f"{BUYS}12.")),
    # Another way to the same value.
    ("So 2 * 6 = 12.", f"{BUYS}12.", Check("So 2 * 6 =", "12 , 12 +", True, "So 2 * 6 = 12.")),
    # The last equation counts, in both.
    ("3 + 4 = 7, 7 / 2 = 3.", "7 * 1 = 7 and 7 / 2 = 3.5",
     Check("3 + 4 = 7, 7 / 2 =", "7/2 , 7/2 +", True, "3 + 4 = 7, 7 / 2 = 7/2.")),
    ("The answer is 9.", "The answer is 9.", Check("The answer is", "9 , 9 +", True, "The answer is 9.")),
    ("The answer is 1/2.", "The answer is 0.5.", Check("The answer is", "1/2 , 0.5 +", True, "The answer is 1/2.")),
    # An answer where there is still something to do, whatever it says; and the other way round.
    ("Mia loses 2: 11 - 2 = 9.", "The answer is 9.",
     Check("Mia loses 2: 11 - 2 =", "9 , 9 -", False, "Mia loses 2: 11 - 2 = 9.")),
    ("The answer is 9.", "Mia loses 2: 11 - 2 = 9.", Check("The answer is", "9 , 9 -", False, "The answer is 9.")),
    # Nothing to calculate, in one or in both.
    ("We add.", f"{BUYS}12.", Check("We add.", UNDECIDED, None, "We add.")),
    (f"{BUYS}12.", "We add.", Check(f"{BUYS}12.", UNDECIDED, None, f"{BUYS}12.")),
    ("1 / 0 = 5.", f"{BUYS}12.", Check("1 / 0 = 5.", UNDECIDED, None, "1 / 0 = 5.")),
    # It would have ended the chain before.
    (" ", f"{BUYS}12.", Check(NOTHING, "-", False, "")),
])
def test_what_a_check_comes_to(written, step, check) -> None:
    assert execute(written, step) == check


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 999), st.integers(0, 999))
def test_a_check_says_right_where_the_step_calculates_as_it_does(left, right, said, stated) -> None:
    check = execute(f"So: {left} + {right} = {said}.", f"Thus {left} + {right} = {stated}.")
    assert check.says == (left + right == stated)
    # What it learns to write is what holds.
    assert check.step == f"So: {left} + {right} = {left + right}."


def test_the_reply_is_heard_and_the_verdict_is_said() -> None:
    assert execute(f"{BUYS}11.", f"{BUYS}13.").turn == Step(BUYS.strip(), observation="12 , 13 -", agent=VERIFIER)
    assert [verdict_turn(right) for right in (True, False)] == [Step("+", agent=VERIFIER), Step("-", agent=VERIFIER)]
