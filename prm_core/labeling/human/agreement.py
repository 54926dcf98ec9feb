"""How far reviewers agree: Cohen's kappa of each pair, over the steps both judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from prm_core.labeling.human.labels import HUMAN_PREFIX, StepKey
from prm_core.types import StepLabel


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two reviewers.

    Attributes:
        first, second: their names, in alphabetical order.
        steps: how many steps both judged.
        agreed: the share they judged alike; None without common steps.
        kappa: Cohen's kappa, the agreement beyond chance: 1 whole, 0 what chance gives. None without common steps,
            and where both gave one and the same verdict throughout, which leaves nothing beyond chance.
        disagreed: the steps they judged differently, with the first one's verdict.
    """

    first: str
    second: str
    steps: int
    agreed: float | None
    kappa: float | None
    disagreed: tuple[tuple[StepKey, bool], ...]


def agreement(labels: Sequence[StepLabel]) -> list[PairAgreement]:
    """Every pair of reviewers among human labels; empty with fewer than two. A label without verdict counts as none.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales", as `sklearn.metrics.cohen_kappa_score`.
    """
    verdicts: dict[str, dict[StepKey, bool]] = defaultdict(dict)
    for label in labels:
        if label.is_correct is not None:
            name = label.strategy.removeprefix(HUMAN_PREFIX)
            verdicts[name][label.trajectory_id, label.step_index] = label.is_correct
    return [_pair(first, second, verdicts[first], verdicts[second])
            for first, second in combinations(sorted(verdicts), 2)]


def _pair(first: str, second: str, by_first: dict[StepKey, bool], by_second: dict[StepKey, bool]) -> PairAgreement:
    common = sorted(by_first.keys() & by_second.keys())
    if not common:
        return PairAgreement(first, second, 0, None, None, ())
    one, two = [by_first[key] for key in common], [by_second[key] for key in common]
    disagreed = tuple((key, by_first[key]) for key in common if by_first[key] != by_second[key])
    kappa = None
    if len({*one, *two}) > 1:
        from sklearn.metrics import cohen_kappa_score

        kappa = float(cohen_kappa_score(one, two))
    return PairAgreement(first, second, len(common), 1 - len(disagreed) / len(common), kappa, disagreed)


def describe(pair: PairAgreement) -> str:
    """A pair in one line for a reader."""
    who = f"{pair.first} and {pair.second}"
    if not pair.steps:
        return f"{who}: no step judged by both"
    kappa = (f"Cohen's kappa {pair.kappa:.2f}" if pair.kappa is not None
             else "Cohen's kappa undefined (both gave one and the same verdict throughout)")
    return f"{who}: {pair.steps} steps judged by both, {pair.agreed:.0%} alike, {kappa}"
