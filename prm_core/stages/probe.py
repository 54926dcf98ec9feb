"""Stage probe: the process reward model is tried before it may reward a policy (prm_core/evaluation/probe/)."""

from __future__ import annotations

from prm_core.config import Config
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem


def run(config: Config, io: StageIO) -> None:
    """Writes the figures `probe/…` and the suffixes that were found; neither where the probe is not enabled."""
    if not config.probe.enabled:
        store.write_json(io.outputs["metrics"], {})
        store.write_json(io.outputs["suffixes"], [])
        return
    from prm_core.evaluation.probe.run import probe_model
    from prm_core.platform.tracking import stage_run
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import without_long
    from prm_core.scoring.scorer import load_scorer

    policy = load_policy(model_path(io.workspace, config.models.policy), config)
    scorer = load_scorer(io.inputs["prm"], device=config.models.device, batch_size=config.serve.batch_size)
    train, dev = (without_long(store.read_jsonl(Problem, io.inputs[name]), policy.encoder)
                  for name in ("problems", "dev"))
    with stage_run(io.workspace, "probe", config, io.inputs) as tracked:
        figures, suffixes = probe_model(policy, scorer, train, dev, config, work=io.work, report=tracked.log_metrics)
        tracked.log_metrics({name: value for name, value in figures.items() if not isinstance(value, str)})
    store.write_json(io.outputs["metrics"], figures)
    store.write_json(io.outputs["suffixes"], [one.to_dict() for one in suffixes])


STAGE = Stage(
    inputs={
        "problems": "data/train.jsonl",
        "dev": "data/dev.jsonl",
        "models": "artifacts/warmup/models",
        "prm": "artifacts/train_prm/prm",
    },
    outputs={
        "metrics": "artifacts/probe/metrics.json",
        "suffixes": "artifacts/probe/suffixes.json",
    },
    params=("seed", "models", "encoder", "generate", "probe", "train_policy", "serve"),
    run=run,
)
