"""Reading the answer a step states, and comparing answers by value."""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from fractions import Fraction
from functools import lru_cache

# Says that an answer follows; whatever follows is cut in Python, for a pattern that trims takes minutes on a step of
# some thousand blanks.
_ANNOUNCED = re.compile(r"\banswer\s{0,9}(?:is\b|:)[\s:]{0,9}", re.IGNORECASE)
_BOXED = r"\boxed{"
# A longer text is no final answer, and parsing it may take for ever.
MAX_EXPRESSION = 300
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?")
# "listen" is a word; as LaTeX it is a product of letters, the same as "silent".
_WORDS = re.compile(r"(?=.*[^\W\d_]{3})[^\d\\=+*/^]+", re.DOTALL)


def read_stated_answer(step: str) -> str | None:
    r"""The answer in `\boxed{…}`, after `####`, or after "the answer is"; None when the step states none.

    Where a step states several, the last one counts.
    """
    announced = deque(_ANNOUNCED.finditer(step), maxlen=1)
    found = (
        _last_boxed(step),
        _first_line(step.rpartition("####")[2]) if "####" in step else "",
        _first_line(step[announced[0].end() :]) if announced else "",
    )
    return next((text for text in found if text), None)


def _first_line(text: str) -> str:
    """The first line that is not empty, without a closing full stop."""
    return text.strip().partition("\n")[0].strip().removesuffix(".").strip()


def _last_boxed(text: str) -> str:
    r"""What the last `\boxed{…}` holds, braces matched; empty where there is none or it is not closed."""
    _, box, rest = text.rpartition(_BOXED)
    depth = 1
    for end, character in enumerate(rest if box else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:end].strip()
    return ""


def _as_number(text: str) -> Fraction | None:
    """A plain number as an exact fraction: 12, -3.5, 1,000, 1/2, 50 %, -$7."""
    text = text.replace(r"\%", "%").replace(r"\$", "").replace("$", "").strip().rstrip(".").strip()
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
    if " ".join(left.split()).casefold() == " ".join(right.split()).casefold():
        return True
    if max(len(left), len(right)) > MAX_EXPRESSION or _WORDS.fullmatch(left) or _WORDS.fullmatch(right):
        return False
    numbers = _as_number(left), _as_number(right)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1]
    return _same_expression(left, right)


def _same_expression(left: str, right: str) -> bool:
    from math_verify import parse, verify

    # math-verify's time-outs use signals, which raise outside the main thread; there it runs without one and warns.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    gold, candidate = (parse(f"${text}$", parsing_timeout=seconds) for text in (left, right))
    return bool(gold and candidate) and bool(verify(gold, candidate, timeout_seconds=seconds))
