"""The adversarial suite: how much of a reward model's accuracy small edits of a chain take away, PRM against ORM.

A model's verdict on a chain is "sound" when its chain score reaches a threshold chosen on clean chains of other
problems. Each perturbation is applied to every chain it has a known effect on, and the verdicts on the clean and on the
edited chain are compared, chain by chain.

Chains whose edit has no known effect (`attacks.py`) are left out of that perturbation, and counted by reason.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.adversarial.attacks import Attack, attack
from prm_core.evaluation.adversarial.gold_chains import GoldChain
from prm_core.evaluation.adversarial.perturbations import PERTURBATIONS
from prm_core.evaluation.metrics import Bootstrap, Estimate, Floats, Statistic
from prm_core.scoring.scorer import ChainScore
from prm_core.search.aggregate import AGGREGATIONS
from prm_core.types import Step

log = logging.getLogger(__name__)

GROUPS = ("damaging", "harmless", "all")
TOO_LONG = "longer than a model's context"


class SuiteScorer(Protocol):
    """What the suite needs of a reward model; `load_scorer` gives one."""

    @property
    def kind(self) -> str:
        """`outcome` for models that give one score a chain; all others give one a step."""
        ...

    @property
    def version(self) -> str:
        """Names its weights."""
        ...

    @property
    def encoder(self) -> Any:
        """`encoder.config.separator` is what ends a step."""
        ...

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        """Scores (prompt, steps) pairs, in order."""
        ...


@dataclass(frozen=True, slots=True)
class AdversarialResult:
    """What the suite found.

    Attributes:
        figures: `<model>/clean/<metric>`, `<model>/<perturbation>/<metric>` and, for each PRM and ORM,
            `<prm> vs <orm>/<perturbation>/<metric>` → estimate; instead of a perturbation also `all`, `damaging` and
            `harmless`, unweighted means. Undefined ones are left out.
        numbers: `<model>/threshold`, `<perturbation>/n_chains` and other plain numbers.
        skipped: perturbation → reason → chains left out of it.
        gold: perturbation → who knew the edited chains' verdicts → how many.
        models: name → kind and version.
        settings: aggregate, seed, resamples.
    """

    figures: Mapping[str, Estimate]
    numbers: Mapping[str, float]
    skipped: Mapping[str, Mapping[str, int]]
    gold: Mapping[str, Mapping[str, int]]
    models: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; estimates as `<name>`, `<name>_low`, `<name>_high`."""
        flat = {key: value for name, e in self.figures.items()
                for key, value in ((name, e.value), (f"{name}_low", e.low), (f"{name}_high", e.high))}
        return {"models": self.models, "settings": self.settings, "numbers": self.numbers, "figures": flat,
                "skipped": self.skipped, "gold": self.gold}


# ------------------------------------------------------------------------------------------------- verdicts


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's scores of some chains; NaN and no steps for chains it could not see to their end.

    Attributes:
        chain: (chains,) score of each chain.
        steps: step scores of each; one for an outcome model.
    """

    chain: Floats
    steps: Sequence[tuple[float, ...]]


def score_chains(
    scorer: SuiteScorer, chains: Sequence[tuple[str, str, Sequence[Step]]], aggregate: str
) -> Scores:
    """Scores (name, prompt, steps) chains.

    Args:
        scorer: the model.
        chains: to score.
        aggregate: from a process model's step scores to its chain score.

    Raises InputError naming a chain that the model refuses.
    """
    combine = AGGREGATIONS[aggregate]
    pairs = [(prompt, steps) for _, prompt, steps in chains]
    try:
        scored = scorer.score(pairs)
    except InputError:
        for (name, _, _), pair in zip(chains, pairs, strict=True):
            try:
                scorer.score([pair])
            except InputError as error:
                raise InputError(f"chain {name}: {error}") from None
        raise
    steps = [score.step_scores if not score.truncated_steps else () for score in scored]
    whole = [row[-1] if scorer.kind == "outcome" else combine(row) for row in steps if row]
    values = np.full(len(steps), np.nan)
    values[[bool(row) for row in steps]] = whole
    return Scores(values, steps)


def choose_threshold(scores: Sequence[float], sound: Sequence[bool]) -> tuple[float, float]:
    """The threshold with the best balanced accuracy of the verdict "sound where score >= threshold", and that accuracy.

    Candidates lie midway between neighbouring distinct scores and beyond either end. Of equally good ones the nearest
    to 0.5 is taken, then the lower.

    Raises ValueError when the chains are not of both kinds.
    """
    values, right = np.asarray(scores, dtype=np.float64), np.asarray(sound, dtype=bool)
    if not (right.any() and (~right).any()):
        raise ValueError("a threshold needs sound chains and unsound ones")
    distinct = np.unique(values)
    edges = np.concatenate([[min(distinct[0], 0.0) - 1e-6], distinct, [max(distinct[-1], 1.0) + 1e-6]])
    midway = (edges[:-1] + edges[1:]) / 2
    # Between two neighbouring floats there is none, and the midpoint may round to the lower.
    candidates = np.where(midway > edges[:-1], midway, edges[1:])
    passed = 1 - np.searchsorted(np.sort(values[right]), candidates) / right.sum()
    caught = np.searchsorted(np.sort(values[~right]), candidates) / (~right).sum()
    balanced = (passed + caught) / 2
    best = np.flatnonzero(np.isclose(balanced, balanced.max(), rtol=0, atol=1e-12))
    chosen = min(best, key=lambda i: (abs(candidates[i] - 0.5), candidates[i]))
    return float(candidates[chosen]), float(balanced[chosen])


# ------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True)
class Verdicts:
    """One model on one perturbation, chain by chain.

    Attributes:
        problem: (chains,) index of each chain's problem.
        sound: (chains, 2) gold, before and after the edit.
        scores: (chains, 2) chain scores, before and after.
        threshold: of the verdict.
        found: (chains,) whether the first step below the threshold is the first wrong one, None where that is not
            asked (outcome models, harmless edits, chain scores other than the lowest step's).
    """

    problem: Sequence[int]
    sound: np.ndarray
    scores: Floats
    threshold: float
    found: np.ndarray | None = None

    @property
    def right(self) -> np.ndarray:
        """(chains, 2) whether the verdict is right, before and after."""
        return (self.scores >= self.threshold) == self.sound

    def statistics(self, problems: int) -> dict[str, Statistic]:
        """Metric → statistic; see `run_adversarial`."""
        clean, edited = self.right.T

        def over(values: np.ndarray) -> Statistic:
            return metrics.share(values, self.problem, problems)

        found = {
            "accuracy_clean": over(clean),
            "accuracy": over(edited),
            "accuracy_lost": over(clean.astype(float) - edited),
            "fooled": over(clean & ~edited),
            "score_shift": over(self.scores[:, 1] - self.scores[:, 0]),
        }
        for name, kind in (("fooled_sound", self.sound[:, 0]), ("fooled_unsound", ~self.sound[:, 0])):
            chosen = np.flatnonzero(kind)
            found[name] = metrics.share((clean & ~edited)[chosen], np.asarray(self.problem)[chosen], problems)
        if self.found is not None:
            found["first_error_found"] = over(self.found)
        return found


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The unweighted mean of statistics on the same weights."""
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def lost_ratio(prm: Statistic, orm: Statistic) -> Statistic:
    """Accuracy lost by the PRM divided by that lost by the ORM; undefined where the ORM loses none."""

    def statistic(weights: Floats) -> Floats:
        lost, rival = prm(weights), orm(weights)
        return np.divide(lost, rival, out=np.full(rival.shape, np.nan), where=rival > 0)

    return statistic


@dataclass
class _Suite:
    """The state of one run: chains that every model sees whole, edits, scores."""

    chains: Sequence[GoldChain]
    problem: list[int]
    problems: int
    attacks: dict[str, list[Attack]] = field(default_factory=dict)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)

    def names(self, group: str) -> list[str]:
        """Perturbations of a group that were applied to a chain at least."""
        return [name for name, found in self.attacks.items()
                if found and (group == "all" or PERTURBATIONS[name].damaging == (group == "damaging"))]


def _rows(chains: Iterable[GoldChain]) -> list[tuple[str, str, Sequence[Step]]]:
    return [(chain.name, chain.prompt, chain.steps) for chain in chains]


def _thresholds(
    scorers: Mapping[str, SuiteScorer], dev: Sequence[GoldChain], aggregate: str
) -> dict[str, tuple[float, float]]:
    chosen = {}
    for name, scorer in scorers.items():
        scores = score_chains(scorer, _rows(dev), aggregate).chain
        seen = np.isfinite(scores)
        if not seen.all():
            log.warning("%s: %d chains for the threshold do not fit its context and are left out", name, (~seen).sum())
        sound = np.array([chain.sound for chain in dev], dtype=bool)
        try:
            chosen[name] = choose_threshold(scores[seen], sound[seen])
        except ValueError as error:
            raise InputError(f"chains for {name}'s threshold: {error}; name others") from None
    return chosen


def _prepare(
    scorers: Mapping[str, SuiteScorer], chains: Sequence[GoldChain], names: Sequence[str], aggregate: str, seed: int
) -> tuple[_Suite, dict[str, Scores], dict[str, dict[str, Scores]]]:
    """Edits the chains, scores them clean and edited; what one model cannot see whole is left out for all."""
    clean = {name: score_chains(scorer, _rows(chains), aggregate) for name, scorer in scorers.items()}
    whole = np.flatnonzero(np.all([np.isfinite(scores.chain) for scores in clean.values()], axis=0))
    if not whole.size:
        raise InputError("no chain fits the context of every model; name shorter chains or models with a longer one")
    kept = [chains[i] for i in whole]
    clean = {name: Scores(scores.chain[whole], [scores.steps[i] for i in whole]) for name, scores in clean.items()}
    owners: dict[str, int] = {}
    suite = _Suite(kept, [owners.setdefault(chain.prompt, len(owners)) for chain in kept], len(owners))
    edited: dict[str, dict[str, Scores]] = {}
    for kind in names:
        tried = [attack(chain, number, kind, seed) for number, chain in enumerate(kept)]
        attacks = [one for one in tried if isinstance(one, Attack)]
        skipped = Counter(one for one in tried if isinstance(one, str))
        rows = [(f"{kept[a.chain].name} ({kind})", kept[a.chain].prompt, a.edit.steps) for a in attacks]
        scored = {name: score_chains(scorer, rows, aggregate) for name, scorer in scorers.items()} if rows else {}
        seen = [i for i in range(len(attacks)) if all(np.isfinite(s.chain[i]) for s in scored.values())]
        if len(chains) - len(kept) + len(attacks) - len(seen):
            skipped[TOO_LONG] = len(chains) - len(kept) + len(attacks) - len(seen)
        suite.attacks[kind], suite.skipped[kind] = [attacks[i] for i in seen], skipped
        edited[kind] = {name: Scores(s.chain[seen], [s.steps[i] for i in seen]) for name, s in scored.items()}
        log.info("%s: %d of %d chains edited%s", kind, len(seen), len(chains),
                 "".join(f"; {count} {reason}" for reason, count in sorted(skipped.items())))
    return suite, clean, edited


def _verdicts(
    suite: _Suite, kind: str, clean: Scores, edited: Scores, threshold: float, locates: bool
) -> Verdicts:
    attacks = suite.attacks[kind]
    owner = [one.chain for one in attacks]
    sound = np.array([(suite.chains[one.chain].sound, one.first_error < 0) for one in attacks], dtype=bool)
    found = None
    if locates and PERTURBATIONS[kind].damaging:
        found = np.array([metrics.first_error(row, threshold) == one.first_error
                          for row, one in zip(edited.steps, attacks, strict=True)])
    return Verdicts([suite.problem[i] for i in owner], sound, np.stack([clean.chain[owner], edited.chain], axis=1),
                    threshold, found)


def _statistics(
    suite: _Suite, scorers: Mapping[str, SuiteScorer], clean: Mapping[str, Scores],
    edited: Mapping[str, Mapping[str, Scores]], thresholds: Mapping[str, tuple[float, float]], aggregate: str,
) -> dict[str, Statistic]:
    sound = np.array([chain.sound for chain in suite.chains], dtype=bool)
    found: dict[str, Statistic] = {}
    for name, scorer in scorers.items():
        threshold = thresholds[name][0]
        right = (clean[name].chain >= threshold) == sound
        found[f"{name}/clean/accuracy"] = metrics.share(right, suite.problem, suite.problems)
        found[f"{name}/clean/auroc"] = metrics.auroc(clean[name].chain, sound, suite.problem)
        for kind in suite.names("all"):
            verdicts = _verdicts(suite, kind, clean[name], edited[kind][name], threshold,
                                 scorer.kind != "outcome" and aggregate == "min")
            found |= {f"{name}/{kind}/{key}": value for key, value in verdicts.statistics(suite.problems).items()}
        for group in GROUPS:
            if members := suite.names(group):
                found |= {f"{name}/{group}/{key}": mean_of([found[f"{name}/{kind}/{key}"] for kind in members])
                          for key in ("accuracy_clean", "accuracy", "accuracy_lost", "fooled")}
    prms, orms = ([name for name, scorer in scorers.items() if (scorer.kind == "outcome") == outcome]
                  for outcome in (False, True))
    for prm, orm in itertools.product(prms, orms):
        for what in (*suite.names("all"), *(group for group in GROUPS if suite.names(group))):
            lost = [found[f"{name}/{what}/accuracy_lost"] for name in (prm, orm)]
            found[f"{prm} vs {orm}/{what}/lost_difference"] = metrics.difference(*lost)
            found[f"{prm} vs {orm}/{what}/lost_ratio"] = lost_ratio(*lost)
    return found


def run_adversarial(
    scorers: Mapping[str, SuiteScorer], chains: Sequence[GoldChain], dev: Sequence[GoldChain], *,
    perturbations: Sequence[str] = (), aggregate: str = "min", resamples: int = 1000, seed: int = 0,
) -> AdversarialResult:
    """Measures models on clean and on edited chains.

    Metrics, shares of the chains a perturbation was applied to: `accuracy_clean` and `accuracy` (verdict right before
    and after the edit), `accuracy_lost` (their difference; negative where the edit makes a model's task easier),
    `fooled` (right before, wrong after; `fooled_sound`, `fooled_unsound`: among the chains sound or unsound before),
    `score_shift` (mean change of the chain score), and for process models with `min`, damaging edits:
    `first_error_found` (the first step below the threshold is the first wrong one).

    Args:
        scorers: name → model, any number of process and outcome models.
        chains: to edit.
        dev: clean chains of other problems, sound ones and unsound ones, that each model's threshold is chosen on.
        perturbations: names, all when empty.
        aggregate: from step scores to the chain score of process models.
        resamples, seed: of the bootstrap over problems; the seed also decides the edits.

    Raises InputError: no chain, an unknown perturbation or aggregate, problems on both sides, chains too long for
    every model, a dev side that lacks one of the two kinds.
    """
    names = list(perturbations) or list(PERTURBATIONS)
    for name in names:
        PERTURBATIONS[name]
    AGGREGATIONS[aggregate]
    if not scorers or not chains or not dev:
        raise InputError("the adversarial suite needs a model, chains to edit and clean chains for the threshold")
    shared = {chain.prompt for chain in chains} & {chain.prompt for chain in dev}
    if shared:
        raise InputError(f"{len(shared)} problems are among the chains to edit and among those for the threshold "
                         f"({min(shared)[:60]!r}); a threshold must come from other problems")
    thresholds = _thresholds(scorers, dev, aggregate)
    suite, clean, edited = _prepare(scorers, chains, names, aggregate, seed)
    statistics = _statistics(suite, scorers, clean, edited, thresholds, aggregate)
    bootstrap = Bootstrap(suite.problems, resamples, seed)
    figures = {name: bootstrap.estimate(statistic) for name, statistic in statistics.items()}
    numbers: dict[str, float] = {
        "n_chains": len(chains), "n_sound_chains": sum(chain.sound for chain in suite.chains),
        "n_too_long": len(chains) - len(suite.chains), "n_problems": suite.problems, "n_dev_chains": len(dev),
    }
    for name, (threshold, balanced) in thresholds.items():
        numbers |= {f"{name}/threshold": threshold, f"{name}/dev_balanced_accuracy": balanced}
    for name, attacks in suite.attacks.items():
        numbers |= {f"{name}/n_chains": len(attacks),
                    f"{name}/n_problems": len({suite.problem[one.chain] for one in attacks})}
    return AdversarialResult(
        {name: estimate for name, estimate in figures.items() if estimate.defined}, numbers,
        {name: dict(reasons) for name, reasons in suite.skipped.items()},
        {name: dict(Counter(one.gold for one in attacks)) for name, attacks in suite.attacks.items()},
        {name: {"kind": scorer.kind, "version": scorer.version} for name, scorer in scorers.items()},
        {"aggregate": aggregate, "seed": seed, "resamples": resamples},
    )
