"""Training reward models: step labels (PRM) or outcomes (ORM) on the same chains, one causal pass a chain."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import RewardTrainingConfig
from prm_core.errors import InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.scorer import collate
from prm_core.training.batches import batches_from, bucketed_batches
from prm_core.training.checkpoint import Checkpoints, replace_folder
from prm_core.types import Step

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.models.reward import RewardModel

log = logging.getLogger(__name__)
IGNORED = math.nan


@dataclass(frozen=True, slots=True)
class Example:
    """A chain with its targets.

    Attributes:
        problem_id: splits go by problem, so that no problem is on both sides.
        prompt, steps: the chain.
        targets: P(right) of each step, NaN where a step is no training target; one value for an outcome model.
    """

    problem_id: str
    prompt: str
    steps: tuple[Step, ...]
    targets: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens, with targets only for the steps that fit."""

    chain: EncodedChain
    targets: tuple[float, ...]


def encode_examples(
    encoder: Encoder, examples: Sequence[Example], kind: str
) -> tuple[list[Encoded], dict[str, int]]:
    """Encoded examples and what was lost: steps cut by the context, labels lost with them, chains left without any.

    Raises InputError when no label is left at all.
    """
    encoded, lost = [], {"truncated_steps": 0, "truncated_labels": 0, "dropped_chains": 0}
    for example in examples:
        chain = encoder.encode(example.prompt, example.steps)
        lost["truncated_steps"] += chain.truncated_steps
        targets = example.targets
        if kind == "process":
            cut = targets[len(chain.step_ends) :]
            lost["truncated_labels"] += sum(not math.isnan(t) for t in cut)
            targets = targets[: len(chain.step_ends)]
        elif chain.truncated_steps:
            # A chain that lost its end has no outcome at the step it is read at.
            targets = (IGNORED,)
        if all(math.isnan(t) for t in targets):
            lost["dropped_chains"] += 1
            continue
        encoded.append(Encoded(chain, targets))
    if not encoded:
        raise InputError(f"no label is left to train the {kind} model on ({len(examples)} chains, {lost}); raise "
                         "encoder.max_length or check the training set")
    if any(lost.values()):
        log.warning("%s model: %s", kind, ", ".join(f"{count} {name}" for name, count in lost.items() if count))
    return encoded, lost


def step_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy over the steps that have a target.

    Args:
        logits: (batch, steps).
        targets: P(right), hard or soft, NaN where there is none, (batch, steps).
    """
    import torch

    known = ~torch.isnan(targets)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[known], targets[known])


def _batch_loss(model: RewardModel, batch: Sequence[Encoded], pad_id: int) -> Tensor:
    import torch

    inputs = [tensor.to(model.device) for tensor in collate([one.chain for one in batch], pad_id)]
    width = max(len(one.targets) for one in batch)
    targets = torch.tensor([[*one.targets, *[IGNORED] * (width - len(one.targets))] for one in batch])
    return step_loss(model(*inputs), targets.to(model.device))


def dev_loss(model: RewardModel, examples: Sequence[Encoded], pad_id: int, batch_size: int) -> float:
    """Mean loss per labelled step over held-out examples."""
    import torch

    total = count = 0.0
    with torch.inference_mode():
        for rows in bucketed_batches([len(e.chain.ids) for e in examples], batch_size, 0, 0):
            batch = [examples[i] for i in rows]
            known = sum(not math.isnan(t) for one in batch for t in one.targets)
            total += _batch_loss(model, batch, pad_id).item() * known
            count += known
    return total / count


def train_reward_model(
    model: RewardModel,
    encoder: Encoder,
    train: Sequence[Encoded],
    dev: Sequence[Encoded],
    config: RewardTrainingConfig,
    *,
    seed: int,
    work: Path,
    report: Callable[[dict[str, float], int], None],
) -> list[dict[str, Any]]:
    """Trains in place and leaves the weights of the epoch with the lowest dev loss. Returns one record an epoch.

    Cosine schedule with warm-up, gradient clipping, a head rate of its own, length bucketing, exact resume from `work`.

    Raises InputError when the loss is not finite.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from transformers import get_cosine_schedule_with_warmup

    from prm_core.progress import track

    set_seed(seed)
    lengths = [len(example.chain.ids) for example in train]
    per_epoch = len(bucketed_batches(lengths, config.batch_size, seed, 0))
    total = per_epoch * config.epochs
    if model.vocabulary is not None:
        # The labels may not move what a token's surprisal is measured with.
        model.vocabulary.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [{"params": list(model.backbone.parameters()), "lr": config.learning_rate},
         {"params": list(model.head.parameters()), "lr": config.head_learning_rate}],
        weight_decay=config.weight_decay,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, int(config.warmup_share * total), total)
    accelerator = Accelerator(cpu=model.device.type == "cpu")
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    plain = accelerator.unwrap_model(model)
    checkpoints = Checkpoints(accelerator, work / "checkpoints")
    best = work / "best"
    position = checkpoints.restore()
    history = position.history
    model.train()
    kind = plain.config.kind
    for update, rows in track(
        batches_from(lengths, config.batch_size, seed, start=position.update, stop=total), f"train {kind} model",
        total=total, done=position.update, unit="update",
    ):
        loss = _batch_loss(model, [train[i] for i in rows], encoder.pad_id)
        if not torch.isfinite(loss):
            raise InputError(f"the {kind} model's loss is {loss.item()} at update {update}; lower "
                             "train_prm.learning_rate or check the labels")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        position.update = update + 1
        if (update + 1) % config.log_every == 0:
            report({f"{kind}/loss": loss.item(), f"{kind}/learning_rate": rate}, update + 1)
        if (update + 1) % per_epoch == 0:
            model.eval()
            record = {"epoch": len(history) + 1, "update": update + 1,
                      "dev_loss": dev_loss(plain, dev, encoder.pad_id, config.batch_size)}
            model.train()
            if record["dev_loss"] <= min((past["dev_loss"] for past in history), default=math.inf):
                plain.save_pretrained(work / ".best")
                replace_folder(best, work / ".best")
            history.append(record)
            report({f"{kind}/dev_loss": record["dev_loss"]}, update + 1)
        if (update + 1) % config.checkpoint_every == 0:
            checkpoints.save(position)
    from safetensors.torch import load_model

    load_model(plain, best / "model.safetensors")
    plain.eval()
    return history
