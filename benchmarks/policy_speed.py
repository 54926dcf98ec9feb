"""Speed of a policy's updates: our loop and TRL's GRPOTrainer from the same policy, in turn, alone and beside a busy
neighbour.

    python -m benchmarks.policy_speed WORKSPACE --peer PYTHON --out benchmarks/results/policy_speed.json

In a finished run of the default profile. An update is the whole of it: 256 chains sampled in groups of 8, scored, and
learned from in minibatches of 128; in ours the reward model scores every step, in TRL's the answer is looked at. Each
measurement is a process of its own. The neighbour is a process that never waits, on one of the cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import policy_peer, prm_measure
from benchmarks.report import Bar, arguments, write
from prm_core import config as configuration
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.stages.base import model_path
from prm_core.types import Problem

FASTER, SLOWER = 3.0, 3.0
OURS, PEER = "ours", "TRL"
# The first update of each process warms up.
WARM = 1
Found = Mapping[str, Any]


def seconds(found: Found) -> float:
    """Of an update, the median of those that are timed."""
    return statistics.median(found["seconds"][WARM:])


def speed(found: Found) -> float:
    """Sampled tokens a second, over the timed updates."""
    return sum(found["tokens"][WARM:]) / sum(found["seconds"][WARM:])


def bars(alone: Mapping[str, Sequence[Found]], beside: Mapping[str, Sequence[Found]]) -> list[Bar]:
    """Of the rounds of each side, alone and beside a busy neighbour."""
    faster = [speed(ours) / speed(peer) for ours, peer in zip(alone[OURS], alone[PEER], strict=True)]
    slower = [seconds(busy) / seconds(quiet) for busy, quiet in zip(beside[OURS], alone[OURS], strict=True)]
    middle, most = statistics.median(faster), statistics.median(slower)
    return [
        Bar(f"sampled tokens/s of whole updates, {OURS} / {PEER}", middle, min(faster), max(faster), f">= {FASTER:g}",
            middle >= FASTER),
        Bar(f"seconds of an update, {OURS} beside a busy neighbour / alone", most, min(slower), max(slower),
            f"<= {SLOWER:g}", most <= SLOWER),
    ]


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """A process on one of this process's cores that never waits."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(neighbour.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def _job(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of both sides; the peer's problems are written into the folder."""
    config = configuration.load(given.workspace)
    settings = config.train_policy
    policy = load_policy(model_path(given.workspace, config.models.policy), config)
    boundary = policy.encoder.tokenizer.convert_ids_to_tokens(policy.encoder.separator_id)
    store.write_jsonl(folder / "problems.jsonl", [
        {"prompt": problem.prompt + boundary, "answer": problem.answer}
        for problem in store.read_jsonl(Problem, given.workspace / "data/train.jsonl")])
    return {
        "workspace": str(given.workspace.resolve()), "updates": given.updates,
        "policy": str(model_path(given.workspace.resolve(), config.models.policy)),
        "problems": str(folder / "problems.jsonl"), "scratch": str(folder), "group_size": settings.group_size,
        "chains": settings.problems_per_update * settings.group_size, "minibatch_size": settings.minibatch_size,
        **{name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "learning_rate", "kl_coef")},
    }


def measure(given: argparse.Namespace) -> tuple[list[Bar], dict[str, Any]]:
    """All rounds, and the bars on them."""
    from rich.console import Console

    trl = policy_peer.check(given.peer)
    threads = len(os.sched_getaffinity(0))
    sides = {OURS: (sys.executable, "policy_updates"), PEER: (str(given.peer), "policy_peer")}
    rounds: dict[str, dict[str, list[Found]]] = {where: {side: [] for side in sides} for where in ("alone", "beside")}
    with tempfile.TemporaryDirectory() as name:
        job = _job(given, Path(name))
        for number in range(given.repeats):
            for where, found in rounds.items():
                for side, (python, module) in sides.items():
                    if where == "alone":
                        found[side].append(prm_measure.run_worker(python, module, job | {"seed": number}, threads))
                    else:
                        with busy_neighbour():
                            found[side].append(prm_measure.run_worker(python, module, job | {"seed": number}, threads))
                    last = found[side][-1]
                    Console(stderr=True).log(f"round {number + 1}, {side} {where}: {speed(last):.0f} tokens/s, "
                                             f"{seconds(last):.2f} s an update", _stack_offset=2)
    medians = {where: {side: {"tokens_per_second": statistics.median(map(speed, runs)),
                              "seconds_an_update": statistics.median(map(seconds, runs)),
                              "tokens_an_update": statistics.median(
                                  statistics.mean(run["tokens"][WARM:]) for run in runs)}
                       for side, runs in found.items()} for where, found in rounds.items()}
    return bars(rounds["alone"], rounds["beside"]), {"trl": trl, "threads": threads, "medians": medians,
                                                     "rounds": rounds}


def main() -> None:
    """Measures and writes."""
    given = arguments("policy_speed", _options)
    found, more = measure(given)
    write(given, found, **more)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workspace", type=Path, help="a finished run of the default profile")
    parser.add_argument("--peer", type=Path, required=True, help="a Python with TRL")
    parser.add_argument("--updates", type=int, default=5, help="of each measurement; the first is not timed")


if __name__ == "__main__":
    main()
