"""Tiny models, chains and configs for tests of reward models, training and stages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from prm_core import config as configuration
from prm_core.config import Config, EncoderConfig
from prm_core.domains import arithmetic
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import store
from prm_core.problems.embedded import make_data
from prm_core.sampling.policy import Policy
from prm_core.scoring.reward import OutcomeRewardModel, ProcessAdvantageModel, ProcessRewardModel, RewardModel
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory
from tests import ROOT

PROBLEMS = arithmetic.make_problems("train", 12, 0)
# (prompt, steps): of 3 to 7 steps, with words that have one token each.
CHAINS = [(p.prompt, tuple(map(Step, p.meta["solution"]))) for p in PROBLEMS]
# Read once: whoever tunes the profile while tests run must not change a config between two of them.
DEFAULTS = configuration.read_yaml(ROOT / "params.yaml")
KINDS: dict[str, type[RewardModel]] = {
    model.kind: model for model in (ProcessRewardModel, OutcomeRewardModel, ProcessAdvantageModel)}
# Everything the training tests' figures depend on stands here, not in the profile.
SMALL = {
    "seed": 0,
    "data": {"warmup": 24, "train": 12, "dev": 4, "test": 4, "human_chains": 8},
    "models": {"device": "cpu", "surprisal": ["process", "outcome", "advantage"]},
    "encoder": {"max_length": 256},
    "warmup": {
        "hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32, "batch_size": 8, "max_updates": 10,
        "warmup_updates": 2, "policy_accuracy": 0.3, "backbone_accuracy": 0.5, "harmless_steps": 0.5, "eval_every": 2,
        "eval_problems": 4, "eval_samples": 1,
        "checkpoint_every": 3, "learning_rate": 0.003, "matrix_learning_rate": 0.02, "decay_share": 0.4,
    },
    "generate": {"problems": 6, "samples": 2, "max_new_tokens": 24, "batch_size": 32, "shard_size": 2},
    "train_prm": {
        "solver": "gradient", "committee": 0,
        "labels": "hard", "harmless_steps": 0.0, "nonsense_steps": 0.0, "class_weights": "none", "epochs": 2,
        "max_updates": 0, "row_tokens": 256, "rows_per_update": 2, "rows_per_pass": 2, "precision": "float32",
        "gradient_checkpointing": False, "lora_rank": 0, "learning_rate": 0.0003, "head_learning_rate": 0.003,
        "surprisal_learning_rate": 0.003, "weight_decay": 0.01, "warmup_share": 0.1, "max_grad_norm": 1.0,
        "dev_share": 0.25, "eval_every": 0, "patience": 0, "prover_samples": 4, "preference_weight": 1.0,
        "checkpoint_every": 2, "log_every": 1,
    },
    "train_policy": {
        "warmup_updates": 1, "updates": 4, "problems_per_update": 3, "group_size": 4,
        "max_new_tokens": 12, "minibatch_size": 5, "inner_epochs": 2, "checkpoint_every": 2, "log_every": 1,
        # What a policy of random weights earns: no answer of its is right.
        "advantages": {"outcome_weight": 0.3, "process_weight": 0.7, "form": "sum", "credit": "to_go",
                       "baseline": "step", "scale": "group", "gate": False},
        "eval_every": 0, "guard": {"window": 0}, "learning_rate": 0.0005, "clip": [0.2, 0.2], "kl_coef": 0.02,
        "temperature": 1.0, "max_grad_norm": 1.0,
    },
}
# What the few chains of a training workspace can calibrate.
CALIBRATED = {"calibrate": {"min_labels": 5}}


class Interrupted(Exception):
    """Stands for the crash of a training run."""


def small_values(**over: Any) -> dict[str, Any]:
    """Raw config values of the default profile, made small, with `over` on top (section → keys)."""
    return configuration.merge(configuration.merge(DEFAULTS, SMALL), over)


def small_config(**over: Any) -> Config:
    return configuration.parse(small_values(**over), "test")


def make_encoder(max_length: int = 256) -> Encoder:
    texts = [text for prompt, steps in CHAINS for text in (prompt, *(step.text for step in steps))]
    return Encoder(train_tokenizer(texts), EncoderConfig(max_length=max_length))


def make_lm(encoder: Encoder, seed: int = 0, **values: Any) -> LlamaForCausalLM:
    """A random Llama of two layers, wide weights so that nothing is nearly zero."""
    torch.manual_seed(seed)
    settings = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": encoder.config.max_length, "initializer_range": 0.3, "tie_word_embeddings": True,
        "bos_token_id": encoder.tokenizer.bos_token_id, "eos_token_id": encoder.eos_id, "pad_token_id": encoder.pad_id,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(encoder.tokenizer), **{**settings, **values})).eval()


def save_lm(folder: Path, encoder: Encoder, seed: int = 0, **values: Any) -> Path:
    make_lm(encoder, seed, **values).save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def make_policy(encoder: Encoder, seed: int = 0, **values: Any) -> Policy:
    return Policy(make_lm(encoder, seed, **values), encoder, f"tiny-{seed}")


def open_eyes(model: RewardModel, seed: int = 1) -> RewardModel:
    """Gives a new model an opinion: a random head and, where there is one, a surprisal's term that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator) * 0.3)
        if model.surprisal is not None:
            # The surprisal is about -12 here; with weights of 1 every score would be at the edge.
            model.surprisal.weight.copy_(torch.tensor([0.05, 0.03, 0.04, 0.02, 0.03, 0.01, 0.02, 0.01]))
    return model


def reward_model_on(path: Path | str, kind: str = "process", surprisal: bool = True, encoder: Encoder | None = None,
                    dtype: str = "float32") -> RewardModel:
    """A new reward model on a saved LM, without an opinion."""
    settings = {} if encoder is None else dataclasses.asdict(encoder.config)
    return KINDS[kind].from_backbone(str(path), surprisal=surprisal, encoder=settings, dtype=dtype, device="cpu")


def make_reward_model(folder: Path, encoder: Encoder, kind: str = "process", surprisal: bool = True,
                      **values: Any) -> RewardModel:
    """A reward model on a random backbone, with a head that is not zero, in eval mode."""
    return open_eyes(reward_model_on(save_lm(folder, encoder, **values), kind, surprisal, encoder))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def make_workspace(root: Path, values: dict[str, Any]) -> Config:
    """params.yaml, data/ and random base models where warm-up would put them."""
    root.mkdir(parents=True)
    store.write_text(root / "params.yaml", yaml.safe_dump(values))
    config = configuration.load(root)
    make_data(root / "data", config)
    models = root / "artifacts/warmup/models"
    save_lm(models / "policy", make_encoder(), seed=0)
    shutil.copytree(models / "policy", models / "backbone")
    return config


def training_workspace(root: Path, **over) -> Path:
    """One with random base models, a chain for each problem (not about it: the models learn nothing here), and training
    labels for its steps, with a value of rollouts and a preference for each second one."""
    config = make_workspace(root, small_values(**over))
    problems = store.read_jsonl(Problem, root / "data/train.jsonl")
    chains = store.read_jsonl(Trajectory, root / "data/human/trajectories.jsonl")
    rows, labels, values, preferences = [], [], [], []
    for number, problem in enumerate(problems):
        steps = chains[number % len(chains)].steps
        rows.append(Trajectory(f"gen/{number}", problem.id, "tiny", steps, None, number % 2 == 0, config.seed))
        labels += [StepLabel(f"gen/{number}", i, "merged", 0.9, "+" in s.text, 0.9, 1, "") for i, s in enumerate(steps)]
        values.append(StepLabel(f"gen/{number}", 0, "rollout", 0.5, True, 0.9, 8, ""))
        if number % 2:
            preferences.append(StepPreference(problem.id, steps[:1], steps[1], steps[2], 0.75, 0.25, 8, 8))
    store.write_shard(root / "artifacts/label/labels", 0, StepLabel, values)
    store.write_shard(root / "artifacts/label/preferences", 0, StepPreference, preferences)
    store.write_shard(root / "artifacts/generate/trajectories", 0, Trajectory, rows)
    store.write_shard(root / "artifacts/calibrate/training_set", 0, StepLabel, labels)
    return root


def files(folder: Path) -> Sequence[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
