"""Stage generate: the base policy samples chains for the training problems, shard by shard."""

from __future__ import annotations

import random
import shutil

from prm_core.config import Config
from prm_core.errors import GateError
from prm_core.platform import shards, store, workers
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, Trajectory


def run(config: Config, io: StageIO) -> None:
    """Samples `generate.samples` chains for each of `generate.problems` problems.

    A shard is whole or absent in the work folder, and is sampled with a seed of its own, so a run that resumes gives
    the chains an undisturbed one gives.

    Raises GateError when no chain has a step.
    """
    from prm_core.platform.tracking import stage_run

    with stage_run(io.workspace, "generate", config, io.inputs) as tracked:
        metrics = _generate(config, io)
        tracked.log_metrics(metrics)
    store.write_json(io.outputs["metrics"], metrics)


def _generate(config: Config, io: StageIO) -> dict[str, float]:
    """Writes the chains; returns figures."""
    from prm_core.domains import DOMAINS
    from prm_core.sampling.backends import policy_for
    from prm_core.sampling.rollouts import sample_trajectories, without_long

    settings = config.generate
    given = store.read_jsonl(Problem, io.inputs["problems"])[: settings.problems]
    policy = policy_for("generate", model_path(io.workspace, config.models.policy), config)
    problems = without_long(given, policy.encoder)
    parts = workers.shards(len(problems), settings.shard_size)

    def sample(shard: int) -> list[Trajectory]:
        return sample_trajectories(
            policy, problems[parts[shard]], DOMAINS, samples=settings.samples, temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size,
            seed=random.Random(f"generate/{config.seed}/{shard}").getrandbits(31), prefix="gen",
        )

    shards.fill(store.shard_paths(io.work, len(parts)), sample,
                lambda shard, rows: store.write_shard(io.work, shard, Trajectory, rows), config.workers, "generate",
                alone=not policy.forks)
    shutil.copytree(io.work, io.outputs["trajectories"])
    chains = store.read_shards(Trajectory, io.outputs["trajectories"])
    if not chains:
        raise GateError(f"the policy {config.models.policy} wrote no step for any of {len(problems)} problems; "
                        "train it longer or name another")
    return {
        "train/problems": len(problems),
        "train/dropped_long": len(given) - len(problems),
        "train/trajectories": len(chains),
        "train/policy_base/pass_at_1": sum(bool(chain.outcome) for chain in chains) / len(chains),
        "train/policy_base/unanswered_share": sum(chain.answer is None for chain in chains) / len(chains),
        "train/policy_base/mean_steps": sum(len(chain.steps) for chain in chains) / len(chains),
        "train/policy_base/dropped_empty": len(problems) * settings.samples - len(chains),
        **{f"train/sampling/{name}": value for name, value in policy.figures().items()},
    }


STAGE = Stage(
    inputs={"problems": "data/train.jsonl", "models": "artifacts/warmup/models"},
    outputs={
        "trajectories": "artifacts/generate/trajectories",
        "metrics": "artifacts/generate/metrics.json",
    },
    params=("seed", "models", "sampling", "encoder", "generate"),
    run=run,
)
