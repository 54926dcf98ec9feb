"""Stage train_policy: a policy learns from the PRM's process reward and the answers' outcomes on training problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prm_core.config import IMPLICIT, Config, GuardConfig
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem

# Of `train_policy.reward_model`: those of the chain itself.
OWN = ("prm", "pav")


def _check_probe(guard: GuardConfig, figures: Mapping[str, Any]) -> None:
    """Raises InputError where the guard requires a probe and the prm's was not taken or failed."""
    from prm_core.evaluation.probe.bounds import bounds

    for bound in bounds(guard):
        value = figures.get(bound.figure)
        if value is None:
            raise InputError(f"artifacts/probe/metrics.json has no {bound.figure}, which train_policy.guard."
                             "require_probe demands; run the stage probe again, or set that to false")
        if value > bound.most:
            raise InputError(f"the prm may not reward a policy: its {bound.figure} {value:.4f} is above the limit "
                             f"{bound.setting} {bound.most:.4f}; train it on other labels, raise the limit, or set "
                             "train_policy.guard.require_probe to false")


def run(config: Config, io: StageIO) -> None:
    """Trains a copy of the base policy and saves it as a Hugging Face folder.

    Raises InputError where the reward model scores no steps, or its probe did not stay within the bounds it must.
    """
    from prm_core.domains import DOMAINS
    from prm_core.labeling.rule_judge import overseer_of
    from prm_core.models.saving import save_language_model
    from prm_core.platform.tracking import stage_run
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import without_long
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.training.policy.loop import train_policy

    settings = config.train_policy
    _check_probe(settings.guard, store.read_json(io.inputs["probe"]))
    policy = load_policy(model_path(io.workspace, config.models.policy), config)
    problems = without_long(store.read_jsonl(Problem, io.inputs["problems"]), policy.encoder)
    named = settings.reward_model
    dev = without_long(store.read_jsonl(Problem, io.inputs["dev"]), policy.encoder)
    scorer = None if named == IMPLICIT else load_any_scorer(
        str(io.inputs[named]) if named in OWN else model_path(io.workspace, named), device=config.models.device,
        batch_size=config.serve.batch_size)
    if scorer is not None and scorer.kind == "outcome":
        raise InputError(f"train_policy.reward_model {named}: an outcome model scores no steps, and no chain would "
                         "get a process reward; name a model that scores steps")
    with stage_run(io.workspace, "train_policy", config, io.inputs) as tracked:
        trained = train_policy(
            policy, scorer, DOMAINS, problems, settings, dev=dev, batch_size=config.generate.batch_size,
            seed=config.seed, work=io.work, report=tracked.log_metrics, sharding=config.launch.sharding,
            overseer=overseer_of(config, io.workspace))
        save_language_model(policy.model, policy.encoder, io.outputs["policy"])
        # Where no later one was kept, of the updates up to the one that was.
        tail = trained.history[: trained.kept][-settings.log_every :]
        metrics: dict[str, Any] = {
            f"train/policy_trained/{name}": sum(record[name] for record in tail) / len(tail)
            for name in trained.history[0] if name not in ("update", "tokens", "dev/outcome")
        }
        metrics["train/policy_trained/kept_update"] = trained.kept
        metrics["train/policy_trained/tokens"] = sum(record["tokens"] for record in trained.history)
        tracked.log_metrics(metrics)
        if trained.alarm:
            tracked.tag("alarm", trained.alarm)
            metrics["train/policy_trained/alarm"] = trained.alarm
    store.write_json(io.outputs["history"], trained.history)
    store.write_json(io.outputs["metrics"], metrics)


def check(config: Config) -> None:
    """Raises InputError for rules of a shipped name that is none; a file of one's own is read when it is needed."""
    from prm_core.rules.constitution import find

    if config.rules.file and not config.rules.file.endswith((".yaml", ".yml")):
        find(config.rules.file)


STAGE = Stage(
    inputs={
        "problems": "data/train.jsonl",
        "dev": "data/dev.jsonl",
        "models": "artifacts/warmup/models",
        "prm": "artifacts/train_prm/prm",
        "pav": "artifacts/train_prm/pav",
        "probe": "artifacts/probe/metrics.json",
    },
    outputs={
        "policy": "artifacts/train_policy/policy",
        "history": "artifacts/train_policy/history.json",
        "metrics": "artifacts/train_policy/metrics.json",
    },
    # Rules that are questions ask the judge of `label`.
    params=("seed", "models", "encoder", "generate", "train_policy", "serve", "rules", "label"),
    run=run,
    check=check,
    shared=True,
)
