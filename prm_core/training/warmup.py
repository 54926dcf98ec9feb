"""Warm-up: one supervised run on worked solutions that yields the base policy and the reward backbone, from random
weights or from a pretrained model.

An early checkpoint, which still makes the mistakes of a small model, is the policy; the last one, which knows more than
the policy, is the backbone of the reward models (METHODS 8). A small pretrained model makes mistakes enough at its
best: there the last one may be both.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import Config, WarmupConfig
from prm_core.errors import GateError, InputError
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.loading import load_encoder, load_pretrained, pick_device
from prm_core.models.padding import pad
from prm_core.models.precision import resolve
from prm_core.models.saving import save_language_model
from prm_core.platform.progress import some
from prm_core.platform.steps import parse_steps
from prm_core.training import data_parallel
from prm_core.training.augment import insert_harmless
from prm_core.training.batches import batches_from, cut_where_longer
from prm_core.training.checkpoint import Checkpoints, replace_folder
from prm_core.training.data_parallel import balanced
from prm_core.types import Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
# Evaluations are this much closer together near the accuracy that the policy is to have.
NEARER = 5


@dataclass(frozen=True, slots=True)
class WarmupResult:
    """Where the two models are, and the run's curve (one record per evaluation)."""

    policy: Path
    backbone: Path
    policy_update: int
    history: list[dict[str, Any]]


def build_model(encoder: Encoder, config: Config) -> PreTrainedModel:
    """A Llama of the configured size with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    size = config.warmup
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder.tokenizer),
            hidden_size=size.hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            intermediate_size=size.intermediate_size,
            max_position_embeddings=config.encoder.max_length,
            tie_word_embeddings=True,
            bos_token_id=encoder.tokenizer.bos_token_id,
            eos_token_id=encoder.eos_id,
            pad_token_id=encoder.pad_id,
        )
    )


def load_base(path: str, config: Config) -> tuple[PreTrainedModel, Encoder]:
    """A pretrained model in float32 and the encoder of its tokenizer, with rows for the tokens that this one adds.

    Raises InputError when it does not load, or does not fit section `encoder`.
    """
    from transformers import AutoModelForCausalLM

    # Mixed precision trains float32 weights.
    model = load_pretrained(AutoModelForCausalLM, path, dtype="float32", device=config.models.device)
    return model, load_encoder(path, model, config.encoder, policy=True)


def build_optimizers(model: PreTrainedModel, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices, AdamW for embeddings and norms; of a base, AdamW for all."""
    import torch

    from prm_core.training.muon import Muon

    if config.warmup.base:
        matrices = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.warmup.weight_decay},
                  {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=config.warmup.learning_rate, betas=(0.9, 0.98), fused=True)]
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=config.warmup.matrix_learning_rate, weight_decay=config.warmup.weight_decay),
        torch.optim.AdamW(rest, lr=config.warmup.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def solution_loss(model: PreTrainedModel, ids: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of the solution's tokens.

    Args:
        ids: right-padded chains, (batch, seq).
        solution: True at tokens of the solution, (batch, seq).

    Pads stand to the right, where causal attention never looks back at them, so no mask is passed; the vocabulary is
    only computed where a target is.
    """
    import torch

    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = solution[:, 1:]
    logits = model.get_output_embeddings()(hidden[targets])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets], reduction="sum")


def train(
    config: Config,
    encoder: Encoder,
    problems: Sequence[Problem],
    accuracy: Callable[[PreTrainedModel], float],
    work: Path,
    report: Callable[[dict[str, float], int], None],
    base: PreTrainedModel | None = None,
) -> WarmupResult:
    """Trains on worked solutions until the schedule ends.

    Args:
        config: its sections seed, models, encoder and warmup.
        encoder: of the base, where there is one.
        problems: with `meta["solution"]`; those that do not fit the context are left out and logged by id.
        accuracy: share of held-out problems a model answers right.
        work: survives a crash; holds checkpoints and the policy once it is found.
        report: receives figures and the number of updates done.
        base: a pretrained model, which is trained in place; None is one of random weights.

    Raises:
        InputError: a problem without a worked solution, or none that fits the context; a loss that is not finite.
        GateError: the run ended without a checkpoint at `policy_accuracy`, or below `backbone_accuracy`.
    """
    import torch
    from accelerate import Accelerator
    from transformers import get_wsd_schedule

    from prm_core.platform.progress import track

    config = resolve(config)
    settings = config.warmup
    problems, chains = _encode_solutions(encoder, problems)
    # The processes of a launcher take their steps together, so a schedule steps once.
    accelerator = Accelerator(cpu=pick_device(config.models.device).type == "cpu", step_scheduler_with_optimizer=False)
    model = build_model(encoder, config) if base is None else base.train()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizers = build_optimizers(model, config)
    schedulers = [
        get_wsd_schedule(
            optimizer, num_warmup_steps=settings.warmup_updates, num_training_steps=settings.max_updates,
            num_decay_steps=int(settings.decay_share * settings.max_updates), decay_type="linear",
        )
        for optimizer in optimizers
    ]
    model = accelerator.prepare_model(model, evaluation_mode=True)
    optimizers = [accelerator.prepare_optimizer(one) for one in optimizers]
    schedulers = [accelerator.prepare_scheduler(one) for one in schedulers]
    checkpoints = Checkpoints(accelerator, work / "checkpoints")
    policy = work / "policy"
    position = checkpoints.restore()
    history, losses = position.history, position.losses

    def passes(part: tuple[list[tuple[list[int], list[int]]], int]) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        """The loss of rows of a batch, as their share of the mean over all of the batch's tokens."""
        rows, tokens = part
        # Batches are of like length but for the remarks, which padded the rest by a third.
        for alike in cut_where_longer([len(ids) for ids, _ in rows]):
            size = settings.rows_per_pass or len(alike)
            for some_rows in (alike[start : start + size] for start in range(0, len(alike), size)):
                ids = pad([rows[i][0] for i in some_rows], encoder.pad_id).to(accelerator.device)
                solution = pad([rows[i][1] for i in some_rows], 0).bool().to(accelerator.device)
                with torch.autocast(ids.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                    loss = solution_loss(model, ids, solution) / tokens
                yield loss, {"loss": loss.item()}

    order = batches_from([len(ids) for ids, _ in chains], settings.batch_size, config.seed, start=position.update,
                         stop=settings.max_updates)
    with data_parallel.gradients(accelerator, model, passes) as gradients:
        for update, indices in track(order, "warm-up", total=settings.max_updates, done=position.update, unit="update"):
            rows = [chains[i] for i in indices]
            rng = random.Random(f"{config.seed}/{update}")
            # From the first update on: brought in later, remarks cost the model half of what it knew by then.
            rows = [_with_remarks(encoder, problems[i], rng) or row if rng.random() < settings.harmless_steps else row
                    for i, row in zip(indices, rows, strict=True)]
            tokens = sum(sum(flags) for _, flags in rows)
            loss = gradients.of([([rows[i] for i in part], tokens)
                                 for part in balanced([len(ids) for ids, _ in rows], gradients.parts)])["loss"]
            if not math.isfinite(loss):
                raise InputError(f"warm-up: the loss is {loss} at update {update}; lower warmup.*learning_rate")
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            for part in (*optimizers, *schedulers):
                part.step()
            losses.append(loss)
            position.update = update + 1
            every = _evaluate_every(history, settings)
            if (update + 1) % every == 0 or update + 1 == settings.max_updates:
                found = accuracy(model.eval())
                model.train()
                record = {"update": update + 1, "loss": sum(losses) / len(losses), "accuracy": found}
                losses.clear()
                history.append(record)
                report({"loss": record["loss"], "accuracy": found}, update + 1)
                wanted = found >= settings.policy_accuracy and not any(r.get("policy") for r in history)
                if wanted if settings.policy_accuracy else update + 1 == settings.max_updates:
                    record["policy"] = True
                    _save(model, encoder, policy)
            if (update + 1) % settings.checkpoint_every == 0:
                checkpoints.save(position)
    backbone = work / "backbone"
    _save(model, encoder, backbone)
    chosen = _check(history, settings.policy_accuracy, settings.backbone_accuracy)
    return WarmupResult(policy, backbone, chosen, history)


def _evaluate_every(history: list[dict[str, Any]], settings: WarmupConfig) -> int:
    """Updates between evaluations. Accuracy picks the policy and rises fast where it does, so that it is looked at more
    often from two thirds of it on; once the policy is found, the curve needs fewer points."""
    if any(record.get("policy") for record in history):
        return settings.checkpoint_every
    near = bool(history) and history[-1]["accuracy"] >= settings.policy_accuracy * 2 / 3 > 0
    return max(settings.eval_every // NEARER, 1) if near else settings.eval_every


def _encode_solutions(
    encoder: Encoder, problems: Sequence[Problem]
) -> tuple[list[Problem], list[tuple[list[int], list[int]]]]:
    """The problems whose solution fits the context, with its ids and which of them it wrote."""
    kept, chains, long = [], [], []
    for problem in problems:
        solution = problem.meta.get("solution")
        if not solution:
            raise InputError(f"problem {problem.id} has no worked solution; the warm-up learns from those. Give "
                             "`solution`, or set warmup.enabled to false and name pretrained models")
        steps = parse_steps(solution, f"problem {problem.id}: solution")
        encoded = encoder.encode(problem.prompt, steps, end=True, may_be_empty=True)
        if encoded.truncated_steps:
            long.append(problem.id)
            continue
        kept.append(problem)
        chains.append((encoded.ids, _learned(encoded, _mistakes(problem))))
    limit = f"encoder.max_length {encoder.config.max_length}"
    if not kept:
        raise InputError(f"no worked solution fits {limit}: {some(long)}; raise the limit or shorten them")
    if long:
        log.warning("warm-up: %d of %d worked solutions do not fit %s and are left out: %s", len(long), len(problems),
                    limit, some(long))
    return kept, chains


def _with_remarks(encoder: Encoder, problem: Problem, rng: random.Random) -> tuple[list[int], list[int]] | None:
    """A worked solution with harmless steps among its own, which are read and not learned; None where that is no chain
    of more steps than one, or too long."""
    solution = problem.meta["solution"]
    if len(solution) < 2:
        return None
    steps = insert_harmless(parse_steps(solution, f"problem {problem.id}: solution"), rng)
    encoded = encoder.encode(problem.prompt, [step for _, step in steps], end=True, may_be_empty=True)
    if encoded.truncated_steps:
        return None
    mistakes = _mistakes(problem)
    return encoded.ids, _learned(
        encoded, [place for place, (origin, _) in enumerate(steps) if origin is None or origin in mistakes])


def _mistakes(problem: Problem) -> list[int]:
    """Indices of the steps of its worked solution that go wrong. Raises InputError where they are no such."""
    found, steps = problem.meta.get("mistakes", []), len(problem.meta["solution"])
    if not isinstance(found, list) or not all(type(index) is int and 0 <= index < steps for index in found):
        raise InputError(f"problem {problem.id}: meta.mistakes is {found!r}, expected 0-based indices of the {steps} "
                         "steps of its solution that nobody is to learn; correct it or leave it out")
    return found


def _learned(encoded: EncodedChain, read: Collection[int]) -> list[int]:
    """Which tokens are learned: those that the policy writes, but for the steps that are only to be read."""
    flags = [int(scored) for scored in encoded.scored]
    starts = [encoded.prompt_length, *(end + 1 for end in encoded.step_ends)]
    for index in read:
        start, end = starts[index], encoded.step_ends[index]
        flags[start : end + 1] = [0] * (end + 1 - start)
    return flags


def _save(model: PreTrainedModel, encoder: Encoder, folder: Path) -> None:
    temporary = folder.with_name(f".{folder.name}")
    save_language_model(model, encoder, temporary)
    replace_folder(folder, temporary)


def _check(history: list[dict[str, Any]], policy_accuracy: float, backbone_accuracy: float) -> int:
    chosen = next((record for record in history if record.get("policy")), None)
    final = history[-1]["accuracy"]
    if chosen is None or final < backbone_accuracy:
        best = max(record["accuracy"] for record in history)
        raise GateError(
            f"warm-up ended at accuracy {final:.3f}, the best on the way was {best:.3f}; warmup.policy_accuracy "
            f"{policy_accuracy} must be reached on the way and warmup.backbone_accuracy {backbone_accuracy} at the "
            "end: raise warmup.max_updates or lower these bounds"
        )
    return int(chosen["update"])
