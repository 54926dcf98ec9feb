"""Episodes: a policy and the environment in turn, many problems at once. The policy writes until it ends its turn or
waits, the environment replies, the chain is encoded anew with the reply in it, and the policy goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.registry import Registry
from prm_core.turns import is_empty
from prm_core.types import Problem, Step, Trajectory

if TYPE_CHECKING:
    from prm_core.domains.base import Environment
    from prm_core.sampling.drawing import Seed
    from prm_core.sampling.policy import Policy
    from prm_core.sampling.sampler import Continuation

# A question and the turns so far.
Chain = tuple[str, Sequence[Step]]
# Of worth, in [0, 1]: what more candidates are drawn for.
DEAR = 0.1


@dataclass(frozen=True, slots=True)
class Episode:
    """A run of a policy in an environment.

    Attributes:
        problem: what it was about.
        steps: the turns, with what was heard, those it started with among them.
        ended: whether the environment ended it, as against a policy that wrote nothing, or no room for more.
        success: whether it ended as the problem wants it.
        tokens: that the policy wrote.
        written: what it wrote of each of its own turns, as sampled, without the name that opens it where there are
            several agents (`Encoder.opening` of the step's agent); a turn that was empty is the last.
        read: tokens that the policy computed to go on from what was there, at every turn.
        prefixes: the same if nothing were kept from turn to turn.
    """

    problem: Problem
    steps: tuple[Step, ...]
    ended: bool
    success: bool
    tokens: int
    written: tuple[Continuation, ...] = field(default=(), compare=False, repr=False)
    read: int = field(default=0, compare=False)
    prefixes: int = field(default=0, compare=False)


@dataclass(slots=True)
class _Run:
    problem: Problem
    environment: Environment
    steps: list[Step]
    # Of the steps, those it started from.
    given: int
    # What it draws is decided by.
    seed: int
    stream: int
    ended: bool = False
    stopped: bool = False
    tokens: int = 0
    read: int = 0
    prefixes: int = 0
    written: list[Continuation] = field(default_factory=list)
    # Who is next.
    speaker: str = ""
    # How often its candidates may still be drawn again, and the best that keeps the rules of those that were drawn.
    again: int = 0
    kept: tuple[tuple[int, float], Continuation] | None = None
    # Up to where the policy goes on.
    ids: list[int] = field(default_factory=list)


def run_episodes(
    policy: Policy, domains: Registry[Domain], starts: Sequence[tuple[Problem, Sequence[Step]]], *,
    temperature: float, max_new_tokens: int, batch_size: int, seed: Seed, candidates: int = 1,
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None = None,
    broken: Callable[[Sequence[Chain]], Sequence[int]] | None = None, again: int = 0,
) -> list[Episode]:
    """An episode for each problem with the turns it starts from, in order; the same for the same arguments.

    Args:
        starts: none of them a run that has ended; what the turns before heard is what the environment replied.
        max_new_tokens: of a turn; a turn cut off by it is taken as it stands, as one that does not fit the context is
            not.
        seed: of all of them; or a seed and a stream for each.
        candidates: that are written for each turn; the others' tokens are counted too.
        worth: what each of some (prompt, steps) is worth, of which the last has heard nothing yet: a turn is chosen
            before it is executed. Needed where there are several candidates.
        broken: how many rules the last turn of each breaks, as for `worth`: a turn that breaks fewer comes first.
        again: how often in a run more candidates are drawn, where all break a rule, or those that break none are worth
            less than another by more than `DEAR`: rules that a policy does not know of yet leave little to choose from.

    Raises InputError where a problem's domain has no environment.
    """
    from prm_core.sampling.drawing import streams_of
    from prm_core.sampling.sampler import Prefix

    runs = [_Run(problem, _environment(domains, problem), list(steps), len(steps), *drawn, again=again)
            for (problem, steps), drawn in zip(starts, streams_of(seed, len(starts)), strict=True)]
    rngs = {run.seed: random.Random(f"episodes/{run.seed}") for run in runs}
    while waiting := [run for run in runs if _has_room(policy, run)]:
        turn = {seed: rng.getrandbits(31) for seed, rng in rngs.items()}
        drawn = policy.continue_chains(
            [run.ids for run in waiting],
            [Prefix(row, len(run.ids)) for row, run in enumerate(waiting) for _ in range(candidates)],
            temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
            seed=[(turn[run.seed], run.stream * candidates + one) for run in waiting for one in range(candidates)],
            stop_ids=policy.encoder.turn_ends)
        for run, continuation in zip(waiting, _chosen(policy, waiting, drawn, candidates, worth, broken), strict=True):
            if continuation is not None:
                _go_on(policy, run, continuation)
    return [Episode(run.problem, tuple(run.steps), run.ended, run.ended and
                    run.environment.succeeded(run.problem, run.steps), run.tokens, tuple(run.written), run.read,
                    run.prefixes) for run in runs]


def _environment(domains: Registry[Domain], problem: Problem) -> Environment:
    environment = domains[problem.domain].environment
    if environment is None:
        raise InputError(f"problem {problem.id}: nobody replies in the domain {problem.domain!r}; sample whole chains")
    return environment


def to_trajectory(domain: Domain, episode: Episode, *, trajectory_id: str, policy: str, seed: int) -> Trajectory:
    """The trajectory of an episode, which has an answer where the environment ended it."""
    environment = domain.environment
    assert environment is not None
    answer = domain.read_answer(episode.steps[-1].text) if episode.ended else None
    return Trajectory(trajectory_id, episode.problem.id, policy, episode.steps, answer, episode.success, seed,
                      tools=environment.tools)


def _has_room(policy: Policy, run: _Run) -> bool:
    """Whether the run goes on; takes it up to where it does."""
    if run.ended or run.stopped:
        return False
    encoded = policy.encoder.encode(run.problem.prompt, run.steps, may_be_empty=True)
    # A turn whose reply does not fit is none: whoever reads the run reads it whole.
    kept = len(encoded.step_ends)
    del run.steps[kept:], run.written[max(0, kept - run.given) :]
    run.speaker = run.environment.speaker(run.problem, run.steps)
    run.ids = [*encoded.ids, *policy.encoder.opening(run.speaker)]
    run.stopped = encoded.truncated_steps > 0 or len(run.ids) + 2 > policy.encoder.config.max_length
    return not run.stopped


def _turn(policy: Policy, run: _Run, continuation: Continuation) -> Step:
    # The token that ended the turn is not part of its text, and nobody gives themselves another name.
    ids = continuation.ids[:-1] if continuation.finished else continuation.ids
    return replace(policy.encoder.turn(ids), agent=run.speaker)


def _chosen(
    policy: Policy, runs: Sequence[_Run], drawn: Sequence[Continuation], candidates: int,
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None,
    broken: Callable[[Sequence[Chain]], Sequence[int]] | None,
) -> list[Continuation | None]:
    """Of each run's candidates the one that breaks fewest rules and is worth most, of equal ones the first; an empty
    turn comes last. None where more are to be drawn."""
    for run, start in zip(runs, range(0, len(drawn), candidates), strict=True):
        run.tokens += sum(len(one.ids) for one in drawn[start : start + candidates])
        run.read += sum(one.read for one in drawn[start : start + candidates])
        run.prefixes += len(run.ids) - 1
    if candidates == 1:
        return list(drawn)
    assert worth is not None, "candidates are chosen among by their worth"
    turns = [_turn(policy, runs[row // candidates], one) for row, one in enumerate(drawn)]
    asked = [row for row, step in enumerate(turns) if not is_empty(step)]
    chains = [(runs[row // candidates].problem.prompt, [*runs[row // candidates].steps, turns[row]]) for row in asked]
    counts = [0] * len(chains) if broken is None else broken(chains)
    values = {row: (-count, value) for row, count, value in zip(asked, counts, worth(chains), strict=True)}
    found: list[Continuation | None] = []
    for run, start in zip(runs, range(0, len(drawn), candidates), strict=True):
        there = [(values[row], drawn[row]) for row in range(start, start + candidates) if row in values]
        there = there if run.kept is None else [run.kept, *there]
        # Where nothing was written there is nothing to write instead.
        best = max(there, key=lambda one: one[0], default=((0, 0.0), drawn[start]))
        (kept, value), continuation = best
        dear = max((other for (_, other), _ in there), default=value) - value > DEAR
        more = run.again > 0 and (kept < 0 or dear)
        run.again -= more
        run.kept = best if more and kept == 0 else None
        found.append(None if more else continuation)
    return found


def _go_on(policy: Policy, run: _Run, continuation: Continuation) -> None:
    run.written.append(continuation)
    step = _turn(policy, run, continuation)
    if is_empty(step):
        run.stopped = True
        return
    reply = run.environment.reply(run.problem, [*run.steps, step])
    run.steps.append(reply.step)
    run.ended = reply.ended
