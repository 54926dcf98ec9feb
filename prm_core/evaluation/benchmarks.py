"""First-error benchmarks from files: readers by name, and the ProcessBench protocol on a model's scores of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core import store
from prm_core.domains import DOMAINS, arithmetic
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.metrics import Bootstrap, Estimate, FirstErrors
from prm_core.formats import FORMATS, LabelledChain
from prm_core.formats.base import get
from prm_core.formats.files import read_rows
from prm_core.models.scorer import ChainScorer
from prm_core.registry import Registry
from prm_core.types import Problem, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FirstErrorChain:
    """A chain of a first-error benchmark.

    Attributes:
        prompt: the question.
        steps: in order.
        label: index of the first wrong step, -1 when every step is right.
        answer_right: whether the final answer is right, None where the benchmark does not say.
    """

    prompt: str
    steps: tuple[Step, ...]
    label: int
    answer_right: bool | None


Reader = Callable[[Path], list[FirstErrorChain]]
BENCHMARKS: Registry[Reader] = Registry("benchmark")


def first_errors(chains: Iterable[LabelledChain], path: Path) -> list[FirstErrorChain]:
    """What the protocol needs of labelled chains; those whose first error is unknown are dropped and counted.

    Raises InputError naming the file when none is left.
    """
    known, dropped = [], 0
    for chain in chains:
        if chain.first_error is None:
            dropped += 1
        else:
            known.append(FirstErrorChain(chain.prompt, chain.steps, chain.first_error, chain.outcome))
    if dropped:
        log.warning("%s: %d chains dropped, a step before their first known error has no label", path, dropped)
    if not known:
        raise InputError(f"{path}: no chain whose first wrong step is known is left")
    return known


@BENCHMARKS.register("processbench")
def read_processbench(path: Path) -> list[FirstErrorChain]:
    """ProcessBench (Zheng et al. 2024): `problem`, `steps`, `label`, `final_answer_correct`; JSON array or lines."""
    return first_errors(FORMATS["processbench"].read(path), path)


@BENCHMARKS.register("arithmetic")
def read_arithmetic(path: Path) -> list[FirstErrorChain]:
    """Chains of the embedded domain, one a line: `prompt`, `steps`, and either `label` or what the oracle needs.

    The oracle needs the problem's `meta` as `prm data make` wrote it. `answer` tells whether the final answer is right.
    """
    domain = arithmetic.NAME
    chains = []
    for where, record in read_rows(path):
        prompt, steps = get(record, "prompt", str, where), store.parse_steps(record.get("steps"), where)
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
        chains.append(FirstErrorChain(prompt, steps, label, right))
    return chains


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """A benchmark file's chains with their step scores.

    Attributes:
        name: of the file.
        chains: as read.
        scores: step scores of each chain; shorter than its steps where the context ended.
        truncated: chains whose last steps have no score.
    """

    name: str
    chains: Sequence[FirstErrorChain]
    scores: Sequence[tuple[float, ...]]
    truncated: int


def score_file(scorer: ChainScorer, name: str, chains: Sequence[FirstErrorChain], separator: str) -> ScoredFile:
    """Scores a file's chains.

    Args:
        scorer: a process reward model.
        name: of the file, for reports.
        chains: to score.
        separator: the encoder's step separator; a space takes its place inside steps, which may not hold it.

    Raises InputError naming the chain that cannot be scored at all (a prompt longer than the model's context).
    """
    held = sum(separator in step.text for chain in chains for step in chain.steps)
    if held:
        log.warning("%s: %d steps hold the separator %r; a space takes its place", name, held, separator)
    pairs = [(chain.prompt, [Step(step.text.replace(separator, " "), step.observation, step.agent)
                             for step in chain.steps]) for chain in chains]
    try:
        scored = scorer.score(pairs)
    except InputError:
        for index, pair in enumerate(pairs):
            try:
                scorer.score([pair])
            except InputError as error:
                raise InputError(f"{name}: chain {index}: {error}") from None
        raise
    truncated = sum(score.truncated_steps > 0 for score in scored)
    if truncated:
        log.warning("%s: %d chains do not fit the model's context; their last steps have no score", name, truncated)
    return ScoredFile(name, chains, [score.step_scores for score in scored], truncated)


def choose_threshold(files: Sequence[ScoredFile]) -> float:
    """The threshold with the best first-error F1 on these files. Raises InputError when they lack a kind of chain."""
    scores = [row for file in files for row in file.scores]
    try:
        return metrics.choose_threshold(scores, [chain.label for file in files for chain in file.chains])[0]
    except ValueError as error:
        raise InputError(f"{', '.join(file.name for file in files)}: {error}") from None


def _tallies(file: ScoredFile, threshold: float) -> tuple[int, dict[str, FirstErrors]]:
    owners: dict[str, int] = {}
    problem = [owners.setdefault(chain.prompt, len(owners)) for chain in file.chains]
    gold, steps = [chain.label for chain in file.chains], [len(chain.steps) for chain in file.chains]
    columns = (gold, problem, len(owners))
    tallies = {"prm": metrics.prm_tally(file.scores, *columns, threshold),
               "random": metrics.random_tally(steps, *columns)}
    right = [chain.answer_right for chain in file.chains]
    if None not in right:
        tallies["middle"] = metrics.middle_tally(steps, [bool(value) for value in right], *columns)
    return len(owners), tallies


def measure_files(
    files: Sequence[ScoredFile], threshold: float, resamples: int, seed: int
) -> tuple[dict[str, dict[str, Estimate]], dict[str, Estimate]]:
    """First-error figures of each file, and the unweighted average of the files (the protocol's headline).

    Returns:
        file name → `<model>/<metric>` → estimate, and `<model>/<metric>` → average over the files that all have it.
        Models: prm, random (uniform guess), middle (knows whether the answer is right, names the middle step).
        Metrics: first_error_f1, acc_err, acc_ok. Those undefined (no chain of the kind) are left out.
    """
    each: dict[str, dict[str, Estimate]] = {}
    draws: dict[str, list[tuple[float, metrics.Floats]]] = {}
    for index, file in enumerate(files):
        problems, tallies = _tallies(file, threshold)
        # A seed of its own: files are separate sets of problems.
        bootstrap = Bootstrap(problems, resamples, seed + index)
        each[file.name] = {}
        for model, tally in tallies.items():
            for metric, statistic in (("first_error_f1", tally.f1), ("acc_err", tally.acc_err),
                                      ("acc_ok", tally.acc_ok)):
                estimate = bootstrap.estimate(statistic)
                if estimate.defined:
                    each[file.name][f"{model}/{metric}"] = estimate
                    draws.setdefault(f"{model}/{metric}", []).append(bootstrap.draws(statistic))
    average = {key: metrics.average(parts) for key, parts in draws.items() if len(parts) == len(files)}
    return each, average
