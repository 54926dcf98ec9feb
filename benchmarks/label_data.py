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
from prm_core.errors import InputError
from prm_core.evaluation.benchmarks import read_processbench
from prm_core.labeling.base import Chain
from prm_core.models.policy import Policy
from prm_core.rollouts import sample_trajectories
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
    chains = read_processbench(path)
    random.Random(seed).shuffle(chains)
    return [
        _gold(f"chain-{number}", row.prompt, "", row.steps, row.label, row.answer_right)
        for number, row in enumerate(chains[:count])
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
    """One row of PRM800K is a prefix people went on with and a rated next step.

    A step rated -1 ends a chain at its first error; a solution rated +1 is a chain without one. As many of each, one
    of a kind per problem.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file ({error}); give PRM800K phase 1 as .parquet") from None
    frame = frame.sample(frac=1.0, random_state=seed)
    wrong = frame[frame["rating"] == -1].drop_duplicates("instruction")
    solved = frame[(frame["rating"] == 1) & frame["is_solution"].astype(bool)].drop_duplicates("instruction")
    half = min(math.ceil(count / 2), len(wrong), len(solved))
    result = []
    for kind, rows in (("wrong", wrong[:half]), ("solved", solved[:half])):
        for number, row in enumerate(rows.to_dict("records")):
            steps = [Step(text) for text in (*row["responses"], row["next_response"]) if text and text.strip()]
            answer = row["answer"] if isinstance(row["answer"], str) else ""
            at = len(steps) - 1 if kind == "wrong" else -1
            result.append(_gold(f"{kind}-{number}", row["instruction"], answer, steps, at, kind == "solved" or None))
    return result
