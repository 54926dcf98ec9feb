"""Best-of-N from files: how often the chain a reward model likes best is right, for each way to sum up its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prm_core.domains import DOMAINS, general
from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.benchmarks.base import Benchmark, BenchmarkChain, Column, ScoredFile, register
from prm_core.evaluation.benchmarks.steps import step_statistics
from prm_core.evaluation.metrics import Statistic
from prm_core.formats.base import get
from prm_core.platform import steps, store
from prm_core.platform.records import read_rows
from prm_core.search import selection
from prm_core.search.aggregate import AGGREGATIONS
from prm_core.types import Problem, Trajectory

# In a workspace: the chains the evaluate stage sampled from the base policy on the test split.
TRAJECTORIES, PROBLEMS, TAG = "artifacts/evaluate/trajectories", "data/test.jsonl", "test-base/"


def read(path: Path) -> list[BenchmarkChain]:
    """Problems with several chains each: JSON lines, or a workspace whose evaluate stage has run.

    A record: `prompt`, `candidates` ([{"steps": […], "outcome": bool, "answer": text or null}]), and where answers are
    not compared as numbers and expressions, `domain`. Raises InputError naming record and field.
    """
    if path.is_dir():
        return _read_workspace(path)
    chains = []
    for where, row in read_rows(path):
        prompt, candidates = get(row, "prompt", str, where), get(row, "candidates", list, where)
        domain = get({"domain": general.NAME, **row}, "domain", str, where)
        if domain not in DOMAINS:
            raise InputError(f"{where}: unknown domain {domain!r}; known: {', '.join(sorted(DOMAINS))}")
        if not candidates:
            raise InputError(f"{where}: field candidates is empty; give at least two chains to choose from")
        for number, candidate in enumerate(candidates):
            at = f"{where}: candidate {number}"
            if not isinstance(candidate, dict):
                raise InputError(f"{at} is {type(candidate).__name__}, expected an object with steps and outcome")
            answer = get({"answer": None, **candidate}, "answer", (str, type(None)), at)
            chains.append(BenchmarkChain(
                prompt, steps.parse_steps(candidate.get("steps"), at), outcome=get(candidate, "outcome", bool, at),
                problem=where, kind=domain, answer=answer))
    return chains


def _read_workspace(folder: Path) -> list[BenchmarkChain]:
    if not (folder / TRAJECTORIES).is_dir():
        raise InputError(f"{folder}: no {TRAJECTORIES} in it; run the stage evaluate there, or name a file")
    problems = {problem.id: problem for problem in store.read_jsonl(Problem, folder / PROBLEMS)}
    rows = [row for row in store.read_shards(Trajectory, folder / TRAJECTORIES) if row.id.startswith(TAG)]
    unknown = {row.problem_id for row in rows} - set(problems)
    if unknown or not rows:
        reason = f"problem {min(unknown)} is not in {PROBLEMS}" if unknown else f"no chain named {TAG}…"
        raise InputError(f"{folder}/{TRAJECTORIES}: {reason}; run the stage evaluate again")
    return [BenchmarkChain(problems[row.problem_id].prompt, row.steps, outcome=bool(row.outcome),
                           problem=row.problem_id, kind=problems[row.problem_id].domain, answer=row.answer)
            for row in rows]


def sizes(candidates: int) -> list[int]:
    """The N reported: powers of two up to the fewest chains any problem has, and that number."""
    powers = [2**power for power in range(candidates.bit_length()) if 2**power <= candidates]
    return powers if powers[-1] == candidates else [*powers, candidates]


def _groups(file: ScoredFile) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in range(file.problems)]
    for row, owner in enumerate(file.problem):
        groups[owner].append(row)
    return groups


def _rankings(file: ScoredFile) -> dict[str, list[float]]:
    """Chain scores by name: each aggregation of the step scores, or `outcome` for one score a chain."""
    scored = [row or (0.0,) for row in file.scores]
    if file.by_outcome:
        return {"outcome": [row[0] for row in scored]}
    return {name: [AGGREGATIONS[name](row) for row in scored] for name in AGGREGATIONS}


def measure(file: ScoredFile, threshold: float) -> Mapping[str, Statistic]:
    """Accuracy at N of each aggregation beside `random` (one chain at random), `majority` and `oracle` (any right).

    Exact means over all N-subsets of a problem's chains (majority: over at most 20,000 of them), so no figure depends
    on which chains were looked at. `<aggregation>/outcome_auroc` tells right from wrong chains of all problems apart.
    """
    groups = _groups(file)
    ns = sizes(min(map(len, groups)))
    right = [bool(chain.outcome) for chain in file.chains]
    rankings = _rankings(file)
    found: dict[str, Statistic] = {}
    for n in ns:
        for name, scores in rankings.items():
            found[f"{name}/accuracy_at_{n}"] = metrics.mean(
                [selection.best_of_n([scores[i] for i in rows], [right[i] for i in rows], n) for rows in groups])
        found[f"oracle/accuracy_at_{n}"] = metrics.mean(
            [selection.oracle_at_n([right[i] for i in rows], n) for rows in groups])
        found[f"random/accuracy_at_{n}"] = metrics.mean([np.mean([right[i] for i in rows]) for rows in groups])
        for name in rankings:
            found[f"{name}_minus_random/accuracy_at_{n}"] = metrics.difference(found[f"{name}/accuracy_at_{n}"],
                                                                               found[f"random/accuracy_at_{n}"])
    if any(chain.answer is not None for chain in file.chains):
        found |= _majorities(file, groups, right, ns)
    for name, scores in rankings.items():
        found[f"{name}/outcome_auroc"] = metrics.auroc(scores, right, file.problem)
    return found | step_statistics(file)


def _majorities(file: ScoredFile, groups: Sequence[Sequence[int]], right: Sequence[bool], ns: Sequence[int]
                ) -> dict[str, Statistic]:
    table: dict[int, list[float]] = {n: [] for n in ns}
    for rows in groups:
        classes = DOMAINS[file.chains[rows[0]].kind].answer_classes
        votes = selection.group_answers([file.chains[i].answer for i in rows], classes)
        for n in ns:
            table[n].append(selection.majority_of_n(votes, [right[i] for i in rows], n))
    return {f"majority/accuracy_at_{n}": metrics.mean(values) for n, values in table.items()}


def _columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, f"{name}/accuracy_at_{{}}") for name in names)


BENCHMARK = register(Benchmark(
    "best_of_n", "JSON lines with prompt, candidates [{steps, outcome, answer}], or a workspace: accuracy at N", read,
    measure, None,
    ((Column("lowest is last", "prm/lowest_is_last", "random/lowest_is_last"),),),
    by_kind=_columns("random", "min", "prod", "mean", "last", "outcome", "majority", "oracle"), kinds="N",
    outcome_models=True, ranks=True,
))
