"""Stage warmup: base policy and reward backbone from worked solutions, of random weights or of a pretrained model; none
where config names pretrained ones."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import steps, store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from prm_core.models.encoder import Encoder

log = logging.getLogger(__name__)


def run(config: Config, io: StageIO) -> None:
    """Trains and saves `policy/` and `backbone/` as Hugging Face folders."""
    models = io.outputs["models"]
    models.mkdir(parents=True)
    if not config.warmup.enabled:
        log.info("warm-up is off: the models are %s and %s", config.models.policy, config.models.reward_backbone)
        store.write_json(models / "named_in_config.json", dataclasses.asdict(config.models))
        store.write_json(io.outputs["history"], [])
        store.write_json(io.outputs["metrics"], {"warmup/updates": 0})
        return
    from prm_core.domains import DOMAINS
    from prm_core.models.loading import pick_device
    from prm_core.models.precision import choose
    from prm_core.platform.tracking import stage_run
    from prm_core.sampling.policy import Policy
    from prm_core.sampling.rollouts import sampled_accuracy, without_long
    from prm_core.training import warmup

    if not io.inputs["problems"].stat().st_size:
        raise InputError("warm-up: data/warmup.jsonl holds no problem; give worked solutions in the file of your "
                         "questions, or set warmup.enabled to false and name pretrained models in section models")
    problems = store.read_jsonl(Problem, io.inputs["problems"])
    dev = store.read_jsonl(Problem, io.inputs["held_out"])[: config.warmup.eval_problems]
    named = model_path(io.workspace, config.warmup.base) if config.warmup.base else ""
    base, encoder = warmup.load_base(named, config) if named else (None, _encoder(config, problems))
    held_out = without_long(dev, encoder)
    dtype = choose(config.models.dtype, pick_device(config.models.device), "models.dtype")

    def accuracy(model: PreTrainedModel) -> float:
        return sampled_accuracy(
            Policy(_in(model, dtype), encoder, "warmup", config.models.sampling_memory), held_out, DOMAINS,
            samples=config.warmup.eval_samples, temperature=config.generate.temperature, seed=config.seed,
            max_new_tokens=config.generate.max_new_tokens, batch_size=config.generate.batch_size,
        )

    with stage_run(io.workspace, "warmup", config, io.inputs) as tracked:
        result = warmup.train(config, encoder, problems, accuracy, io.work, tracked.log_metrics, base)
        shutil.copytree(result.policy, models / "policy")
        shutil.copytree(result.backbone, models / "backbone")
        chosen = next(record for record in result.history if record["update"] == result.policy_update)
        metrics = {
            "dev/policy_base/pass_at_1": chosen["accuracy"],
            "dev/backbone/pass_at_1": result.history[-1]["accuracy"],
            "warmup/policy_update": result.policy_update,
            "warmup/updates": result.history[-1]["update"],
            "warmup/loss": result.history[-1]["loss"],
            "warmup/problems": len(problems),
        }
        tracked.log_metrics(metrics)
        store.write_json(io.outputs["metrics"], metrics)
        store.write_json(io.outputs["history"], result.history)


def _encoder(config: Config, problems: Sequence[Problem]) -> Encoder:
    """Of a tokenizer made for these problems."""
    from prm_core.models.encoder import Encoder
    from prm_core.models.marks import tokens
    from prm_core.models.tokenizer import train_tokenizer

    texts = itertools.chain.from_iterable((problem.prompt, *_texts(problem)) for problem in problems)
    return Encoder(train_tokenizer(texts, tokens(config.encoder.separator)), config.encoder)


def _in(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """The model as later stages sample from it."""
    import copy

    import torch

    wanted = getattr(torch, dtype)
    return model if model.dtype == wanted else copy.deepcopy(model).to(wanted)


def _texts(problem: Problem) -> Iterator[str]:
    """What a policy that learns a worked solution has to write and to read."""
    for step in problem.meta.get("solution", ()):
        yield from filter(None, steps.texts(steps.parse_step(step, f"problem {problem.id}: solution", 0)))


STAGE = Stage(
    inputs={"problems": "data/warmup.jsonl", "held_out": "data/dev.jsonl"},
    outputs={
        "models": "artifacts/warmup/models",
        "history": "artifacts/warmup/history.json",
        "metrics": "artifacts/warmup/metrics.json",
    },
    params=("seed", "models", "encoder", "warmup", "generate"),
    run=run,
)
