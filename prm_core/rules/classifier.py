"""A rule that was learned: from steps that people marked, a calibrated probability that a step breaks it.

What a step is known by are words: which tool it calls, with what, where those words were seen before, and what had been
called by then. The weights are a few thousand numbers kept as JSON, so that a verdict's reason can be told.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.rules import language
from prm_core.rules.reading import calls_of, earlier_calls
from prm_core.scoring.calibration import Calibrator, fit_calibrator
from prm_core.types import Step

# A feature that so few steps have says nothing.
RARE = 2
# Steps on which the calibrator is fitted, every so many-th question's.
HELD_OUT = 4
# Fewer broken ones teach nothing, and calibrate nothing.
LEAST = 10
# Numbers are known by which of these they reach.
REACHED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 50, 100, 200, 500, 1000, 10_000)
# Of an argument's text: longer ones are known by less.
MOST_WORDS = 30

Case = tuple[str, Sequence[Step]]


@dataclass(frozen=True, slots=True)
class Classifier:
    """Attributes:
        bias: log-odds of a step of which nothing is known.
        weights: feature → what it adds.
        calibrator: from the probability of these to the one that is told.
    """

    bias: float
    weights: Mapping[str, float]
    calibrator: Calibrator

    def judge(self, prompt: str, steps: Sequence[Step]) -> tuple[float, str]:
        """Probability that the last step breaks the rule, and what speaks for it most, empty where nothing does."""
        known = {name: self.weights[name] for name in features(prompt, steps) if name in self.weights}
        raw = _sigmoid(self.bias + math.fsum(known.values()))
        most = max(known, key=known.__getitem__, default="")
        return float(self.calibrator.apply([raw])[0]), most if most and known[most] > 0 else ""

    def to_json(self) -> str:
        """As text that `load` reads."""
        return json.dumps({"bias": self.bias, "weights": dict(self.weights), "calibrator": self.calibrator.to_dict()},
                          sort_keys=True)

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """One that was written. Raises InputError where it is not there or is none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            weights = {str(name): float(value) for name, value in raw["weights"].items()}
            bias = float(raw["bias"])
            if not all(map(math.isfinite, (bias, *weights.values()))):
                raise ValueError("its weights must be finite numbers")
            return cls(bias, weights, Calibrator.from_dict(raw["calibrator"]))
        except FileNotFoundError:
            raise InputError(f"its classifier {path} is not there; `prm rules fit` writes it") from None
        except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"its classifier {path} is none ({error}); name another file or take it away, and "
                             "`prm rules fit` writes one") from None


def features(prompt: str, steps: Sequence[Step]) -> set[str]:
    """What the last step is known by."""
    *before, step = steps
    calls = calls_of(step)
    found = {f"agent {step.agent}"} if step.agent else set()
    if not calls:
        return found | {"no call"} | {f"says {word}" for word in language.words(step.text)[:MOST_WORDS]}
    earlier = earlier_calls(before)
    told = {word for one in earlier for word in language.words(one["result"])}
    asked = set(language.words(prompt))
    said = {word for one in before for message in one.context for word in language.words(message.text)}
    past = {f"{one['name']} {key}={value}" for one in earlier for key, value in _short(one["args"])}
    past |= {one["name"] for one in earlier} | {f"{one['name']} failed" for one in earlier if one["failed"]}
    for call in calls:
        own = {call["name"], *([] if call["readable"] else [f"{call['name']} unreadable"])}
        for key, value in (call["args"] or {}).items():
            own |= set(_of_argument(f"{call['name']} {key}", value, asked, told, said))
        found |= own | {f"{one} after {other}" for one in own for other in past}
        found |= {f"{one} at first" for one in own if not past}
    return found


def _short(arguments: Any) -> Iterator[tuple[str, Any]]:
    """Arguments that may be told apart by their value: choices, not texts."""
    for key, value in (arguments or {}).items():
        if isinstance(value, str | bool) and len(str(value)) <= MOST_WORDS and " " not in str(value):
            yield key, value


def _of_argument(name: str, value: Any, asked: set[str], told: set[str], said: set[str]) -> Iterator[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (f"{name}>={step}" for step in REACHED if value >= step)
        return
    for word in language.words(value)[:MOST_WORDS]:
        yield f"{name}: {word}"
        seen = [where for where, words in (("the question", asked), ("a reply", told), ("a message", said))
                if word in words]
        yield f"{name}: a word of {' and '.join(seen) or 'nobody'}"


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-500.0, min(500.0, value))))


def fit(cases: Sequence[Case], broken: Sequence[bool], groups: Sequence[str], seed: int) -> Classifier:
    """A classifier of steps.

    Args:
        cases: prompt and steps of each, of which the last is the one that was marked.
        broken: whether it breaks the rule.
        groups: the question of each; what is fitted and what it is calibrated on share none.
        seed: of the order in which questions are held out.

    Raises InputError where too few are broken, or not, to learn from.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    order = sorted(set(groups))
    random.Random(f"rules/{seed}").shuffle(order)
    held = set(order[::HELD_OUT])
    part = np.array([group in held for group in groups])
    right = np.array(broken, dtype=bool)
    for name, inside in (("fitted", ~part), ("calibrated", part)):
        for kind, count in (("break", int((right & inside).sum())), ("keep", int((~right & inside).sum()))):
            if count < LEAST:
                raise InputError(f"{count} marked steps {kind} the rule among those that it would be {name} on, and "
                                 f"that takes {LEAST}; have more steps marked")
    read = [features(prompt, steps) for prompt, steps in cases]
    counts = Counter(name for row, inside in zip(read, part, strict=True) if not inside for name in row)
    known = {name: number for number, name in enumerate(sorted(one for one, many in counts.items() if many >= RARE))}
    rows = [[known[name] for name in row if name in known] for row in read]
    starts = np.cumsum([0, *map(len, rows)])
    table = csr_matrix((np.ones(starts[-1]), [one for row in rows for one in row], starts), (len(rows), len(known)))
    model = LogisticRegression(C=10.0, max_iter=2000, solver="liblinear", random_state=0)
    model.fit(table[~part], right[~part])
    raw = model.predict_proba(table[part])[:, 1]
    weights = {name: float(model.coef_[0, number]) for name, number in known.items() if model.coef_[0, number]}
    return Classifier(float(model.intercept_[0]), weights, fit_calibrator(raw, right[part], "platt", LEAST))
