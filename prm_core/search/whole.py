"""Search among whole chains: sampled one after the other or all at once, then chosen among; in environments whole runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prm_core.sampling import episodes, rollouts
from prm_core.sampling.episodes import run_episodes
from prm_core.sampling.policy import SampledChain
from prm_core.search import choosing
from prm_core.search.base import METHODS, WORTHLESS, Found, Meter, Method, Tools, count_sampled
from prm_core.search.selection import group_answers
from prm_core.types import Problem, Trajectory

if TYPE_CHECKING:
    from prm_core.scoring.scorer import ChainScore


@dataclass(slots=True)
class Pool:
    """A problem with the chains that were sampled for it, what a reward model says of each (None of those without a
    step, or where none is asked), and how many of its steps break a rule."""

    problem: Problem
    meter: Meter
    chains: list[Trajectory]
    scores: list[ChainScore | None]
    broken: list[int]

    def values(self, tools: Tools) -> list[float]:
        """What each chain is chosen by."""
        return [WORTHLESS if score is None or chain.answer is None else tools.chain_value(score)
                for chain, score in zip(self.chains, self.scores, strict=True)]

    def groups(self, tools: Tools) -> list[int]:
        """Which answers are one and the same, by value."""
        classes = tools.domains[self.problem.domain].answer_classes
        return group_answers([chain.answer for chain in self.chains], classes).tolist()


# (what was sampled, tools) → place and value of the chosen chain.
Choose = Callable[[Pool, Tools], tuple[int, float]]


def new_pools(problems: Sequence[Problem]) -> list[Pool]:
    """A pool for each problem, without a chain."""
    return [Pool(problem, Meter(), [], [], []) for problem in problems]


def draw(pools: Sequence[Pool], counts: Sequence[int], tools: Tools, seed: int, *, scored: bool) -> None:
    """Adds so many sampled chains to each pool, scored if asked."""
    drawn = _episodes(pools, counts, tools, seed) if any(
        tools.domains[pool.problem.domain].environment for pool in pools) else _chains(pools, counts, tools, seed)
    for pool, chains in zip(pools, drawn, strict=True):
        pool.chains += chains
        pool.scores += [None] * len(chains)
        pool.broken += tools.broken([(pool.problem, chain.steps) for chain in chains])
    if scored:
        asked = [(pool, place) for pool in pools for place in range(len(pool.chains))
                 if pool.scores[place] is None and pool.chains[place].steps]
        said = tools.score([(pool.problem, pool.chains[place].steps) for pool, place in asked],
                           {pool.problem.id: pool.meter for pool in pools})
        for (pool, place), score in zip(asked, said, strict=True):
            pool.scores[place] = score


def _names(pool: Pool, count: int) -> list[str]:
    return [f"search/{pool.problem.id}/{len(pool.chains) + number}" for number in range(count)]


def _chains(pools: Sequence[Pool], counts: Sequence[int], tools: Tools, seed: int) -> list[list[Trajectory]]:
    from prm_core.sampling.sampler import Prefix

    policy = tools.policy
    encoded = [policy.encoder.encode_prompt(pool.problem.prompt) for pool in pools]
    drawn = iter(policy.continue_chains(
        encoded, [Prefix(row, len(ids)) for row, (ids, count) in enumerate(zip(encoded, counts, strict=True))
                  for _ in range(count)],
        temperature=tools.settings.temperature, max_new_tokens=tools.max_new_tokens, batch_size=tools.batch_size,
        seed=seed))
    found = []
    for pool, ids, count in zip(pools, encoded, counts, strict=True):
        group = [next(drawn) for _ in range(count)]
        count_sampled(pool.meter, group, [len(ids)] if group else [])
        found.append([
            rollouts.to_trajectory(
                tools.domains[pool.problem.domain], pool.problem,
                SampledChain(policy.encoder.decode_steps(one.ids), one.finished, len(one.ids)),
                trajectory_id=name, policy=policy.version, seed=seed)
            for name, one in zip(_names(pool, count), group, strict=True)])
    return found


def _episodes(pools: Sequence[Pool], counts: Sequence[int], tools: Tools, seed: int) -> list[list[Trajectory]]:
    runs = iter(run_episodes(
        tools.policy, tools.domains,
        [(pool.problem, ()) for pool, count in zip(pools, counts, strict=True) for _ in range(count)],
        temperature=tools.settings.temperature, max_new_tokens=tools.max_new_tokens, batch_size=tools.batch_size,
        seed=seed))
    found = []
    for pool, count in zip(pools, counts, strict=True):
        group = [next(runs) for _ in range(count)]
        for run in group:
            pool.meter.generated += run.tokens
            pool.meter.read += run.read
            pool.meter.prefixes += run.prefixes
        found.append([episodes.to_trajectory(tools.domains[pool.problem.domain], run, trajectory_id=name,
                                             policy=tools.policy.version, seed=seed)
                      for name, run in zip(_names(pool, count), group, strict=True)])
    return found


def found_in(pool: Pool, place: int, value: float) -> Found:
    """The pool's chain at a place, as chosen."""
    return Found(replace(pool.chains[place]), max(value, 0.0), len(pool.chains), pool.meter)


def by_rules(choose: Choose) -> Choose:
    """The choice among the chains that break fewest rules alone: one that breaks any is chosen only where all do."""

    def among(pool: Pool, tools: Tools) -> tuple[int, float]:
        places = [place for place, count in enumerate(pool.broken) if count == min(pool.broken)]
        place, value = choose(Pool(pool.problem, pool.meter, *([own[place] for place in places] for own in (
            pool.chains, pool.scores, pool.broken))), tools)
        return places[place], value

    return among


def _all_at_once(choose: Choose, scored: bool) -> Callable[[Sequence[Problem], Tools, int], list[Found]]:
    """A method that samples `search.candidates` chains, then chooses."""

    def run(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
        pools = new_pools(problems)
        draw(pools, [tools.settings.candidates] * len(pools), tools, seed, scored=scored)
        return [found_in(pool, *by_rules(choose)(pool, tools)) for pool in pools]

    return run


def choose_best(pool: Pool, tools: Tools) -> tuple[int, float]:
    """The chain that is worth most."""
    values = pool.values(tools)
    place = choosing.first_best(values)
    return place, values[place]


def choose_majority(pool: Pool, tools: Tools) -> tuple[int, float]:
    """The first chain with the answer of most; the first chain where none has one."""
    groups = pool.groups(tools)
    winner = choosing.vote(groups, [1.0] * len(groups))
    return (0, 0.0) if winner is None else (groups.index(winner), 0.0)


def choose_weighted(pool: Pool, tools: Tools) -> tuple[int, float]:
    """The best chain with the answer whose chains' values sum to most."""
    groups, values = pool.groups(tools), pool.values(tools)
    winner = choosing.vote(groups, values)
    places = [place for place, group in enumerate(groups) if group == winner] or list(range(len(groups)))
    place = places[choosing.first_best([values[one] for one in places])]
    return place, values[place]


def choose_supported(pool: Pool, tools: Tools) -> tuple[int, float]:
    """The chain with the highest product of its value and the number of chains that give its answer."""
    values = pool.values(tools)
    place = choosing.first_best(choosing.supported(pool.groups(tools), values))
    return place, values[place]


def adaptive(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """Best-of-N that draws on where another chain may be expected to gain `search.gain` or more, up to
    `search.candidates`: the choice is taken where it would hardly change."""
    from prm_core.sampling.drawing import next_draw

    pools, settings = new_pools(problems), tools.settings
    rng = random.Random(f"search/{seed}")
    waiting = pools
    while waiting:
        counts = [next_draw(len(pool.chains), settings.candidates) for pool in waiting]
        draw(waiting, counts, tools, rng.getrandbits(31), scored=True)
        waiting = [pool for pool in waiting if len(pool.chains) < settings.candidates and not _settled(pool, tools)]
    return [found_in(pool, *by_rules(choose_best)(pool, tools)) for pool in pools]


def _settled(pool: Pool, tools: Tools) -> bool:
    place, value = by_rules(choose_best)(pool, tools)
    score = pool.scores[place]
    # A chain without an answer is no choice, however right its steps are, nor is one that breaks a rule.
    surety = 0.0 if score is None or value < 0 or pool.broken[place] else tools.surety(score)
    return choosing.expected_gain(surety, len(pool.chains)) < tools.settings.gain


METHODS.register("majority")(Method(
    _all_at_once(choose_majority, False), "", True, "the answer that most of N chains give"))
METHODS.register("best_of_n")(Method(
    _all_at_once(choose_best, True), "chains", True, "the best-scored of N chains"))
METHODS.register("weighted_majority")(Method(
    _all_at_once(choose_weighted, True), "chains", True, "the answer whose chains' scores sum to most"))
METHODS.register("self_consistency_prm")(Method(
    _all_at_once(choose_supported, True), "chains", True, "the answer with most votes times its best chain's score"))
METHODS.register("adaptive_best_of_n")(Method(
    adaptive, "chains", True, "best of as many chains as another is expected to gain something, up to N"))
