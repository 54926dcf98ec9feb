"""A small training of a policy, in this process or in several, by the jobs of `distributed_run`.

Each process writes what it saw to FOLDER/rank-N.json and its final weights to FOLDER/rank-N.safetensors.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unittest import mock

from safetensors.torch import save_model

from prm_core.config import CriticConfig
from prm_core.domains import DOMAINS
from prm_core.platform import processes, store
from prm_core.scoring.scorer import ChainScore
from prm_core.training import checkpoint
from prm_core.training.policy import loop
from prm_core.types import Step
from tests.builders.distributed_run import in_several
from tests.builders.training import PROBLEMS, Interrupted, make_encoder, make_policy, small_config

# Ends the name of a job whose policy is in bfloat16.
BFLOAT16 = "-bfloat16"


class WordScorer:
    """Scripted: a step is worth the share of its letters that are spaces; counts the chains it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        self.asked += len(chains)
        values = [tuple(step.text.count(" ") / len(step.text) for step in steps) for _, steps in chains]
        return [ChainScore(value, value, 0) for value in values]


def run(job: str) -> None:
    """Trains with a critic, so that everything is shared out: sampling, evaluation, values, gradients."""
    name, sharding, stop = job.rsplit(":", 2)
    folder = Path(name)
    rank = int(os.environ.get("RANK", "0"))
    policy, scorer = make_policy(make_encoder()), WordScorer()
    if folder.name.endswith(BFLOAT16):
        policy.model.bfloat16()
    written: list[str] = []

    def watched(what: str, function):
        return lambda *args: (written.append(what), function(*args))[1]

    settings = dataclasses.replace(
        small_config().train_policy, eval_every=1, eval_problems=4, eval_samples=2, learning_rate=0.002,
        critic=CriticConfig(kind="shared", over="tokens", gae_lambda=0.95, learning_rate=0.005, clip=0.2, coef=0.5))
    reported: list[int] = []

    def report(figures: dict[str, float], update: int) -> None:
        reported.append(update)
        if update == int(stop):
            raise Interrupted

    # No answer of these weights is right, so no update is better than another: the second one is kept.
    best = mock.patch.object(loop, "_best", lambda history: min(2, len(history)))
    with (
        mock.patch.object(loop, "_save_weights", watched("best", loop._save_weights)),
        mock.patch.object(checkpoint, "replace_folder", watched("checkpoint", checkpoint.replace_folder)),
        best,
        suppress(Interrupted),
    ):
        trained = loop.train_policy(
            policy, scorer, DOMAINS, PROBLEMS[:5], settings, dev=PROBLEMS[5:], batch_size=64, seed=0,
            work=folder / "work", report=report, sharding=sharding)
        save_model(policy.model, str(folder / f"rank-{rank}.safetensors"))
        store.write_json(folder / f"rank-{rank}.json", {
            "processes": processes.count(), "asked": scorer.asked, "history": trained.history, "kept": trained.kept,
            "written": written, "reported": reported})


if __name__ == "__main__":
    in_several(run)
