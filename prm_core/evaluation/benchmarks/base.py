"""What every benchmark is made of: a chain with its gold verdicts, a scored file, the registry, and the scoring.

The protocols are in the `benchmark_*.py` modules beside this one; `benchmarks.py` imports them all and measures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from prm_core.config import WorkersConfig
from prm_core.errors import InputError
from prm_core.evaluation.metrics import Ints, Statistic
from prm_core.platform import shards
from prm_core.platform.progress import some, track
from prm_core.registry import Registry
from prm_core.scoring.scorer import ChainScore, ChainScorer
from prm_core.turns import heard, written
from prm_core.types import Step

log = logging.getLogger(__name__)

# Chains a call of the scorer: several of its batches, few enough for a progress bar that moves.
CHAINS_PER_CALL = 128


class Scorer(ChainScorer, Protocol):
    """A scorer that says what its scores are about: `outcome` models give one a chain, all others one a step."""

    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True)
class BenchmarkChain:
    """A chain to be scored, with what its benchmark knows about it.

    Attributes:
        prompt: the question.
        steps: in order.
        gold: for each step whether it is right, None where nobody says (after a first error, unrated).
        label: index of the first wrong step, -1 when there is none, None in benchmarks that do not ask for it.
        outcome: whether the final answer is right, None where the benchmark does not say.
        problem: whatever is equal for chains of one problem; the bootstrap resamples problems.
        kind: category within the benchmark, empty where it has none.
        id: unique within the benchmark where it can appear twice, else empty.
        ratings: -1, 0 or 1 for each step where the benchmark rates in three classes, else empty.
        hidden: rated steps that hold nothing to score; a prediction for them cannot be right.
        answer: the answer the chain states, None where it states none or the benchmark does not say.
    """

    prompt: str
    steps: tuple[Step, ...]
    gold: tuple[bool | None, ...] = ()
    label: int | None = None
    outcome: bool | None = None
    problem: str = ""
    kind: str = ""
    id: str = ""
    ratings: tuple[int | None, ...] = ()
    hidden: int = 0
    answer: str | None = None


@dataclass(frozen=True)
class ScoredFile:
    """A benchmark file's chains with their step scores.

    Attributes:
        name: of the file.
        chains: as read.
        scores: step scores of each chain; shorter than its steps where the context ended. One score a chain from an
            outcome model.
        truncated: chains whose last steps have no score.
        unscored: steps without a score.
        by_outcome: whether an outcome model scored them.
        left_out: chains of the file that are none of these, since not even their first step fits the context.
    """

    name: str
    chains: Sequence[BenchmarkChain]
    scores: Sequence[tuple[float, ...]]
    truncated: int = 0
    unscored: int = 0
    by_outcome: bool = False
    left_out: int = 0

    @cached_property
    def problem(self) -> Ints:
        """(chains,) index of each chain's problem, from 0 in order of appearance."""
        owners: dict[str, int] = {}
        return np.array([owners.setdefault(chain.problem or chain.prompt, len(owners)) for chain in self.chains],
                        dtype=np.int64)

    @cached_property
    def problems(self) -> int:
        """How many problems there are."""
        return int(self.problem.max()) + 1

    def where(self, keep: Callable[[BenchmarkChain], bool]) -> ScoredFile:
        """The chains for which `keep` holds; problems keep their numbers, so that figures can share a bootstrap."""
        rows = [index for index, chain in enumerate(self.chains) if keep(chain)]
        part = ScoredFile(self.name, [self.chains[i] for i in rows], [self.scores[i] for i in rows],
                          by_outcome=self.by_outcome)
        # Takes the place of the cached properties.
        part.__dict__.update(problem=self.problem[np.array(rows, dtype=np.int64)], problems=self.problems)
        return part


@dataclass(frozen=True, slots=True)
class Column:
    """A printed column: its header, the figure, and the figure it must be seen beside (its floor), if any."""

    header: str
    figure: str
    floor: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A protocol by name.

    Attributes:
        name: in the registry.
        about: one line of help: the files and the headline figure.
        read: the chains of a file. Raises InputError naming file, record and field.
        measure: figures of a scored file at a threshold: `<model>/<metric>` → statistic over its problems.
        choose: the threshold that serves scored files best, and what it is best for. Raises InputError. None where
            the protocol has no threshold.
        tables: what is printed, a table each.
        by_kind: columns of a table with a row for each kind of chain (or each N): its figures have the kind at {}.
        kinds: what {} stands for.
        pooled: whether several files count as one (else their figures are averaged unweighted).
        outcome_models: whether one score a chain is enough.
        ranks: whether chains of a problem are compared: one without a score stays, and comes last.
    """

    name: str
    about: str
    read: Callable[[Path], list[BenchmarkChain]]
    measure: Callable[[ScoredFile, float], Mapping[str, Statistic]]
    choose: Callable[[Sequence[ScoredFile]], tuple[float, str]] | None
    tables: Sequence[Sequence[Column]]
    by_kind: Sequence[Column] = ()
    kinds: str = "kind"
    pooled: bool = False
    outcome_models: bool = False
    ranks: bool = False


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def register(benchmark: Benchmark) -> Benchmark:
    """The benchmark joins BENCHMARKS by its name."""
    return BENCHMARKS.register(benchmark.name)(benchmark)


def pool(files: Sequence[ScoredFile], name: str) -> ScoredFile:
    """Files as one; a chain whose id came before is left out, as a benchmark spread over files counts it once."""
    seen: set[str] = set()
    chains, scores = [], []
    for file in files:
        for chain, row in zip(file.chains, file.scores, strict=True):
            if chain.id and chain.id in seen:
                continue
            seen.add(chain.id)
            chains.append(chain)
            scores.append(row)
    return ScoredFile(name, chains, scores, sum(file.truncated for file in files), sum(f.unscored for f in files),
                      files[0].by_outcome, sum(file.left_out for file in files))


def _score_some(scorer: ChainScorer, name: str, rows: Sequence[int], pairs: Sequence[tuple[str, Sequence[Step]]]
                ) -> list[ChainScore]:
    try:
        return scorer.score([pairs[row] for row in rows])
    except InputError:
        for row in rows:
            try:
                scorer.score([pairs[row]])
            except InputError as error:
                raise InputError(f"{name}: chain {row}: {error}") from None
        raise


def score_file(
    scorer: Scorer, name: str, chains: Sequence[BenchmarkChain], *, ranks: bool = False,
    who: WorkersConfig = shards.HERE,
) -> ScoredFile:
    """Scores a file's chains, the longest first, so that a lack of memory shows at once.

    Args:
        scorer: a reward model.
        name: of the file, for reports.
        chains: to score.
        ranks: see `Benchmark`. Elsewhere chains of which not even the first step fits the context are left out, counted
            and logged by their number in the file, from 0.
        who: works on parts of them.

    Raises InputError naming a chain that the model refuses, and when none fits the context.
    """
    pairs = [(chain.prompt, chain.steps) for chain in chains]
    lengths = [len(prompt) + sum(len(written(step)) + len(heard(step)) for step in steps) for prompt, steps in pairs]
    order = sorted(range(len(pairs)), key=lambda row: -lengths[row])
    scored: list[ChainScore] = [ChainScore((), (), 0)] * len(pairs)
    calls = [order[start : start + CHAINS_PER_CALL] for start in range(0, len(order), CHAINS_PER_CALL)]
    label = f"scoring {Path(name).name}"
    answers = shards.in_order(lambda rows: _score_some(scorer, name, rows, pairs), track(calls, label, unit="part"),
                              who, label)
    for rows, said in answers:
        for row, score in zip(rows, said, strict=True):
            scored[row] = score
    lost = [row for row, score in enumerate(scored) if score.truncated_steps and not score.step_scores]
    if len(lost) == len(chains):
        raise InputError(f"{name}: no chain fits the model's context; name a model with a longer one")
    if lost:
        how = "come last" if ranks else "are left out"
        log.warning("%s: %d of %d chains %s: the model's context has no room for their first step: %s", name,
                    len(lost), len(chains), how, some([f"chain {row}" for row in lost]))
    if lost and not ranks:
        gone = set(lost)
        chains = [chain for row, chain in enumerate(chains) if row not in gone]
        scored = [score for row, score in enumerate(scored) if row not in gone]
    truncated = sum(score.truncated_steps > 0 for score in scored)
    unscored = sum(score.truncated_steps for score in scored)
    if truncated:
        log.warning("%s: %d chains do not fit the model's context; their last %d steps have no score", name, truncated,
                    unscored)
    strange = sum(bool(score.out_of_domain) for score in scored)
    if strange:
        log.warning("%s: %d of %d chains are unlike what the model was trained on; its scores of them mean nothing",
                    name, strange, len(chains))
    return ScoredFile(name, chains, [score.step_scores for score in scored], truncated, unscored,
                      scorer.kind == "outcome", 0 if ranks else len(lost))
