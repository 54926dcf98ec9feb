"""Edits of a chain of steps, by name: four that damage it, three that do not. Pure functions of the texts and a seed.

Nothing here knows whether a chain was right; `adversarial.py` decides which edits have a known effect.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from prm_core.registry import Registry
from prm_core.types import Step

FILLERS = (
    "This is clearly correct.",
    "So far everything is right.",
    "This can be checked easily and it holds.",
    "There is no doubt about this.",
    "I am completely sure of this result.",
    "As every expert would agree, this is right.",
    "We have verified this carefully.",
    "The reasoning up to here is flawless.",
)
RESTATEMENTS = ("In other words: ", "That is to say: ", "To say it again: ", "Once more: ")
# True whatever the question is, and of no use for any.
FACTS = (
    "A week has 7 days.",
    "A triangle has 3 sides.",
    "An hour has 60 minutes.",
    "A spider has 8 legs.",
    "Every even number can be divided by 2.",
    "A square has 4 corners.",
)
SUMS = ("Note that {a} + {b} = {c}.", "As is well known, {a} + {b} = {c}.")
PADS = 2

_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w])")
_SHIFTS = (-3, -2, -1, 1, 2, 3, 10)
_OPERAND = r"[$({\[\\\d]"
# White space on both sides or on neither: "is -5" has a sign, no operator.
_OPERATOR = re.compile(
    rf"(?<=[\w)}}\]$%])(?:(?P<tight>[-+*/×÷−·])(?={_OPERAND})|\s+(?P<wide>[-+*/×÷−·])(?=\s+{_OPERAND})"  # noqa: RUF001
    rf"|\s*(?P<latex>\\times|\\div|\\cdot)(?=\s*{_OPERAND}))")
_FLIPPED = {"+": "-", "-": "+", "−": "+", "*": "/", "/": "*", "×": "÷", "÷": "×", "·": "÷",  # noqa: RUF001
            r"\times": r"\div", r"\div": r"\times", r"\cdot": r"\div"}
# (pattern, replacement): the phrases of the embedded domain, then operators as words.
_WORDS = tuple((re.compile(pattern), replacement) for pattern, replacement in (
    (r"\b(?:buys|finds) (\d+) more\b", r"loses \1"),
    (r"\bwins (\d+)\b", r"loses \1"),
    (r"\bgets (\d+) from (\w+)\b", r"gives \2 \1"),
    (r"\b(?:loses|sells|gives away) (\d+)\b", r"finds \1 more"),
    (r"\bgives ([A-Z]\w+) (\d+)\b", r"gets \2 from \1"),
    (r"\bbrings [A-Z]\w+ (\d+)\b", r"takes \1 of them"),
    (r"\btakes (\d+) of them\b", r"finds \1 more"),
    (r"\bThe pile (?:grows (\d+) times|is (\d+) times as many)\b", r"The pile is shared equally among \1\2"),
    (r"\bmakes it (\d+) times as many\b", r"keeps one of \1 equal parts"),
    (r"\b(?:keeps|gets) one of (\d+) equal parts\b", r"makes it \1 times as many"),
    (r"\bshares them equally among (\d+)\b", r"makes it \1 times as many"),
    (r"\bplus\b", "minus"), (r"\bminus\b", "plus"),
    (r"(?<!\\)\btimes\b(?= \d)", "divided by"),
    (r"\bmultiplied by\b", "divided by"), (r"\bdivided by\b", "multiplied by"),
))


@dataclass(frozen=True, slots=True)
class Edit:
    """A perturbed chain.

    Attributes:
        steps: its steps.
        origin: for each of them the index of the step it was in the chain as given, None for an inserted one.
        at: index in `steps` of the step that a damaging edit is meant to make wrong, None for a harmless edit.
    """

    steps: tuple[Step, ...]
    origin: tuple[int | None, ...]
    at: int | None = None


Propose = Callable[[Sequence[Step], random.Random], Iterator[Edit]]


@dataclass(frozen=True, slots=True)
class Perturbation:
    """A kind of edit.

    Attributes:
        damaging: whether it is meant to make a sound chain unsound; the other kind leaves every step as it was and
            inserts steps that claim nothing new (they are right by construction).
        propose: (steps, generator of random numbers) → edits in random order, none where it cannot be applied; the
            first one whose effect is known is taken.
    """

    damaging: bool
    propose: Propose


PERTURBATIONS: Registry[Perturbation] = Registry("perturbation")


def _register(name: str, *, damaging: bool) -> Callable[[Propose], Propose]:
    def add(propose: Propose) -> Propose:
        PERTURBATIONS.register(name)(Perturbation(damaging, propose))
        return propose

    return add


def _shuffled(count: int, rng: random.Random) -> list[int]:
    return rng.sample(range(count), count)


def _rewritten(steps: Sequence[Step], index: int, text: str) -> Edit:
    changed = (*steps[:index], replace(steps[index], text=text), *steps[index + 1 :])
    return Edit(changed, tuple(range(len(steps))), index)


def _inserted(steps: Sequence[Step], texts: Sequence[tuple[int, str]]) -> Edit:
    """Each text before the step of that index, said by the agent of the step before it."""
    result: list[tuple[Step, int | None]] = []
    for index, step in enumerate(steps):
        agent = steps[max(index - 1, 0)].agent
        result += [(Step(text, agent=agent), None) for position, text in texts if position == index]
        result.append((step, index))
    return Edit(tuple(step for step, _ in result), tuple(origin for _, origin in result))


# ------------------------------------------------------------------------------------------------- damaging edits


def shift_number(number: str, shift: int) -> str | None:
    """`number` moved by `shift` units of its last digit, written the same way; None where that is below zero.

    `1,250` and 10 give `1,260`; `2.50` and -1 give `2.49`.
    """
    digits = number.replace(",", "").replace(".", "")
    value = int(digits) + shift
    if value < 0:
        return None
    decimals = len(number.partition(".")[2])
    whole, rest = divmod(value, 10**decimals)
    text = f"{whole:,}" if "," in number else str(whole)
    return f"{text}.{rest:0{decimals}d}" if decimals else text


@_register("number", damaging=True)
def perturb_number(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """One number of one step changed a little: by 1, 2, 3 or 10 of its last digit."""
    for index in _shuffled(len(steps), rng):
        text = steps[index].text
        found = list(_NUMBER.finditer(text))
        for which in _shuffled(len(found), rng):
            start, end = found[which].span()
            shifted = [new for new in (shift_number(found[which].group(), by) for by in _SHIFTS) if new is not None]
            yield _rewritten(steps, index, text[:start] + rng.choice(shifted) + text[end:])


@_register("operator", damaging=True)
def flip_operator(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """One operator turned into its inverse: a symbol, a LaTeX command, a word, or a phrase of the embedded domain."""
    for index in _shuffled(len(steps), rng):
        text = steps[index].text
        flips = [(*match.span(str(match.lastgroup)), _FLIPPED[match[str(match.lastgroup)]])
                 for match in _OPERATOR.finditer(text)]
        flips += [(*match.span(), match.expand(new)) for pattern, new in _WORDS for match in pattern.finditer(text)]
        for which in _shuffled(len(flips), rng):
            start, end, new = flips[which]
            yield _rewritten(steps, index, text[:start] + new + text[end:])


@_register("swap", damaging=True)
def swap_steps(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """Two steps of different text exchanged; the last one stays, since it states the answer."""
    pairs = [(i, j) for j in range(len(steps) - 1) for i in range(j) if steps[i].text != steps[j].text]
    for which in _shuffled(len(pairs), rng):
        i, j = pairs[which]
        order = list(range(len(steps)))
        order[i], order[j] = j, i
        yield Edit(tuple(steps[k] for k in order), tuple(order), i)


@_register("drop", damaging=True)
def drop_step(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """One step left out, never the last: a chain without an answer shows on its face what is missing."""
    for index in _shuffled(max(len(steps) - 1, 0), rng):
        order = [k for k in range(len(steps)) if k != index]
        yield Edit(tuple(steps[k] for k in order), tuple(order), index)


# ------------------------------------------------------------------------------------------------- harmless edits


@_register("filler", damaging=False)
def insert_filler(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """A confident sentence that claims nothing, after one of the steps but the last."""
    if len(steps) > 1:
        yield _inserted(steps, [(rng.randrange(1, len(steps)), rng.choice(FILLERS))])


@_register("restate", damaging=False)
def restate_step(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """One step but the last said again right after itself."""
    if len(steps) > 1:
        index = rng.randrange(len(steps) - 1)
        yield _inserted(steps, [(index + 1, rng.choice(RESTATEMENTS) + steps[index].text)])


@_register("pad", damaging=False)
def pad_with_facts(steps: Sequence[Step], rng: random.Random) -> Iterator[Edit]:
    """Two true sentences that have nothing to do with the question, anywhere before the last step."""
    if not steps:
        return
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    texts = rng.sample([*FACTS, *(pattern.format(a=a, b=b, c=a + b) for pattern in SUMS)], PADS)
    yield _inserted(steps, sorted((rng.randrange(len(steps)), text) for text in texts))
