"""The embedded domain: word problems of 2-6 arithmetic steps in natural language, made from a seed.

Generating problems and parsing the step language live here; judging a step lives in `oracle.py`, which labelling and
training may not import.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from prm_core.domains.base import DOMAINS, Domain
from prm_core.maths.answers import answer_classes, read_stated_answer, same_value
from prm_core.types import Problem

NAME = "arithmetic"
MAX_VALUE = 30
MAX_OPERAND = 9
MAX_START = 20
STEPS = (2, 6)
DISTRACTOR_SHARE = 0.5
NAMES = ("Mia", "Ben", "Ana", "Tom", "Zoe", "Leo", "Eva", "Max", "Ida", "Sam")
THINGS = ("apples", "coins", "shells", "cards", "stamps", "beads", "books", "pens")
# Each phrase names its number: a step restates the event it accounts for.
PHRASES: dict[str, tuple[str, ...]] = {
    "+": ("{name} buys {n} more", "{name} finds {n} more", "{name} wins {n}", "{name} gets {n} from {friend}"),
    "-": ("{name} loses {n}", "{name} sells {n}", "{name} gives away {n}", "{name} gives {friend} {n}"),
    "*": ("The pile grows {n} times", "{name} makes it {n} times as many"),
    "/": ("{name} keeps one of {n} equal parts", "{name} shares them equally among {n}"),
}
DISTRACTORS = ("{friend} has {n} {other}", "{name} is {n} years old")
OPERATION_WEIGHTS = {"+": 0.36, "-": 0.36, "*": 0.14, "/": 0.14}
# "Mia buys 5 more: 7 + 5 = 12."
STEP_PATTERN = re.compile(r"(?P<phrase>[^:]+): (?P<left>\d+) (?P<operation>[-+*/]) (?P<right>\d+) = (?P<result>\d+)\.")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens to the running quantity, as it stands in the question."""

    phrase: str
    operation: str
    operand: int


@dataclass(frozen=True, slots=True)
class ParsedStep:
    """An arithmetic step taken apart: `phrase: left operation right = result.`"""

    phrase: str
    left: int
    operation: str
    right: int
    result: int


def parse_step(text: str) -> ParsedStep | None:
    """The step's parts, None when it is not of the step language (the answer sentence is not)."""
    match = STEP_PATTERN.fullmatch(text.strip())
    if match is None:
        return None
    return ParsedStep(match["phrase"], int(match["left"]), match["operation"], int(match["right"]),
                      int(match["result"]))


def calculate(left: int, operation: str, right: int) -> int | None:
    """`left operation right` in whole numbers, None where that is not whole or not defined."""
    match operation:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/" if right and left % right == 0:
            return left // right
    return None


def write_step(event: Event, value: int) -> tuple[str, int]:
    """The worked step that accounts for `event` at the running `value`, and the new value."""
    result = calculate(value, event.operation, event.operand)
    if result is None:
        raise ValueError(f"{value} {event.operation} {event.operand} is not a whole number")
    return f"{event.phrase}: {value} {event.operation} {event.operand} = {result}.", result


def write_answer(value: int) -> str:
    """The final step."""
    return f"The answer is {value}."


def _draw_event(rng: random.Random, value: int, name: str, friend: str) -> Event | None:
    operation = rng.choices(list(OPERATION_WEIGHTS), list(OPERATION_WEIGHTS.values()))[0]
    operand = rng.randint(2, MAX_OPERAND) if operation in "+-" else rng.randint(2, 3)
    result = calculate(value, operation, operand)
    if result is None or not 1 <= result <= MAX_VALUE:
        return None
    phrase = rng.choice(PHRASES[operation]).format(name=name, friend=friend, n=operand)
    return Event(phrase, operation, operand)


def draw_problem(rng: random.Random, problem_id: str) -> Problem:
    """One problem with its worked solution in `meta["solution"]` and its story in `meta["start"]`, `meta["events"]`."""
    name, friend = rng.sample(NAMES, 2)
    thing, other = rng.sample(THINGS, 2)
    start = value = rng.randint(2, MAX_START)
    events: list[Event] = []
    solution: list[str] = []
    count = rng.randint(*STEPS)
    while len(events) < count:
        event = _draw_event(rng, value, name, friend)
        if event is not None:
            step, value = write_step(event, value)
            events.append(event)
            solution.append(step)
    sentences = [f"{name} has {start} {thing}", *(event.phrase for event in events)]
    if rng.random() < DISTRACTOR_SHARE:
        text = rng.choice(DISTRACTORS).format(name=name, friend=friend, n=rng.randint(2, MAX_OPERAND), other=other)
        sentences.insert(rng.randint(1, len(sentences)), text)
    return Problem(
        id=problem_id,
        domain=NAME,
        prompt=". ".join(sentences) + f". How many {thing} does {name} have?",
        answer=str(value),
        meta={
            "start": start,
            "events": [[event.phrase, event.operation, event.operand] for event in events],
            "solution": [*solution, write_answer(value)],
        },
    )


def events_of(problem: Problem) -> Iterator[Event]:
    """The events of an embedded problem, in order."""
    return (Event(*event) for event in problem.meta["events"])


def make_problems(split: str, count: int, seed: int, exclude: Collection[str] = ()) -> list[Problem]:
    """`count` distinct problems of a split, none with a prompt in `exclude`; the same for the same arguments."""
    rng = random.Random(f"{NAME}/{split}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(rng, f"{split}-{len(problems):06d}")
        if problem.prompt not in exclude:
            problems.setdefault(problem.prompt, problem)
    return list(problems.values())


DOMAINS.register(NAME)(Domain(make_problems, read_stated_answer, same_value, answer_classes))
