"""Whether a way to choose is worth its tokens: every method against weighted majority at equal total tokens.

Whole-chain methods are read off the chains that the evaluation sampled anyway; what a method that decides while it
samples found is given. How methods search is in `prm_core/search`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prm_core.evaluation import metrics
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.metrics import Bootstrap, Estimate
from prm_core.search import selection
from prm_core.types import Problem, Step

Floats = NDArray[np.float64]
RIVAL = "weighted_majority"
# Chains to choose among where the comparison shows one number of them; the most where so many were not tried.
COMPARED = 8
# Of those that are read off the evaluation's chains, with the models that they ask for every chain; the last is there
# with rules alone.
WHOLE = {"majority": 0, RIVAL: 1, "orm_best_of_n": 1, "prm_best_of_n": 1, "combined_best_of_n": 1, "ruled_best_of_n": 1}


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search found on a split's problems, in order.

    Attributes:
        method: its name.
        right: whether the chosen answer is right, (problems,).
        tokens: of policy and reward model together, (problems,).
        broken: whether the chosen chain breaks a rule, (problems,); None without rules.
    """

    method: str
    right: Sequence[bool]
    tokens: Sequence[int]
    broken: Sequence[bool] | None = None


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A method at one cost.

    Attributes:
        method: its name.
        n: chains that are chosen among, None of a method that decides while it samples.
        tokens: of policy and reward model together, a problem.
        accuracy: share of right answers.
        rival: weighted majority's at as many tokens; at its dearest, or cheapest, where it has no such point. Of
            weighted majority itself its own.
        gain: the difference.
        violations: share of chosen chains that break a rule; None without rules.
    """

    method: str
    n: int | None
    tokens: float
    accuracy: Estimate
    rival: Estimate
    gain: Estimate
    violations: Estimate | None = None

    @property
    def beats(self) -> bool:
        """Whether the interval of the difference is above 0."""
        return self.gain.low > 0

    def flat(self) -> dict[str, float]:
        """Its keys in metrics.json, without the split."""
        figures = {"accuracy": self.accuracy, "over_weighted_majority": self.gain}
        if self.violations is not None:
            figures["violations"] = self.violations
        return {f"search/{self.method}/tokens": self.tokens, **{
            f"search/{self.method}/{name}{end}": number for name, estimate in figures.items()
            for end, number in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SearchRow:
        """The row whose `dataclasses.asdict` was written as JSON."""
        estimates = {name: Estimate(**record[name]) for name in ("accuracy", "rival", "gain", "violations")
                     if record.get(name) is not None}
        return cls(**{**record, **estimates})


def whole_tokens(
    chains: Sequence[Chain], problems: Sequence[Problem], length: Callable[[str, Sequence[Step]], int],
    ns: Sequence[int], models: int,
) -> dict[int, float]:
    """N → tokens a problem of choosing among N chains: the prompt once for each model, the chains, and for a reward
    model what several begin with once.

    Args:
        length: tokens of a prompt with steps.
        models: reward models that read every chain.
    """
    groups: list[list[Chain]] = [[] for _ in problems]
    for chain in chains:
        groups[chain.problem].append(chain)
    totals = dict.fromkeys(ns, 0.0)
    for problem, group in zip(problems, groups, strict=True):
        prompt = length(problem.prompt, ())
        texts = [chain.trajectory.steps for chain in group]
        # Of every beginning its last step's own tokens.
        starts = dict.fromkeys(steps[:count] for steps in texts for count in range(1, len(steps) + 1))
        sizes = {steps: length(problem.prompt, steps) for steps in starts}
        # With the token that ends a chain.
        written = sum(sizes.get(steps, prompt) - prompt + 1 for steps in texts) / len(texts)
        for n in ns:
            read = sum((size - sizes.get(steps[:-1], prompt))
                       * selection.oracle_at_n([text[: len(steps)] == steps for text in texts], n)
                       for steps, size in sizes.items())
            totals[n] += prompt + n * written + models * (prompt + read)
    return {n: total / len(problems) for n, total in totals.items()}


def at_tokens(curve: Sequence[tuple[float, Floats]], tokens: float) -> Floats:
    """Accuracy of each problem at so many tokens: between a curve's (tokens, accuracies) straight in the logarithm of
    tokens, at its ends beyond them."""
    points = sorted(curve, key=lambda point: point[0])
    ends = [math.log(cost) for cost, _ in points]
    wanted = min(max(math.log(tokens), ends[0]), ends[-1])
    above = min(int(np.searchsorted(ends, wanted)), len(points) - 1)
    if above == 0 or ends[above] == wanted:
        return points[above][1]
    share = (wanted - ends[above - 1]) / (ends[above] - ends[above - 1])
    return (1 - share) * points[above - 1][1] + share * points[above][1]


def compare(
    accuracies: Mapping[tuple[str, int], Floats], tokens: Mapping[int, Mapping[int, float]],
    searched: Sequence[Searched], resamples: int, seed: int,
    violations: Mapping[tuple[str, int], Floats] | None = None,
) -> list[SearchRow]:
    """Every method, and weighted majority, against weighted majority at equal total tokens: a row for each N by which
    methods choose among whole chains, and for each other method.

    Args:
        accuracies: (method, N) → expected accuracy of each problem, as `protocol.selection_accuracies` gives them.
        tokens: reward models that are asked → N → tokens a problem.
        searched: on the same problems.
        resamples, seed: of the bootstrap over problems.
        violations: (method, N) → of each problem, the expected share of chosen chains that break a rule; None without
            rules.
    """
    rival = [(cost, accuracies[RIVAL, many]) for many, cost in tokens[WHOLE[RIVAL]].items()]
    points: list[tuple[str, int | None, float, Floats, Floats | None]] = [
        (method, n, cost, accuracies[method, n], violations[method, n] if violations else None)
        for method, models in WHOLE.items() for n, cost in tokens[models].items() if (method, n) in accuracies]
    points += [(one.method, None, float(np.mean(one.tokens)), np.asarray(one.right, dtype=np.float64),
                None if one.broken is None else np.asarray(one.broken, dtype=np.float64)) for one in searched]
    bootstrap = Bootstrap(len(points[0][3]), resamples, seed)
    rows = []
    for method, many, cost, right, broken in points:
        mine, theirs = metrics.mean(right), metrics.mean(at_tokens(rival, cost))
        rows.append(SearchRow(
            method, many, cost, *map(bootstrap.estimate, (mine, theirs, metrics.difference(mine, theirs))),
            violations=None if broken is None else bootstrap.estimate(metrics.mean(broken))))
    return rows


def compared(rows: Sequence[SearchRow]) -> list[SearchRow]:
    """One row of each method but weighted majority: of those that choose among whole chains that of `COMPARED`."""
    tried = [row.n for row in rows if row.n is not None]
    n = COMPARED if COMPARED in tried else max(tried, default=0)
    return [row for row in rows if row.method != RIVAL and row.n in (n, None)]
