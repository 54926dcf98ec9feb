"""Training chains with steps that change nothing, so that filler does not pass for an error, and with words that say
nothing, so that noise does not pass for filler.

The texts of the former are other ones than those of the adversarial suite (`evaluation/perturbations.py`), which
measures the effect; that of the latter is measured by `evaluation/probe/`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from prm_core.training.examples import IGNORED, OUTCOME_KINDS, Example
from prm_core.turns import unheard
from prm_core.types import Step

FILLERS = (
    "Good.", "That settles this part.", "Nothing here is in question.", "We may go on.", "All of this follows at once.",
    "Anybody can see it.", "Trust me on that.", "Let us continue.", "That was easy.", "This must be true.",
    "Hence we proceed with confidence.", "Great, next.", "It is obvious.", "No mistakes were made up to now.",
    "My work is always exact.",
)
FACTS = (
    "Snow is cold.", "A year has 12 months.", "Cats are animals.", "The sea is salty.", "A day has 24 hours.",
    "A cube has 6 faces.", "Water boils at 100 degrees.", "10 is more than 9.", "A dog has 4 legs.",
    "Most birds can fly.", "Half of 10 is 5.", "Ten is an even number.", "Of course {c} - {a} = {b}.",
    "Also {a} + {b} = {c}, by the way.",
)
RESTATEMENTS = ("Again: ", "So, ", "As said, ", "Put differently, ", "Recall that ", "I repeat: ", "Which means: ")
MOST_INSERTED, MOST_WORDS = 2, 8


def with_harmless_steps(examples: Sequence[Example], kind: str, share: float, seed: int) -> list[Example]:
    """The examples, and of a share of them a copy with one or two harmless steps somewhere before the last.

    Verdicts of the chain's own steps stay. An inserted step is right while all before it are, and no target after a
    wrong or unlabelled one; to a value model it is worth what the prefix before it was.
    """
    rng = random.Random(f"harmless/{seed}")
    copies = (_copy(example, kind, rng) for example in examples
              if example.copied and len(example.steps) > 1 and rng.random() < share)
    return [*examples, *copies]


def insert_harmless(steps: Sequence[Step], rng: random.Random) -> list[tuple[int | None, Step]]:
    """One or two harmless steps somewhere before the last of two or more, and which step each was (None: a new one)."""
    places = sorted(rng.randrange(len(steps)) for _ in range(rng.randint(1, MOST_INSERTED)))
    found: list[tuple[int | None, Step]] = []
    for index, step in enumerate(steps):
        before = steps[index - 1] if index else None
        found += [(None, Step(_text(before, rng))) for _ in range(places.count(index))]
        found.append((index, step))
    return found


def _copy(example: Example, kind: str, rng: random.Random) -> Example:
    # The bare prompt has a target in a value model only.
    first = len(example.targets) - len(example.steps)
    targets = list(example.targets[:first]) if kind == "advantage" else []
    steps = insert_harmless(example.steps, rng)
    sound = True
    for origin, _ in steps:
        if origin is None:
            targets.append(targets[-1] if kind == "advantage" else 1.0 if sound else IGNORED)
        elif kind not in OUTCOME_KINDS:
            target = example.targets[first + origin]
            targets.append(target)
            # NaN, no target, is not above one half either.
            sound = sound and target > 0.5
    return replace(example, steps=tuple(step for _, step in steps),
                   targets=example.targets if kind in OUTCOME_KINDS else tuple(targets), weight=1.0)


def _text(before: Step | None, rng: random.Random) -> str:
    kind = rng.choice(("filler", "fact", "restatement")[: 2 if before is None else 3])
    if kind == "filler":
        return rng.choice(FILLERS)
    if kind == "restatement":
        return rng.choice(RESTATEMENTS) + before.text
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return rng.choice(FACTS).format(a=a, b=b, c=a + b)


def with_unheard_steps(examples: Sequence[Example], share: float, seed: int) -> list[Example]:
    """The examples of a process or advantage model, and for a share of their steps that were replied to a copy of the
    chain that ends with the step before its reply.

    A search in an environment scores a turn before it is executed. A model that only knows turns with their replies may
    take the missing one for what went wrong, and reads from replies what it has to see in turns. The step's target
    stays; those before it have theirs elsewhere.
    """
    rng = random.Random(f"unheard/{seed}")
    copies = []
    for example in examples:
        # The bare prompt has a target in a value model only.
        first = len(example.targets) - len(example.steps)
        for place, step in enumerate(example.steps if example.copied else ()):
            target, bare = example.targets[first + place], unheard(step)
            if bare != step and not math.isnan(target) and rng.random() < share:
                copies.append(replace(example, steps=(*example.steps[:place], bare),
                                      targets=(*[IGNORED] * (first + place), target), weight=1.0))
    return [*examples, *copies]


def with_nonsense(examples: Sequence[Example], words: Sequence[str], share: float, seed: int) -> list[Example]:
    """The examples of a process model, and of a share of them a copy in which one step says nothing: some random words
    stand behind its own, or before it as a step of their own.

    That step is wrong, and what follows it has no target. Every second word is drawn from `words`, the others from the
    steps of the examples: noise that a model was never shown gives itself away, noise of its own words does not.
    """
    rng = random.Random(f"nonsense/{seed}")
    some = [example for example in examples if example.copied]
    own = sorted({word for example in some for step in example.steps for word in step.text.split()})
    return [*examples, *(_garbled(example, (own, words), rng) for example in some if rng.random() < share)]


def _garbled(example: Example, words: Sequence[Sequence[str]], rng: random.Random) -> Example:
    steps, targets = list(example.steps), list(example.targets)
    at = rng.randrange(len(steps))
    some = [rng.choice(rng.choice(words)) for _ in range(rng.randint(1, MOST_WORDS))]
    if rng.random() < 0.5:
        steps[at] = replace(steps[at], text=" ".join((steps[at].text, *some)))
    else:
        steps.insert(at, Step(" ".join(some)))
        targets.insert(at, 0.0)
    targets[at:] = [0.0, *[IGNORED] * (len(steps) - at - 1)]
    return replace(example, steps=tuple(steps), targets=tuple(targets), weight=1.0)
