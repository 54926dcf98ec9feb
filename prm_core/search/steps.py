"""Search among steps, while chains are written: one loop, of which the methods are settings.

Each problem has trees, each tree the beams it keeps; in a round every open beam gets candidates, some steps longer, all
of them are scored in one batch, and each tree keeps its best.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prm_core.sampling import episodes, rollouts
from prm_core.sampling.episodes import run_episodes
from prm_core.sampling.policy import SampledChain
from prm_core.search import choosing
from prm_core.search.base import METHODS, UNSAFE, WORTHLESS, Found, Meter, Method, Tools, count_sampled
from prm_core.types import Problem, Step

if TYPE_CHECKING:
    from prm_core.sampling.sampler import Continuation


@dataclass(frozen=True, slots=True)
class Shape:
    """What makes a method of the loop.

    Attributes:
        trees: searched apart from each other, the best of their chains being chosen.
        width: beams that a tree keeps.
        candidates: of each beam in a round.
        granularity: steps that a candidate is longer than its beam.
        threshold: a candidate worth as much is taken before all are drawn; None draws all. For trees of one beam.
        back_offs: how often in a problem, where no candidate reaches the threshold, its beam is given up for the one
            before.
    """

    trees: int = 1
    width: int = 1
    candidates: int = 1
    granularity: int = 1
    threshold: float | None = None
    back_offs: int = 0


@dataclass(frozen=True, slots=True)
class Beam:
    """A chain under way.

    Attributes:
        ids: its tokens with the prompt's, from which the policy goes on.
        steps: their texts.
        written: tokens that the policy wrote of it.
        ended: whether the policy ended it, or it cannot go on.
        whole: whether the policy ended it.
        value: what it is kept by.
        chain: what it would be chosen by as a whole chain.
        parent: the beam it came from.
        grown_by: what the policy wrote, as sampled, of what it is longer than that.
    """

    ids: tuple[int, ...]
    steps: tuple[str, ...] = ()
    written: int = 0
    ended: bool = False
    whole: bool = False
    value: float = 0.0
    chain: float = 0.0
    parent: Beam | None = None
    grown_by: Continuation | None = None


@dataclass(slots=True)
class _Tree:
    problem: Problem
    meter: Meter
    beams: list[Beam]
    back_offs: int
    # Of the open beams, since they became so.
    pending: list[Beam] = field(default_factory=list)
    barred: set[tuple[str, ...]] = field(default_factory=set)
    drawn: int = 0

    @property
    def open(self) -> list[Beam]:
        return [beam for beam in self.beams if not beam.ended]


def grow(problems: Sequence[Problem], tools: Tools, seed: int, shape: Shape) -> list[Found]:
    """The loop, for all problems at once."""
    rng = random.Random(f"search/{seed}")
    trees: list[list[_Tree]] = []
    for problem in problems:
        root, meter = Beam(tuple(tools.policy.encoder.encode_prompt(problem.prompt))), Meter()
        trees.append([_Tree(problem, meter, [root], shape.back_offs) for _ in range(shape.trees)])
    while waiting := [tree for group in trees for tree in group if tree.open]:
        asked = [(tree, beam) for tree in waiting for beam in tree.open for _ in range(_count(tree, shape))]
        grown = _score(asked, _expand(asked, tools, shape.granularity, rng), tools)
        for (tree, _), candidate in zip(asked, grown, strict=True):
            tree.pending.append(candidate)
            tree.drawn += 1
        for tree in waiting:
            _choose(tree, shape)
    return [_found(group, tools, seed) for group in trees]


def _count(tree: _Tree, shape: Shape) -> int:
    """Candidates of each open beam to be drawn now. A tree's first beam stands for as many as the tree keeps."""
    from prm_core.sampling.drawing import next_draw

    limit = shape.candidates * (shape.width if tree.open[0].parent is None else 1)
    return next_draw(len(tree.pending), limit) if shape.threshold is not None else limit


def _expand(
    asked: Sequence[tuple[_Tree, Beam]], tools: Tools, granularity: int, rng: random.Random
) -> list[Beam]:
    """A candidate for each (tree, beam), not scored yet."""
    from prm_core.sampling.sampler import Prefix

    policy = tools.policy
    grown = [replace(beam, parent=beam) for _, beam in asked]
    for number in range(granularity):
        going = [row for row, beam in enumerate(grown) if not beam.ended]
        if not going:
            break
        # Candidates of one beam go on from one text.
        chains: dict[tuple[int, ...], int] = {}
        prefixes = [Prefix(chains.setdefault(grown[row].ids, len(chains)), len(grown[row].ids)) for row in going]
        drawn = policy.continue_chains(
            list(chains), prefixes, temperature=tools.settings.temperature, max_new_tokens=tools.max_new_tokens,
            batch_size=tools.batch_size, seed=rng.getrandbits(31), stop_ids=(policy.encoder.separator_id,),
            avoid=() if number else [_known(*asked[row]) for row in going])
        counted: set[tuple[int, ...]] = set()
        for row, one in zip(going, drawn, strict=True):
            beam = grown[row]
            count_sampled(asked[row][0].meter, [one], [] if beam.ids in counted else [len(beam.ids)])
            counted.add(beam.ids)
            texts = policy.encoder.decode_steps(one.ids)
            ids, written = (*beam.ids, *one.ids), beam.written + len(one.ids)
            whole = one.finished and one.ids[-1] == policy.encoder.eos_id
            # A blank step, or no room for another.
            stuck = not whole and (not one.finished or not texts or written >= tools.max_new_tokens
                                   or len(ids) + 2 > policy.encoder.config.max_length)
            grown[row] = replace(beam, ids=ids, steps=(*beam.steps, *texts), written=written, ended=whole or stuck,
                                 whole=whole, grown_by=one)
    return grown


def _known(tree: _Tree, beam: Beam) -> list[Continuation]:
    """What was drawn to go on from the beam, and did not do."""
    return [one.grown_by for one in tree.pending if one.parent is beam and one.grown_by is not None]


def _score(asked: Sequence[tuple[_Tree, Beam]], grown: Sequence[Beam], tools: Tools) -> list[Beam]:
    """The candidates with their values, scored in one batch; what cannot become an answer is worth nothing."""
    useful = []
    for row, beam in enumerate(grown):
        domain = tools.domains[asked[row][0].problem.domain]
        answered = beam.whole and beam.steps and domain.read_answer(beam.steps[-1]) is not None
        if answered or not beam.ended:
            useful.append(row)
    said = tools.score([(asked[row][0].problem, [Step(text) for text in grown[row].steps]) for row in useful],
                       {tree.problem.id: tree.meter for tree, _ in asked})
    scores = dict(zip(useful, said, strict=True))
    broken = tools.broken([(tree.problem, [Step(text) for text in beam.steps])
                           for (tree, _), beam in zip(asked, grown, strict=True)])
    valued = []
    for row, (beam, count) in enumerate(zip(grown, broken, strict=True)):
        step, chain = ((tools.step_value(scores[row]), tools.chain_value(scores[row])) if row in scores
                       else (WORTHLESS, WORTHLESS))
        valued.append(replace(beam, value=step + UNSAFE * count, chain=chain + UNSAFE * count))
    return valued


def _choose(tree: _Tree, shape: Shape) -> None:
    """Keeps the tree's best beams of those that ended and the candidates, draws on, or goes back."""
    values = [beam.value + WORTHLESS * (beam.steps in tree.barred) for beam in tree.pending]
    beam = tree.open[0]
    if shape.threshold is not None and max(values) < shape.threshold:
        if len(tree.pending) < shape.candidates:
            return
        if tree.back_offs and beam.parent is not None:
            tree.back_offs -= 1
            tree.barred.add(beam.steps)
            tree.beams, tree.pending = [beam.parent], []
            return
    ended = [one for one in tree.beams if one.ended]
    pool, worth = [*ended, *tree.pending], [*(one.value for one in ended), *values]
    kept = choosing.keep_best(worth, [(one.steps, one.ended) for one in pool], shape.width)
    tree.beams, tree.pending = [pool[place] for place in kept], []


def _found(trees: Sequence[_Tree], tools: Tools, seed: int) -> Found:
    beams = [beam for tree in trees for beam in tree.beams]
    chosen = beams[choosing.first_best([beam.chain for beam in beams])]
    problem = trees[0].problem
    trajectory = rollouts.to_trajectory(
        tools.domains[problem.domain], problem, SampledChain(chosen.steps, chosen.whole, chosen.written),
        trajectory_id=f"search/{problem.id}/0", policy=tools.policy.version, seed=seed)
    return Found(trajectory, max(chosen.chain, 0.0), sum(tree.drawn for tree in trees), trees[0].meter)


def step_best_of_n(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """Each step the first of up to `search.candidates` that reaches `search.threshold`; where none does, the step
    before is given up, `search.back_offs` times a problem, and then the best is taken. A threshold of 1 draws all of
    them and takes the best. In an environment turns are chosen before they are executed and not taken back; where all
    candidates break a rule, as many are drawn again, `search.back_offs` times a problem. What a rule says to do instead
    of a candidate is one too, and what it stopped is one again in the turn after.
    """
    settings = tools.settings
    if any(tools.domains[problem.domain].environment for problem in problems):
        return _turns(problems, tools, seed)
    if settings.threshold == 1:
        return grow(problems, tools, seed, Shape(candidates=settings.candidates))
    return grow(problems, tools, seed, Shape(candidates=settings.candidates, threshold=settings.threshold,
                                             back_offs=settings.back_offs))


def beam_search(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """`search.width` beams, of each `search.candidates` next steps, of all of which as many beams are kept.

    Source: Snell et al. 2024, "Scaling LLM Test-Time Compute Optimally", section 5.
    """
    return grow(problems, tools, seed, Shape(width=tools.settings.width, candidates=tools.settings.candidates))


def diverse_trees(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """`search.width` trees that know nothing of each other, each keeping one beam.

    Source: Beeching et al. 2024, "Scaling test-time compute with open models" (DVTS).
    """
    return grow(problems, tools, seed, Shape(trees=tools.settings.width, candidates=tools.settings.candidates))


def block_search(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    """A beam search that chooses every `search.granularity` steps: 1 is beam search, more steps than any chain has is
    best-of-N.

    Source: Chen et al. 2025, "Rethinking Optimal Verification Granularity for Compute-Efficient Test-Time Scaling"
    (arXiv 2505.11730).
    """
    settings = tools.settings
    return grow(problems, tools, seed, Shape(width=settings.width, candidates=settings.candidates,
                                             granularity=settings.granularity))


def _turns(problems: Sequence[Problem], tools: Tools, seed: int) -> list[Found]:
    meters, owners = {problem.id: Meter() for problem in problems}, {problem.prompt: problem for problem in problems}

    def turns(chains: Sequence[tuple[str, Sequence[Step]]]) -> list[tuple[Problem, Sequence[Step]]]:
        return [(owners[prompt], steps) for prompt, steps in chains]

    runs = run_episodes(
        tools.policy, tools.domains, [(problem, ()) for problem in problems], temperature=tools.settings.temperature,
        max_new_tokens=tools.max_new_tokens, batch_size=tools.batch_size, seed=seed,
        candidates=tools.settings.candidates,
        worth=lambda chains: [tools.step_value(score) for score in tools.score(turns(chains), meters)],
        threshold=tools.settings.threshold,
        rules=tools.overseer and tools.overseer.last_steps, again=tools.settings.back_offs)
    found = []
    for run in runs:
        meter = meters[run.problem.id]
        meter.generated, meter.read, meter.prefixes = run.tokens, run.read, run.prefixes
        trajectory = episodes.to_trajectory(tools.domains[run.problem.domain], run, policy=tools.policy.version,
                                            trajectory_id=f"search/{run.problem.id}/0", seed=seed)
        found.append(Found(trajectory, 0.0, run.drawn, meter))
    return found


METHODS.register("step_best_of_n")(Method(
    step_best_of_n, "steps", True, "each step the best of up to N, with a threshold and a way back"))
METHODS.register("beam")(Method(beam_search, "steps", False, "the best beams of all candidates, step by step"))
METHODS.register("dvts")(Method(diverse_trees, "steps", False, "several trees apart, each step the best of N"))
METHODS.register("blocks")(Method(
    block_search, "steps", False, "beams chosen every few steps: between beam search and best-of-N"))
