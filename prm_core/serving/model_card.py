"""What a model version says of itself in MLflow: figures, data, parents and use, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prm_core.evaluation.headline import figure_table, promise_lines
from prm_core.platform.tracking.datasets import DataRef
from prm_core.scoring.conformal import Promises

# What is told of the registered model as a whole, where nobody has written anything.
MODEL = """Process reward models: the calibrated probability of each step of a solution that it is right.

`challenger` is the version registered last, `champion` the last one that passed the gate; `prm serve` serves it.
"""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Attributes:
        name, version: in the registry.
        metrics: metrics.json of the evaluate stage.
        data: what it was trained and tested on.
        tags: data hash, git commit, profile and precision.
        backbone: the model it was trained from.
        runs: stage → (experiment id, run id) of the run that made its part, where this store knows it.
        promises: the alarm and the clean prefix that lie in its folder.
    """

    name: str
    version: str
    metrics: Mapping[str, Any]
    data: Sequence[DataRef]
    tags: Mapping[str, str]
    backbone: str
    runs: Mapping[str, tuple[str, str]]
    promises: Promises

    def render(self) -> str:
        """The card as Markdown."""
        uri = f"models:/{self.name}/{self.version}"
        data = [f"- {one.role}: `{one.name}`, {one.rows:,} rows, `{one.digest}`" for one in self.data]
        runs = [f"- {stage}: [run {run[:8]}](#/experiments/{experiment}/runs/{run})"
                for stage, (experiment, run) in self.runs.items()]
        parts = [
            figure_table(self.metrics),
            "\n".join(["**While a run goes on**", "",
                       *(f"- {line}" for line in promise_lines(self.promises, self.metrics))]),
            "\n".join([f"**Data** (`data/` is `{self.tags['data_hash']}`)", "", *data]),
            "\n".join([f"**Made by** profile {self.tags['profile']}, commit `{self.tags['git_commit']}`, "
                       f"from `{self.backbone}`, trained in {self.tags['precision']}", "", *runs]),
            f"**Use**: `prm score --model {uri} FILE.jsonl`, `prm serve --model {uri}`",
        ]
        return "\n\n".join(part.rstrip() for part in parts) + "\n"
