"""A policy that errs and reward models that see most of it, without weights: for tests of the evaluation."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from prm_core.domains import DOMAINS, arithmetic
from prm_core.domains.oracle import ORACLES
from prm_core.sampling.policy import SampledChain
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Problem, Step


def problems(count: int, split: str = "test") -> list[Problem]:
    return arithmetic.make_problems(split, count, 0)


def write_chain(problem: Problem, rng: random.Random, error_rate: float) -> SampledChain:
    """A worked solution in which each step is miscalculated at `error_rate`, and a few errors are undone at the end."""
    value, steps = problem.meta["start"], []
    for event in arithmetic.events_of(problem):
        result = arithmetic.calculate(value, event.operation, event.operand)
        result = value if result is None else result
        result += rng.choice((-2, -1, 1, 2)) if rng.random() < error_rate else 0
        steps.append(f"{event.phrase}: {value} {event.operation} {event.operand} = {result}.")
        value = result
    if str(value) != problem.answer and rng.random() < 0.1:
        value = int(problem.answer)
    if rng.random() < 0.02:
        return SampledChain(tuple(steps), False, 10 * len(steps))
    return SampledChain((*steps, f"The answer is {value}."), True, 10 * len(steps))


class FakePolicy:
    """Samples by `write_chain`; counts its calls and may die at one of them."""

    forks = True

    def __init__(self, known: Sequence[Problem], error_rate: float, version: str, dies_at: int | None = None) -> None:
        self._known = {problem.prompt: problem for problem in known}
        self._error_rate = error_rate
        self.version = version
        self.calls = 0
        self._dies_at = dies_at

    def sample(
        self, prompts: Sequence[str], *, samples: int, temperature: float, max_new_tokens: int, batch_size: int,
        seed: int,
    ) -> list[list[SampledChain]]:
        self.calls += 1
        if self.calls == self._dies_at:
            raise KeyboardInterrupt
        rng = random.Random(seed)
        return [[write_chain(self._known[prompt], rng, self._error_rate) for _ in range(samples)] for prompt in prompts]


class FakeScorer:
    """Scores by the oracle with noise that depends on the text alone, so the same chain always scores the same."""

    def __init__(self, known: Sequence[Problem], kind: str, sharpness: float) -> None:
        self._known = {problem.prompt: problem for problem in known}
        self.kind = kind
        self.version = f"fake-{kind}"
        self._sharpness = sharpness
        self.calls = 0

    def shares_pass(self, other: object) -> bool:
        return False

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        self.calls += 1
        return [self._one(prompt, steps) for prompt, steps in chains]

    def _one(self, prompt: str, steps: Sequence[Step]) -> ChainScore:
        problem = self._known[prompt]
        verdicts = ORACLES[problem.domain](problem, steps)
        if self.kind == "outcome":
            answer = DOMAINS[problem.domain].read_answer(steps[-1].text)
            verdicts = [answer == problem.answer]
        text = prompt + "\n".join(step.text for step in steps)
        scores = []
        for index, right in enumerate(verdicts):
            noise = int.from_bytes(hashlib.sha256(f"{text}/{index}".encode()).digest()[:4], "big") / 2**32
            level = noise ** (1 / self._sharpness)
            scores.append(level if right else 1 - level)
        return ChainScore(tuple(scores), tuple(scores), 0)
