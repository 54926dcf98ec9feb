"""Reading the answer a step states, and comparing answers by value."""

from __future__ import annotations

import logging
import re
import threading
from fractions import Fraction
from functools import lru_cache

# Tried in order; the last mention in the step counts.
_STATED = (
    re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"####\s*(.+?)\s*$", re.MULTILINE),
    re.compile(r"(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*:?\s*(.+?)\s*\.?\s*$", re.IGNORECASE | re.MULTILINE),
)
# A longer text is no final answer, and parsing it may take for ever.
MAX_EXPRESSION = 300
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")


def read_stated_answer(step: str) -> str | None:
    r"""The answer in `\boxed{…}`, after `####`, or after "the answer is"; None when the step states none."""
    for pattern in _STATED:
        found = pattern.findall(step)
        if found and found[-1].strip():
            return found[-1].strip()
    return None


def _as_number(text: str) -> Fraction | None:
    """A plain number as an exact fraction: 12, -3.5, 1,000, 1/2, 50 %, $7."""
    text = text.strip().strip("$").replace(r"\%", "%").rstrip(".").strip()
    percent = text.endswith("%")
    numerator, slash, denominator = text.rstrip("% ").partition("/")
    parts = [part.strip() for part in ((numerator, denominator) if slash else (numerator,))]
    if not all(part and _NUMBER.fullmatch(part) and part[-1].isdigit() for part in parts):
        return None
    values = [Fraction(part.replace(",", "")) for part in parts]
    if len(values) == 2 and values[1] == 0:
        return None
    value = values[0] / values[1] if len(values) == 2 else values[0]
    return value / 100 if percent else value


@lru_cache(maxsize=65536)
def same_value(left: str, right: str) -> bool:
    """Whether two answers are equal by value: 1/2 = 0.5 = 50 %, but 11 is not 1.

    Plain numbers are compared exactly; anything else goes to math-verify (LaTeX, expressions, sets), and texts it
    cannot read are equal only when they are the same but for case and white space.
    """
    numbers = _as_number(left), _as_number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    if left.split() == right.split() or left.strip().casefold() == right.strip().casefold():
        return True
    if max(len(left), len(right)) > MAX_EXPRESSION:
        return False
    return _same_expression(left, right)


def _same_expression(left: str, right: str) -> bool:
    from math_verify import parse, verify

    # math-verify's time-outs use signals, which raise outside the main thread; there it runs without one and warns.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    gold, candidate = (parse(f"${text}$", parsing_timeout=seconds) for text in (left, right))
    return bool(gold and candidate) and bool(verify(gold, candidate, timeout_seconds=seconds))
