"""PRMBench: every wrong step of chains with planted errors, by kind of error."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.benchmarks.base import Benchmark, BenchmarkChain, Column, ScoredFile, register
from prm_core.evaluation.benchmarks.steps import STEP_COLUMNS, step_statistics
from prm_core.evaluation.metrics import Floats, Statistic
from prm_core.formats import FORMATS
from prm_core.formats.base import get_texts
from prm_core.types import Step

log = logging.getLogger(__name__)

# Unmodified chains, judged beside the modified ones; not in the total.
CORRECT = "correct"
# The kind whose record also brings the unmodified chain, so that each comes once.
CORRECT_FROM = "redundency"
# The benchmark's spelling of its kinds, in its groups.
GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}
# "3. So" and "Step 3. So", but not "3.5 apples", which the benchmark's own pattern turns into "5 apples".
_NUMBER = re.compile(r"^(?:step\s*)?\d+\.(?!\d)\s*", re.IGNORECASE)


def _unnumbered(text: str) -> str:
    """A step without the number before it, which some kinds of chain have and others lack."""
    return _NUMBER.sub("", text.strip()) or text.strip()


def _steps(texts: Sequence[str]) -> tuple[Step, ...]:
    return tuple(Step(_unnumbered(text)) for text in texts)


def read(path: Path) -> list[BenchmarkChain]:
    """Modified chains, and once a problem the unmodified one (kind `correct`).

    A record repeated (same `idx` and `classification`) counts once; the numbers before steps are taken off, as the
    benchmark's own models do. Raises InputError naming the record without `idx` or `classification`.
    """
    chains: dict[str, BenchmarkChain] = {}
    repeated = 0
    for number, chain in enumerate(FORMATS["prmbench"].read(path)):
        fields: Mapping[str, Any] = chain.meta["rest"]
        kind, index = fields.get("classification"), fields.get("idx")
        if not isinstance(kind, str) or not isinstance(index, str):
            raise InputError(f"{path}: record {number}: fields idx and classification must be texts; they say which "
                             "problem was modified and how")
        problem = index.removeprefix(f"{kind}_")
        if f"{kind}/{problem}" in chains:
            repeated += 1
            continue
        gold = tuple(None if label is None else label >= 0.5 for label in chain.labels)
        chains[f"{kind}/{problem}"] = BenchmarkChain(
            chain.prompt, _steps([step.text for step in chain.steps]), gold, problem=problem, kind=kind,
            id=f"{kind}/{problem}")
        if kind == CORRECT_FROM and "original_process" in fields:
            where = f"{path}: record {number}"
            texts = [text for text in get_texts(fields, "original_process", where) if text.strip()]
            prompt = fields.get("original_question", chain.prompt)
            chains.setdefault(f"{CORRECT}/{problem}", BenchmarkChain(
                prompt, _steps(texts), (True,) * len(texts), problem=problem, kind=CORRECT,
                id=f"{CORRECT}/{problem}"))
    if repeated:
        log.warning("%s: %d records left out, their idx and classification came before", path, repeated)
    return list(chains.values())


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of steps, or their expectation, for each problem; each array (problems,). "Positive" is a right step.

    Attributes:
        tp: right and called right.
        fp: wrong and called right.
        tn: wrong and called wrong.
        fn: right and called wrong.
    """

    tp: Floats
    fp: Floats
    tn: Floats
    fn: Floats

    @property
    def f1(self) -> Statistic:
        """F1 of the right steps; 0 when none is called so, undefined when none is right and none is called so."""
        return metrics.ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def f1_negative(self) -> Statistic:
        """F1 of the wrong steps, likewise."""
        return metrics.ratio(2 * self.tn, 2 * self.tn + self.fn + self.fp)

    @property
    def score(self) -> Statistic:
        """PRMScore = F1 / 2 + F1 of the wrong steps / 2; F1 alone where no step is wrong (kind multi_solutions)."""
        if not (self.tn + self.fp).any():
            return self.f1
        return mean_of((self.f1, self.f1_negative))


def mean_of(parts: Sequence[Statistic]) -> Statistic:
    """The unweighted mean of statistics on the same weights."""
    return lambda weights: np.mean([part(weights) for part in parts], axis=0)


@dataclass(frozen=True, slots=True)
class StepVerdicts:
    """Steps with a gold verdict, flattened; each array (steps,).

    Attributes:
        right: whether it is right.
        passed: whether the model calls it right, as a number.
        problem: index of its problem.
        problems: how many there are.
    """

    right: Floats
    passed: Floats
    problem: metrics.Ints
    problems: int

    def confusion(self, passed: Floats | float) -> Confusion:
        """Counts when steps are called right as given: (steps,) of 0 and 1, or one probability for all."""
        def count(values: Floats) -> Floats:
            return np.bincount(self.problem, values, minlength=self.problems)

        passed, right = np.broadcast_to(passed, self.right.shape), self.right
        return Confusion(count(passed * right), count(passed * (1 - right)), count((1 - passed) * (1 - right)),
                         count((1 - passed) * right))


def verdicts(file: ScoredFile, threshold: float) -> StepVerdicts:
    """Every step's verdict; right means above the threshold. Steps without a score were not judged: no error called."""
    rows = [(right, scores[index] > threshold if index < len(scores) else True, owner)
            for chain, scores, owner in zip(file.chains, file.scores, file.problem, strict=True)
            for index, right in enumerate(chain.gold) if right is not None]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    return StepVerdicts(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), file.problems)


def score_statistics(file: ScoredFile, threshold: float) -> dict[str, Statistic]:
    """PRMScore, its two halves and step accuracies of the model and of two ways to know nothing.

    `random` calls each step right with probability 1/2. `coin` does so with the share of right steps, the best
    constant: its F1 is that share, its negative F1 the share of wrong steps, and PRMScore exactly 1/2, which the paper
    prints as its random row. Both from expected counts (the expectation of a ratio of counts differs from that by less
    than the interval's last digit for some hundred steps).
    """
    steps = verdicts(file, threshold)
    if not steps.right.size:
        return {}
    found: dict[str, Statistic] = {}
    share_right = float(steps.right.mean())
    for name, passed in (("prm", steps.passed), ("random", 0.5), ("coin", share_right)):
        counts = steps.confusion(passed)
        found |= {f"{name}/prm_score": counts.score, f"{name}/f1": counts.f1,
                  f"{name}/f1_negative": counts.f1_negative,
                  f"{name}/step_accuracy": metrics.ratio(counts.tp + counts.tn,
                                                         counts.tp + counts.tn + counts.fp + counts.fn),
                  f"{name}/right_steps_passed": metrics.ratio(counts.tp, counts.tp + counts.fn),
                  f"{name}/wrong_steps_caught": metrics.ratio(counts.tn, counts.tn + counts.fp)}
    return found


def _first_errors_caught(file: ScoredFile, threshold: float) -> Statistic:
    """Share of chains with an error whose first wrong step is called wrong, whatever is called before it."""
    rows = []
    for chain, scores, owner in zip(file.chains, file.scores, file.problem, strict=True):
        if False in chain.gold:
            first = chain.gold.index(False)
            rows.append((first < len(scores) and scores[first] <= threshold, owner))
    return metrics.share([hit for hit, _ in rows], [owner for _, owner in rows], file.problems)


def _similarity(modified: ScoredFile, correct: ScoredFile, threshold: float) -> Statistic:
    """Mean distance between the shares of steps passed in a modified chain and in its problem's unmodified one.

    Near 0 a model cannot tell the two apart (or, for multi_solutions, rightly does not). Problems whose unmodified
    chain has no step passed are left out, as in the benchmark's script.
    """
    def passed(chain: BenchmarkChain, scores: Sequence[float]) -> float:
        return 1 - sum(score <= threshold for score in scores) / len(chain.steps)

    known = {chain.problem: passed(chain, scores) for chain, scores in zip(correct.chains, correct.scores, strict=True)}
    rows = [(abs(passed(chain, scores) - known[chain.problem]), owner)
            for chain, scores, owner in zip(modified.chains, modified.scores, modified.problem, strict=True)
            if known.get(chain.problem)]
    return metrics.share([gap for gap, _ in rows], [owner for _, owner in rows], modified.problems)


def measure(file: ScoredFile, threshold: float) -> Mapping[str, Statistic]:
    """PRMScore of all modified chains, all steps in one pot; by kind of error and by group of kinds.

    A kind's figures end in `/<kind>`, a group's (the unweighted mean of its kinds' PRMScores) in `/<group>`. Unmodified
    chains are a kind of their own, `correct`, outside the total.

    Source: Song et al. 2025, "PRMBench"; prmtest_classified/task.py of ssmisya/PRMBench, whose F1 of -1 where nothing
    is found is 0 here.
    """
    modified, correct = (file.where(lambda chain, own=own: (chain.kind == CORRECT) == own) for own in (False, True))
    found = score_statistics(modified, threshold) | step_statistics(modified)
    found["prm/first_errors_caught"] = _first_errors_caught(modified, threshold)
    found["random/first_errors_caught"] = metrics.constant(0.5)
    found["prm/similarity"] = _similarity(modified, correct, threshold)
    for kind in sorted({chain.kind for chain in file.chains}):
        part = file.where(lambda chain, kind=kind: chain.kind == kind)
        found |= {f"{name}/{kind}": statistic for name, statistic in score_statistics(part, threshold).items()}
        found[f"prm/first_errors_caught/{kind}"] = _first_errors_caught(part, threshold)
        if kind != CORRECT:
            found[f"prm/similarity/{kind}"] = _similarity(part, correct, threshold)
    for group, kinds in GROUPS.items():
        for model in ("prm", "random", "coin"):
            parts = [found[f"{model}/prm_score/{kind}"] for kind in kinds if f"{model}/prm_score/{kind}" in found]
            # A group's mean without one of its kinds is another figure.
            if len(parts) == len(kinds):
                found[f"{model}/prm_score/{group}"] = mean_of(parts)
    return found


def choose(files: Sequence[ScoredFile]) -> tuple[float, str]:
    """The threshold with the best PRMScore on these files; of equally good ones, the nearest to one half.

    Raises InputError when the files lack right or wrong steps.
    """
    parts = [verdicts(file.where(lambda chain: chain.kind != CORRECT), 0.5) for file in files]
    right = np.concatenate([part.right for part in parts])
    if not 0 < right.sum() < right.size:
        raise InputError(f"{', '.join(file.name for file in files)}: a threshold needs right and wrong steps")
    # Steps without a score are passed at any threshold.
    scores = np.concatenate([_scores(file.where(lambda chain: chain.kind != CORRECT)) for file in files])
    order = np.argsort(scores, kind="stable")
    scores, right = scores[order], right[order]
    distinct = np.unique(scores[np.isfinite(scores)])
    edges = np.concatenate([[distinct[0] - 0.01], (distinct[:-1] + distinct[1:]) / 2, [distinct[-1] + 0.01]])
    below = np.searchsorted(scores, edges, side="right")
    fn = np.concatenate([[0.0], np.cumsum(right)])[below]
    tn = below - fn
    tp, fp = right.sum() - fn, (1 - right).sum() - tn
    value = tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn)
    best = np.flatnonzero(value >= value.max() - 1e-12)
    threshold = float(edges[best[np.argmin(np.abs(edges[best] - 0.5))]])
    return threshold, f"PRMScore {100 * value.max():.1f}"


def _scores(file: ScoredFile) -> Floats:
    """Scores of the steps with a gold verdict, infinite where there is none; in the order of `verdicts`."""
    return np.array([scores[index] if index < len(scores) else np.inf
                     for chain, scores in zip(file.chains, file.scores, strict=True)
                     for index, right in enumerate(chain.gold) if right is not None])


def _columns(end: str) -> tuple[Column, ...]:
    return (Column("PRMScore", f"prm/prm_score{end}", f"random/prm_score{end}"),
            Column("F1", f"prm/f1{end}", f"random/f1{end}"),
            Column("F1 negative", f"prm/f1_negative{end}", f"random/f1_negative{end}"),
            Column("coin PRMScore", f"coin/prm_score{end}"))


BENCHMARK = register(Benchmark(
    "prmbench", "JSON with modified_question, modified_process, error_steps, classification: PRMScore, files pooled",
    read, measure, choose,
    ((*_columns(""), Column("1st error caught", "prm/first_errors_caught", "random/first_errors_caught")),
     STEP_COLUMNS),
    by_kind=(*_columns("/{}"), Column("similarity", "prm/similarity/{}")), pooled=True,
))
