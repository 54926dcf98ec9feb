"""Exact value of an arithmetic expression, and whether two of them are equal. No `eval`.

Rational numbers are calculated here; a root, logarithm or π that leaves them becomes LaTeX for `symbolic.py`, with
every product and bracket written out. Bounded in time and memory for any input: numbers, exponents and nesting have
limits, past which nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from prm_core.maths import readings
from prm_core.maths.equations import Equation, Token

MAX_DIGITS = 60
MAX_BITS = 4096
MAX_DEPTH = 40
MAX_FACTORIAL = 150
MAX_CHOSEN = 300
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


class Undecided(Exception):
    """The expression has no value here: not arithmetic, ambiguous, irrational, or beyond the limits."""


@dataclass(frozen=True, slots=True)
class Irrational:
    """A value that no fraction states, as LaTeX."""

    latex: str


Value = Fraction | Irrational


def as_latex(value: Value) -> str:
    """A value as LaTeX that has one reading wherever it is put."""
    if isinstance(value, Irrational):
        return value.latex
    size = str(abs(value.numerator))
    text = size if value.denominator == 1 else rf"\frac{{{size}}}{{{value.denominator}}}"
    return f"(-{text})" if value < 0 else text


class _Reader:
    """Recursive descent over tokens. `ambiguous` where another reading exists, `calculates` where there is an operator.

    Precedence as in mathematics: `-3^2` is -9, `2^3^2` is 2^9. What stands beside a bracket, a root or a fraction is a
    factor, but a whole number before a proper fraction makes a mixed number.
    """

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = [token for token in tokens if token.kind not in ("unit", "currency")]
        self.position = 0
        self.depth = 0
        self.ambiguous = False
        self.calculates = False
        self.divides = False

    def value(self) -> Value:
        result = self._sum()
        if self.position < len(self.tokens):
            raise Undecided(f"{self.tokens[self.position].text!r} out of place")
        return result

    def _peek(self, offset: int = 0) -> Token | None:
        index = self.position + offset
        return self.tokens[index] if index < len(self.tokens) else None

    def _take(self, *texts: str) -> str | None:
        token = self._peek()
        if token is None or token.text not in texts:
            return None
        self.position += 1
        return token.text

    def _deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Undecided("nested too deeply")

    def _sum(self) -> Value:
        self._deeper()
        result = self._product()
        while operator := self._take("+", "-"):
            self.calculates = True
            addend = self._product()
            # "80 + 20%" may mean 96.
            self.ambiguous |= self.tokens[self.position - 1].kind == "percent"
            result = _calculate(operator, result, addend)
        self.depth -= 1
        return result

    def _product(self) -> Value:
        result = self._unary()
        divided = False
        while True:
            operator = self._take("*", "/", *readings.WHOLE_DIVISIONS)
            if operator is None and not self._is_factor():
                return result
            # 6/2(1+2) has two readings, and so has 60/3/4.
            self.ambiguous |= divided and operator != "*"
            self.calculates = True
            factor = self._unary()
            # "9/27 * 100% = 33.3": the sign may be a unit.
            self.ambiguous |= factor == 1 and self.tokens[self.position - 1].kind == "percent"
            divided |= operator not in (None, "*")
            self.divides |= divided
            self.ambiguous |= operator == "//"
            result = _calculate(operator or "*", result, factor)

    def _is_factor(self) -> bool:
        """Whether a factor follows without an operator: a bracket, a root, a number after one of these."""
        before, token = self.tokens[self.position - 1], self._peek()
        if token is None:
            return False
        if token.kind == "number":
            return before.text in (")", "}") or before.kind == "factorial"
        return token.kind in ("open", "fraction", "function")

    def _unary(self) -> Value:
        negative = False
        while self._take("-"):
            negative = not negative
        result = self._power()
        return _calculate("-", Fraction(0), result) if negative else result

    def _power(self) -> Value:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self.calculates = True
        self._deeper()
        exponent = self._unary()
        self.depth -= 1
        return _power(base, exponent)

    def _postfix(self) -> Value:
        result = self._atom()
        while (token := self._peek()) is not None and token.kind in ("percent", "factorial"):
            self.position += 1
            if token.kind == "percent":
                result = _calculate("/", result, Fraction(100))
                continue
            self.calculates = True
            if isinstance(result, Irrational) or result.denominator != 1 or not 0 <= result <= MAX_FACTORIAL:
                raise Undecided("not a factorial within the limits")
            result = Fraction(math.factorial(int(result)))
        return result

    def _atom(self) -> Value:
        token = self._peek()
        if token is None:
            raise Undecided("a side ends with an operator")
        self.position += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "open":
            return self._bracket(token)
        if token.kind == "fraction":
            self.calculates = self.divides = True
            operator = token.text if token.text in readings.WHOLE_DIVISIONS else "/"
            return _calculate(operator, self._argument(), self._argument())
        if token.kind == "function":
            return self._function(token.text)
        raise Undecided(f"{token.text!r} is not arithmetic")

    def _bracket(self, opened: Token) -> Value:
        result = self._sum()
        if not self._take(_BRACKETS[opened.text]):
            raise Undecided("a bracket that is not closed")
        return result

    def _argument(self) -> Value:
        """What a LaTeX command takes: a group, or a single digit."""
        token = self._peek()
        if token is None or not (token.text in ("{", "(") or (token.kind == "number" and len(token.text) == 1)):
            raise Undecided("a command without its argument")
        return self._atom()

    def _function(self, name: str) -> Value:
        if name in (r"\pi", "π"):
            return Irrational(r"\pi")
        self.calculates = True
        if name == r"\binom":
            return _choose(self._argument(), self._argument())
        if name == r"\sqrt":
            degree: Value = Fraction(2)
            opened = self._peek()
            if opened is not None and opened.text == "[":
                self.position += 1
                degree = self._bracket(opened)
            return _root(self._argument(), degree)
        opened = self._peek()
        # \ln 2\pi has two readings.
        operand = self._postfix()
        self.ambiguous |= opened is not None and opened.kind != "open" and self._is_factor()
        if operand == 1:
            return Fraction(0)
        return Irrational(rf"\ln({as_latex(operand)})")

    def _number(self, token: Token) -> Fraction:
        whole = _as_fraction(token)
        if whole.denominator != 1 or (part := self._proper_fraction()) is None:
            return whole
        # "2 1/2" is a mixed number, or two numbers that stand beside each other.
        self.ambiguous = self.calculates = True
        return whole + part

    def _proper_fraction(self) -> Fraction | None:
        r"""The proper fraction `1/2` or `\frac{1}{2}` that comes next, taken; None where none does."""
        for pattern in (("number", "/", "number"), ("fraction", "{", "number", "}", "{", "number", "}")):
            tokens = self.tokens[self.position : self.position + len(pattern)]
            if tuple(t.kind if t.kind in ("number", "fraction") else t.text for t in tokens) == pattern:
                above, below = (_as_fraction(token) for token in tokens if token.kind == "number")
                if 0 < above < below and above.denominator == below.denominator == 1:
                    self.position += len(pattern)
                    return above / below
        return None


def _as_fraction(token: Token) -> Fraction:
    if len(token.text) > MAX_DIGITS:
        raise Undecided("a number too long")
    if token.text[0] == "0" and token.text[1:2].isdigit():
        raise Undecided("a time or a number of another base")
    return Fraction(token.text.replace(",", ""))


def _calculate(operator: str, left: Value, right: Value) -> Value:
    if operator not in ("+", "-", "*") and right == 0:
        raise Undecided("division by zero")
    if isinstance(left, Irrational) or isinstance(right, Irrational):
        texts = as_latex(left), as_latex(right)
        if operator == "/":
            return Irrational(r"\frac{{{}}}{{{}}}".format(*texts))
        if operator in readings.WHOLE_DIVISIONS:
            raise Undecided("whole division of irrational numbers")
        return Irrational("({} {} {})".format(texts[0], r"\cdot" if operator == "*" else operator, texts[1]))
    match operator:
        case "+":
            return _bounded(left + right)
        case "-":
            return _bounded(left - right)
        case "*":
            return _bounded(left * right)
        case "/":
            return _bounded(left / right)
    return Fraction(readings.WHOLE_DIVISIONS[operator](left, right))


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Irrational) or isinstance(base, Irrational):
        if isinstance(base, Fraction) and base <= 0:
            raise Undecided("not a power within the limits")
        return Irrational(f"({as_latex(base)})^{{{as_latex(exponent)}}}")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > MAX_BITS or (not base and exponent <= 0):
        raise Undecided("not a power within the limits")
    if exponent.denominator == 1:
        return base ** int(exponent)
    if base < 0:
        raise Undecided("a fractional power of a negative number")
    return _root(base ** exponent.numerator, Fraction(exponent.denominator))


def _root(radicand: Value, degree: Value) -> Value:
    if isinstance(degree, Irrational) or degree.denominator != 1 or not 2 <= degree <= MAX_DIGITS:
        raise Undecided("not a root within the limits")
    if isinstance(radicand, Fraction):
        if radicand < 0 and degree % 2:
            return _calculate("-", Fraction(0), _root(-radicand, degree))
        above, below = (_whole_root(abs(part), int(degree)) for part in (radicand.numerator, radicand.denominator))
        if radicand >= 0 and above is not None and below is not None:
            return Fraction(above, below)
    index = "" if degree == 2 else f"[{degree}]"
    return Irrational(rf"\sqrt{index}{{{as_latex(radicand)}}}")


def _whole_root(number: int, degree: int) -> int | None:
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if middle**degree < number else (low, middle)
    return low if low**degree == number else None


def _choose(of: Value, chosen: Value) -> Fraction:
    if not all(isinstance(n, Fraction) and n.denominator == 1 and 0 <= n <= MAX_CHOSEN for n in (of, chosen)):
        raise Undecided("not a binomial coefficient within the limits")
    return Fraction(math.comb(int(of), int(chosen)))  # type: ignore[arg-type]


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise Undecided("a number too long")
    return value


def value_of(tokens: Sequence[Token]) -> Value:
    """Value of an expression. Raises Undecided where it has none."""
    return _Reader(tokens).value()


def evaluate(tokens: Sequence[Token]) -> Fraction:
    """Value of a rational expression. Raises Undecided where it has none."""
    value = value_of(tokens)
    if isinstance(value, Irrational):
        raise Undecided("irrational")
    return value


@lru_cache(maxsize=65536)
def holds(equation: Equation) -> bool | None:
    """Whether the two sides are equal, None where that cannot be said exactly.

    Not said: equality of two plain numbers (a conversion of units), and a difference that may come from another
    reading (`readings.py`), from units that differ, or from rounding that the step does not state (`10/3 = 3.33`).

    Raises Undecided when a side is no rational arithmetic.
    """
    left, right = evaluate(equation.left), evaluate(equation.right)
    percent = any(token.kind == "percent" for token in (*equation.left, *equation.right))
    if not percent and not _calculates(equation):
        return None
    # "30/120 * 100 = 25%": the sign as a unit.
    as_unit = readings.last_kind(equation.right) == "percent" and left == right * 100
    if left == right or as_unit or _same_values(*readings.without_exclamation(equation)):
        return True
    allowed = slack(equation)
    if allowed is None or abs(left - right) < allowed or readings.converted(equation, left, right):
        return None
    if any(_same_values(*sides) for sides in readings.others(equation)):
        return None
    # "7π = 7 * 3.14 = 21.99": rounded from the beginning of the chain, not from what stands before.
    rounded = bool(equation.head) and _has_decimals(equation.left)
    return None if rounded and not _denies(Equation(equation.head, equation.right, doubtful=False)) else False


def _calculates(equation: Equation) -> bool:
    readers = _Reader(equation.left), _Reader(equation.right)
    for reader in readers:
        reader.value()
    return any(reader.calculates for reader in readers)


def _denies(equation: Equation) -> bool:
    try:
        return holds(equation) is False
    except Undecided:
        return False


def _same_values(left: Sequence[Token], right: Sequence[Token]) -> bool:
    try:
        return evaluate(left) == evaluate(right)
    except Undecided:
        return False


def slack(equation: Equation) -> Fraction | None:
    """How far the values may lie apart (exclusive) before the equation is false; None where it is never called that.

    That is 0, or what rounding explains. Raises Undecided when a side has no value.
    """
    readers = _Reader(equation.left), _Reader(equation.right)
    values = [reader.value() for reader in readers]
    if (equation.doubtful or len(readings.units(equation)) > 1 or any(reader.ambiguous for reader in readers)
            or not any(reader.calculates for reader in readers)):
        return None
    decimals = any("." in token.text or token.text == "%" for token in (*equation.left, *equation.right))
    counts = "whole" in equation.cues or bool(readings.units(equation))
    widest = _spread(readers[1].tokens, values[1]) if not _has_decimals(equation.left) else Fraction(0)
    for index, reader in enumerate(readers):
        other = 1 - index
        if (place := _last_place(reader.tokens)) is None:
            continue
        if decimals:
            widest = max(widest, place)
        elif abs(values[index]) >= (10 if isinstance(values[other], Irrational) and not counts else 2) and (
                readers[other].divides or isinstance(values[other], Irrational)):
            widest = max(widest, place / 2)
    return widest


def _has_decimals(tokens: Sequence[Token]) -> bool:
    return any("." in token.text for token in tokens)


def _last_place(tokens: Sequence[Token]) -> Fraction | None:
    r"""The last place of a plain number (`3.33`: 1/100; `33%`: 1/100; `6.2 * 10^{23}`: 10^22); None for any other."""
    numbers = [token for token in tokens if token.text != "-"]
    if not numbers or numbers[0].kind != "number":
        return None
    place = Fraction(1, 10 ** len(numbers[0].text.partition(".")[2]))
    if len(numbers) == 1:
        return place
    if len(numbers) == 2 and numbers[1].kind == "percent":
        return place / 100
    if [token.text for token in numbers[1:4]] == ["*", "10", "^"] and len(numbers) <= len("d*10^{-d}"):
        return place * evaluate(numbers[2:])
    return None


def _spread(tokens: Sequence[Token], value: Value) -> Fraction:
    """How far the rounding of its decimals may move a calculation: `10/3 + 1 = 3.33 + 1`."""
    total = Fraction(0)
    for index, token in enumerate(tokens):
        place = len(token.text.partition(".")[2])
        if place and isinstance(value, Fraction):
            above = [Token("open", "(", True), token, Token("operator", "+", True),
                     Token("number", f"0.{1:0{place}d}", True), Token("close", ")", True)]
            total += abs(evaluate([*tokens[:index], *above, *tokens[index + 1 :]]) - value)
    return total
