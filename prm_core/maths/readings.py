"""What else an equation may say that is false as it stands: other readings, as rewritten tokens or as conversions.

People drop remainders, write decimal commas, times of day and binary numbers, take 3.14 for π and change units in
passing. Where such a reading holds, the equation is not called wrong. None of these makes one right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from prm_core.maths.equations import Equation, Token

Tokens = Sequence[Token]
# `17 // 5`; the other two are never written, they stand for readings of `17 / 5`.
WHOLE_DIVISIONS = {"//": lambda a, b: math.floor(a / b), "⌈/": lambda a, b: math.ceil(a / b), "mod": lambda a, b: a % b}
_DOTTED = re.compile(r"\d{1,3}(?:\.\d{3})+")
_CLOCK = re.compile(r"(\d{1,2})\.?([0-5]\d)")
_PI = (("3.14",), ("3.1416",), ("3",), ("(", "22", "/", "7", ")"))
# Factors between units of a kind that a step may pass over.
_FACTORS = tuple((frozenset(names.split()), frozenset(factors)) for names, factors in (
    ("$ € £ dollar cent penny pennie euro pound", (100,)),
    ("second sec minute min hour hr", (60, 3600)),
    ("hour hr day", (24,)),
    ("day week month year", (4, 7, 12, 30, 52, 365)),
    ("inch inche foot feet ft yard mile", (3, 12, 36, 1760, 5280)),
    ("mm cm m km meter metre millimeter centimeter kilometer millimetre centimetre kilometre", (10, 100, 1000)),
    ("mg g kg gram kilogram milligram ml l liter litre milliliter millilitre", (1000,)),
    ("ounce oz pound lb ton", (16, 2000, 32000)),
    ("cup pint quart gallon", (2, 4, 8, 16)),
))
_THOUSANDS = frozenset((100, 1000, 10**6, 10**9))


def units(equation: Equation) -> set[str]:
    """The units named, singular: `miles/hour` is one."""
    found = set()
    for side in (equation.left, equation.right):
        run: list[str] = []
        for token in (*side, None):
            if token is not None and token.kind == "unit":
                run.append(token.text.lower().rstrip("s"))
            elif run:
                found.add(" ".join(run))
                run = []
            if token is not None and token.kind == "currency":
                found.add(token.text)
    return found


def last_kind(tokens: Tokens) -> str:
    """Kind of a side's last token that is no unit."""
    return next((token.kind for token in reversed(tokens) if token.kind not in ("unit", "currency")), "")


def without_exclamation(equation: Equation) -> tuple[Tokens, Tokens]:
    """The sides with a closing `!` taken for the end of an exclamation."""
    right = equation.right
    if right[-1].kind == "factorial":
        right = right[:-1]
    return equation.left, right


def others(equation: Equation) -> Iterator[tuple[Tokens, Tokens]]:
    """The equation's sides in every other reading that changes them."""
    for sides in _rewritten(equation):
        if sides != (equation.left, equation.right):
            yield sides


def _rewritten(equation: Equation) -> Iterator[tuple[Tokens, Tokens]]:
    left, right = equation.left, equation.right
    if ("whole" in equation.cues or units(equation)) and _is_plain_number(right):
        for division in WHOLE_DIVISIONS:
            yield _divided(left, division), right
    for side in (left, right):
        start = next((index for index, token in enumerate(side) if token.kind == "of"), 0)
        if start and side is right:
            # "3/3 - 2/3 = 1/3 of $150": the right side is a share, not a product.
            yield left, right[:start]
        if start:
            scoped = (*side[: start + 1], *_tokens("("), *side[start + 1 :], *_tokens(")"))
            yield (scoped, right) if side is left else (left, scoped)
    yield _numbers(left, _continental), _numbers(right, _continental)
    yield _short_exponents(left), _short_exponents(right)
    yield from _in_binary(left, right)
    if "clock" in equation.cues:
        for hours in (False, True):
            yield _times(left, hours), _times(right, hours)
    if any(token.text in (r"\pi", "π") for token in (*left, *right)):
        for texts in _PI:
            yield _with_pi(left, texts), _with_pi(right, texts)
    if any(token.kind == "currency" for token in (*left, *right)):
        yield _cents(left), _cents(right)


def _tokens(*texts: str) -> list[Token]:
    kinds = {"(": "open", ")": "close"}
    return [Token("number" if text[0].isdigit() else kinds.get(text, "operator"), text, False) for text in texts]


def _is_plain_number(side: Tokens) -> bool:
    return [token.kind for token in side if token.kind not in ("unit", "currency") and token.text != "-"] == ["number"]


def _divided(side: Tokens, division: str) -> Tokens:
    """The quotients that are terms of the side in whole numbers: `17/5 + 1`, not `2 * (1/2)`."""
    made = list(side)
    depth = 0
    for index, token in enumerate(side):
        depth += (token.kind == "open") - (token.kind == "close")
        if depth:
            continue
        if token.text in ("^", "**", "*"):
            return side
        if token.text == "/" or token.kind == "fraction":
            made[index] = token._replace(text=division)
    return tuple(made)


def _numbers(side: Tokens, change: Callable[[str], str]) -> Tokens:
    return tuple(token._replace(text=change(token.text)) if token.kind == "number" else token for token in side)


def _continental(text: str) -> str:
    """`1.500` as 1500 and `2,500` as 2.500."""
    if _DOTTED.fullmatch(text):
        return text.replace(".", "")
    return text.replace(",", ".") if text.count(",") == 1 and "." not in text else text


def _short_exponents(side: Tokens) -> Tokens:
    """`2^391` as LaTeX sets it: 2^3 times 91."""
    made: list[Token] = []
    for token in side:
        if made and made[-1].text == "^" and token.kind == "number" and len(token.text) > 1:
            made += _tokens(token.text[0], "*", token.text[1:])
        else:
            made.append(token)
    return tuple(made)


def _in_binary(left: Tokens, right: Tokens) -> Iterator[tuple[Tokens, Tokens]]:
    """Both sides, or the one that is a plain number, as binary where all their digits are 0 and 1."""
    def binary(side: Tokens) -> Tokens | None:
        texts = [token.text for token in side if token.kind == "number"]
        if not all(set(text) <= {"0", "1"} for text in texts) or max(map(len, texts), default=0) < 3:
            return None
        return _numbers(side, lambda text: str(int(text, 2)))

    made = binary(left), binary(right)
    for sides in ((made[0], made[1]), (made[0], right if made[0] else None), (left if made[1] else None, made[1])):
        if sides[0] is not None and sides[1] is not None:
            yield sides


def _times(side: Tokens, hours: bool) -> Tokens:
    """`7.30` and `1130` as times in minutes, other whole numbers as minutes or hours."""
    made: list[Token] = []
    for token in side:
        time = _CLOCK.fullmatch(token.text) if token.kind == "number" and len(token.text) > 2 else None
        if time:
            made += _tokens("(", time[1].lstrip("0") or "0", "*", "60", "+", time[2].lstrip("0") or "0", ")")
        elif token.kind == "number" and hours:
            made += _tokens("(", token.text, "*", "60", ")")
        else:
            made.append(token)
    return tuple(made)


def _with_pi(side: Tokens, texts: Sequence[str]) -> Tokens:
    """π as the number a step takes for it, a factor of what stands beside it."""
    made: list[Token] = []
    for token in side:
        if token.text in (r"\pi", "π"):
            texts_here = ("(", *texts, ")")
            made += _tokens(*texts_here)
        else:
            made.append(token)
    return tuple(made)


def _cents(side: Tokens) -> Tokens:
    """`$5 + 50`: the amounts without a sign in hundredths."""
    made: list[Token] = []
    for index, token in enumerate(side):
        if token.kind == "number" and not (index and side[index - 1].kind == "currency"):
            made += _tokens("(", token.text, "/", "100", ")")
        else:
            made.append(token)
    return tuple(made)


def converted(equation: Equation, left: Fraction, right: Fraction) -> bool:
    """Whether the values differ by what a step may pass over: a change of units, a day's hours, a modulus, a rest."""
    small, large = sorted((abs(left), abs(right)))
    named = units(equation)
    factors = {100} if "percent" in equation.cues else set()
    factors |= _THOUSANDS if "thousands" in equation.cues else set()
    for family, of_family in _FACTORS:
        if any(word in family for name in named for word in name.replace("/", " ").split()):
            factors |= of_family
    if small and left * right > 0 and large / small in factors:
        return True
    difference = abs(left - right)
    if any(difference % modulus == 0 for modulus in equation.moduli):
        return True
    # "9 + 8 = 5 pm"
    wraps = "clock" in equation.cues and any(difference == day and not 0 < left <= day for day in (12, 24))
    if wraps or ("degree" in named and difference % 180 == 0):
        return True
    return _is_modular(equation, right) or _leaves_rest(equation, left - right) or _is_range(named, left, right)


def _is_range(named: set[str], left: Fraction, right: Fraction) -> bool:
    """`2010 - 2020 = 10 years`, `3-7 = 5 pages` with both ends counted, `9 - 5 = 8 hours`."""
    if "hour" in named and right in (12 - left, 24 + left):
        return True
    return bool(named) and left < 0 < right and right in (-left, 1 - left)


def _is_modular(equation: Equation, right: Fraction) -> bool:
    """`10^3 = -1`: a power that is less than its base is one of a modulus."""
    texts = [token.text for token in equation.left if token.text not in "{}()"]
    return (len(texts) == 3 and texts[1] in ("^", "**") and texts[0].isdecimal()
            and len([t for t in equation.right if t.text != "-"]) == 1 and (right < 0 or right < int(texts[0])))


def _leaves_rest(equation: Equation, rest: Fraction) -> bool:
    """`17 = 3 * 5` of which something is left over."""
    factors = [Fraction(token.text.replace(",", "")) for token in equation.right if token.kind == "number"]
    plain = {token.kind for token in equation.left} <= {"number", "unit", "currency"}
    product = all(token.text == "*" for token in equation.right if token.kind not in ("number", "unit", "currency"))
    return "rest" in equation.cues and plain and product and len(factors) > 1 and 0 < rest < max(factors)
