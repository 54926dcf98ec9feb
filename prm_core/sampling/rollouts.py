"""Policies at work on problems: trajectories with outcomes, accuracy, and rollouts from prefixes of a chain."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_core.domains.base import Domain, make_trajectory
from prm_core.errors import InputError
from prm_core.platform import workers
from prm_core.platform.progress import some
from prm_core.registry import Registry
from prm_core.sampling import episodes
from prm_core.sampling.episodes import run_episodes
from prm_core.sampling.policy import Policy, SampledChain
from prm_core.types import Problem, Step, Trajectory

if TYPE_CHECKING:
    from prm_core.models.encoder import Encoder
    from prm_core.sampling.sampler import Continuation

log = logging.getLogger(__name__)


def without_long(problems: Sequence[Problem], encoder: Encoder) -> list[Problem]:
    """The problems whose prompt leaves room in the context for a step; the others are logged by id.

    Raises InputError when none does.
    """
    long = [problem.id for problem in problems if not encoder.has_room(problem.prompt)]
    if not long:
        return list(problems)
    what = f"encoder.max_length {encoder.config.max_length}"
    if len(long) == len(problems):
        raise InputError(f"no problem leaves room for a step in {what}: {some(long)}; raise it, or shorten the prompts")
    log.warning("%d of %d problems are left out, their prompt leaves no room for a step in %s: %s", len(long),
                len(problems), what, some(long))
    gone = set(long)
    return [problem for problem in problems if problem.id not in gone]


def to_trajectory(
    domain: Domain, problem: Problem, chain: SampledChain, *, trajectory_id: str, policy: str, seed: int
) -> Trajectory:
    """The trajectory of a sampled chain. One cut off by the token limit has no answer, whatever its text says."""
    trajectory = make_trajectory(domain, problem, list(chain.steps), trajectory_id=trajectory_id, policy=policy,
                                 seed=seed)
    if chain.finished:
        return trajectory
    return Trajectory(trajectory.id, trajectory.problem_id, trajectory.policy, trajectory.steps, None, False, seed)


def sample_trajectories(
    policy: Policy, problems: Sequence[Problem], domains: Registry[Domain], *, samples: int, temperature: float,
    max_new_tokens: int, batch_size: int, seed: int, prefix: str, keep_empty: bool = False,
) -> list[Trajectory]:
    """`samples` trajectories for each problem, ids `prefix/problem id/number`; where its domain has an environment, of
    episodes in it. Chains without any step are left out unless `keep_empty`."""
    if any(domains[problem.domain].environment for problem in problems):
        starts = [(problem, ()) for problem in problems for _ in range(samples)]
        runs = run_episodes(policy, domains, starts, temperature=temperature, max_new_tokens=max_new_tokens,
                            batch_size=batch_size, seed=seed)
        return [
            episodes.to_trajectory(domains[run.problem.domain], run, policy=policy.version, seed=seed,
                                   trajectory_id=f"{prefix}/{run.problem.id}/{number % samples}")
            for number, run in enumerate(runs) if run.steps or keep_empty
        ]
    drawn = policy.sample([p.prompt for p in problems], samples=samples, temperature=temperature,
                          max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    return [
        to_trajectory(domains[problem.domain], problem, chain, trajectory_id=f"{prefix}/{problem.id}/{number}",
                      policy=policy.version, seed=seed)
        for problem, chains in zip(problems, drawn, strict=True)
        for number, chain in enumerate(chains)
        if chain.steps or keep_empty
    ]


def sampled_accuracy(
    policy: Policy, problems: Sequence[Problem], domains: Registry[Domain], *, samples: int, temperature: float,
    max_new_tokens: int, batch_size: int, seed: int,
) -> float:
    """Share of right ones among `samples` chains of each problem (pass@1)."""

    def right(part: slice) -> int:
        chains = sample_trajectories(
            policy, problems[part], domains, samples=samples, temperature=temperature, max_new_tokens=max_new_tokens,
            batch_size=batch_size, seed=random.Random(f"{seed}/{part.start}").getrandbits(31), prefix="accuracy")
        return sum(bool(chain.outcome) for chain in chains)

    parts = workers.shards(len(problems), -(-len(problems) // workers.PARTS))
    with workers.forked(right, len(parts)) as pool:
        return sum(pool.map(parts)) / (len(problems) * samples)


def rollout_succeeds(
    policy: Policy, domain: Domain, problem: Problem, continuation: Continuation, last_step: str = ""
) -> bool:
    """Whether a continuation of one of the problem's chains ends by itself with the right answer.

    `last_step` is the last one of the prefix: it holds the answer when the policy adds no step and only ends.
    """
    if not continuation.finished:
        return False
    return says_answer(domain, problem, (last_step, *policy.encoder.decode_steps(continuation.ids))[-1])


def says_answer(domain: Domain, problem: Problem, last_step: str) -> bool:
    """Whether a chain's last step says the problem's answer."""
    answer = domain.read_answer(last_step)
    return answer is not None and domain.same_answer(answer, problem.answer)


@dataclass(frozen=True, slots=True)
class Start:
    """A prefix to roll out from: its problem, its token ids and its steps."""

    problem: Problem
    ids: Sequence[int]
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A continuation by the policy: its whole steps with what was heard, whether it ended with the right answer, and
    its tokens.

    One that the token limit cut off has no success, and its last, unfinished step is left out. Where an environment
    replies, it alone ends a continuation, and the limit is of a turn, which is taken as it stands.
    """

    steps: tuple[Step, ...]
    finished: bool
    success: bool
    tokens: int


def roll_out(
    policy: Policy, domains: Registry[Domain], purchases: Sequence[tuple[Start, int]], *, temperature: float,
    max_new_tokens: int, batch_size: int, seed: int,
) -> list[list[Rollout]]:
    """For each start as many rollouts as its number says, all in the same batches. The same arguments, the same ones.
    """
    from prm_core.sampling.sampler import Prefix

    if any(domains[start.problem.domain].environment for start, _ in purchases):
        return _replay(policy, domains, purchases, temperature=temperature, max_new_tokens=max_new_tokens,
                       batch_size=batch_size, seed=seed)
    starts = [start for start, _ in purchases]
    prefixes = [Prefix(row, len(start.ids)) for row, (start, count) in enumerate(purchases) for _ in range(count)]
    drawn = iter(policy.continue_chains([start.ids for start in starts], prefixes, temperature=temperature,
                                        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed))
    result = []
    for start, count in purchases:
        domain = domains[start.problem.domain]
        group = []
        for continuation in itertools.islice(drawn, count):
            steps = policy.encoder.decode_steps(continuation.ids)
            last = start.steps[-1].text if start.steps else ""
            success = rollout_succeeds(policy, domain, start.problem, continuation, last)
            whole = tuple(map(Step, steps if continuation.finished else steps[:-1]))
            group.append(Rollout(whole, continuation.finished, success, len(continuation.ids)))
        result.append(group)
    return result


def _replay(
    policy: Policy, domains: Registry[Domain], purchases: Sequence[tuple[Start, int]], **sampling: Any
) -> list[list[Rollout]]:
    """Rollouts where an environment replies, which takes a prefix up by replaying it."""
    drawn = iter(run_episodes(policy, domains, [
        (start.problem, start.steps) for start, count in purchases for _ in range(count)], **sampling))
    return [[Rollout(run.steps[len(start.steps) :], run.ended, run.success, run.tokens)
             for run in itertools.islice(drawn, count)] for start, count in purchases]
