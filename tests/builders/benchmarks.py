"""A scorer that reads each step's score off its text ("0.9 so x = 3"), and the way from rows to figures."""

from __future__ import annotations

import json
from pathlib import Path

from prm_core.evaluation.benchmarks import suite
from prm_core.evaluation.benchmarks.suite import BENCHMARKS, Figures
from prm_core.evaluation.metrics import Bootstrap
from prm_core.scoring.scorer import ChainScore


class TextScorer:
    """Scores of the texts' first words; steps from one that says "cut" on are beyond its context."""

    version = "texts"

    def __init__(self, kind: str = "process") -> None:
        self.kind = kind

    def score(self, chains):
        return [self._one([step.text for step in steps]) for _, steps in chains]

    def _one(self, texts: list[str]) -> ChainScore:
        if self.kind == "outcome":
            texts = texts[-1:]
        kept = next((i for i, text in enumerate(texts) if "cut" in text), len(texts))
        scores = tuple(float(text.split()[0]) for text in texts[:kept])
        return ChainScore(scores, scores, len(texts) - kept)


def write(path: Path, rows) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def scored(benchmark: str, path: Path, rows, kind: str = "process") -> figures.ScoredFile:
    chains = BENCHMARKS[benchmark].read(write(path, rows))
    return suite.score_file(TextScorer(kind), path.name, chains)


def values(benchmark: str, file: figures.ScoredFile, threshold: float = 0.5) -> dict[str, float]:
    """The bare figures, without their intervals; undefined ones are NaN."""
    bootstrap = Bootstrap(file.problems, 1, 0)
    return {key: bootstrap.draws(statistic)[0]
            for key, statistic in BENCHMARKS[benchmark].measure(file, threshold).items()}


def figures(benchmark: str, files, threshold: float = 0.5) -> tuple[list[Figures], Figures | None]:
    return suite.measure_files(BENCHMARKS[benchmark], files, threshold, 100, 0)
