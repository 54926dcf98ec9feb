"""The chains an evaluation measures: sampled, judged and scored, shard by shard so that a killed run goes on."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prm_core.config import WorkersConfig
from prm_core.domains import DOMAINS
from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.platform import shards, store, workers
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.scoring.domain import unmoderated
from prm_core.scoring.scorer import ChainScore, ChainScorer, RewardScorer
from prm_core.search.aggregate import AGGREGATIONS, NO_EVIDENCE, chain_value
from prm_core.types import Problem, Step, Trajectory

if TYPE_CHECKING:
    from prm_core.sampling.policy import SampledChain


class Sampler(Protocol):
    """What evaluation needs of a policy; `prm_core.sampling.policy.Policy` is one."""

    version: str
    forks: bool

    def sample(
        self, prompts: Sequence[str], *, samples: int, temperature: float, max_new_tokens: int, batch_size: int,
        seed: int,
    ) -> list[list[SampledChain]]:
        """`samples` chains for each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain of the evaluation.

    Attributes:
        problem: index of its problem in the split.
        trajectory: as sampled.
        gold: the oracle's verdict on each step, None where the problem's domain has no oracle.
        step_scores: the PRM's score of each step that fits its context, None when the chain was not given to it.
        prm_score: their aggregate, 0 for a chain that is empty or truncated.
        orm_score: the ORM's score of the chain, 0 likewise, None when not given to it.
        combined_score: what the PRM chooses chains by: the mean of `prm_score` and the probability that the chain ends
            right, where the model gives one, else `prm_score`.
        members: what each member of the PRM's committee says of each step, empty without one; not kept on disk.
        out_of_domain: why the PRM cannot judge the chain, empty where it can, None where that is not known.
    """

    problem: int
    trajectory: Trajectory
    gold: tuple[bool, ...] | None = None
    step_scores: tuple[float, ...] | None = None
    prm_score: float | None = None
    orm_score: float | None = None
    out_of_domain: str | None = None
    combined_score: float | None = None
    members: tuple[tuple[float, ...], ...] = ()

    @property
    def gold_error(self) -> int:
        """Index of the first wrong step, -1 when every step is right. Only where there is gold."""
        if self.gold is None:
            raise ValueError(f"chain {self.trajectory.id} has no gold verdicts")
        return next((index for index, right in enumerate(self.gold) if not right), -1)

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return bool(self.trajectory.outcome)

    @property
    def truncated(self) -> bool:
        """Whether the PRM could not see the chain to its end."""
        return self.step_scores is not None and len(self.step_scores) < len(self.trajectory.steps)


@dataclass(frozen=True, slots=True)
class Plan:
    """How chains are sampled: `samples` a problem, `shard_size` problems a shard; the rest goes to the sampler."""

    samples: int
    temperature: float
    max_new_tokens: int
    batch_size: int
    shard_size: int
    seed: int


def _shard_seed(seed: int, tag: str, shard: int) -> int:
    """Unlike for every shard of every set, so that no two draw the same random numbers; the same in every run."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{tag}/{shard}".encode()).digest()[:4], "big")


def sample_chains(
    policy: Sampler, problems: Sequence[Problem], tag: str, plan: Plan, work: Path, who: WorkersConfig = shards.HERE
) -> list[Chain]:
    """`plan.samples` chains for each problem, in order, each judged where its domain has an oracle.

    Args:
        policy: the sampler.
        problems: one split.
        tag: names the set ("test-base"); part of the trajectories' ids, of the seeds and of the folder.
        plan: how to sample.
        work: where finished shards lie; those already there are not sampled again.
        who: works on shards.
    """
    folder = work / tag
    parts = workers.shards(len(problems), plan.shard_size)

    def sample(shard: int) -> list[Trajectory]:
        chosen, seed = problems[parts[shard]], _shard_seed(plan.seed, tag, shard)
        # Chains without a step stay: leaving them out would raise every accuracy.
        return sample_trajectories(
            policy, chosen, DOMAINS, samples=plan.samples, temperature=plan.temperature,
            max_new_tokens=plan.max_new_tokens, batch_size=plan.batch_size, seed=seed, prefix=tag, keep_empty=True)

    shards.fill(store.shard_paths(folder, len(parts)), sample,
                lambda shard, rows: store.write_shard(folder, shard, Trajectory, rows), who, f"sampling {tag}",
                alone=not policy.forks)
    trajectories = store.read_shards(Trajectory, folder)
    owners = {problem.id: index for index, problem in enumerate(problems)}
    chains = [Chain(owners[row.problem_id], row) for row in trajectories]
    return [replace(chain, gold=judge(problems[chain.problem], chain.trajectory.steps)) for chain in chains]


def judge(problem: Problem, steps: Sequence[Step]) -> tuple[bool, ...] | None:
    """The oracle's verdict on each step, None where the problem's domain has no oracle."""
    return tuple(ORACLES[problem.domain](problem, steps)) if problem.domain in ORACLES else None


def compared(chain: Chain, scores: Sequence[float]) -> tuple[float, ...]:
    """Scores of its steps as a threshold is held against them: a chain out of the model's domain as if it were in it.
    """
    return tuple(unmoderated(scores) if chain.out_of_domain else scores)


def first_per_problem(chains: Sequence[Chain], count: int) -> list[Chain]:
    """The first `count` chains of each problem, in order."""
    seen: dict[int, int] = {}
    kept = []
    for chain in chains:
        seen[chain.problem] = seen.get(chain.problem, 0) + 1
        if seen[chain.problem] <= count:
            kept.append(chain)
    return kept


def _score_shards(
    score: Callable[[Sequence[tuple[str, Sequence[Step]]]], Sequence[Sequence[ChainScore]]],
    pairs: Sequence[tuple[str, Sequence[Step]]], folder: Path, shard_size: int, who: WorkersConfig,
) -> Iterator[tuple[ChainScore, ...]]:
    """What each model says of each pair; finished shards are read back, not scored.

    Args:
        score: each model's scores of some pairs.
    """
    parts = workers.shards(len(pairs), shard_size)
    paths = [folder / f"part-{shard:05d}.json" for shard in range(len(parts))]

    def rows(shard: int) -> list[list[Any]]:
        chosen = pairs[parts[shard]]
        # A chain without a step is nothing a model can score.
        found = []
        for said in score([pair for pair in chosen if pair[1]]):
            scored = iter(said)
            whole = [next(scored) if pair[1] else ChainScore((), (), 1) for pair in chosen]
            found.append([[s.step_scores, s.truncated_steps, s.out_of_domain, s.outcome_score, s.members]
                          for s in whole])
        return found

    shards.fill(paths, rows, lambda shard, said: store.write_json(paths[shard], said), who, f"scoring {folder.name}")
    for path in paths:
        for models in zip(*store.read_json(path), strict=True):
            yield tuple(ChainScore(tuple(scores), (), truncated, None, doubt, outcome, tuple(map(tuple, members)))
                        for scores, truncated, doubt, outcome, members in models)


def _pairs(chains: Sequence[Chain], problems: Sequence[Problem]) -> list[tuple[str, Sequence[Step]]]:
    return [(problems[chain.problem].prompt, chain.trajectory.steps) for chain in chains]


def score_with_prm(
    scorer: ChainScorer, chains: Sequence[Chain], problems: Sequence[Problem], aggregate: str, work: Path,
    shard_size: int = 1024, who: WorkersConfig = shards.HERE,
) -> list[Chain]:
    """The chains with what a process reward model says of them: everything but `orm_score`.

    Args:
        scorer: a process reward model.
        aggregate: name of the aggregation of step scores.
        work: folder for finished shards of scores, of these chains alone.
        shard_size: chains per shard.
        who: works on shards.
    """
    found = _score_shards(lambda pairs: (scorer.score(pairs),), _pairs(chains, problems), work, shard_size, who)
    return [with_prm(chain, said, aggregate) for chain, (said,) in zip(chains, found, strict=True)]


def score_with_orm(
    scorer: ChainScorer, chains: Sequence[Chain], problems: Sequence[Problem], work: Path, shard_size: int = 1024,
    who: WorkersConfig = shards.HERE,
) -> list[Chain]:
    """The chains with `orm_score`; arguments as for `score_with_prm`."""
    found = _score_shards(lambda pairs: (scorer.score(pairs),), _pairs(chains, problems), work, shard_size, who)
    return [_with_orm(chain, said) for chain, (said,) in zip(chains, found, strict=True)]


def score_with_both(
    prm: RewardScorer, orm: RewardScorer, chains: Sequence[Chain], problems: Sequence[Problem], aggregate: str,
    work: Path, shard_size: int = 1024, who: WorkersConfig = shards.HERE,
) -> list[Chain]:
    """What `score_with_prm` and `score_with_orm` give, in half the time; the models share a pass."""
    found = _score_shards(lambda pairs: prm.score_with([orm], pairs), _pairs(chains, problems), work, shard_size, who)
    return [_with_orm(with_prm(chain, first, aggregate), second)
            for chain, (first, second) in zip(chains, found, strict=True)]


def with_prm(chain: Chain, said: ChainScore, aggregate: str) -> Chain:
    """The chain with what a process reward model says of it."""
    score = NO_EVIDENCE if said.truncated_steps else AGGREGATIONS[aggregate](said.step_scores)
    combined = chain_value(said, "process", aggregate)
    return replace(chain, step_scores=said.step_scores, prm_score=score, combined_score=combined,
                   out_of_domain=said.out_of_domain, members=said.members)


def _with_orm(chain: Chain, said: ChainScore) -> Chain:
    return replace(chain, orm_score=NO_EVIDENCE if said.truncated_steps else said.step_scores[-1])


def save_scores(path: Path, chains: Iterable[Chain]) -> None:
    """Writes what reward models said of chains, one chain a line, null for what was not asked."""
    store.write_jsonl(path, [{
        "trajectory_id": chain.trajectory.id, "step_scores": chain.step_scores, "prm_score": chain.prm_score,
        "orm_score": chain.orm_score, "out_of_domain": chain.out_of_domain, "combined_score": chain.combined_score,
    } for chain in chains])


def load_chains(folder: Path, scores: Path, splits: Mapping[str, Sequence[Problem]]) -> dict[str, list[Chain]]:
    """Chains as they were measured, by the tag they were sampled under; judged again, nothing sampled or scored.

    Args:
        folder: of their trajectories.
        scores: what `save_scores` wrote.
        splits: tag → the problems sampled.

    Raises InputError when the scores are not of these trajectories.
    """
    said = {record["trajectory_id"]: record for _, record in store.read_json_lines(scores)}
    owners = {tag: {problem.id: index for index, problem in enumerate(problems)} for tag, problems in splits.items()}
    found: dict[str, list[Chain]] = {tag: [] for tag in splits}
    for trajectory in store.read_shards(Trajectory, folder):
        tag = trajectory.id.split("/", 1)[0]
        if trajectory.id not in said or trajectory.problem_id not in owners.get(tag, {}):
            raise InputError(f"{scores}: is not of the trajectories in {folder} and these problems ({trajectory.id}); "
                             "run the stage evaluate again")
        record, problem = said[trajectory.id], owners[tag][trajectory.problem_id]
        steps = record["step_scores"]
        found[tag].append(Chain(problem, trajectory, judge(splits[tag][problem], trajectory.steps),
                                None if steps is None else tuple(steps), record["prm_score"], record["orm_score"],
                                record["out_of_domain"], record["combined_score"]))
    return found


def latency_ms_per_step(
    scorer: ChainScorer, chains: Sequence[Chain], problems: Sequence[Problem], repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Milliseconds a step when chains are scored one at a time: median over `repeats` rounds of up to 20 chains."""
    chosen = [chain for chain in chains if chain.trajectory.steps][:20]
    steps = sum(len(chain.trajectory.steps) for chain in chosen)
    if not steps:
        raise ValueError("no chain with a step to time")
    pairs = [(problems[chain.problem].prompt, chain.trajectory.steps) for chain in chosen]
    # The first call pays for lazy initialisation.
    scorer.score(pairs[:1])
    rounds = []
    for _ in range(repeats):
        start = clock()
        for pair in pairs:
            scorer.score([pair])
        rounds.append(1000 * (clock() - start) / steps)
    return statistics.median(rounds)


def counts(chains: Sequence[Chain]) -> Mapping[str, int]:
    """What a reader must know was not as usual: chains without a step, truncated for the PRM, without an answer."""
    return {
        "n_chains": len(chains),
        "n_empty_chains": sum(not chain.trajectory.steps for chain in chains),
        "n_truncated_chains": sum(chain.truncated for chain in chains),
        "n_chains_without_answer": sum(chain.trajectory.answer is None for chain in chains),
    }
