"""Training in two processes against one, on a CPU: the same curves, and how much sooner.

    python -m benchmarks.processes --out benchmarks/results/processes.json

Each measurement is a process of its own, or two, from the same random weights on embedded problems: a reward model
with all weights trained, with LoRA, and solved for on frozen features; a policy with a reward model of its steps.
One process has one core (one thread), or both: threads of torch where reward models are trained by gradient, forked
workers elsewhere. Two processes have a core each. Times are of updates, the first left out; where there is none, of
the whole training.

As a program (`python -m benchmarks.processes JOB RESULT`) this is one of the processes of one measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import environment, processes, store
from prm_core.platform.environment import is_main

if TYPE_CHECKING:
    from prm_core.config import Config
    from prm_core.models.encoder import Encoder
    from prm_core.types import Problem

ONE_CORE, ONE, TWO, SHARDED = "one process, one core", "one process", "two processes", "two processes, sharded"
WAYS = (ONE_CORE, ONE, TWO, SHARDED)
FULL, LORA, CONVEX, POLICY = "reward model, all weights", "reward model, LoRA", "reward model, solved for", "policy"
KINDS: Mapping[str, dict[str, Any]] = {
    FULL: {"train_prm": {"solver": "gradient", "learning_rate": 0.001}},
    LORA: {"train_prm": {"solver": "gradient", "learning_rate": 0.001, "lora_rank": 8}},
    CONVEX: {"train_prm": {"solver": "convex"}},
    POLICY: {},
}
# Of the bars: how far curves may be apart, and time in two processes over that in one.
APART, SOONER = 1e-4, 0.65


def main() -> None:
    """Measures everything and writes the result."""
    given = arguments("processes", _more)
    if len(os.sched_getaffinity(0)) < 2:
        raise InputError("two processes need two cores")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {
        kind: {way: [] for way in WAYS if way != SHARDED or kind in (FULL, LORA)} for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        for number in range(given.repeats):
            for kind, ways in found.items():
                for way, runs in ways.items():
                    job = {"kind": kind, "way": way, "seed": given.seed + number, "quick": given.quick}
                    runs.append(_measure(job, Path(name)))
                    sys.stderr.write(f"round {number + 1}, {kind}, {way}: {runs[-1]['seconds']:.3f} s\n")
    write(given, bars(found), rounds=found)


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=100, help="of the first round; each has one more")


def bars(found: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> list[Bar]:
    """Of each kind of training: curves in two processes beside one, and times, round by round."""
    made = []
    for kind, ways in found.items():
        for way in (TWO, SHARDED):
            if way not in ways:
                continue
            apart = [max(abs(one - other) for one, other in zip(a["curve"], b["curve"], strict=True))
                     for a, b in zip(ways[ONE], ways[way], strict=True)]
            made.append(Bar(f"{kind}: curves of {way} and one apart, worst", max(apart), min(apart), max(apart),
                            f"<= {APART:g}", max(apart) <= APART))
        for base in (ONE_CORE, ONE):
            shares = [b["seconds"] / a["seconds"] for a, b in zip(ways[base], ways[TWO], strict=True)]
            middle = statistics.median(shares)
            made.append(Bar(f"{kind}: time of {TWO} / {base}", middle, min(shares), max(shares), f"<= {SOONER:g}",
                            middle <= SOONER))
    return made


def _measure(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        ask, answer = Path(name) / "job.json", Path(name) / "result.json"
        store.write_json(ask, job)
        command = [sys.executable, "-m", "benchmarks.processes", str(ask), str(answer)]
        if job["way"] in (TWO, SHARDED):
            processes.launch(2, command)
        else:
            cores = {"OMP_NUM_THREADS": "1" if job["way"] == ONE_CORE else str(len(os.sched_getaffinity(0)))}
            subprocess.run(command, env={**os.environ, **cores}, check=True)
        return store.read_json(answer)


def work(job: Mapping[str, Any], answer: Path) -> None:
    """One measurement, or this process's part of it. The folder of the answer is the run's own."""
    from prm_core.models.saving import save_language_model

    processes.meet({"job": json.dumps(job)}, on_cpu=True)
    curve: list[float] = []
    times: list[float] = []

    def report(figures: dict[str, float], update: int) -> None:
        times.append(time.monotonic())
        curve.extend(value for name, value in figures.items() if name.endswith("loss") or name.startswith("reward/"))

    config, folder = _config(job), answer.parent
    model, encoder, problems = _base(config, 60 if job["quick"] else 1000)
    if is_main():
        save_language_model(model, encoder, folder / "lm")
    processes.wait_for_all()
    begun = time.monotonic()
    if job["kind"] == POLICY:
        _train_policy(config, model, encoder, problems, folder, report)
    else:
        _train_reward_model(config, problems, folder, report)
    whole = time.monotonic() - begun
    processes.wait_for_all()
    updates = len(times) > 2
    seconds = (times[-1] - times[0]) / (len(times) - 1) if updates else whole
    if is_main():
        store.write_json(answer, {"seconds": seconds, "whole": whole, "curve": curve})


def _config(job: Mapping[str, Any]) -> Config:
    small = job["quick"]
    raw = configuration.read_yaml(environment.project_root() / configuration.PARAMS_FILE)
    over = {
        "seed": job["seed"], "models": {"device": "cpu"},
        "launch": {"sharding": "full" if job["way"] == SHARDED else "none"},
        "warmup": {"hidden_size": 64 if small else 256, "layers": 2 if small else 4, "heads": 4,
                   "intermediate_size": 128 if small else 704},
        "train_prm": {"rows_per_update": 8, "rows_per_pass": 4, "row_tokens": 512, "max_updates": 6 if small else 8,
                      "epochs": 100, "eval_every": 1000, "log_every": 1, "checkpoint_every": 1000, "committee": 8},
        "train_policy": {"updates": 3 if small else 4, "problems_per_update": 8 if small else 32, "log_every": 1,
                         "checkpoint_every": 1000, "max_new_tokens": 32 if small else 96,
                         "guard": {"window": 0}},
    }
    return configuration.parse(configuration.merge(configuration.merge(raw, over), KINDS[job["kind"]]), "benchmark")


def _base(config: Config, count: int) -> tuple[Any, Encoder, list[Problem]]:
    """A language model of random weights, its encoder, and embedded problems."""
    from prm_core.domains import arithmetic
    from prm_core.models.encoder import Encoder
    from prm_core.models.tokenizer import train_tokenizer
    from prm_core.training.warmup import build_model

    problems = arithmetic.make_problems("train", count, config.seed)
    texts = [text for problem in problems for text in (problem.prompt, *problem.meta["solution"])]
    encoder = Encoder(train_tokenizer(texts), config.encoder)
    return build_model(encoder, config).eval(), encoder, problems


def _train_reward_model(config: Config, problems: Sequence[Problem], folder: Path, report: Any) -> None:
    from prm_core.training.examples import Example
    from prm_core.training.reward.recipe import train_on
    from prm_core.types import Step

    examples = [Example(problem.id, problem.prompt, steps, tuple(float("+" in step.text) for step in steps))
                for problem in problems for steps in [tuple(map(Step, problem.meta["solution"]))]]
    train_on("process", str(folder / "lm"), examples, [], config, work=folder / "work", report=report)


def _train_policy(
    config: Config, model: Any, encoder: Encoder, problems: Sequence[Problem], folder: Path, report: Any
) -> None:
    import dataclasses

    import torch

    from prm_core.domains import DOMAINS
    from prm_core.sampling.policy import Policy
    from prm_core.scoring.calibration import Calibrator
    from prm_core.scoring.reward import ProcessRewardModel
    from prm_core.scoring.scorer import RewardScorer
    from prm_core.training.policy.loop import train_policy

    paying = ProcessRewardModel.from_backbone(str(folder / "lm"), surprisal=False, device="cpu", dtype="float32",
                                              encoder=dataclasses.asdict(config.encoder))
    with torch.no_grad():
        paying.head.weight.normal_(generator=torch.Generator().manual_seed(config.seed))
    scorer = RewardScorer(paying, encoder, Calibrator("identity", 0), "", config.serve.batch_size)
    train_policy(Policy(model, encoder, "random"), scorer, DOMAINS, problems, config.train_policy, dev=[],
                 batch_size=config.generate.batch_size, seed=config.seed, work=folder / "work", report=report)


if __name__ == "__main__":
    environment.apply()
    if len(sys.argv) == 3 and sys.argv[1].endswith("job.json"):
        with processes.member():
            work(store.read_json(Path(sys.argv[1])), Path(sys.argv[2]))
    else:
        main()
