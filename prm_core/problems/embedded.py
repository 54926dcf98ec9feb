"""Writes `data/` of the embedded domain from a seed: problems with worked solutions, and a few human-labelled chains.

The oracle stands in for the human reviewer here, on chains made by corrupting worked solutions the way small models
go wrong: no model exists yet when data is made, and the content must not depend on one.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

from prm_core.config import Config
from prm_core.domains import DOMAINS, arithmetic, make_trajectory
from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.types import Problem, StepLabel, Trajectory

# Held-out splits first: a later split never repeats a question of an earlier one.
SPLITS = ("test", "dev", "train", "warmup")
# Held out too, of problems unlike those of the others.
SHIFTED = "shifted"
REVIEWER = "human:oracle"
CORRUPT_SHARE = 0.6


def corrupt_solution(problem: Problem, rng: random.Random) -> list[str]:
    """A worked solution with one mistake, carried on consistently from the wrong value.

    Mistakes: a wrong result, a wrong quantity (another number of the question), another operation, an event left
    out, or an answer given before all events are accounted for.
    """
    events = list(arithmetic.events_of(problem))
    kind = rng.choices(["result", "quantity", "operation", "skip", "stop"], [0.5, 0.2, 0.1, 0.1, 0.1])[0]
    # A chain cannot stop before its first step.
    at = rng.randrange(1 if kind == "stop" else 0, len(events))
    value = problem.meta["start"]
    texts = []
    for index, event in enumerate(events):
        operation, operand = event.operation, event.operand
        if index == at:
            if kind == "skip":
                continue
            if kind == "stop":
                break
            if kind == "quantity":
                operand = rng.choice([other.operand for other in events if other.operand != operand] or [operand + 1])
            elif kind == "operation":
                operation = {"+": "-", "-": "+", "*": "+", "/": "-"}[operation]
        result = arithmetic.calculate(value, operation, operand)
        if result is None or (index == at and kind == "result"):
            result = (value if result is None else result) + rng.choice([-10, -2, -1, 1, 2, 10])
        result = max(result, 0)
        texts.append(f"{event.phrase}: {value} {operation} {operand} = {result}.")
        value = result
    return [*texts, arithmetic.write_answer(value)]


def make_human_labels(
    count: int, seed: int, exclude: Collection[str], level: str = "standard"
) -> tuple[list[Problem], list[Trajectory], list[StepLabel]]:
    """`count` chains over problems of their own (of a level, no prompt in `exclude`), each step judged."""
    domain, oracle = DOMAINS[arithmetic.NAME], ORACLES[arithmetic.NAME]
    rng = random.Random(f"human/{seed}")
    problems = domain.levels[level]("human", count, seed, exclude)
    chains, labels = [], []
    for number, problem in enumerate(problems):
        texts = corrupt_solution(problem, rng) if rng.random() < CORRUPT_SHARE else problem.meta["solution"]
        chain = make_trajectory(
            domain, problem, texts, trajectory_id=f"human-{number:05d}", policy="corrupted-solution", seed=seed
        )
        chains.append(chain)
        for index, right in enumerate(oracle(problem, chain.steps)):
            reasoning = "follows from the question and the steps before" if right else "does not follow"
            labels.append(StepLabel(chain.id, index, REVIEWER, float(right), right, 1.0, 0, reasoning))
    return problems, chains, labels


def check_level(config: Config) -> None:
    """Raises InputError when the configured domain makes problems, but none of the configured level."""
    levels = DOMAINS[config.domain].levels
    if levels and config.data.level not in levels:
        raise InputError(f"data.level: domain {config.domain!r} has no level {config.data.level!r}; it has "
                         f"{', '.join(levels)}")


def make_data(folder: Path, config: Config) -> None:
    """Writes every file of `data/` for the configured domain; the same bytes for the same seed and counts.

    Chains with human labels are made for the word problems alone, shifted problems where the domain has such; where
    there are none, their files are empty.

    Raises InputError as `check_level`, and where the domain makes no problems.
    """
    domain, level = DOMAINS[config.domain], config.data.level
    if not domain.levels:
        raise InputError(f"domain {config.domain!r} cannot make problems; bring your own with `prm data import FILE`")
    check_level(config)
    seen: set[str] = set()
    for split in SPLITS:
        problems = domain.levels[level](split, getattr(config.data, split), config.seed, seen)
        seen.update(problem.prompt for problem in problems)
        store.write_jsonl(folder / f"{split}.jsonl", problems)
    shifted = []
    if config.data.shifted and level in domain.shifted:
        shifted = domain.shifted[level](SHIFTED, config.data.shifted, config.seed, seen)
        seen.update(problem.prompt for problem in shifted)
    store.write_jsonl(folder / f"{SHIFTED}.jsonl", shifted)
    # Mistakes are made of the word problems' events; in another domain people label chains (`prm review`).
    problems, chains, labels = (make_human_labels(config.data.human_chains, config.seed, seen, level)
                                if config.domain == arithmetic.NAME else ([], [], []))
    store.write_jsonl(folder / "human" / "problems.jsonl", problems)
    store.write_jsonl(folder / "human" / "trajectories.jsonl", chains)
    store.write_jsonl(folder / "human" / "labels.jsonl", labels)
