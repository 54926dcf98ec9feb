"""Tokens a second of policy updates: our loop against TRL's GRPOTrainer, each sampling, scoring and learning."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import measure
from benchmarks.gpu.measure import Job

RELEASE = "1.16.0"
QUESTIONS, GROUP, PROMPT, NEW = 32, 8, 128, 256
# The first warms up.
UPDATES = 4
KL, RATE = 0.02, 1e-6


def work(job: Job) -> None:
    """Ours, then the peer's, for the same number of questions and samples; both from the same weights."""
    from transformers import AutoModelForCausalLM

    questions, group, length, new = (2, 4, 8, 12) if job.mini else (QUESTIONS, GROUP, PROMPT, NEW)
    config = measure.configuration("mini" if job.mini else "0.5b")
    rng = random.Random(0)
    prompts = [measure.words(rng, length - 1, config.vocab_size) for _ in range(questions * UPDATES)]
    job.result.note(shape=config.to_dict(), questions=questions, group=group, prompt_tokens=length, new_tokens=new,
                    dtype=job.dtype, kl=KL, learning_rate=RATE)
    with tempfile.TemporaryDirectory(dir=measure.memory_folder()) as name:
        folder = Path(name) / "model"
        model = measure.build(AutoModelForCausalLM, config, job.device, job.dtype)
        measure.sturdy(job, model.base_model)
        model.save_pretrained(folder)
        measure.tokenizer(config.vocab_size).save_pretrained(folder)
        job.result.note(saved_after=job.budget.spent())
        ours = _ours(job, model, prompts, questions, group, length, new, Path(name))
        del model
        measure.free(job.device)
        theirs = _theirs(job, folder, prompts, questions, group, new, Path(name), config.vocab_size)
    if not theirs:
        return
    for name, bar in (("whole", ">= 3"), ("learning", "")):
        job.result.add(f"ours / TRL {RELEASE}, {WAYS[name]}",
                       statistics.median(ours[name]) / statistics.median(theirs[name]), "x", bar)


WAYS = {"whole": "whole updates", "learning": "learning alone, without the sampling"}


def reward(text: str) -> float:
    """A score in [0, 1] that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


class Scorer:
    """Scores that cost nothing, so that sampling and learning are what is timed."""

    def score(self, chains: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        from prm_core.scoring.scorer import ChainScore

        found = [tuple(reward(step.text) for step in steps) for _, steps in chains]
        return [ChainScore(scores, scores, 0) for scores in found]


def _ours(
    job: Job, model: Any, prompts: Sequence[str], questions: int, group: int, length: int, new: int, scratch: Path
) -> dict[str, list[float]]:
    from prm_core import config as configuration
    from prm_core.domains import DOMAINS
    from prm_core.platform import environment
    from prm_core.sampling.policy import Policy
    from prm_core.training.policy.loop import train_policy
    from prm_core.types import Problem

    sampling: list[float] = [0.0]
    tokens: list[int] = [0]

    class Timed(Policy):
        """Counts what sampling takes."""

        def continue_chains(self, *args: Any, **settings: Any) -> Any:
            found: list[Any] = []
            sampling[-1] += measure.timed(lambda: found.extend(super(Timed, self).continue_chains(*args, **settings)),
                                          job.device)
            tokens[-1] += sum(len(one.ids) for one in found)
            return found

    raw = configuration.resolve(environment.project_root() / configuration.PARAMS_FILE, "default")
    base = configuration.parse(raw, "default").train_policy
    settings = dataclasses.replace(
        base, updates=UPDATES, warmup_updates=0, problems_per_update=questions, group_size=group, resample=0,
        minibatch_size=questions * group, max_new_tokens=new, learning_rate=RATE, kl_coef=KL, temperature=1.0,
        eval_every=0, log_every=1, checkpoint_every=10**6, guard=dataclasses.replace(base.guard, window=0))
    problems = [Problem(f"p{number}", "arithmetic", prompt, "0", {}) for number, prompt in enumerate(prompts)]
    policy = Timed(model, measure.encoder(model.config.vocab_size, length + new + 1), "random")
    ends: list[float] = []

    def report(figures: dict[str, float], update: int) -> None:
        measure.wait(job.device)
        ends.append(time.perf_counter())
        measure.say(f"policy: ours, update {update}: loss {figures['loss/policy']:.3g}, {tokens[-1]} tokens, "
                    f"{job.budget.spent():.0f} s")
        sampling.append(0.0)
        tokens.append(0)

    begin = time.perf_counter()
    train_policy(policy, Scorer(), DOMAINS, problems, settings, dev=(), batch_size=questions * group, seed=0,
                 work=scratch / "ours", report=report)
    ends.insert(0, begin)
    return _rates(job, "ours", ends, sampling, tokens)


def _rates(
    job: Job, who: str, ends: Sequence[float], sampling: Sequence[float], tokens: Sequence[int]
) -> dict[str, list[float]]:
    """Tokens a second by update, the first left out; told."""
    updates = [(later - earlier, spent, count)
               for earlier, later, spent, count in zip(ends, ends[1:], sampling, tokens, strict=False)][1:]
    found = {"whole": [count / seconds for seconds, _, count in updates],
             "learning": [count / (seconds - spent) for seconds, spent, count in updates]}
    for name, values in found.items():
        job.result.add(f"{who}, {WAYS[name]}", values, "sampled tokens/s")
    job.result.add(f"{who}, an update of which sampling", [spent for _, spent, _ in updates], "s",
                   whole=[seconds for seconds, _, _ in updates])
    return found


def _theirs(
    job: Job, folder: Path, prompts: Sequence[str], questions: int, group: int, new: int, scratch: Path, size: int
) -> dict[str, list[float]] | None:
    reason = job.peer(RELEASE)
    if reason:
        job.result.note(peer=reason)
        return None
    from datasets import Dataset
    from transformers.trainer_callback import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends, sampling, tokens = [], [0.0], [0]

    class Ticks(TrainerCallback):
        """Ends when the time is over."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            measure.wait(job.device)
            ends.append(time.perf_counter())
            measure.say(f"policy: TRL, update {state.global_step}, {tokens[-1]} tokens, {job.budget.spent():.0f} s")
            sampling.append(0.0)
            tokens.append(0)
            each = (ends[-1] - begin) / len(ends)
            if len(ends) > 1 and job.budget.left() < 1.3 * each + 5:
                control.should_training_stop = True

    def rewards(prompts: Any, completions: Sequence[str], completion_ids: Any, **kwargs: Any) -> list[float]:
        tokens[-1] += sum(map(len, completion_ids))
        return [reward(text) for text in completions]

    # Gradient checkpointing and eight rows a device are its defaults.
    arguments = GRPOConfig(
        output_dir=str(scratch / "trl"), per_device_train_batch_size=8, num_generations=group,
        gradient_accumulation_steps=max(1, questions * group // 8), max_completion_length=new, max_steps=UPDATES,
        learning_rate=RATE, beta=KL, temperature=1.0, bf16=not job.mini, use_cpu=job.device == "cpu",
        model_init_kwargs={"dtype": job.dtype}, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_steps=10**6)
    trainer = GRPOTrainer(model=str(folder), args=arguments, reward_funcs=rewards, callbacks=[Ticks()],
                          processing_class=measure.tokenizer(size),
                          train_dataset=Dataset.from_dict({"prompt": list(prompts)}))
    own = trainer._generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        found: list[Any] = []
        sampling[-1] += measure.timed(lambda: found.append(own(*args, **kwargs)), job.device)
        return found[0]

    trainer._generate = generate
    job.result.note(trl={name: str(getattr(arguments, name)) for name in (
        "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16", "beta",
        "num_generations", "steps_per_generation", "num_iterations", "loss_type", "optim")})
    begin = time.perf_counter()
    trainer.train()
    return _rates(job, f"TRL {RELEASE}", [begin, *ends], sampling, tokens)
