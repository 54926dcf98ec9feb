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
from prm_core.turns import is_empty, unheard
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
class Ruled:
    """What rules say of a turn before it is executed.

    Attributes:
        broken: how many it breaks.
        remedies: turns that keep these, before it or in its place.
        later: whether it may be executed after them.
        asks_leave: whether it is itself what a rule wants to go before something else.
    """

    broken: int = 0
    remedies: Sequence[Step] = ()
    later: bool = False
    asks_leave: bool = False


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
            several agents (`Encoder.opening` of the step's agent); a turn that was empty is the last. What a rule said
            to do it did not write: its log-probabilities are no numbers.
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
class _Place:
    """Where a turn is drawn: after which steps, by whom, from which ids; and what was drawn."""

    steps: list[Step]
    speaker: str
    ids: list[int]
    known: list[Continuation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Candidate:
    step: Step
    written: Continuation
    # What it is worth at least.
    least: float = -math.inf


@dataclass(slots=True)
class _Turn:
    """The turn that is next."""

    # The run so far; and, where leave was asked, the run before that. To ask changes nothing about what is to be done,
    # and neither model need know what comes after asking: it is drawn at either place, and worth what it is at the
    # better one.
    places: list[_Place]
    # Candidates that need not be drawn: what waited for leave.
    offered: list[_Candidate]
    # How many are still to be drawn, and were.
    left: int
    drawn: int = 0
    # The best candidate so far, and whether it asks for leave.
    best: tuple[_Rank, _Candidate] | None = None
    asks_leave: bool = False
    # What rules said to do, with what that is worth at least; and what may be done after that.
    advised: dict[Step, float] = field(default_factory=dict)
    held: list[_Candidate] = field(default_factory=list)


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
    # How often as many candidates may still be drawn once more.
    again: int
    ended: bool = False
    stopped: bool = False
    tokens: int = 0
    drawn: int = 0
    read: int = 0
    prefixes: int = 0
    written: list[Continuation] = field(default_factory=list)
    turn: _Turn | None = None
    # From where leave was asked, and what waited for it; nothing where the last turn did not ask.
    asked_at: list[_Place] = field(default_factory=list)
    waiting: list[_Candidate] = field(default_factory=list)


def run_episodes(
    policy: Policy, domains: Registry[Domain], starts: Sequence[tuple[Problem, Sequence[Step]]], *,
    temperature: float, max_new_tokens: int, batch_size: int, seed: Seed, candidates: int = 1,
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None = None, threshold: float = 1.0,
    rules: Callable[[Sequence[Chain]], Sequence[Ruled]] | None = None, again: int = 0,
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
        rules: what is said of the last turn of each, as for `worth`: a turn that breaks fewer comes first. What keeps a
            rule is a candidate too. Where leave is asked for something, that is a candidate in the turn after, and half
            of those that are drawn go on from where it was not asked.
        again: how often in a run as many candidates are drawn once more, where all break a rule: a policy that does not
            know of the rules yet may write none that keeps them.

    Raises InputError where a problem's domain has no environment.
    """
    from prm_core.sampling.drawing import streams_of
    from prm_core.sampling.sampler import Prefix

    assert candidates == 1 or worth is not None
    runs = [_Run(problem, _environment(domains, problem), list(steps), len(steps), *drawn, again)
            for (problem, steps), drawn in zip(starts, streams_of(seed, len(starts)), strict=True)]
    rngs = {run.seed: random.Random(f"episodes/{run.seed}") for run in runs}
    while waiting := [run for run in runs if _has_room(policy, run, candidates)]:
        _let_pass(waiting, rules)
        turn = {seed: rng.getrandbits(31) for seed, rng in rngs.items()}
        asked = [(run, place, number) for run in waiting for number, place in enumerate(_next_places(run))]
        places = list({id(place): place for _, place, _ in asked}.values())
        rows = {id(place): row for row, place in enumerate(places)}
        drawn = policy.continue_chains(
            [place.ids for place in places], [Prefix(rows[id(place)], len(place.ids)) for _, place, _ in asked],
            temperature=temperature, max_new_tokens=max_new_tokens, batch_size=batch_size,
            seed=[(turn[run.seed], run.stream * candidates + number) for run, _, number in asked],
            stop_ids=policy.encoder.turn_ends, avoid=[place.known for _, place, _ in asked]) if asked else []
        read = {id(place): run for run, place, _ in asked}
        for place in places:
            read[id(place)].prefixes += len(place.ids) - 1
        for (run, place, _), one in zip(asked, drawn, strict=True):
            _count(run, place, one)
        fresh = [(run, _read(policy, run, one)) for (run, _, _), one in zip(asked, drawn, strict=True)]
        _take(policy, waiting, fresh, worth, rules)
        for run in waiting:
            if _is_settled(run, candidates, threshold):
                _go_on(run)
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


def _has_room(policy: Policy, run: _Run, candidates: int) -> bool:
    """Whether the run goes on; begins its next turn where it is at none."""
    if run.ended or run.stopped or run.turn is not None:
        return run.turn is not None
    encoded = policy.encoder.encode(run.problem.prompt, run.steps, may_be_empty=True)
    # A turn whose reply does not fit is none: whoever reads the run reads it whole.
    kept = len(encoded.step_ends)
    del run.steps[kept:], run.written[max(0, kept - run.given) :]
    speaker = run.environment.speaker(run.problem, run.steps)
    ids = [*encoded.ids, *policy.encoder.opening(speaker)]
    run.stopped = encoded.truncated_steps > 0 or len(ids) + 2 > policy.encoder.config.max_length
    if not run.stopped:
        earlier = [place for place in run.asked_at if place.speaker == speaker]
        run.turn = _Turn([_Place(list(run.steps), speaker, ids), *earlier], run.waiting, candidates)
    return not run.stopped


def _let_pass(runs: Sequence[_Run], rules: Callable[[Sequence[Chain]], Sequence[Ruled]] | None) -> None:
    """Takes what waited for leave, and got none, from what is offered."""
    asked = [(run, one) for run in runs for one in _turn(run).offered]
    if not asked:
        return
    assert rules is not None
    said = rules([(run.problem.prompt, [*run.steps, one.step]) for run, one in asked])
    for run in runs:
        _turn(run).offered = []
    for (run, one), ruled in zip(asked, said, strict=True):
        if not ruled.broken:
            _turn(run).offered.append(one)


def _turn(run: _Run) -> _Turn:
    assert run.turn is not None
    return run.turn


def _next_places(run: _Run) -> list[_Place]:
    """From where to draw now, once for each draw; nothing while there are candidates that nobody looked at."""
    from prm_core.sampling.drawing import next_draw

    turn = _turn(run)
    if turn.offered:
        return []
    drawn = range(turn.drawn, turn.drawn + next_draw(turn.drawn, turn.drawn + turn.left))
    return [turn.places[-1 - number % len(turn.places)] for number in drawn]


def _count(run: _Run, place: _Place, one: Continuation) -> None:
    turn = _turn(run)
    place.known.append(one)
    turn.drawn += 1
    turn.left -= 1
    run.drawn += 1
    run.tokens += len(one.ids)
    run.read += one.read


def _read(policy: Policy, run: _Run, continuation: Continuation) -> _Candidate:
    # The token that ended the turn is not part of its text, and nobody gives themselves another name.
    ids = continuation.ids[:-1] if continuation.finished else continuation.ids
    return _Candidate(replace(policy.encoder.turn(ids), agent=_turn(run).places[0].speaker), continuation)


def _unwritten(policy: Policy, run: _Run, step: Step, least: float) -> _Candidate:
    """A turn that the policy did not draw."""
    from prm_core.sampling.sampler import Continuation

    (block,) = policy.encoder.encode_steps([step])
    return _Candidate(replace(step, agent=_turn(run).places[0].speaker),
                      Continuation([token for token, _ in block], [math.nan] * len(block), True), least)


def _take(
    policy: Policy, runs: Sequence[_Run], drawn: Sequence[tuple[_Run, _Candidate]],
    worth: Callable[[Sequence[Chain]], Sequence[float]] | None,
    rules: Callable[[Sequence[Chain]], Sequence[Ruled]] | None,
) -> None:
    """Keeps of all candidates for each run's turn the one that breaks fewest rules and is worth most, of equal ones the
    first; an empty turn comes last."""
    asked = [(run, one) for run in runs for one in _turn(run).offered]
    asked += drawn
    for run in runs:
        _turn(run).offered = []
    while asked:
        remedies: list[tuple[_Run, _Candidate]] = []
        for (run, one), (value, ruled) in zip(asked, _weigh(asked, worth, rules), strict=True):
            turn, rank = _turn(run), _EMPTY if value is None else (float(-ruled.broken), value)
            if turn.best is None or rank > turn.best[0]:
                turn.best = rank, one
                turn.asks_leave = ruled.asks_leave
            if ruled.later and all(one.step != other.step for other in turn.held):
                turn.held.append(one)
            # To ask for leave is worth what it is asked for.
            least = value if ruled.later and value is not None else -math.inf
            for step in ruled.remedies:
                known = turn.advised.get(step)
                if (known is None or known < least) and not (ruled.later and _has_asked(run, step)):
                    turn.advised[step] = least
                    remedies.append((run, _unwritten(policy, run, step, least)))
        asked = remedies


def _has_asked(run: _Run, step: Step) -> bool:
    """Whether the run has asked for leave by a step, and was answered: whoever is refused does not ask again."""
    return any(unheard(done) == replace(step, agent=done.agent) and not any(call.failed for call in done.calls)
               for done in run.steps)


def _weigh(
    asked: Sequence[tuple[_Run, _Candidate]], worth: Callable[[Sequence[Chain]], Sequence[float]] | None,
    rules: Callable[[Sequence[Chain]], Sequence[Ruled]] | None,
) -> list[tuple[float | None, Ruled]]:
    """What each candidate is worth, None of an empty one or where nobody says, and what rules say of it."""
    said = [Ruled()] * len(asked)
    best: list[float | None] = [None] * len(asked)
    if worth is None:
        return list(zip(best, said, strict=True))
    rows = [row for row, (_, one) in enumerate(asked) if not is_empty(one.step)]
    if rules is not None:
        chains = [(run.problem.prompt, [*run.steps, one.step]) for run, one in (asked[row] for row in rows)]
        for row, ruled in zip(rows, rules(chains), strict=True):
            said[row] = ruled
    # Before leave was asked, to ask for it may well be worth most.
    weighed = [(row, place) for row in rows
               for place in _turn(asked[row][0]).places[: 1 if said[row].asks_leave else None]]
    values = worth([(asked[row][0].problem.prompt, [*place.steps, asked[row][1].step]) for row, place in weighed])
    for (row, _), value in zip(weighed, values, strict=True):
        best[row] = max(value, asked[row][1].least if (other := best[row]) is None else other)
    return list(zip(best, said, strict=True))


def _is_settled(run: _Run, candidates: int, threshold: float) -> bool:
    """Whether the run's next turn is found; where it is not, there is more to draw."""
    turn = _turn(run)
    assert turn.best is not None
    kept, value = turn.best[0]
    if kept == 0 and threshold < 1 and value >= threshold:
        return True
    # Where nothing was written there is nothing to write instead.
    if turn.left == 0 and run.again and -math.inf < kept < 0:
        run.again -= 1
        turn.left = candidates
    return turn.left == 0


def _go_on(run: _Run) -> None:
    turn = _turn(run)
    assert turn.best is not None
    chosen = turn.best[1]
    run.turn = None
    run.asked_at, run.waiting = (turn.places[-1:], turn.held) if turn.asks_leave else ([], [])
    run.written.append(chosen.written)
    if is_empty(chosen.step):
        run.stopped = True
        return
    reply = run.environment.reply(run.problem, [*run.steps, chosen.step])
    run.steps.append(reply.step)
    run.ended = reply.ended
