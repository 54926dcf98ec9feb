"""Numbers as answers need them: exact fractions while they are rational, otherwise eighty digits, complex ones too.

Of the digits thirty are kept in a key, so that rounding never decides. Time and memory are bounded: what grows beyond
the limits is refused.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_BITS = 20_000
MAX_FACTORIAL = 1000
# Beyond, a power or an exponential is refused: its exponent alone would fill the memory.
MAX_LOGARITHM = 1e5
DIGITS = 80
KEPT_DIGITS = 30

Key = tuple[Hashable, ...]


class Unreadable(Exception):
    """The text is no expression, has no value (1/0), or exceeds the limits."""


@lru_cache(maxsize=1)
def context() -> Any:
    """The arithmetic with `DIGITS` digits; guarded by `LOCK`, since it changes its own precision while it works."""
    from mpmath import MPContext

    context = MPContext()
    context.dps = DIGITS
    return context


LOCK = threading.Lock()


def bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if bits(value) > MAX_BITS:
        raise Unreadable("a number too long")
    return value


def _number(value: Any) -> Any:
    """A fraction as a floating-point number of many digits; others as they are."""
    return context().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def add(left: Any, right: Any) -> Any:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _bounded(left + right)
    left, right = _number(left), _number(right)
    total = left + right
    # What cancels leaves rounding behind, which is no value.
    noise = max(abs(left), abs(right)) * context().mpf(10) ** (KEPT_DIGITS - DIGITS)
    return Fraction(0) if abs(total) < noise else total


def multiply(left: Any, right: Any) -> Any:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _bounded(left * right)
    return _number(left) * _number(right)


def divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise Unreadable("division by zero")
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return _bounded(left / right)
    return _number(left) / _number(right)


def power(base: Any, exponent: Any) -> Any:
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= MAX_BITS:
        if not isinstance(base, Fraction):
            _check_size(abs(exponent) * max(1, abs(float(context().log(abs(base))))))
            return base ** int(exponent)
        if base == 0 and exponent <= 0:
            raise Unreadable("no power of zero")
        if abs(exponent) * bits(base) <= MAX_BITS or abs(base) in (0, 1):
            return base ** int(exponent)
    if base == 0:
        raise Unreadable("no power of zero")
    if isinstance(exponent, Fraction) and 1 < exponent.denominator < 1000 and _is_real(base) and (
            base > 0 or exponent.denominator % 2):
        return power(root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator))
    base, exponent = _number(base), _number(exponent)
    _check_size(abs(exponent) * (abs(context().log(abs(base))) + 4))
    return context().power(base, exponent)


def _is_real(value: Any) -> bool:
    return isinstance(value, Fraction) or context().im(value) == 0


def _check_size(logarithm: Any) -> None:
    if not logarithm < MAX_LOGARITHM:
        raise Unreadable("a number too large")


def root(value: Any, index: Any) -> Any:
    """The real root where there is one (`\\sqrt[3]{-8}` is -2), exact where it is rational."""
    if not isinstance(index, Fraction) or index.denominator != 1 or not 0 < index < 1000:
        return power(value, divide(Fraction(1), index))
    degree = int(index)
    if not _is_real(value):
        return context().root(value, degree)
    number = real(value)
    if isinstance(number, Fraction):
        above, below = (_whole_root(abs(part), degree) for part in (number.numerator, number.denominator))
        if above is not None and below is not None and (number >= 0 or degree % 2):
            return Fraction(above, below) * (-1 if number < 0 else 1)
    if number < 0 and degree % 2:
        return -context().root(-_number(number), degree)
    return context().root(_number(number), degree)


def _whole_root(value: int, degree: int) -> int | None:
    root = math.isqrt(value) if degree == 2 else round(value ** (1 / degree)) if value.bit_length() < 1000 else 0
    return root if root**degree == value else None


def factorial(value: Any) -> Any:
    if isinstance(value, Fraction) and value.denominator == 1:
        if not 0 <= value <= MAX_FACTORIAL:
            raise Unreadable("not a factorial within the limits")
        return _bounded(Fraction(math.factorial(int(value))))
    value = _number(value)
    _check_size(abs(value) * 10)
    return context().gamma(value + 1)


def percent(value: Any) -> Any:
    return divide(value, Fraction(100))


def degrees(value: Any) -> Any:
    return _number(value) * context().pi / 180


def absolute(value: Any) -> Any:
    return abs(value)


def real(value: Any) -> Any:
    if not _is_real(value):
        raise Unreadable("not a real number")
    return value if isinstance(value, Fraction) else context().re(value)


def floor(value: Any) -> Any:
    return Fraction(int(context().floor(_number(real(value)))))


def ceil(value: Any) -> Any:
    return Fraction(int(context().ceil(_number(real(value)))))


def binomial(n: Any, k: Any) -> Any:
    if all(isinstance(x, Fraction) and x.denominator == 1 for x in (n, k)):
        if not 0 <= k <= MAX_FACTORIAL or not 0 <= n <= MAX_BITS:
            raise Unreadable("not a binomial coefficient within the limits")
        return _bounded(Fraction(math.comb(int(n), int(k))))
    n, k = _number(n), _number(k)
    return divide(factorial(n), multiply(factorial(k), factorial(n - k)))


def constant(name: str) -> Any:
    return {"pi": +context().pi, "e": +context().e, "i": context().mpc(0, 1)}[name]


def apply(name: str, value: Any) -> Any:
    value = _number(value)
    if not abs(value) < MAX_LOGARITHM:
        if name in ("ln", "log", "lg"):
            return _logarithm(name, value)
        raise Unreadable("a number too large")
    if name in ("ln", "log", "lg"):
        return _logarithm(name, value)
    if name.startswith("arc"):
        return getattr(context(), f"a{name[3:]}")(value)
    if (name in ("tan", "sec") and abs(context().cos(value)) < context().mpf(10) ** -KEPT_DIGITS) or (
            name in ("cot", "csc") and abs(context().sin(value)) < context().mpf(10) ** -KEPT_DIGITS):
        raise Unreadable("division by zero")
    result = getattr(context(), name)(value)
    # cos(90°) is 0, and what its rounding leaves is not.
    return Fraction(0) if abs(result) < context().mpf(10) ** (KEPT_DIGITS - DIGITS) and name != "exp" else result


def _logarithm(name: str, value: Any) -> Any:
    if value == 0:
        raise Unreadable("no logarithm of zero")
    natural = context().log(value)
    return natural if name == "ln" else natural / context().log(10)


def key_of(value: Any) -> Key:
    """A constant as a key: exact where it is rational."""
    if isinstance(value, Fraction):
        return ("number", value.numerator, value.denominator)
    real, imaginary = context().re(value), context().im(value)
    size = max(abs(real), abs(imaginary))
    if size == 0:
        return ("number", 0, 1)
    if not context().isfinite(size):
        raise Unreadable("no number")
    parts = []
    for part in (real, imaginary):
        if abs(part) < size * context().mpf(10) ** (KEPT_DIGITS - DIGITS):
            parts.append("0")
            continue
        parts.append(context().nstr(part, KEPT_DIGITS, min_fixed=1, max_fixed=0, strip_zeros=True))
    if parts[1] == "0" and size < 10**12:
        near = _nearest_fraction(real)
        if near is not None:
            return ("number", near.numerator, near.denominator)
    return ("~", *parts)


def _nearest_fraction(value: Any) -> Fraction | None:
    """The fraction with a small denominator that a result is, but for rounding: (√2)² is 2."""
    scaled = int(context().nint(value * context().mpf(10) ** 60))
    near = Fraction(scaled, 10**60).limit_denominator(10**9)
    return near if abs(_number(near) - value) <= abs(value) * context().mpf(10) ** (KEPT_DIGITS + 15 - DIGITS) else None
