"""Training reward models on packed trees of chains: one loop for process, outcome and advantage models.

What a target is: `examples.py`; the layout of tokens: `training/trees.py`; the losses: `loss.py`.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import RewardTrainingConfig
from prm_core.errors import InputError
from prm_core.models.dropout import drops
from prm_core.training.checkpoint import Checkpoints
from prm_core.training.examples import Encoded, EncodedPair
from prm_core.training.reward.loss import balanced_weights, cross_entropy_sum, preference_sum
from prm_core.training.sharding import (
    Sharding,
    accumulating,
    is_sharded,
    keep_whole,
    spread,
    unwrapped,
    whole,
)
from prm_core.training.trees import Row, collate_trees, cut, grow, pack

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor

    from prm_core.scoring.reward import RewardModel

log = logging.getLogger(__name__)
BEST = "best.safetensors"


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed rows and what is in them.

    Attributes:
        rows: of at most the configured width.
        targets, right: sum of the target weights, and of weight · target.
        pairs: preference pairs.
        tokens: computed in a pass over all rows.
        chain_tokens: the same chains would have, one by one.
    """

    rows: list[Row]
    targets: float
    right: float
    pairs: int
    tokens: int
    chain_tokens: int


def pack_rows(
    examples: Sequence[Encoded], pairs: Sequence[EncodedPair], config: RewardTrainingConfig, *, share: bool, seed: int
) -> Rows:
    """Rows of examples and pairs. Raises InputError when a chain is longer than a row."""
    chains = [example.chain for example in examples] + [side for p in pairs for side in (p.chosen, p.rejected)]
    longest = max(len(chain.ids) for chain in chains)
    if longest > config.row_tokens:
        raise InputError(f"train_prm.row_tokens is {config.row_tokens}, and a chain has {longest} tokens; raise it")
    pieces = [piece for tree in grow(examples, pairs, share=share) for piece in cut(tree, config.row_tokens)]
    nodes = [(piece.tree.nodes[index].weight, piece.tree.nodes[index].target)
             for piece in pieces for index in piece.scored]
    return Rows(pack(pieces, config.row_tokens, seed), sum(weight for weight, _ in nodes),
                sum(weight * target for weight, target in nodes), sum(len(piece.pairs) for piece in pieces),
                sum(piece.tokens for piece in pieces), sum(len(chain.ids) for chain in chains))


def updates_of(rows: Sequence[Row], size: int, seed: int, start: int, stop: int) -> Iterator[tuple[int, list[Row]]]:
    """(update, rows) for updates `start`…`stop` of an endless sequence of epochs; resuming needs only `start`."""
    per_epoch = math.ceil(len(rows) / size)
    order: list[int] = []
    for update in range(start, stop):
        epoch, position = divmod(update, per_epoch)
        if position == 0 or not order:
            order = list(range(len(rows)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
        yield update, [rows[index] for index in order[position * size : (position + 1) * size]]


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of rows: mean cross-entropy over the targets plus the mean preference loss over the pairs.

    Args:
        pad_id: of the encoder.
        class_weights: of wrong and right targets.
        preference_weight: of the preference loss.
        mixed: compute in bfloat16 what may be, on float32 weights.
        width: of rows, at least.
    """

    pad_id: int
    class_weights: tuple[float, float]
    preference_weight: float
    mixed: bool = False
    width: int = 0

    def weight(self, rows: Sequence[Row]) -> tuple[float, int]:
        """What the two sums of these rows are divided by: class-weighted targets, and pairs."""
        wrong, right = self.class_weights
        nodes = [piece.tree.nodes[index] for row in rows for piece in row for index in piece.scored]
        total = sum(node.weight * (right * node.target + wrong * (1 - node.target)) for node in nodes)
        return total, sum(len(piece.pairs) for row in rows for piece in row)

    def loss(self, model: torch.nn.Module, rows: Sequence[Row], device: torch.device, weight: tuple[float, int]
             ) -> Tensor:
        """These rows' share of the loss of rows with that weight."""
        import torch

        batch = collate_trees(rows, self.pad_id, device, self.width)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
            logits = model(batch.chains)
        targets, pairs = weight
        loss = cross_entropy_sum(logits, batch.targets, batch.weights, self.class_weights) / max(targets, 1e-9)
        if pairs:
            loss = loss + self.preference_weight * preference_sum(logits, batch.pairs) / pairs
        return loss


def _of_rank(rows: Sequence[Row], accelerator: Accelerator, size: int) -> list[range]:
    """Numbers of this process's rows in passes of at most `size`; the same number of passes on every process."""
    count = accelerator.num_processes
    mine = range(accelerator.process_index, len(rows), count)
    passes = math.ceil(math.ceil(len(rows) / count) / size)
    return [mine[i * size : (i + 1) * size] for i in range(passes)]


def _share_of_loss(
    objective: Objective, model: torch.nn.Module, rows: Sequence[Row], own: range, accelerator: Accelerator,
    weight: tuple[float, int],
) -> Tensor:
    """The loss of one pass; of none of its own rows a process computes any row and counts it for nothing, because all
    processes must take part in every pass."""
    if own:
        return objective.loss(model, [rows[number] for number in own], accelerator.device, weight)
    return 0.0 * objective.loss(model, rows[:1], accelerator.device, weight)


def dev_loss(
    model: torch.nn.Module, rows: Sequence[Row], objective: Objective, accelerator: Accelerator, rows_per_pass: int
) -> float:
    """The loss of held-out rows. Processes of a launcher have the same number of passes."""
    import torch

    weight = objective.weight(rows)
    total = torch.zeros((), device=accelerator.device)
    # Not in inference mode: weights put together in it could not be trained with.
    with torch.no_grad():
        for own in _of_rank(rows, accelerator, rows_per_pass):
            total += _share_of_loss(objective, model, rows, own, accelerator, weight)
    return accelerator.reduce(total, "sum").item()


def held_out_loss(
    model: torch.nn.Module, dev: Rows, config: RewardTrainingConfig, class_weights: tuple[float, float], pad_id: int
) -> float:
    """The loss of held-out rows under a model that is not trained by gradient, on one process."""
    from accelerate import Accelerator

    objective = Objective(pad_id, class_weights, config.preference_weight, mixed=config.precision == "bfloat16")
    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu", mixed_precision="no")
    return dev_loss(model, dev.rows, objective, accelerator, config.rows_per_pass)


def _optimizer(model: RewardModel, config: RewardTrainingConfig) -> torch.optim.Optimizer:
    """AdamW; the head and the surprisal's term have rates of their own."""
    import torch

    groups = {"backbone": config.learning_rate, "head": config.head_learning_rate,
              "surprisal": config.surprisal_learning_rate}
    of = {id(parameter): "head" for parameter in model.head.parameters()}
    if model.surprisal is not None:
        of |= {id(parameter): "surprisal" for parameter in model.surprisal.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [{"params": [p for p in trained if of.get(id(p), "backbone") == group], "lr": rate}
         for group, rate in groups.items()],
        weight_decay=config.weight_decay, fused=True,
    )


class _Best:
    """The trained weights with the lowest dev loss so far, in a file that survives a crash."""

    def __init__(self, work: Path) -> None:
        self.path = work / BEST

    def save(self, trained: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{BEST}")
        save_file(trained, temporary)
        temporary.replace(self.path)

    def load(self, model: RewardModel) -> None:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(self.path, device=str(model.device)), strict=False)


def _trained(model: torch.nn.Module) -> dict[str, Tensor]:
    """Whole, by name; all processes must ask."""
    return {name: whole(parameter.detach()).contiguous() for name, parameter in model.named_parameters()
            if parameter.requires_grad}


def class_weights(config: RewardTrainingConfig, train: Rows) -> tuple[float, float]:
    """The configured class weights. Raises InputError when balanced ones need a class that is not there."""
    if config.class_weights == "none":
        return 1.0, 1.0
    try:
        return balanced_weights(train.right, train.targets)
    except ValueError as error:
        raise InputError(f"train_prm.class_weights balanced: {error}; set it to none or check the labels") from None


def train_reward_model(
    model: RewardModel,
    train: Rows,
    dev: Rows,
    config: RewardTrainingConfig,
    *,
    pad_id: int,
    seed: int,
    work: Path,
    report: Callable[[dict[str, float], int], None],
    sharding: Sharding = "none",
) -> list[dict[str, Any]]:
    """Trains in place and leaves the weights with the lowest dev loss. Returns one record an evaluation.

    Cosine schedule with warm-up, gradient clipping, a head rate of its own, early stopping, exact resume from `work`.
    Launched on several processes, each takes its share of every update's rows; the loss curve is that of one process.

    Raises InputError when the loss is not finite.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    set_seed(seed)
    # Its own mixed precision is one for the whole process, and would stay in the model after training.
    accelerator = Accelerator(cpu=model.device.type == "cpu", mixed_precision="no")
    best = _Best(work)
    with spread(model, accelerator, sharding) as spread_model:
        # On a GPU all passes are of one size, so that layers are compiled once.
        width = config.row_tokens if accelerator.device.type == "cuda" else 0
        objective = Objective(pad_id, class_weights(config, train), config.preference_weight,
                              mixed=config.precision == "bfloat16", width=width)
        history = _train(spread_model, train, dev, config, objective, accelerator, best, seed=seed, work=work,
                         report=report)
    accelerator.wait_for_everyone()
    best.load(model)
    model.eval()
    accelerator.free_memory()
    return history


def _train(
    wrapped: torch.nn.Module, train: Rows, dev: Rows, config: RewardTrainingConfig, objective: Objective,
    accelerator: Accelerator, best: _Best, *, seed: int, work: Path, report: Callable[[dict[str, float], int], None],
) -> list[dict[str, Any]]:
    """What `train_reward_model` does with a spread model; leaves the last weights in it."""
    from transformers import get_cosine_schedule_with_warmup

    from prm_core.models.static.graph import CompiledLayers
    from prm_core.platform.progress import track

    per_epoch = math.ceil(len(train.rows) / config.rows_per_update)
    total = min(per_epoch * config.epochs, config.max_updates or math.inf)
    every = config.eval_every or per_epoch
    model = unwrapped(wrapped)
    compiled = nullcontext if is_sharded(wrapped) else CompiledLayers(model.backbone).on
    optimizer = _optimizer(model, config)
    if is_sharded(wrapped):
        keep_whole(optimizer)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(config.warmup_share * total), total)
    optimizer = accelerator.prepare(optimizer)
    # Not prepared: accelerate would step it once for each process, and updates are counted here.
    accelerator.register_for_checkpointing(schedule)
    checkpoints = Checkpoints(accelerator, work / "checkpoints")
    position = checkpoints.restore()
    history = position.history
    wrapped.train()
    for update, rows in track(
        updates_of(train.rows, config.rows_per_update, seed, position.update, total), f"train {model.kind} model",
        total=total, done=position.update, unit="update",
    ):
        if _patience_over(history, config.patience):
            break
        with compiled():
            loss = _update(wrapped, rows, objective, accelerator, config, f"{seed}/{update}")
        _check_finite(loss, f"the {model.kind} model's loss", update)
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        position.update = update + 1
        if (update + 1) % config.log_every == 0:
            report({f"{model.kind}/loss": loss, f"{model.kind}/learning_rate": rate}, update + 1)
        if (update + 1) % every == 0 or update + 1 == total:
            wrapped.eval()
            lowest = min((past["dev_loss"] for past in history), default=math.inf)
            record = {"update": update + 1, "epoch": (update + 1) / per_epoch,
                      "dev_loss": dev_loss(model, dev.rows, objective, accelerator, config.rows_per_pass)}
            wrapped.train()
            _check_finite(record["dev_loss"], f"the {model.kind} model's loss on dev problems", update)
            if record["dev_loss"] <= lowest:
                trained = _trained(model)
                if accelerator.is_main_process:
                    best.save(trained)
            history.append(record)
            report({f"{model.kind}/dev_loss": record["dev_loss"]}, update + 1)
        if (update + 1) % config.checkpoint_every == 0:
            checkpoints.save(position)
    return history


def _check_finite(loss: float, what: str, update: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"{what} is {loss} at update {update}; lower train_prm.learning_rate or check the labels")


def _patience_over(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new lowest dev loss; 0 is endless patience."""
    losses = [record["dev_loss"] for record in history]
    return 0 < patience < len(losses) and min(losses[-patience:]) > min(losses[:-patience])


def _update(
    model: torch.nn.Module, rows: Sequence[Row], objective: Objective, accelerator: Accelerator,
    config: RewardTrainingConfig, seed: str,
) -> float:
    """Accumulates the gradient of the rows of all processes, clips it and returns their loss.

    Args:
        seed: of what the model drops, if it does: row by row, so that a row drops the same whoever computes it.
    """
    import torch

    weight, drop = objective.weight(rows), drops(unwrapped(model).backbone)
    passes = _of_rank(rows, accelerator, 1 if drop else config.rows_per_pass)
    total = torch.zeros((), device=accelerator.device)
    for number, own in enumerate(passes):
        if drop:
            torch.manual_seed(random.Random(f"{seed}/{own.start}").getrandbits(31))
        # Processes exchange gradients once an update, in its last pass.
        with accumulating(model, accelerator, last=number + 1 == len(passes)):
            loss = _share_of_loss(objective, model, rows, own, accelerator, weight)
            # They average them, and the loss is a sum over processes.
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    total = accelerator.reduce(total, "sum").item()
    if math.isfinite(total):
        accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    return total
