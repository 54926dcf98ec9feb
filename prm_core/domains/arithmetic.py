"""The embedded domain: word problems of 2-6 arithmetic steps, generated from a seed with worked solutions.

Generation and parsing of the step language live here; judging a step lives in `oracle.py`, which labelling and
training may not import.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

NAMES = ("Mia", "Ben", "Ana", "Tom", "Zoe", "Leo", "Eva", "Max")
THINGS = ("apples", "coins", "shells", "cards", "stamps", "beads")
MAX_VALUE = 50
MAX_OPERAND = 9


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens to the running quantity: `value <operation> operand`."""

    operation: str
    operand: int
    phrase: str

    def apply(self, value: int) -> int | None:
        """The new value, None where it would leave the range of the domain or not be whole."""
        match self.operation:
            case "+":
                result = value + self.operand
            case "-":
                result = value - self.operand
            case "*":
                result = value * self.operand
            case "/":
                if value % self.operand:
                    return None
                result = value // self.operand
            case _:
                raise ValueError(f"unknown operation {self.operation!r}; the domain has + - * /")
        return result if 1 <= result <= MAX_VALUE else None


# Each phrase names its number, so that a step can restate the event it accounts for.
PHRASES: dict[str, tuple[str, ...]] = {
    "+": ("{name} buys {n} more", "{name} finds {n} more", "{friend} gives {name} {n}"),
    "-": ("{name} loses {n}", "{name} sells {n}", "{name} gives {friend} {n}"),
    "*": ("the pile grows {n} times", "{name} makes it {n} times as many"),
    "/": ("{name} keeps one of {n} equal parts",),
}
DISTRACTORS = ("{friend} has {n} {thing}", "{friend} is {n} years old")
OPERATIONS = ("+", "-", "*", "/")
WEIGHTS = (0.36, 0.36, 0.14, 0.14)
