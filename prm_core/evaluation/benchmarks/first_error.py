"""Benchmarks of the first wrong step: ProcessBench, BIG-Bench-Mistake, and chains of the embedded domain."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from prm_core.domains import DOMAINS, arithmetic
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.evaluation.benchmarks.base import Benchmark, BenchmarkChain, Column, ScoredFile, register
from prm_core.evaluation.benchmarks.steps import (
    STEP_COLUMNS,
    choose_first_error_threshold,
    first_error_statistics,
    step_statistics,
)
from prm_core.evaluation.metrics import Statistic
from prm_core.formats import FORMATS, LabelledChain
from prm_core.formats.base import get
from prm_core.platform.records import read_rows
from prm_core.platform.steps import parse_steps
from prm_core.types import Problem, Step

log = logging.getLogger(__name__)

F1_COLUMNS = (
    Column("F1", "prm/first_error_f1", "random/first_error_f1"), Column("acc_err", "prm/acc_err", "random/acc_err"),
    Column("acc_ok", "prm/acc_ok", "random/acc_ok"),
)
FLOOR_COLUMNS = (Column("coin F1", "coin/first_error_f1"), Column("middle F1", "middle/first_error_f1"))
ACCURACY_COLUMNS = (Column("accuracy", "prm/accuracy", "random/accuracy"), Column("silent", "silent/accuracy"))


def _verdicts(label: int, steps: int) -> tuple[bool | None, ...]:
    """Right before the first error (-1: none), wrong at it, unknown after it."""
    return (True,) * steps if label < 0 else (True,) * label + (False,) + (None,) * (steps - label - 1)


def _chain(prompt: str, steps: tuple[Step, ...], label: int, outcome: bool | None) -> BenchmarkChain:
    return BenchmarkChain(prompt, steps, _verdicts(label, len(steps)), label, outcome)


def from_labelled(chains: Iterable[LabelledChain], path: Path) -> list[BenchmarkChain]:
    """What the protocol needs of labelled chains; those whose first error is unknown are dropped and counted.

    Raises InputError naming the file when none is left.
    """
    known, dropped = [], 0
    for chain in chains:
        if chain.first_error is None:
            dropped += 1
        else:
            known.append(_chain(chain.prompt, chain.steps, chain.first_error, chain.outcome))
    if dropped:
        log.warning("%s: %d chains dropped, a step before their first known error has no label", path, dropped)
    if not known:
        raise InputError(f"{path}: no chain whose first wrong step is known is left")
    return known


def read_processbench(path: Path) -> list[BenchmarkChain]:
    """`problem`, `steps`, `label`, `final_answer_correct`; JSON array or lines."""
    return from_labelled(FORMATS["processbench"].read(path), path)


def read_bigbench_mistake(path: Path) -> list[BenchmarkChain]:
    """`input`, `steps`, `target`, `answer`, `mistake_index`; JSON lines, a file a task."""
    return from_labelled(FORMATS["bigbench_mistake"].read(path), path)


def read_arithmetic(path: Path) -> list[BenchmarkChain]:
    """Chains of the embedded domain, one a line: `prompt`, `steps`, and either `label` or what the oracle needs.

    The oracle needs the problem's `meta` as `prm data make` wrote it. `answer` tells whether the final answer is right.
    """
    domain = arithmetic.NAME
    chains = []
    for where, record in read_rows(path):
        prompt, steps = get(record, "prompt", str, where), parse_steps(record.get("steps"), where)
        if "label" in record:
            label = get(record, "label", int, where)
            if not -1 <= label < len(steps):
                raise InputError(f"{where}: label {label} of {len(steps)} steps; it is the 0-based index of the first "
                                 "wrong step, or -1")
        elif isinstance(record.get("meta"), dict) and {"start", "events"} <= set(record["meta"]):
            problem = Problem(where, domain, prompt, str(record.get("answer", "")), record["meta"])
            label = first_error(ORACLES[domain](problem, steps))
        else:
            raise InputError(f"{where}: neither `label` nor the problem's `meta` (start, events), which the oracle "
                             "needs to find the first error; add one of them")
        right = None
        if isinstance(record.get("answer"), str):
            stated = DOMAINS[domain].read_answer(steps[-1].text)
            right = stated is not None and DOMAINS[domain].same_answer(stated, record["answer"])
        chains.append(_chain(prompt, steps, label, right))
    return chains


def measure(file: ScoredFile, threshold: float) -> Mapping[str, Statistic]:
    """First-error figures, and those of single steps up to the first error.

    Source: Zheng et al. 2024, "ProcessBench", section 4: the first step below the threshold is the prediction; F1 is
    the harmonic mean of the exact hits among chains with an error and among chains without.
    """
    return first_error_statistics(file, threshold) | step_statistics(file)


PROCESSBENCH = register(Benchmark(
    "processbench", "JSON with problem, steps, label, final_answer_correct: F1 of the first wrong step",
    read_processbench, measure, choose_first_error_threshold, ((*F1_COLUMNS, *FLOOR_COLUMNS), STEP_COLUMNS),
))
ARITHMETIC = register(Benchmark(
    "arithmetic", "JSON lines with prompt, steps, and label or the problem's meta for the oracle; as processbench",
    read_arithmetic, measure, choose_first_error_threshold, ((*F1_COLUMNS, *FLOOR_COLUMNS), STEP_COLUMNS),
))
# Tyen et al. 2024, "LLMs cannot find reasoning errors, but can correct them given the error location", section 3: an
# output counts when it names the exact step of the first mistake, or says that there is none; accuracy for each task.
BIGBENCH_MISTAKE = register(Benchmark(
    "bigbench_mistake", "JSON lines with input, steps, mistake_index, a file a task: accuracy of its location",
    read_bigbench_mistake, measure, choose_first_error_threshold,
    ((*ACCURACY_COLUMNS, *F1_COLUMNS, FLOOR_COLUMNS[0]), STEP_COLUMNS),
))
