"""The embedded domain: word problems of 2-6 arithmetic steps in natural language, made from a seed.

Generating problems and parsing the step language live here; judging a step lives in `oracle.py`, which labelling and
training may not import.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from prm_core.domains.base import DOMAINS, Domain
from prm_core.maths.answers import answer_classes, read_stated_answer, same_value
from prm_core.types import Problem

NAME = "arithmetic"


@dataclass(frozen=True, slots=True)
class Level:
    """A level of difficulty: what its problems are drawn from.

    Attributes:
        max_value: of the running quantity, at every step.
        max_start: of the quantity a story begins with.
        max_operand: of a sum's or difference's operand, and of a distractor's number.
        max_factor: of a product's or quotient's operand.
        lengths: numbers of events, equally likely.
        names: of people.
        full_names: whether people have a second name, which all but the events tell.
        things: that are counted.
        phrases: operation → how an event is told. Each names its number: a step restates the event it accounts for.
        weights: operation → how often it is drawn.
        fact_share: of the events, those whose direction the story does not tell: who of two people owes the other is a
            fact, the same in every story, that has to be remembered.
        question: what is asked.
        distractors: sentences beside the point.
        distractor_share: of the problems that have one.
    """

    max_value: int
    max_start: int
    max_operand: int
    max_factor: int
    lengths: tuple[int, ...]
    names: tuple[str, ...]
    full_names: bool
    things: tuple[str, ...]
    phrases: Mapping[str, tuple[str, ...]]
    weights: Mapping[str, float]
    fact_share: float
    question: str
    distractors: tuple[str, ...]
    distractor_share: float


STANDARD = Level(
    max_value=30, max_start=20, max_operand=9, max_factor=3, lengths=(2, 3, 4, 5, 6),
    names=("Mia", "Ben", "Ana", "Tom", "Zoe", "Leo", "Eva", "Max", "Ida", "Sam"),
    full_names=False,
    things=("apples", "coins", "shells", "cards", "stamps", "beads", "books", "pens"),
    phrases={
        "+": ("{name} buys {n} more", "{name} finds {n} more", "{name} wins {n}", "{name} gets {n} from {friend}"),
        "-": ("{name} loses {n}", "{name} sells {n}", "{name} gives away {n}", "{name} gives {friend} {n}"),
        "*": ("The pile grows {n} times", "{name} makes it {n} times as many"),
        "/": ("{name} keeps one of {n} equal parts", "{name} shares them equally among {n}"),
    },
    weights={"+": 0.36, "-": 0.36, "*": 0.14, "/": 0.14},
    fact_share=0.0,
    question="How many {thing} does {name} have?",
    distractors=("{friend} has {n} {other}", "{name} is {n} years old"),
    distractor_share=0.5,
)
# No short stories, and facts about people of which a small model remembers some: it does not know every answer.
HARD = replace(
    STANDARD, lengths=(3, 4, 5, 6),
    names=(*STANDARD.names, "Amy", "Dan", "Kim", "Lea", "Nia", "Rob"),
    phrases={
        "+": (*STANDARD.phrases["+"], "{friend} brings {name} {n}"),
        "-": (*STANDARD.phrases["-"], "{friend} takes {n} of them"),
        "*": STANDARD.phrases["*"],
        "/": STANDARD.phrases["/"],
    },
    fact_share=0.15,
)
LEVELS = {"standard": STANDARD, "hard": HARD}
# Words of the levels' own texts, put together as in none of them: a small policy's tokenizer spells new ones in bytes.
NEW_PHRASES = {"+": "{name} wins {n} more", "-": "{name} loses {n} of them", "*": "The pile is {n} times as many",
               "/": "{name} gets one of {n} equal parts"}
NEW_QUESTION = "How many {thing} has {name}?"
NEW_DISTRACTORS = ("{friend} has {n} times as many {other}", "{friend} is {n} times as old")
FACT_PHRASE = "{name} settles {n} with {friend}"
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


def shifts(level: Level) -> tuple[Level, ...]:
    """The level with names, with phrases and with lengths that none of its problems have.

    A policy that has learned a level's phrases by heart writes no other, so that only some events of a story are told
    in new ones.
    """
    phrases = {operation: (*known, NEW_PHRASES[operation]) for operation, known in level.phrases.items()}
    shortest, longest = min(level.lengths), max(level.lengths)
    return (
        replace(level, full_names=True),
        replace(level, phrases=phrases, question=NEW_QUESTION, distractors=NEW_DISTRACTORS),
        replace(level, lengths=(shortest - 1, longest + 1, longest + 2)),
    )


def owes(name: str, other: str) -> bool:
    """Whether the first of two people pays when they settle; of two, always the same one."""
    first, second = sorted((name, other))
    return (zlib.crc32(f"{first}/{second}".encode()) % 2 == 0) == (name == first)


def _draw_event(rng: random.Random, level: Level, value: int, name: str, friend: str) -> Event | None:
    known = not (level.fact_share and rng.random() < level.fact_share)
    if known:
        operation = rng.choices(list(level.weights), list(level.weights.values()))[0]
    else:
        operation = "-" if owes(name, friend) else "+"
    operand = rng.randint(2, level.max_operand if operation in "+-" else level.max_factor)
    result = calculate(value, operation, operand)
    if result is None or not 1 <= result <= level.max_value:
        return None
    phrase = rng.choice(level.phrases[operation]) if known else FACT_PHRASE
    return Event(phrase.format(name=name, friend=friend, n=operand), operation, operand)


def draw_problem(rng: random.Random, problem_id: str, level: Level = STANDARD) -> Problem:
    """One problem with its worked solution in `meta["solution"]` and its story in `meta["start"]`, `meta["events"]`."""
    name, friend = rng.sample(level.names, 2)
    thing, other = rng.sample(level.things, 2)
    start = value = rng.randint(2, level.max_start)
    events: list[Event] = []
    solution: list[str] = []
    count = rng.choice(level.lengths)
    while len(events) < count:
        event = _draw_event(rng, level, value, name, friend)
        if event is not None:
            step, value = write_step(event, value)
            events.append(event)
            solution.append(step)
    if level.full_names:
        seconds = rng.sample([one for one in level.names if one not in (name, friend)], 2)
        name, friend = (f"{first} {second}" for first, second in zip((name, friend), seconds, strict=True))
    sentences = [f"{name} has {start} {thing}", *(event.phrase for event in events)]
    if rng.random() < level.distractor_share:
        text = rng.choice(level.distractors)
        text = text.format(name=name, friend=friend, n=rng.randint(2, level.max_operand), other=other)
        sentences.insert(rng.randint(1, len(sentences)), text)
    return Problem(
        id=problem_id,
        domain=NAME,
        prompt=". ".join([*sentences, level.question.format(name=name, thing=thing)]),
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


def make_problems(
    split: str, count: int, seed: int, exclude: Collection[str] = (), levels: Sequence[Level] = (STANDARD,)
) -> list[Problem]:
    """`count` distinct problems of a split, of each level in turn, none with a prompt in `exclude`.

    They are the same for the same arguments.
    """
    rng = random.Random(f"{NAME}/{split}/{seed}")
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = draw_problem(rng, f"{split}-{len(problems):06d}", levels[len(problems) % len(levels)])
        if problem.prompt not in exclude:
            problems.setdefault(problem.prompt, problem)
    return list(problems.values())


DOMAINS.register(NAME)(Domain(
    {name: partial(make_problems, levels=(level,)) for name, level in LEVELS.items()},
    {name: partial(make_problems, levels=shifts(level)) for name, level in LEVELS.items()},
    read_stated_answer, same_value, answer_classes,
))
