"""Tokens a second and MFU of training a reward model: our loop against TRL's PRMTrainer on the same chains."""

from __future__ import annotations

import dataclasses
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Job

RELEASE = "1.13.0"
# Chains of an update, and updates, of which the first warms up. TRL takes eight chains at a time.
CHAINS, UPDATES, TOGETHER = 64, 4, 8


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of the longest chain and of a row of ours, in tokens; of prompts; steps of a chain; tokens of a step."""

    longest: int = 1024
    row: int = 2048
    prompt: int = 40
    steps: tuple[int, int] = (4, 20)
    step: tuple[int, int] = (15, 45)


# Dense bfloat16 products of an H100 or H200 (SXM), by their data sheets, in operations a second.
PEAK = 989e12
RANK, RATE = 16, 1e-5


def work(job: Job, shape: str) -> None:
    """Ours on packed chains, TRL on the same chains, then ours on trees of chains that share steps."""
    config = measure.configuration("mini" if job.mini else shape)
    config.num_labels = 2
    rank = RANK if shape == "7b" else 0
    size = config.vocab_size
    chains, updates = (8, 2) if job.mini else (CHAINS, UPDATES)
    lengths = Lengths(64, 128, 4, (2, 4), (3, 8)) if job.mini else Lengths()
    rng = random.Random(0)
    # An update more: rows are not cut at the ends of updates.
    apart = [_chain(rng, size, lengths, number) for number in range(chains * (updates + 1))]
    trees = _shared(rng, size, lengths, chains * (updates + 1))
    job.result.note(shape=config.to_dict(), chains_an_update=chains, lora_rank=rank, lengths=asdict(lengths),
                    peak_operations_per_second=PEAK, learning_rate=RATE)
    try:
        packed = _ours(job, config, lengths, apart, chains, updates, rank, "packed chains")
    except Exception as error:
        if job.mini:
            raise
        from prm_core.models.static import graph

        graph.COMPILED = ()
        job.result.note(left_out="compiled layers", failed=f"{type(error).__name__}: {str(error)[:600]}")
        measure.free(job.device)
        packed = _ours(job, config, lengths, apart, chains, updates, rank, "packed chains, layers as they are")
    theirs = _theirs(job, config, lengths, apart[: chains * updates], chains, updates, rank)
    if theirs:
        job.result.add(f"ours, packed / TRL {RELEASE}", statistics.median(packed) / statistics.median(theirs), "x",
                       ">= 2.5")
    if job.budget.left() > 30:
        covered = _ours(job, config, lengths, trees, chains, updates, rank, "trees of chains")
        if theirs:
            job.result.add(f"ours, trees / TRL {RELEASE} (chain tokens covered, chains that share steps)",
                           statistics.median(covered) / statistics.median(theirs), "x")


def _chain(
    rng: random.Random, size: int, lengths: Lengths, number: int, begin: Sequence[str] = (), prompt: str = ""
) -> Any:
    """A chain of random words with a label for each step, some 400 tokens."""
    from prm_core.training.examples import Example
    from prm_core.types import Step

    prompt = prompt or measure.words(rng, lengths.prompt, size)
    steps = [*begin, *(measure.words(rng, rng.randint(*lengths.step), size)
                       for _ in range(rng.randint(*lengths.steps)))]
    return Example(f"p{number}", prompt, tuple(Step(text) for text in steps),
                   tuple(float(rng.random() < 0.7) for _ in steps))


def _shared(rng: random.Random, size: int, lengths: Lengths, count: int) -> list[Any]:
    """Chains of which eight each share a prompt and their first half, as rollouts of prefixes do."""
    found = []
    for problem in range(count // 8):
        prompt = measure.words(rng, lengths.prompt, size)
        most = sum(lengths.steps) // 2
        begin = [measure.words(rng, rng.randint(*lengths.step), size) for _ in range(most // 2)]
        for _ in range(8):
            one = _chain(rng, size, lengths, problem, begin, prompt)
            found.append(dataclasses.replace(one, steps=one.steps[:most], targets=one.targets[:most]))
    return found


def _ours(
    job: Job, config: Any, lengths: Lengths, examples: Sequence[Any], chains: int, updates: int, rank: int, what: str
) -> list[float]:
    """Chain tokens a second by update, without the first."""
    from transformers import AutoModelForTokenClassification

    from prm_core import config as configuration
    from prm_core.platform import environment
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.training.examples import encode_examples
    from prm_core.training.reward.loop import pack_rows, train_reward_model, updates_of
    from prm_core.training.reward.recipe import lora

    encoder = measure.encoder(config.vocab_size, lengths.longest)
    raw = configuration.resolve(environment.project_root() / configuration.PARAMS_FILE, "default")
    per_pass = 2 if job.mini else 4 if not rank else 1
    settings = dataclasses.replace(
        configuration.parse(raw, "default").train_prm, epochs=1, max_updates=updates, row_tokens=lengths.row,
        rows_per_pass=per_pass, precision="float32" if job.mini else "bfloat16", class_weights="none", eval_every=0,
        log_every=1, learning_rate=RATE, head_learning_rate=RATE, lora_rank=rank, gradient_checkpointing=False,
        checkpoint_every=10**6, patience=0)
    encoded, _ = encode_examples(encoder, examples, "process")
    rows = pack_rows(encoded, [], settings, share=True, seed=0)
    # As many rows as hold an update's chains, in whole passes.
    each = len(rows.rows) * chains / len(examples)
    settings = dataclasses.replace(settings, rows_per_update=max(1, round(each / per_pass)) * per_pass)
    dev = pack_rows(encoded[:2], [], settings, share=True, seed=0)
    network = measure.build(AutoModelForTokenClassification, config, job.device, job.dtype if rank else "float32")
    model = ProcessRewardModel(network, asdict(encoder.config))
    ends = [time.perf_counter()]
    loss = f"{model.kind}/loss"

    def report(figures: dict[str, float], update: int) -> None:
        if loss in figures:
            measure.wait(job.device)
            ends.append(time.perf_counter())
            measure.say(f"{job.result.part}: {what}, update {update}: loss {figures[loss]:.3g}, "
                        f"{job.budget.spent():.0f} s")

    _forget_peak(job.device)
    with tempfile.TemporaryDirectory(dir=measure.memory_folder()) as scratch, lora(model, rank, 0):
        ends[0] = time.perf_counter()
        train_reward_model(model, rows, dev, settings, pad_id=encoder.pad_id, seed=0, work=Path(scratch), report=report)
    factor = rows.chain_tokens / rows.tokens
    speeds, shares = [], []
    for (_, part), begin, end in zip(updates_of(rows.rows, settings.rows_per_update, 0, 0, updates), ends, ends[1:],
                                     strict=False):
        tokens = sum(piece.tokens for row in part for piece in row)
        speeds.append(tokens * factor / (end - begin))
        shares.append(_operations(config, part, tokens, rank) / (end - begin) / PEAK)
    job.result.add(f"ours, {what}", speeds[1:] or speeds, "chain tokens/s", computed=1 / factor,
                   rows_per_update=settings.rows_per_update, rows_per_pass=per_pass, memory_gib=_peak(job.device))
    job.result.add(f"ours, {what}, MFU", [100 * share for share in shares[1:] or shares], "%", ">= 45")
    del model, network
    measure.free(job.device)
    return speeds[1:] or speeds


def _operations(config: Any, rows: Sequence[Any], tokens: int, rank: int) -> float:
    """Floating-point operations that training on the rows asks for: products with weights, and attention of each token
    to those before it in its chain; of frozen weights no gradient."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    seen = 0
    for piece in (piece for row in rows for piece in row):
        depth: dict[int, int] = {}
        for index in piece.nodes:
            node = piece.tree.nodes[index]
            before, count = depth.get(node.parent, 0), len(node.ids)
            seen += count * before + count * (count + 1) // 2
            depth[index] = before + count
    attention = 3 * 4 * config.num_hidden_layers * config.num_attention_heads * head * seen
    return (4 if rank else 6) * measure.layer_weights(config) * tokens + attention


def _theirs(
    job: Job, config: Any, lengths: Lengths, examples: Sequence[Any], chains: int, updates: int, rank: int
) -> list[float] | None:
    reason = job.peer(RELEASE)
    if reason:
        job.result.note(peer=reason)
        return None
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification
    from transformers.trainer_callback import TrainerCallback
    from trl.experimental.prm import PRMConfig, PRMTrainer

    tokens, ends = [], []
    tokenizer = measure.tokenizer(config.vocab_size)
    collate = DataCollatorForTokenClassification(tokenizer)

    def counting(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    class Ticks(TrainerCallback):
        """Ends when the time is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            measure.wait(job.device)
            ends.append(time.perf_counter())
            measure.say(f"{job.result.part}: TRL, update {state.global_step}, {job.budget.spent():.0f} s")
            if len(ends) > 1 and job.budget.left() < 2 * (ends[-1] - ends[-2]) + 5:
                control.should_training_stop = True

    model = measure.build(AutoModelForTokenClassification, config, job.device, job.dtype if rank else "float32")
    rows = [{"prompt": one.prompt, "completions": [step.text for step in one.steps],
             "labels": [target > 0.5 for target in one.targets]} for one in examples]
    more: dict[str, Any] = {}
    if rank:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear",
                                         modules_to_save=["score"], task_type="TOKEN_CLS")
    with tempfile.TemporaryDirectory(dir=measure.memory_folder()) as scratch:
        # bf16, gradient checkpointing and eight chains at a time are its defaults.
        arguments = PRMConfig(
            output_dir=scratch, bf16=not job.mini, gradient_checkpointing=True, max_length=lengths.longest,
            per_device_train_batch_size=TOGETHER, gradient_accumulation_steps=chains // TOGETHER, max_steps=updates,
            learning_rate=RATE, use_cpu=job.device == "cpu", report_to="none", save_strategy="no", disable_tqdm=True,
            step_separator=" <step> ", logging_steps=10**6)
        trainer = PRMTrainer(model=model, args=arguments, data_collator=counting, processing_class=tokenizer,
                             train_dataset=Dataset.from_list(rows), callbacks=[Ticks()], **more)
        _forget_peak(job.device)
        begin = time.perf_counter()
        trainer.train()
    size = max(1, chains // TOGETHER)
    speeds = [sum(tokens[number * size : (number + 1) * size]) / (end - start)
              for number, (start, end) in enumerate(zip([begin, *ends], ends, strict=False))]
    job.result.add(f"TRL {RELEASE}", speeds[1:] or speeds, "chain tokens/s", memory_gib=_peak(job.device))
    del trainer, model
    measure.free(job.device)
    return speeds[1:] or speeds


def _forget_peak(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> float | None:
    """Most memory that tensors took, GiB."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
