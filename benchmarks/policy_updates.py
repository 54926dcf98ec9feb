"""Our side of `policy_speed`, as a program: `python -m benchmarks.policy_updates JOB RESULT`."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import prm_measure
from prm_core import config as configuration
from prm_core.domains import DOMAINS
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.sampling.rollouts import without_long
from prm_core.scoring.scorer import load_scorer
from prm_core.stages.base import model_path
from prm_core.training.policy.loop import train_policy
from prm_core.types import Problem


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Trains for a job's updates and times them, sampling and the reward model's scoring included.

    Args:
        job: workspace, updates, seed.

    Returns:
        `seconds` and sampled `tokens` of each update.
    """
    workspace = Path(job["workspace"])
    config = configuration.load(workspace)
    settings = dataclasses.replace(config.train_policy, updates=job["updates"], log_every=1, eval_every=0)
    policy = load_policy(model_path(workspace, config.models.policy), config)
    problems = without_long(store.read_jsonl(Problem, workspace / "data/train.jsonl"), policy.encoder)
    scorer = load_scorer(workspace / "artifacts/train_prm/prm", device="cpu", batch_size=config.serve.batch_size)
    ends, tokens = [time.perf_counter()], []

    def report(figures: dict[str, float], update: int) -> None:
        ends.append(time.perf_counter())
        tokens.append(figures["tokens"])

    with tempfile.TemporaryDirectory() as work:
        train_policy(policy, scorer, DOMAINS, problems, settings, dev=[], batch_size=config.generate.batch_size,
                     seed=job["seed"], work=Path(work), report=report)
    return {"seconds": [end - start for start, end in itertools.pairwise(ends)], "tokens": tokens}


if __name__ == "__main__":
    prm_measure.worker(work)
