"""Chains with gold step verdicts to measure labels on: the embedded domain judged by its oracle, or people's."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core.config import Config
from prm_core.domains import DOMAINS, arithmetic, general
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.formats import FORMATS
from prm_core.labeling.strategies.base import Chain
from prm_core.sampling.policy import Policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.types import Problem, Step, Trajectory

SAMPLES = 2


@dataclass(frozen=True, slots=True)
class GoldChain:
    """A chain, whether each of its steps is right (up to and with the first error), and where that is (-1: nowhere)."""

    chain: Chain
    right: tuple[bool, ...]
    first_error: int


def embedded(policy: Policy, config: Config, split: str, problems: int, seed: int) -> list[GoldChain]:
    """Chains of the policy on newly drawn problems, judged by the oracle."""
    drawn = arithmetic.make_problems(split, problems, seed)
    settings = config.generate
    trajectories = sample_trajectories(
        policy, drawn, DOMAINS, samples=SAMPLES, temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size, seed=seed, prefix=split,
    )
    by_id = {problem.id: problem for problem in drawn}
    result = []
    for trajectory in trajectories:
        problem = by_id[trajectory.problem_id]
        verdicts = ORACLES[arithmetic.NAME](problem, trajectory.steps)
        at = first_error(verdicts)
        result.append(GoldChain(Chain(problem, trajectory), tuple(verdicts[: at + 1 if at >= 0 else None]), at))
    return result


def judged_by_people(path: Path, count: int, seed: int) -> list[GoldChain]:
    """Up to `count` chains of a file with human step labels: PRM800K phase 1 (.parquet) or ProcessBench (.json)."""
    if path.suffix == ".parquet":
        return _prm800k(path, count, seed)
    chains = list(FORMATS["processbench"].read(path))
    random.Random(seed).shuffle(chains)
    return [
        _gold(f"chain-{number}", chain.prompt, chain.answer or "", chain.steps, chain.first_error, chain.outcome)
        for number, chain in enumerate(chains[:count])
    ]


def _gold(
    name: str, prompt: str, answer: str, steps: Sequence[Step], at: int, outcome: bool | None
) -> GoldChain:
    # The encoder ends steps with a line break, so steps may hold none.
    kept = tuple(Step(" ".join(step.text.split())) for step in steps)
    problem = Problem(f"problem-{name}", general.NAME, " ".join(prompt.split()), answer)
    right = tuple(index != at for index in range(len(kept) if at < 0 else at + 1))
    return GoldChain(Chain(problem, Trajectory(name, problem.id, "unknown", kept, None, outcome, 0)), right, at)


def _prm800k(path: Path, count: int, seed: int) -> list[GoldChain]:
    """As many chains that end at their first error as solved ones, one of a kind per problem."""
    chains = list(FORMATS["prm800k_flat"].read(path))
    random.Random(seed).shuffle(chains)
    wrong = {chain.prompt: chain for chain in chains if chain.first_error == len(chain.steps) - 1}
    solved = {chain.prompt: chain for chain in chains if chain.outcome and chain.first_error == -1}
    half = min(math.ceil(count / 2), len(wrong), len(solved))
    return [
        _gold(f"{kind}-{number}", chain.prompt, chain.answer or "", chain.steps, chain.first_error, chain.outcome)
        for kind, found in (("wrong", wrong), ("solved", solved))
        for number, chain in enumerate(list(found.values())[:half])
    ]
