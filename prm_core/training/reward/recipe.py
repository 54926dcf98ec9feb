"""From examples to a trained reward model: split, tokens, rows, backbone, LoRA, training. The loop is `loop.py`."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.models.bases import Base
from prm_core.models.encoder import Encoder
from prm_core.models.loading import load_tokenizer, pick_device
from prm_core.models.precision import resolve
from prm_core.training.augment import with_harmless_steps, with_nonsense, with_unheard_steps
from prm_core.training.examples import OUTCOME_KINDS, Example, Pair, encode_examples, encode_pairs, split_by_problem
from prm_core.training.reward.loop import Rows, class_weights, held_out_loss, pack_rows, train_reward_model
from prm_core.training.reward.probe import (
    Regression,
    fit_arithmetic,
    fit_committee,
    fit_head,
    fit_surprisal,
    read_regression,
    solve,
    step_tokens,
)
from prm_core.training.trees import Row, collate_trees

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from prm_core.scoring.heads import Heads
    from prm_core.scoring.reward import RewardModel
    from prm_core.scoring.scorer import RewardScorer


# Of mallopt(3).
M_MMAP_THRESHOLD = -3


@dataclasses.dataclass(frozen=True, slots=True)
class TrainedModel:
    """What training gives.

    Attributes:
        model: in eval mode, LoRA merged.
        encoder: it was trained with.
        dev: the held-out examples, for calibration.
        dev_rows: the same as tokens.
        history: one record an evaluation, see `train_reward_model`.
        counts: chains, targets, tokens and what was lost.
        rows_per_pass: rows that fit the memory together.
    """

    model: RewardModel
    encoder: Encoder
    dev: list[Example]
    dev_rows: Rows
    history: list[dict[str, Any]]
    counts: dict[str, float]
    rows_per_pass: int


def train_on(
    kind: str, backbone: str, examples: Sequence[Example], pairs: Sequence[Pair], config: Config, *, work: Path,
    report: Callable[[dict[str, float], int], None], name: str | None = None, outcomes: Sequence[Example] = (),
    start: RewardScorer | None = None,
) -> TrainedModel:
    """Trains a reward model of a kind on a backbone (folder or hub id).

    Args:
        kind: process, outcome, advantage or implicit.
        backbone: a causal LM.
        examples: of at least two problems.
        pairs: step preferences, for a Bradley-Terry term of the loss; may be empty.
        config: its sections seed, models, encoder and train_prm.
        work: survives a crash; an interrupted training goes on from there.
        report: gets figures and the update they are of.
        name: of the backbone wherever the model may go, where that is not its path here; a model whose backbone is
            frozen is saved with that instead of the weights.
        outcomes: examples of kind outcome, of the same problems; a process model gets a head for how chains end.
        start: a trained model of the kind to go on from, in place of a new one on the backbone; it is changed.

    Raises:
        InputError: what training cannot start on or must not go on with, each with the way out.
    """
    from prm_core.models.causal import takes_trees
    from prm_core.scoring.kinds import REWARD_MODELS

    problems = {example.problem_id for example in examples}
    if len(problems) < 2:
        raise InputError(f"the training set has chains of {len(problems)} problem(s); training and dev need one each: "
                         "generate more, or lower calibrate.min_confidence")
    # An implicit model has no head to solve for.
    convex = config.train_prm.solver == "convex" and kind != "implicit"
    frozen = convex or not config.train_prm.learning_rate
    if kind == "implicit" and frozen:
        raise InputError("train_prm.learning_rate 0 freezes the model, and an implicit reward is how far training "
                         "moves it; set a rate in the profile, for instance 0.00001")
    config = resolve(config)
    encoder = start.encoder if start else Encoder(load_tokenizer(backbone), config.encoder)
    # A chain longer than a row trains as far as it fits one; the model may score all of it.
    fitting = Encoder(encoder.tokenizer, dataclasses.replace(
        encoder.config, max_length=min(encoder.config.max_length, config.train_prm.row_tokens)))
    train, dev = split_by_problem(examples, config.train_prm.dev_share, config.seed)
    held = {example.problem_id for example in dev}
    train = with_harmless_steps(train, kind, config.train_prm.harmless_steps, config.seed)
    if kind not in OUTCOME_KINDS:
        train = with_unheard_steps(train, config.train_prm.unheard_steps, config.seed)
    if kind == "process" and config.train_prm.nonsense_steps:
        words = [encoder.turn([token]).text for token in encoder.plain_tokens()]
        train = with_nonsense(train, words, config.train_prm.nonsense_steps, config.seed)
    encoded, lost = encode_examples(fitting, train, kind)
    dev_encoded, _ = encode_examples(fitting, dev, kind)
    kept, long_pairs = encode_pairs(fitting, [pair for pair in pairs if pair.problem_id not in held],
                                    config.train_prm.row_tokens)
    device = pick_device(config.models.device)
    if device.type == "cpu":
        return_freed_memory()
    # Mixed precision trains float32 weights; what is rounded to bfloat16 cannot take small steps. Under adapters these
    # are the weights that take them.
    dtype = config.models.dtype if config.train_prm.precision == "float32" or config.train_prm.lora_rank else "float32"
    if start:
        model = _going_on(start, dtype, device)
    else:
        more = {"history": config.train_prm.history} if kind == "process" else {}
        model = REWARD_MODELS[kind].from_backbone(
            backbone, surprisal=kind in config.models.surprisal, encoder=dataclasses.asdict(config.encoder),
            dtype=dtype, device=str(device), **more)
    context = getattr(model.backbone.config, "max_position_embeddings", None) or encoder.config.max_length
    if encoder.config.max_length > context:
        raise InputError(f"encoder.max_length {encoder.config.max_length} is beyond the {context} positions of "
                         f"{backbone}; lower it")
    share = takes_trees(model.backbone)
    rows = pack_rows(encoded, kept, config.train_prm, share=share, seed=config.seed)
    dev_rows = pack_rows(dev_encoded, [], config.train_prm, share=share, seed=config.seed)
    counts = {"chains": len(encoded), "dev_chains": len(dev_encoded), **_counts(rows), **lost,
              "truncated_pairs": long_pairs}
    # Encoded chains of large trees take more memory than the model.
    del encoded, dev_encoded, kept
    if frozen:
        model.backbone.requires_grad_(False)
    if config.train_prm.gradient_checkpointing:
        model.network.activation_checkpointing_enable()
    reading = {"pad_id": encoder.pad_id, "rows_per_pass": config.train_prm.rows_per_pass,
               "mixed": config.train_prm.precision == "bfloat16"}
    factors = class_weights(config.train_prm, rows)
    text_of = _text_of(encoder) if kind == "process" and config.train_prm.arithmetic else None
    data = None
    if convex:
        data = read_regression(model, _read_rows(rows, config), **reading, whole_chain=kind == "outcome",
                               text_of=text_of)
        fit_head(model, data, factors, config.train_prm.preference_weight, config.train_prm.head_ridge)
        history = [{"update": 1, "epoch": 1.0, "dev_loss": held_out_loss(model, dev_rows, config.train_prm, factors,
                                                                        encoder.pad_id)}]
        report({f"{kind}/dev_loss": history[0]["dev_loss"]}, 1)
    else:
        if model.surprisal is not None and config.train_prm.probe_rows:
            some = rows.rows[: config.train_prm.probe_rows]
            fit_surprisal(model, read_regression(model, some, **reading, whole_chain=kind == "outcome"), factors)
        with lora(model, config.train_prm.lora_rank, config.seed):
            history = train_reward_model(model, rows, dev_rows, config.train_prm, pad_id=encoder.pad_id,
                                         seed=config.seed, work=work, report=report, sharding=config.launch.sharding)
    if text_of:
        if data is None:
            some = rows.rows[: config.train_prm.probe_rows or None]
            model.arithmetic = fit_arithmetic(
                read_regression(model, some, **reading, whole_chain=False, text_of=text_of), factors,
                config.train_prm.head_ridge)
        else:
            model.arithmetic = fit_arithmetic(data, factors, config.train_prm.head_ridge)
    if kind == "process" and outcomes:
        if data is None and config.train_prm.committee:
            data = read_regression(model, _read_rows(rows, config), **reading, whole_chain=False)
        ended = [example for example in outcomes if example.problem_id not in held]
        model.heads = _further_heads(model, fitting, ended, data, factors, config, share, reading)
    model.network.activation_checkpointing_disable()
    if config.train_prm.precision == "bfloat16":
        import torch

        # Not the buffers: rotary frequencies stay float32, as they are when a saved model is loaded; nor further heads.
        for place, parameter in model.named_parameters():
            if not place.startswith("heads."):
                parameter.data = parameter.data.to(getattr(torch, config.models.dtype))
    model.precision = config.train_prm.precision
    if not frozen or config.train_prm.lora_rank:
        model.base = None
    elif start is None:
        model.base = Base.of(backbone, name or backbone)
    return TrainedModel(model, encoder, dev, dev_rows, history, counts,
                        config.train_prm.rows_per_pass)


def _text_of(encoder: Encoder) -> Callable[[Sequence[int]], str]:
    return lambda ids: encoder.turn(ids).text


def _read_rows(rows: Rows, config: Config) -> list[Row]:
    """The rows that a head is solved for on: as many as updates would have taken."""
    return rows.rows[: config.train_prm.max_updates * config.train_prm.rows_per_update or None]


def _going_on(start: RewardScorer, dtype: str, device: torch.device) -> RewardModel:
    """A trained model, ready to be trained on; the heads beside its own are fitted anew."""
    import torch

    model = start.model.to(device=device, dtype=getattr(torch, dtype)).eval()
    model.heads = model.arithmetic = None
    return model


def _further_heads(
    model: RewardModel, encoder: Encoder, outcomes: Sequence[Example], steps: Regression | None,
    factors: tuple[float, float], config: Config, share: bool, reading: Mapping[str, Any],
) -> Heads:
    """The head for how chains end, and the committee, which is fitted to what the model's own head reads of steps."""
    from prm_core.scoring.heads import Heads

    train = with_harmless_steps(outcomes, "outcome", config.train_prm.harmless_steps, config.seed)
    encoded, _ = encode_examples(encoder, train, "outcome")
    rows = pack_rows(encoded, [], config.train_prm, share=share, seed=config.seed).rows
    ridge = config.train_prm.head_ridge
    outcome = solve(read_regression(model, rows, **reading, whole_chain=True), ridge=ridge)
    committee = outcome.new_zeros((0, len(outcome)))
    if steps is not None:
        committee = fit_committee(steps, config.train_prm.committee, solve(steps, factors, ridge=ridge), config.seed,
                                  factors, ridge)
    return Heads(outcome.float(), committee.float()).to(model.device)


def _counts(rows: Rows) -> dict[str, float]:
    return {"targets": rows.targets, "right": rows.right, "pairs": rows.pairs, "rows": len(rows.rows),
            "tokens": rows.tokens, "chain_tokens": rows.chain_tokens}


def return_freed_memory() -> None:
    """Makes glibc give blocks from a MiB on back to the system when they are freed.

    It learns to keep blocks of up to 32 MiB for later, which leaves a training with a sixteenth more memory than it
    uses. Elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 2**20)


@contextmanager
def lora(model: RewardModel, rank: int, seed: int) -> Iterator[None]:
    """Low-rank adapters on every linear layer of the backbone, merged into its weights when the block ends.

    Args:
        model: whose network is then frozen, its head not.
        rank: of the adapters; 0 leaves the model as it is.
        seed: of their initialisation.
    """
    if not rank:
        yield
        return
    import torch
    from peft import LoraConfig, get_peft_model

    # A vocabulary head too, which is no part of what the library calls the base model.
    model.network.requires_grad_(False)
    model.head.float().requires_grad_(True)
    torch.manual_seed(seed)
    adapted = get_peft_model(model.backbone, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    try:
        yield
    finally:
        adapted.merge_and_unload()


def held_out_scores(trained: TrainedModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Raw scores of the held-out targets, and the targets."""
    import numpy as np
    import torch

    scores, targets = [], []
    rows, size = trained.dev_rows.rows, trained.rows_per_pass
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = collate_trees(rows[start : start + size], trained.encoder.pad_id).to(trained.model.device)
            known = batch.weights > 0
            logits = trained.model(batch.chains)[known]
            if trained.model.arithmetic:
                texts = map(_text_of(trained.encoder), step_tokens(batch.chains, known))
                logits = logits + trained.model.arithmetic.of_texts([list(texts)], logits[None])[0]
            scores.append(torch.sigmoid(logits).double().cpu().numpy())
            targets.append(batch.targets[known].double().cpu().numpy())
    return np.concatenate(scores), np.concatenate(targets)
