"""The peer of `policy_speed`: TRL's GRPOTrainer, run by a Python that has it. Everything about TRL is in this file.

It is no dependency of ours: `check` says how to make an environment for it. As a program (`python -m
benchmarks.policy_peer JOB RESULT`) this is the peer's side, which imports torch, transformers, datasets and trl, and of
ours nothing but `prm_measure`.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import prm_measure

RELEASE = "1.16.0"
PROBE = "import trl; from trl import GRPOTrainer; print(trl.__version__)"
# Chains of a forward and backward pass. Larger batches pay for more padding, smaller ones for more calls.
ROWS_PER_PASS = 32
ANSWER = re.compile(r"The answer is (.*?)\.?$")


def check(python: Path) -> str:
    """The version of TRL that a Python has.

    Raises InputError when it has none with a GRPOTrainer.
    """
    from prm_core.errors import InputError

    way = (f"make an environment for it: `python3.11 -m venv PEER && PEER/bin/pip install -c requirements.lock torch "
           f"transformers accelerate trl=={RELEASE}`, then --peer PEER/bin/python")
    try:
        found = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"--peer {python}: does not run ({error.strerror}); {way}") from None
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1] if found.stderr.strip() else f"exit {found.returncode}"
        raise InputError(f"--peer {python}: no GRPOTrainer there ({reason}); {way}")
    return found.stdout.split()[-1]


# ---------------------------------------------------------------------------------------- the peer's side


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Trains for a job's updates and times them; the reward is the answer's outcome alone, which costs nothing.

    Args:
        job: policy (folder), problems (file of prompts and answers), updates, chains, group_size, minibatch_size,
            max_new_tokens, temperature, learning_rate, kl_coef, seed, scratch (folder the trainer may write to).

    Returns:
        `seconds` and sampled `tokens` of each update.
    """
    import torch
    from datasets import Dataset
    from transformers.trainer_callback import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    per_update = job["chains"] // job["minibatch_size"]
    sampled: list[int] = []
    ends: list[float] = []

    def reward(completions: list[str], completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        sampled.append(sum(map(len, completion_ids)))
        return [float(any(found == right for found in ANSWER.findall(text.strip())))
                for text, right in zip(completions, answer, strict=True)]

    class Ticks(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % per_update == 0:
                ends.append(time.perf_counter())

    arguments = GRPOConfig(
        output_dir=job["scratch"], use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        seed=job["seed"], learning_rate=job["learning_rate"], beta=job["kl_coef"], temperature=job["temperature"],
        max_completion_length=job["max_new_tokens"], num_generations=job["group_size"],
        max_steps=job["updates"] * per_update, per_device_train_batch_size=ROWS_PER_PASS,
        gradient_accumulation_steps=job["minibatch_size"] // ROWS_PER_PASS,
        generation_batch_size=job["chains"],
        # Its default, which saves memory, computes every forward pass twice.
        gradient_checkpointing=False,
    )
    torch.manual_seed(job["seed"])
    problems = [json.loads(line) for line in Path(job["problems"]).read_text().splitlines()]
    trainer = GRPOTrainer(model=job["policy"], args=arguments, reward_funcs=reward, callbacks=[Ticks()],
                          train_dataset=Dataset.from_list(problems))
    trainer.train()
    return {"seconds": [end - start for start, end in itertools.pairwise(ends)], "tokens": sampled}


if __name__ == "__main__":
    prm_measure.worker(work)
