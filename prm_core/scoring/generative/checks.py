"""What a verifier writes about a step, and the tool that executes it: texts in, texts out, no model.

A check is the step as the verifier would write it itself, from the question and the steps before alone: it cannot copy
a mistake that it has not seen. The tool calculates what the check comes to, with rational numbers, and holds against
it what the step states, which is the verdict; where it cannot tell, the verdict is the verifier's, one token.

    step     Mia buys 5 more: 7 + 5 = 13.    |  Now she has all of them.
    check    Mia buys 5 more: 7 + 5 =        |  The answer is 12.            (verifier)
    reply    12 , 13 -                       |  ?                            (tool: it comes to 12, the step says 13)
    verdict  -                               |  +                            (tool; verifier)

Sources: Zhao et al. 2025, "GenPRM" (code is executed before the verdict); Khalifa et al. 2025, "Process Reward Models
That Think" (checks are kept where their verdicts match the labels).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from prm_core.maths.answers import read_stated_answer, same_value
from prm_core.maths.equations import Equation, find_equations
from prm_core.maths.exact import Undecided, evaluate
from prm_core.types import Step

# Who speaks in a check's turns; the two verdicts, and what the tool says where it cannot tell.
VERIFIER = "verifier"
RIGHT, WRONG, UNDECIDED = "+", "-", "?"
# A check by a verifier that would end the chain where there is another step.
NOTHING = "."
# Longer numbers are no check that anybody reads.
MAX_DIGITS = 20
_NUMBER = re.compile(r"^\s*[-$€£]{0,2}\d[\d,]*(?:[./]\d+)?")


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a step.

    Attributes:
        text: what the verifier wrote, up to what the tool calculates.
        reply: what the tool replied.
        says: whether what the check comes to and what the step states are the same, None where the tool cannot tell.
        step: the step as the verifier would have it, with what it comes to put in; empty for none.
    """

    text: str
    reply: str
    says: bool | None
    step: str

    @property
    def turn(self) -> Step:
        """The check as a turn, the tool's reply in it as what was heard."""
        return Step(self.text, observation=self.reply, agent=VERIFIER)


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a step states last: the value of an equation or an answer, and the text before and behind it."""

    kind: str
    value: str
    before: str
    behind: str


def verdict_turn(right: bool) -> Step:
    """The verdict as a turn of its own."""
    return Step(RIGHT if right else WRONG, agent=VERIFIER)


def execute(written: str, step: str) -> Check:
    """The check that a verifier's text is of a step.

    Args:
        written: the step as the verifier would write it; empty where it would write none.
        step: the one to judge.
    """
    if not written.strip():
        return Check(NOTHING, WRONG, False, "")
    check, stated = _stated(written, calculate=True), _stated(step, calculate=False)
    if check is None or stated is None:
        # Without anything to calculate the verdict is the verifier's alone.
        return Check(written, UNDECIDED, None, written)
    says = check.kind == stated.kind and same_value(check.value, stated.value)
    return Check(check.before, f"{check.value} , {stated.value} {RIGHT if says else WRONG}", says,
                 f"{check.before} {check.value}{check.behind}")


@lru_cache(maxsize=65536)
def _stated(text: str, *, calculate: bool) -> _Stated | None:
    """What a text states last; None where that is nothing, or has no value.

    Args:
        calculate: the value is what the equation's left side comes to, whatever the text says.
    """
    answer = read_stated_answer(text)
    if answer is not None and answer in text:
        before, _, behind = text.rpartition(answer)
        return _Stated("answer", answer, before.rstrip(), behind)
    equations = find_equations(text)
    if not equations:
        return None
    value = _value(equations[-1], calculate=calculate)
    before, _, result = text.rpartition("=")
    return None if value is None else _Stated("equation", value, f"{before.rstrip()} =", _NUMBER.sub("", result, 1))


def _value(equation: Equation, *, calculate: bool) -> str | None:
    try:
        value = evaluate(equation.left if calculate else equation.right)
    except Undecided:
        return None
    text = _written(value)
    return text if len(text) <= MAX_DIGITS else None


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
