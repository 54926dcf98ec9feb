"""Stage train_policy: GRPO on the training problems with the PRM's process reward and the answers' outcome reward."""

from __future__ import annotations

from prm_core.config import Config
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem


def run(config: Config, io: StageIO) -> None:
    """Trains a copy of the base policy and saves it as a Hugging Face folder."""
    from prm_core.domains import DOMAINS
    from prm_core.models.saving import save_language_model
    from prm_core.platform.tracking import stage_run
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import without_long
    from prm_core.scoring.scorer import load_scorer
    from prm_core.training.policy.grpo import train_policy

    settings = config.train_policy
    policy = load_policy(model_path(io.workspace, config.models.policy), config)
    problems = without_long(store.read_jsonl(Problem, io.inputs["problems"]), policy.encoder)
    scorer = load_scorer(io.inputs["prm"], device=config.models.device, batch_size=config.serve.batch_size)
    with stage_run(io.workspace, "train_policy", config, io.inputs) as tracked:
        history = train_policy(policy, scorer, DOMAINS, problems, settings, batch_size=config.generate.batch_size,
                               seed=config.seed, work=io.work, report=tracked.log_metrics)
        save_language_model(policy.model, policy.encoder, io.outputs["policy"])
        tail = history[-settings.log_every :]
        metrics = {
            f"train/policy_trained/{name}": sum(record[name] for record in tail) / len(tail)
            for name in history[0] if name != "update"
        }
        tracked.log_metrics(metrics)
    store.write_json(io.outputs["history"], history)
    store.write_json(io.outputs["metrics"], metrics)


def check(config: Config) -> None:
    """Raises InputError for an advantage estimator that is not registered."""
    from prm_core.training.policy.estimators import ESTIMATORS

    _ = ESTIMATORS[config.train_policy.estimator]


STAGE = Stage(
    inputs={
        "problems": "data/train.jsonl",
        "models": "artifacts/warmup/models",
        "prm": "artifacts/train_prm/prm",
    },
    outputs={
        "policy": "artifacts/train_policy/policy",
        "history": "artifacts/train_policy/history.json",
        "metrics": "artifacts/train_policy/metrics.json",
    },
    params=("seed", "models", "encoder", "generate", "train_policy", "serve"),
    run=run,
    check=check,
)
