"""Figures of a labelling run: coverage, verdicts, confidence and cost, per strategy and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prm_core.labeling.merging.merge import Merged
from prm_core.types import StepLabel


def summarise(
    labels: Sequence[StepLabel], merged: Merged, failed: Mapping[str, int]
) -> dict[str, float]:
    """Flat figures `train/<strategy>/<figure>`; `label_error` where the merge estimates it.

    Args:
        labels: of all strategies.
        merged: one label for every step, so their count is the number of steps.
        failed: chains each strategy failed on.
    """
    figures: dict[str, float] = {"train/merged/steps": len(merged.labels)}
    groups: dict[str, list[StepLabel]] = {name: [] for name in failed}
    for label in (*labels, *merged.labels):
        groups.setdefault(label.strategy, []).append(label)
    for name, rows in groups.items():
        verdicts = [row for row in rows if row.is_correct is not None]
        figures[f"train/{name}/coverage"] = len(verdicts) / len(merged.labels)
        figures[f"train/{name}/correct_share"] = sum(bool(v.is_correct) for v in verdicts) / max(len(verdicts), 1)
        figures[f"train/{name}/mean_confidence"] = sum(v.confidence for v in verdicts) / max(len(verdicts), 1)
        figures[f"train/{name}/tokens_per_step"] = sum(row.tokens for row in rows) / len(merged.labels)
        figures[f"train/{name}/failed_chains"] = failed.get(name, 0)
    if merged.error is not None:
        figures |= {"train/merged/label_error": merged.error.share, "train/merged/label_error_low": merged.error.low,
                    "train/merged/label_error_high": merged.error.high}
    for name, rates in merged.reliability.items():
        figures |= {f"train/{name.replace(' ', '_')}/estimated_{side}_rate": rate for side, rate in rates.items()}
    return figures
