"""A user's own problems: reading a file of them and laying it out as `data/`.

Which columns are taken is in columns.py, made problems are in embedded.py; prepare.py knows when `data/` is written.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.domains import DOMAINS, general
from prm_core.domains.oracle import ORACLES
from prm_core.errors import InputError
from prm_core.maths.answers import read_stated_answer
from prm_core.platform import store, tables
from prm_core.platform.progress import some
from prm_core.problems import columns
from prm_core.problems.columns import Taken
from prm_core.types import Problem, Step

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
HUMAN_FILES = ("problems.jsonl", "trajectories.jsonl", "labels.jsonl")
# Fewer worked solutions do not train a model from scratch; the embedded warm-up problems stay then. A pretrained one
# learns its form from any.
MIN_WARMUP_PROBLEMS = 1000
# With fewer held-out problems an accuracy is known to ± 14 points at best.
FEW_HELD_OUT = 50
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, slots=True)
class UserProblems:
    """A checked file of problems.

    Attributes:
        problems: in file order, no prompt twice.
        duplicates: records dropped because their prompt had come before.
        conflicts: how many of those had another answer.
        too_long: id → where of records left out because their prompt fills the context.
        origins: (part, where it was found) → number of records.
        repaired: what was put right, and where.
        source: SHA-256 of the file.
    """

    problems: tuple[Problem, ...]
    duplicates: int
    conflicts: int
    too_long: Mapping[str, str]
    origins: Mapping[tuple[str, str], int]
    repaired: tuple[str, ...]
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


def parse_problem(record: Mapping[str, Any], where: str) -> Problem:
    """A problem from a record. Fields of no meaning here are kept in `meta`.

    Raises InputError naming `where` and the field at fault.
    """
    return _problem(columns.take(record, where), where)


def _problem(taken: Taken, where: str) -> Problem:
    meta = taken.rest.pop("meta", None) or {}
    if not isinstance(meta, dict):
        raise InputError(f"{where}: field meta must be an object")
    meta = {**meta, **taken.rest}
    # Anybody's word for a kind of problem; only those with rules of their own are told apart.
    given = taken.rest.get("domain")
    domain = given if isinstance(given, str) and given in DOMAINS else general.NAME
    if given == domain or given is None:
        meta.pop("domain", None)
    solution = taken.solution
    if solution is None and meta.get("solution") is not None:
        solution = columns.steps_of(meta["solution"], f"{where}: field meta.solution")
    meta.pop("solution", None)
    if solution is not None:
        meta["solution"] = solution
    identity = taken.identity
    if identity is None:
        identity = hashlib.sha256("\0".join((domain, taken.prompt, taken.answer)).encode()).hexdigest()[:16]
    problem = Problem(identity, domain, taken.prompt, taken.answer, meta)
    _judgeable(problem, where)
    return problem


def least_tokens(prompt: str) -> int:
    """Fewer tokens no tokenizer makes of a prompt: its words and numbers, which none of them joins."""
    return len(_WORD.findall(prompt))


def read_problems(path: Path, max_length: int | None = None) -> UserProblems:
    """All problems of a user's file, of any kind that `tables.read_table` reads.

    Args:
        path: the file, or a folder of them.
        max_length: tokens of the models' context; a prompt that surely leaves no room in it for a step is left out.

    Raises InputError for a bad record, two problems of one id, and a file too small to give every split a problem.
    """
    by_prompt: dict[str, Problem] = {}
    line_of: dict[str, str] = {}
    origins: Counter[tuple[str, str]] = Counter()
    too_long: dict[str, str] = {}
    repaired: list[str] = []
    duplicates = conflicts = 0
    for where, record in tables.read_table(path):
        taken = columns.take(record, where)
        problem = _problem(taken, where)
        if problem.prompt in by_prompt:
            duplicates += 1
            conflicts += by_prompt[problem.prompt].answer != problem.answer
            continue
        if problem.id in line_of:
            raise InputError(f"{where}: id {problem.id!r} was given to another problem at {line_of[problem.id]}")
        line_of[problem.id] = where
        by_prompt[problem.prompt] = problem
        # Beside the prompt there are its boundary, and a step of one token with its own.
        if max_length is not None and least_tokens(problem.prompt) + 3 > max_length:
            too_long[problem.id] = where
        else:
            origins.update(taken.origins.items())
            repaired += taken.repaired
    problems = tuple(problem for problem in by_prompt.values() if problem.id not in too_long)
    counts = Counter(split_of(problem.id) for problem in problems)
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        left = f" ({len(too_long)} more are longer than the context of {max_length} tokens)" if too_long else ""
        raise InputError(f"{path}: {len(problems)} problems are too few{left}, none of them falls into "
                         f"{' and '.join(empty)} (80/10/10 by a hash of the id); give 50 or more")
    return UserProblems(problems, duplicates, conflicts, too_long, origins, tuple(repaired), store.digest(path))


def describe(user: UserProblems) -> None:
    """Logs what was taken of a file as what, what was left out, and what to mind."""
    counts = Counter(split_of(problem.id) for problem in user.problems)
    parts: dict[str, list[str]] = {}
    for (part, origin), count in user.origins.items():
        share = "" if count == len(user.problems) else f" in {count:,}"
        parts.setdefault(part, []).append(f"{origin}{share}")
    log.info("%s problems: %s", f"{len(user.problems):,}",
             "; ".join(f"{part} from {', '.join(found)}" for part, found in parts.items()))
    log.info("splits by a hash of the id: %s", ", ".join(f"{split} {counts[split]:,}" for split in SPLITS))
    for split in SPLITS[1:]:
        if counts[split] < FEW_HELD_OUT:
            log.warning("%s holds %d problems: a share measured on so few is known to ± %.0f points; for ± 14 give %d "
                        "problems in all", split, counts[split], 98 / counts[split] ** 0.5, 10 * FEW_HELD_OUT)
    if user.duplicates:
        log.warning("%d records dropped, their prompt had come before (%d of them with another answer)",
                    user.duplicates, user.conflicts)
    if user.too_long:
        log.warning("%d problems left out: longer than the models' context (encoder.max_length): %s",
                    len(user.too_long), some([f"{name} ({where})" for name, where in user.too_long.items()]))
    if user.repaired:
        log.warning("%d LaTeX commands repaired that had lost their backslash to a JSON escape: %s", len(user.repaired),
                    some(user.repaired))
    named = Counter(str(problem.meta["domain"]) for problem in user.problems if "domain" in problem.meta)
    if named:
        log.info("domains of your own (%s) are read as %s: answers compared by value, steps judged by nobody",
                 some([f"{name}: {count:,}" for name, count in named.most_common()]), general.NAME)
    worked = [problem for problem in user.problems if problem.meta.get("solution")]
    silent = [problem.id for problem in worked if read_stated_answer(problem.meta["solution"][-1]) is None]
    if silent:
        log.warning("%d of %d solutions do not end with their answer (\"The answer is …\", \\boxed or ####): models "
                    "trained on them will not state theirs: %s", len(silent), len(worked), some(silent))


def write_data(user: UserProblems, folder: Path, *, base: bool = False) -> dict[str, int]:
    """Writes train, dev and test, and empty files of shifted problems and human labels; returns the count per split.

    What was taken, dropped and left out is logged.

    `warmup.jsonl` becomes the training problems with worked solutions where there are MIN_WARMUP_PROBLEMS of them;
    otherwise whatever lies in `folder` stays, and an empty file is written where nothing does.

    Args:
        base: a pretrained model learns from them: any number of worked solutions is enough.
    """
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for problem in user.problems:
        splits[split_of(problem.id)].append(problem)
    for split, problems in splits.items():
        store.write_jsonl(folder / f"{split}.jsonl", problems)
    describe(user)
    worked = [problem for problem in splits["train"] if problem.meta.get("solution")]
    warmup = folder / "warmup.jsonl"
    if len(worked) >= (1 if base else MIN_WARMUP_PROBLEMS):
        store.write_jsonl(warmup, worked)
        log.info("the base models will be trained on your %d worked solutions", len(worked))
    elif not warmup.exists():
        store.write_text(warmup, "")
    # Nobody can tell of a user's problems which are unlike those that models are trained on.
    for name in ("shifted.jsonl", *(f"human/{name}" for name in HUMAN_FILES)):
        store.write_text(folder / name, "")
    return {split: len(problems) for split, problems in splits.items()}
