"""The report's section on training: which curves there are, what they are called, and which weights were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from prm_core.evaluation.report import charts
from prm_core.evaluation.report.charts import Curve

REWARD_MODELS, POLICY = "reward models", "policy"
# Whether what is paid for rises with what is wanted.
TOGETHER = {"dev/outcome": "s-weighted", "reward/outcome": "s-orm", "reward/process": "s-prm"}
# Of a policy's records, in the order shown; others come after these, under their key.
NAMES = {
    "dev/outcome": "right answers on dev problems", "reward/outcome": "right answers while sampling",
    "reward/process": "mean process reward", "reward/lowest_step": "lowest process reward of a chain",
    "reward/agreement": "correlation of that with right answers, over questions",
    "reward/paid": "what the process rewards pay a chain", "kl": "KL divergence from the base policy, a token",
    "entropy": "entropy, a token", "clip_share": "tokens that the clip holds", "chain/steps": "steps a chain",
    "chain/tokens": "tokens a chain", "chain/repeated_share": "steps that repeat another",
    "chain/nothing_new_share": "steps that say nothing new", "chain/unfinished_share": "chains that were cut off",
    "chain/unjudged_share": "chains without a process reward", "implicit/loss": "cross-entropy of the implicit reward",
    "implicit/accuracy": "outcomes that the implicit reward foretold",
}


@dataclass(frozen=True, slots=True)
class Section:
    """What the page shows of one stage's training.

    Attributes:
        together: curves on one scale, None where there are none.
        small: each curve with its chart.
    """

    together: Markup | None
    small: Sequence[tuple[Curve, Markup]]


def curves(histories: Mapping[str, Any]) -> dict[str, list[Curve]]:
    """Stage → the curve of every number in its history, a list of records by update or several such lists by name.

    A reward model keeps the weights with the lowest loss on dev chains, of equal ones the last; a policy those with the
    best outcome on dev problems, of equal ones the first. Without such a figure the last are kept.
    """
    found: dict[str, list[Curve]] = {}
    for stage, history in histories.items():
        for group, records in (history if isinstance(history, dict) else {"": history}).items():
            for curve in _curves(group, records):
                found.setdefault(stage, []).append(curve)
    return found


def _curves(group: str, records: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    numeric = [{name: value for name, value in record.items() if type(value) in (int, float)} for record in records]
    there = dict.fromkeys(name for record in numeric for name in record if name not in ("update", "epoch"))
    best = _kept(numeric)
    for name in sorted(there, key=[*NAMES, *there].index):
        points = [(record["update"], record[name]) for record in numeric if name in record]
        kept = next((point for point in points if point[0] == best["update"]), points[-1])
        if len(points) > 1:
            yield Curve(f"{group} {NAMES.get(name, name)}".strip(), points, kept)


def _kept(records: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    if evaluated := [record for record in records if "dev/outcome" in record]:
        return max(evaluated, key=lambda record: record["dev/outcome"])
    return min((record for record in reversed(records) if "dev_loss" in record),
               key=lambda record: record["dev_loss"], default=records[-1])


def sections(training: Mapping[str, Sequence[Curve]]) -> dict[str, Section]:
    """Stage → what is shown of its curves."""
    found = {}
    for stage, group in training.items():
        by_name = {curve.name: curve for curve in group}
        together = [(style, by_name[NAMES[key]]) for key, style in TOGETHER.items() if NAMES[key] in by_name]
        found[stage] = Section(charts.outcome_chart(together) if together else None,
                               [(curve, charts.curve_chart(curve)) for curve in group])
    return found
