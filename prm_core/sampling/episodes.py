"""Episodes: a policy and the environment in turn, many problems at once. The policy writes until it ends its turn or
waits, the environment replies, the chain is encoded anew with the reply in it, and the policy goes on."""

from __future__ import annotations

import math
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
# How many rules a turn breaks, less than none, and what it is worth; and that of an empty one, which comes last.
_Rank = tuple[float, float]
_EMPTY: _Rank = (-math.inf, 0.0)


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
        drawn: turns that it wrote, taken or not.
        read: tokens that the policy computed to go on from what was there, at every turn.
        prefixes: the same if nothing were kept from turn to turn.
    """

    problem: Problem
    steps: tuple[Step, ...]
    ended: bool
    success: bool
    tokens: int
    written: tuple[Continuation, ...] = field(default=(), compare=False, repr=False)
    drawn: int = field(default=0, compare=False)
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
    drawn: int = 0
    read: int = 0
    prefixes: int = 0
    written: list[Continuation] = field(default_factory=list)
    # Who is next.
    speaker: str = ""
    # How often as many candidates may still be drawn once more.
    again: int = 0
    # Of the turn that is next, the candidates so far, how many are still to be drawn, and the best of them.
    known: list[Continuation] = field(default_factory=list)
    left: int = 0
    best: tuple[_Rank, Continuation] | None = None
    # Up to where the policy goes on.
    ids: list[int] = field(default_factory=list)


def run_episodes(
    policy: Policy, domains: Registry[Domain], starts: Sequence[tuple[Problem, Sequence[Step]]], *,
    temperature: float, max_new_tokens: int, batch_size: int, seed: Seed, candidates: int = 1,
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None = None, threshold: float = 1.0,
    broken: Callable[[Sequence[Chain]], Sequence[int]] | None = None, again: int = 0,
) -> list[Episode]:
    """An episode for each problem with the turns it starts from, in order; the same for the same arguments.

    Args:
        starts: none of them a run that has ended; what the turns before heard is what the environment replied.
        max_new_tokens: of a turn; a turn cut off by it is taken as it stands, as one that does not fit the context is
            not.
        seed: of all of them; or a seed and a stream for each.
        candidates: that are written for each turn, at most; the others' tokens are counted too. They are drawn a few
            at a time, and what was drawn for a turn is not drawn for it again (see `sampler.sample_continuations`).
        worth: what each of some (prompt, steps) is worth, of which the last has heard nothing yet: a turn is chosen
            before it is executed. Needed where there are several candidates.
        threshold: of worth; a candidate that reaches it and breaks no rule is taken before all are drawn. 1 draws all.
        broken: how many rules the last turn of each breaks, as for `worth`: a turn that breaks fewer comes first.
        again: how often in a run as many candidates are drawn once more, where all break a rule: a policy that does not
            know of the rules yet may write none that keeps them.

    Raises InputError where a problem's domain has no environment.
    """
    from prm_core.sampling.drawing import next_draw, streams_of
    from prm_core.sampling.sampler import Prefix

    assert candidates == 1 or worth is not None
    runs = [_Run(problem, _environment(domains, problem), list(steps), len(steps), *drawn, again=again, left=candidates)
            for (problem, steps), drawn in zip(starts, streams_of(seed, len(starts)), strict=True)]
    rngs = {run.seed: random.Random(f"episodes/{run.seed}") for run in runs}
    while waiting := [run for run in runs if _has_room(policy, run)]:
        turn = {seed: rng.getrandbits(31) for seed, rng in rngs.items()}
        counts = [next_draw(len(run.known), len(run.known) + run.left) for run in waiting]
        drawn = policy.continue_chains(
            [run.ids for run in waiting],
            [Prefix(row, len(run.ids)) for row, (run, count) in enumerate(zip(waiting, counts, strict=True))
             for _ in range(count)],
            temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
            seed=[(turn[run.seed], run.stream * candidates + one) for run, count in zip(waiting, counts, strict=True)
                  for one in range(count)],
            stop_ids=policy.encoder.turn_ends,
            avoid=[run.known for run, count in zip(waiting, counts, strict=True) for _ in range(count)])
        _take(policy, waiting, counts, drawn, worth, broken)
        for run in waiting:
            if _is_settled(run, candidates, threshold):
                _go_on(policy, run, candidates)
    return [Episode(run.problem, tuple(run.steps), run.ended, run.ended and
                    run.environment.succeeded(run.problem, run.steps), run.tokens, tuple(run.written), run.drawn,
                    run.read, run.prefixes) for run in runs]


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


def _take(
    policy: Policy, runs: Sequence[_Run], counts: Sequence[int], drawn: Sequence[Continuation],
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None,
    broken: Callable[[Sequence[Chain]], Sequence[int]] | None,
) -> None:
    """Counts what was drawn for each run, and keeps of all its candidates the one that breaks fewest rules and is worth
    most, of equal ones the first; an empty turn comes last."""
    owners = [run for run, count in zip(runs, counts, strict=True) for _ in range(count)]
    ranks = [_EMPTY] * len(drawn)
    if worth is not None:
        turns = [_turn(policy, run, one) for run, one in zip(owners, drawn, strict=True)]
        asked = [row for row, step in enumerate(turns) if not is_empty(step)]
        chains = [(owners[row].problem.prompt, [*owners[row].steps, turns[row]]) for row in asked]
        counted = broken(chains) if broken else [0] * len(chains)
        for row, count, value in zip(asked, counted, worth(chains), strict=True):
            ranks[row] = -count, value
    for run, rank, one in zip(owners, ranks, drawn, strict=True):
        run.tokens += len(one.ids)
        run.read += one.read
        run.drawn += 1
        run.known.append(one)
        run.left -= 1
        if run.best is None or rank > run.best[0]:
            run.best = rank, one
    for run in runs:
        run.prefixes += len(run.ids) - 1


def _is_settled(run: _Run, candidates: int, threshold: float) -> bool:
    """Whether the run's next turn is found; where it is not, there is more to draw."""
    assert run.best is not None
    kept, value = run.best[0]
    if kept == 0 and threshold < 1 and value >= threshold:
        return True
    # Where nothing was written there is nothing to write instead.
    if run.left == 0 and run.again and -math.inf < kept < 0:
        run.again -= 1
        run.left = candidates
    return run.left == 0


def _go_on(policy: Policy, run: _Run, candidates: int) -> None:
    assert run.best is not None
    _, continuation = run.best
    run.known, run.left, run.best = [], candidates, None
    run.written.append(continuation)
    step = _turn(policy, run, continuation)
    if is_empty(step):
        run.stopped = True
        return
    reply = run.environment.reply(run.problem, [*run.steps, step])
    run.steps.append(reply.step)
    run.ended = reply.ended
