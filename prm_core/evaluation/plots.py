"""The evaluation's plots as CSV for `dvc plots show`: columns stay the same whatever was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from prm_core.evaluation.protocol import Evaluation
from prm_core.platform import store

SCORE_BINS = 20


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    store.write_text(path, text.getvalue())


def write_plots(evaluation: Evaluation, folder: Path) -> None:
    """Writes best_of_n.csv, reliability.csv, scores.csv and length.csv; without an oracle some hold a header only."""
    _write(folder / "best_of_n.csv", ("method", "n", "accuracy", "low", "high"),
           ((p.method, p.n, p.estimate.value, p.estimate.low, p.estimate.high) for p in evaluation.curve))
    _write(folder / "reliability.csv", ("bin_low", "bin_high", "mean_score", "observed_share", "count"),
           ((b.low, b.high, b.mean_probability, b.observed_share, b.count) for b in evaluation.reliability))
    _write(folder / "length.csv", ("steps", "chains", "mean_score", "share_right"),
           ((row.steps, row.chains, row.mean_score, row.share_right) for row in evaluation.lengths))
    rows: list[tuple[str, float, float, int]] = []
    if evaluation.steps is not None:
        edges = np.linspace(0, 1, SCORE_BINS + 1)
        for name, chosen in (("right", evaluation.steps.right), ("wrong", ~evaluation.steps.right)):
            counted, _ = np.histogram(evaluation.steps.scores[chosen], edges)
            rows += [(name, round(float(edges[i]), 4), round(float(edges[i + 1]), 4), int(count))
                     for i, count in enumerate(counted)]
    _write(folder / "scores.csv", ("verdict", "bin_low", "bin_high", "count"), rows)
