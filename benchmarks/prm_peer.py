"""The peer: TRL's PRMTrainer, run by a Python that has it. Everything about TRL is in this file.

TRL 1.14 removed the trainer; 1.13.0 is the last release with it. It is no dependency of ours: `check` says how to make
an environment for it. As a program (`python -m benchmarks.prm_peer JOB RESULT`) this is the peer's side, which imports
torch, transformers, datasets and trl, and of ours nothing but `prm_measure`.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import prm_measure
from benchmarks.prm_measure import Clock, Update

RELEASE = "1.13.0"
PROBE = "import trl; from trl.experimental.prm import PRMTrainer; print(trl.__version__)"
# How the trainer is run: its defaults, or what its own options offer for speed. Grouping by length sorts within fifty
# batches and does nothing on a sample of a few, so there `given_order` takes a file that is sorted already.
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "tuned": {"gradient_checkpointing": False, "train_sampling_strategy": "group_by_length"},
    "given_order": {"gradient_checkpointing": False, "train_sampling_strategy": "sequential"},
}
# Updates that a run on a budget is timed with beforehand, so that its learning rate falls to zero at the budget's end.
TRIAL_UPDATES = 6


def check(python: Path | None) -> str:
    """The version of TRL that a Python has.

    Raises InputError when it has none with a PRMTrainer.
    """
    from prm_core.errors import InputError

    way = (f"make an environment for it: `python3.11 -m venv PEER && PEER/bin/pip install -r requirements.lock "
           f"trl=={RELEASE}`, then --peer-python PEER/bin/python")
    if python is None:
        raise InputError(f"--peer-python is needed, a Python with TRL's PRMTrainer; {way}")
    try:
        found = subprocess.run([str(python), "-c", PROBE], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"--peer-python {python}: does not run ({error.strerror}); {way}") from None
    if found.returncode:
        reason = found.stderr.strip().splitlines()[-1] if found.stderr.strip() else f"exit {found.returncode}"
        raise InputError(f"--peer-python {python}: no PRMTrainer there ({reason}); {RELEASE} is the last release of "
                         f"TRL with it; {way}")
    return found.stdout.split()[-1]


# ---------------------------------------------------------------------------------------- the peer's side


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Trains on a job's chains; see `train` and `train_for`."""
    return train_for(job) if "seconds" in job else train(job)


def train(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch over the chains, timed, then the held-out figures.

    Args:
        job: base, train, dev (files of chains), settings (name), device, seed, max_length, learning_rate or None,
            scratch (folder the trainer may write to).
    """
    trainer, clock, counted = _trainer(job, num_train_epochs=1)
    clock.start()
    trainer.train()
    figures = clock.figures([Update(*update) for update in counted])
    return figures | _dev(trainer, job) | {"settings": _told(trainer.args)}


def train_for(job: dict[str, Any]) -> dict[str, Any]:
    """Trains for a wall-clock budget and saves the model as a plain Hugging Face folder.

    Args:
        job: as `train`, and seconds, folder.
    """
    trial, clock, _ = _trainer(job, max_steps=TRIAL_UPDATES)
    trial.train()
    each = (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)
    del trial
    trainer, clock, counted = _trainer(job, max_steps=max(1, int(job["seconds"] / each)), seconds=job["seconds"])
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model = _plain(trainer)
    # Not trainer.save_model: it adds a pickle of its arguments.
    model.save_pretrained(job["folder"])
    trainer.processing_class.save_pretrained(job["folder"])
    seen = counted[: len(clock.ends)]
    return {
        "seconds": seconds, "updates": len(clock.ends), "planned_updates": trainer.args.max_steps,
        "trained_chains": sum(update[3] for update in seen), "trained_tokens": sum(update[1] for update in seen),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "settings": _told(trainer.args), **_dev(trainer, job),
    }


def _rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def _trainer(job: dict[str, Any], *, seconds: float | None = None, **more: Any) -> tuple[Any, Clock, list[list[float]]]:
    """A trainer, its clock, and a list that fills with (positions, tokens, chain tokens, chains) of each batch."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification
    from transformers.trainer_callback import TrainerCallback
    from trl.experimental.prm import PRMConfig, PRMTrainer

    clock, counted = Clock(job["device"]), []
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    torch.manual_seed(job["seed"])
    model = AutoModelForTokenClassification.from_pretrained(job["base"], num_labels=2, dtype=torch.float32)
    rate = {} if job["learning_rate"] is None else {"learning_rate": job["learning_rate"]}
    arguments = PRMConfig(
        # bf16 and gradient checkpointing are its defaults, set here because they are what the comparison is about.
        **{"bf16": True, "gradient_checkpointing": True, "max_length": job["max_length"], "seed": job["seed"],
           "output_dir": job["scratch"], "use_cpu": job["device"] == "cpu",
           "report_to": "none", "save_strategy": "no", "disable_tqdm": True, **rate,
           **SETTINGS[job["settings"]], **more},
    )
    collate = DataCollatorForTokenClassification(tokenizer)

    def counting(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        real = int(batch["attention_mask"].sum())
        counted.append([batch["input_ids"].numel(), real, real, len(rows)])
        return batch

    class Ticks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.tick()
            if seconds is not None and clock.ends[-1] - self.start >= seconds:
                control.should_training_stop = True

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

    trainer = PRMTrainer(model=model, args=arguments, data_collator=counting, processing_class=tokenizer,
                         train_dataset=Dataset.from_list(_rows(job["train"])), callbacks=[Ticks()])
    return trainer, clock, counted


def _told(arguments: Any) -> dict[str, Any]:
    """The settings that decide speed, memory and quality, as the trainer had them."""
    names = ("bf16", "gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps",
             "train_sampling_strategy", "optim", "learning_rate", "lr_scheduler_type", "max_length", "step_separator",
             "weight_decay", "max_grad_norm", "seed")
    return {name: str(value) if (value := getattr(arguments, name)).__class__ not in (int, float, bool) else value
            for name in names}


def _plain(trainer: Any) -> Any:
    """The model without the mixed precision of its training."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(trainer.model, keep_fp32_wrapper=False).eval()


def _dev(trainer: Any, job: dict[str, Any]) -> dict[str, float]:
    """Held-out figures in float32, chain by chain, each token where the trainer's own encoding has a label."""
    import torch

    model, arguments = _plain(trainer), trainer.args
    probabilities, labels = [], []
    for row in _rows(job["dev"]):
        encoded = trainer.tokenize_row(
            row, trainer.processing_class, arguments.step_separator, arguments.max_length,
            arguments.max_completion_length, train_on_last_step_only=False, is_eval=True,
        )
        ids = torch.tensor([encoded["input_ids"]], device=model.device)
        with torch.inference_mode():
            right = model(input_ids=ids).logits[0].float().softmax(-1)[:, 1].tolist()
        for probability, label in zip(right, encoded["labels"], strict=True):
            if label >= 0:
                probabilities.append(probability)
                labels.append(label)
    return prm_measure.step_figures(probabilities, labels)


if __name__ == "__main__":
    prm_measure.worker(work)
