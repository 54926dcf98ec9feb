"""Copies of training chains with steps inserted that change nothing, so that filler does not pass for an error.

The texts are other ones than those of the adversarial suite (`evaluation/perturbations.py`), which measures the effect.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from prm_core.training.examples import IGNORED, OUTCOME_KINDS, Example
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
MOST_INSERTED = 2


def with_harmless_steps(examples: Sequence[Example], kind: str, share: float, seed: int) -> list[Example]:
    """The examples, and of a share of them a copy with one or two harmless steps somewhere before the last.

    Verdicts of the chain's own steps stay. An inserted step is right while all before it are, and no target after a
    wrong or unlabelled one; to a value model it is worth what the prefix before it was.
    """
    rng = random.Random(f"harmless/{seed}")
    copies = (_copy(example, kind, rng) for example in examples if len(example.steps) > 1 and rng.random() < share)
    return [*examples, *copies]


def _copy(example: Example, kind: str, rng: random.Random) -> Example:
    places = sorted(rng.randrange(1, len(example.steps)) for _ in range(rng.randint(1, MOST_INSERTED)))
    steps: list[Step] = []
    # The bare prompt has a target in a value model only.
    first = len(example.targets) - len(example.steps)
    targets = list(example.targets[:first]) if kind == "advantage" else []
    sound = True
    for index, step in enumerate(example.steps):
        for _ in range(places.count(index)):
            steps.append(Step(_text(example.steps[index - 1], rng)))
            targets.append(targets[-1] if kind == "advantage" else 1.0 if sound else IGNORED)
        steps.append(step)
        if kind not in OUTCOME_KINDS:
            target = example.targets[first + index]
            targets.append(target)
            # NaN, no target, is not above one half either.
            sound = sound and target > 0.5
    return replace(example, steps=tuple(steps), targets=example.targets if kind in OUTCOME_KINDS else tuple(targets))


def _text(before: Step, rng: random.Random) -> str:
    kind = rng.choice(("filler", "fact", "restatement"))
    if kind == "filler":
        return rng.choice(FILLERS)
    if kind == "restatement":
        return rng.choice(RESTATEMENTS) + before.text
    a, b = rng.randint(2, 9), rng.randint(2, 9)
    return rng.choice(FACTS).format(a=a, b=b, c=a + b)
