"""A user's own problems: reading a JSONL file of them and laying it out as `data/`.

Embedded problems are made in prm_core/problems/embedded.py; when `data/` is written is prepare.py's business.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.domains import DOMAINS, general
from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.types import Problem, Step

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
HUMAN_FILES = ("problems.jsonl", "trajectories.jsonl", "labels.jsonl")
# Fewer worked solutions do not train a model from scratch; the embedded warm-up problems stay then.
MIN_WARMUP_PROBLEMS = 1000
_FIELDS = ("id", "domain", "prompt", "answer", "solution", "meta")


@dataclass(frozen=True, slots=True)
class UserProblems:
    """A checked file of problems.

    Attributes:
        problems: in file order, no prompt twice.
        duplicates: lines dropped because their prompt had come before.
        source: SHA-256 of the file.
    """

    problems: tuple[Problem, ...]
    duplicates: int
    source: str

    @property
    def domain(self) -> str:
        """The domain all problems share, `general` where they are mixed."""
        domains = {problem.domain for problem in self.problems}
        return domains.pop() if len(domains) == 1 else general.NAME


def split_of(problem_id: str) -> str:
    """train, dev or test (80/10/10) by a hash of the id: a problem keeps its split when the file grows."""
    bucket = int(hashlib.sha256(problem_id.encode()).hexdigest(), 16) % 10
    return {8: "dev", 9: "test"}.get(bucket, "train")


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        given = f"is {value!r}" if field in record else "is missing"
        raise InputError(f"{where}: field {field} {given}; a problem has texts `prompt` and `answer`, and may have "
                         "`solution`, `id`, `domain`")
    return value.strip()


def _solution(value: Any, where: str) -> list[str]:
    steps = value.splitlines() if isinstance(value, str) else value
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise InputError(f"{where}: field solution must be a text with a step per line, or a list of step texts")
    kept = [step.strip() for step in steps if step.strip()]
    if not kept:
        raise InputError(f"{where}: field solution holds no step; leave it out or give the steps")
    return kept


def _judgeable(problem: Problem, where: str) -> None:
    """Raises InputError when a domain's oracle could not judge this problem's steps."""
    if problem.domain in ORACLES:
        try:
            ORACLES[problem.domain](problem, [Step("a step")])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: domain {problem.domain!r} needs more than this problem gives ({type(error).__name__}: "
                f"{error}); leave `domain` out for problems of your own"
            ) from None


def parse_problem(record: dict[str, Any], where: str) -> Problem:
    """A problem from a line. Fields of no meaning here are kept in `meta`.

    Raises InputError naming `where` and the field at fault.
    """
    prompt, answer = _text(record, "prompt", where), _text(record, "answer", where)
    domain = _text(record, "domain", where) if "domain" in record else general.NAME
    if domain not in DOMAINS:
        raise InputError(f"{where}: unknown domain {domain!r}; known: {', '.join(sorted(DOMAINS))}")
    meta = record.get("meta", {})
    if not isinstance(meta, dict):
        raise InputError(f"{where}: field meta must be an object")
    meta = {**meta, **{name: value for name, value in record.items() if name not in _FIELDS}}
    if record.get("solution") is not None:
        meta["solution"] = _solution(record["solution"], where)
    if record.get("id") is None:
        identity = hashlib.sha256("\0".join((domain, prompt, answer)).encode()).hexdigest()[:16]
    else:
        identity = _text(record, "id", where)
    problem = Problem(identity, domain, prompt, answer, meta)
    _judgeable(problem, where)
    return problem


def read_problems(path: Path) -> UserProblems:
    """All problems of a user's file.

    Raises InputError for a bad line, two problems of one id, and a file too small to give every split a problem.
    """
    by_prompt: dict[str, Problem] = {}
    line_of: dict[str, str] = {}
    duplicates = conflicts = 0
    for where, record in store.read_json_lines(path):
        problem = parse_problem(record, where)
        if problem.prompt in by_prompt:
            duplicates += 1
            conflicts += by_prompt[problem.prompt].answer != problem.answer
            continue
        if problem.id in line_of:
            raise InputError(f"{where}: id {problem.id!r} was given to another problem at {line_of[problem.id]}")
        by_prompt[problem.prompt] = problem
        line_of[problem.id] = where
    if duplicates:
        log.warning("%s: %d lines dropped, their prompt had come before (%d of them with another answer)",
                    path, duplicates, conflicts)
    problems = tuple(by_prompt.values())
    counts = Counter(split_of(problem.id) for problem in problems)
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        raise InputError(f"{path}: {len(problems)} problems are too few, none of them falls into {' and '.join(empty)} "
                         "(80/10/10 by a hash of the id); give 50 or more")
    return UserProblems(problems, duplicates, store.digest(path))


def write_data(user: UserProblems, folder: Path) -> dict[str, int]:
    """Writes train, dev and test, and human-label files with nothing in them yet; returns the count per split.

    `warmup.jsonl` becomes the training problems with worked solutions where there are MIN_WARMUP_PROBLEMS of them;
    otherwise whatever lies in `folder` stays, and an empty file is written where nothing does.
    """
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for problem in user.problems:
        splits[split_of(problem.id)].append(problem)
    for split, problems in splits.items():
        store.write_jsonl(folder / f"{split}.jsonl", problems)
    worked = [problem for problem in splits["train"] if problem.meta.get("solution")]
    warmup = folder / "warmup.jsonl"
    if len(worked) >= MIN_WARMUP_PROBLEMS:
        store.write_jsonl(warmup, worked)
        log.info("the base models will be trained on your %d worked solutions", len(worked))
    elif not warmup.exists():
        store.write_text(warmup, "")
    for name in HUMAN_FILES:
        store.write_text(folder / "human" / name, "")
    return {split: len(problems) for split, problems in splits.items()}
