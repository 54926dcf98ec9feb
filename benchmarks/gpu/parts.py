"""The parts by name, in the order in which they run: what is worth most comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.measure import Job


@dataclass(frozen=True, slots=True)
class Part:
    """What a part does, and its share of the time."""

    work: Callable[[Job], None]
    share: float


def _scoring(job: Job) -> None:
    from benchmarks.gpu.scoring import work

    work(job)


def _sampling(job: Job) -> None:
    from benchmarks.gpu.sampling import work

    work(job)


def _policy(job: Job) -> None:
    from benchmarks.gpu.policy import work

    work(job)


def _training(job: Job) -> None:
    from benchmarks.gpu.training import work

    work(job, "1b")


def _lora(job: Job) -> None:
    from benchmarks.gpu.training import work

    work(job, "7b")


PARTS = {
    "scoring": Part(_scoring, 110),
    "sampling": Part(_sampling, 80),
    "policy": Part(_policy, 120),
    "training": Part(_training, 110),
    "lora": Part(_lora, 110),
}
