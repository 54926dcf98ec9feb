"""Human review: which steps most deserve a look, the queue as a file for people, and their answers back into
`data/human`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core import store
from prm_core.errors import InputError
from prm_core.labeling.calibrate import right_probability
from prm_core.labeling.human import (
    HUMAN_PREFIX,
    HumanData,
    chain_digest,
    digest_of,
    read_human,
    write_human,
)
from prm_core.models.calibration import Calibrator
from prm_core.types import Problem, Step, StepLabel, Trajectory

log = logging.getLogger(__name__)

RANDOM_SHARE = 0.1
# What an answer must carry to be matched to its step; the rest of a queue row is for the reader.
ANSWER_FIELDS = ("trajectory_id", "step_index", "chain", "is_correct")
_RIGHT, _WRONG = ("true", "yes", "right", "1"), ("false", "no", "wrong", "0")


def disagreement(verdicts: Sequence[bool]) -> float:
    """0 when all verdicts agree (or there is none), 1 when they split evenly."""
    if not verdicts:
        return 0.0
    share = sum(verdicts) / len(verdicts)
    return 2 * min(share, 1 - share)


def uncertainty(probability: float | None) -> float:
    """0 at probability 0 or 1, 1 at one half or where there is none."""
    return 1.0 if probability is None else 1 - abs(2 * probability - 1)


def _candidates(
    merged: Sequence[StepLabel], labels: Sequence[StepLabel], reviewable: Collection[str], calibrator: Calibrator
) -> dict[tuple[str, int], dict[str, Any]]:
    """Step → its strategies' labels, calibrated probability and priority. Steps after the first merged error are
    none: what a reviewer says of them is not used."""
    first_error: dict[str, int] = {}
    for label in merged:
        if label.is_correct is False:
            known = first_error.get(label.trajectory_id, label.step_index)
            first_error[label.trajectory_id] = min(known, label.step_index)
    by_step: dict[tuple[str, int], list[StepLabel]] = defaultdict(list)
    for label in labels:
        by_step[label.trajectory_id, label.step_index].append(label)
    found = {}
    for label in sorted(merged, key=lambda row: (row.trajectory_id, row.step_index)):
        key = label.trajectory_id, label.step_index
        if label.trajectory_id not in reviewable or label.step_index > first_error.get(key[0], key[1]):
            continue
        raw = right_probability(label)
        probability = None if raw is None else float(calibrator.apply(raw))
        given = sorted(by_step[key], key=lambda row: row.strategy)
        apart = disagreement([row.is_correct for row in given if row.is_correct is not None])
        found[key] = {"probability": probability, "priority": apart + uncertainty(probability), "strategies": given}
    return found


def _allotment(sizes: Mapping[int, int], budget: int) -> dict[int, int]:
    """`budget` places over strata in proportion to their sizes, largest remainders first."""
    total = sum(sizes.values())
    budget = min(budget, total)
    exact = {stratum: budget * size / total for stratum, size in sizes.items()} if total else {}
    places = {stratum: int(share) for stratum, share in exact.items()}
    by_remainder = sorted(exact, key=lambda s: (places[s] - exact[s], s))
    for stratum in by_remainder[: budget - sum(places.values())]:
        places[stratum] += 1
    return places


def select_steps(
    priorities: Mapping[tuple[str, int], float], budget: int, seed: int
) -> list[tuple[tuple[str, int], str]]:
    """The steps to review and why each was picked ("priority" or "random").

    A tenth of the budget is drawn at random, so that the human labels also say something about the steps nobody
    doubts; the rest are the highest priorities, with places for each step position in proportion to how many steps
    lie there (else the queue fills with first or last steps). Ties are broken by the seed.

    Args:
        priorities: (trajectory_id, step_index) → priority.

    Returns:
        min(budget, number of steps) entries, highest priority first.
    """
    rng = random.Random(f"review/{seed}")
    order = sorted(priorities)
    rng.shuffle(order)
    drawn = round(RANDOM_SHARE * min(budget, len(order)))
    places = _allotment(Counter(index for _, index in order), min(budget, len(order)) - drawn)
    picked: list[tuple[tuple[str, int], str]] = []
    rest = []
    # sorted() is stable: equal priorities keep their shuffled order.
    for key in sorted(order, key=lambda k: -priorities[k]):
        if places.get(key[1], 0):
            places[key[1]] -= 1
            picked.append((key, "priority"))
        else:
            rest.append(key)
    picked += [(key, "random") for key in rng.sample(rest, drawn)]
    return sorted(picked, key=lambda pick: -priorities[pick[0]])


def _readable(step: Step) -> str:
    return f"{step.text}\n[reply] {step.observation}" if step.observation else step.text


def review_queue(
    merged: Sequence[StepLabel],
    labels: Sequence[StepLabel],
    trajectories: Sequence[Trajectory],
    problems: Mapping[str, Problem],
    calibrator: Calibrator,
    *,
    budget: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The steps most worth a human's look, each with everything needed to judge it and an empty `is_correct`.

    Args:
        merged, labels: merged and single strategies' labels.
        trajectories: the chains that may be asked about (those without human labels).
        problems: id → problem, holding each trajectory's.
        calibrator: maps the merged probability.
    """
    chains = {t.id: t for t in trajectories}
    candidates = _candidates(merged, labels, chains.keys(), calibrator)
    picks = select_steps({key: c["priority"] for key, c in candidates.items()}, budget, seed)
    queue = []
    for (trajectory_id, step_index), picked in picks:
        chain, found = chains[trajectory_id], candidates[trajectory_id, step_index]
        prompt = problems[chain.problem_id].prompt
        queue.append({
            "trajectory_id": trajectory_id,
            "step_index": step_index,
            "chain": chain_digest(prompt, chain),
            "prompt": prompt,
            "steps_before": [_readable(step) for step in chain.steps[:step_index]],
            "step": _readable(chain.steps[step_index]),
            "is_correct": None,
            "note": "",
            "picked": picked,
            "priority": round(found["priority"], 4),
            "probability": found["probability"],
            "strategies": [
                {"strategy": row.strategy, "is_correct": row.is_correct, "value": row.value,
                 "confidence": row.confidence, "reasoning": row.reasoning} for row in found["strategies"]
            ],
        })
    return queue


def queue_as_csv(queue: Sequence[Mapping[str, Any]]) -> str:
    """The queue as a spreadsheet: lists become lines of one cell, the empty `is_correct` waits for true or false."""
    text = io.StringIO()
    columns = list(queue[0]) if queue else list(ANSWER_FIELDS)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in queue:
        verdicts = [f"{s['strategy']}: {'undecided' if s['is_correct'] is None else s['is_correct']} "
                    f"({s['reasoning']})" for s in row["strategies"]]
        writer.writerow({**row, "steps_before": "\n".join(row["steps_before"]), "strategies": "\n".join(verdicts)})
    return text.getvalue()


def _read_answers(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a JSONL or CSV file of answers. Raises InputError on an unreadable file or a missing field."""
    rows = _csv_rows(path) if path.suffix == ".csv" else store.read_json_lines(path)
    for where, row in rows:
        missing = [name for name in ANSWER_FIELDS if name not in row]
        if missing:
            raise InputError(f"{where}: missing field {', '.join(missing)}; answer in the file `prm review export` "
                             "wrote and keep its fields")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    # utf-8-sig: spreadsheets put a byte-order mark in front.
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        before = 1
        for row in reader:
            # A quoted cell may span lines: a row is named by the line it starts on.
            where, before = f"{path}:{before + 1}", reader.line_num
            try:
                yield where, {**row, "step_index": int(row.get("step_index") or "")}
            except ValueError:
                raise InputError(f"{where}: step_index is {row.get('step_index')!r}, expected a number") from None


def _parse_verdict(raw: Any, where: str) -> bool | None:
    """An answer; None where it was left empty. Raises InputError on anything that is neither."""
    if raw is None or isinstance(raw, bool):
        return raw
    text = str(raw).strip().lower()
    if text and text not in _RIGHT + _WRONG:
        raise InputError(f"{where}: is_correct is {raw!r}; write true or false, or leave it empty")
    return text in _RIGHT if text else None


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did: answers new, changed, already there and left empty; chains new to `data/human`."""

    added: int
    replaced: int
    unchanged: int
    unanswered: int
    new_chains: int


def _durable(problem: Problem, trajectory: Trajectory, chain: str) -> tuple[Problem, Trajectory]:
    """Copies under ids of their own. Generated ids are positions in a run: after a new one they name other chains."""
    kept = dataclasses.replace(problem, id=f"{problem.id}@{digest_of(problem.prompt, problem.answer)}")
    return kept, dataclasses.replace(trajectory, id=f"{trajectory.id}@{chain}", problem_id=kept.id)


def import_reviews(
    file: Path, reviewer: str, *, human: Path, trajectories: Path, problems: Path
) -> ImportReport:
    """Adds a reviewer's answers to `data/human`, with the chains and problems they are about.

    Importing the same file again changes nothing; a new answer to the same step by the same reviewer replaces the old
    one. Nothing is written when any row is at fault.

    Args:
        file: what `prm review export` wrote (JSONL or CSV) with `is_correct` filled in.
        reviewer: a name; labels get strategy "human:<reviewer>".
        human: folder of the human labels.
        trajectories: folder of the generated shards.
        problems: the problems they answer.

    Raises InputError naming file and line for a malformed row, a step that is not there, a chain that was generated
    anew since the export, and two contradicting answers in one file.
    """
    name = reviewer.strip()
    if not name or ":" in name:
        raise InputError(f"reviewer {reviewer!r}: give a name without a colon")
    data = read_human(human)
    find = _finder(data, trajectories, problems)
    existing = {(r.trajectory_id, r.step_index, r.strategy): r for r in data.labels}
    chains, known_problems = {t.id: t for t in data.trajectories}, {p.id: p for p in data.problems}
    before, counts, seen = len(chains), Counter(), {}
    for where, row in _read_answers(file):
        problem, trajectory, index = _located(row, where, find)
        verdict = _parse_verdict(row["is_correct"], where)
        if verdict is None:
            counts["unanswered"] += 1
            continue
        key = trajectory.id, index, HUMAN_PREFIX + name
        if seen.setdefault(key, (verdict, where))[0] != verdict:
            raise InputError(f"{where}: contradicts the answer to the same step at {seen[key][1]}; keep one of them")
        old = existing.get(key)
        label = StepLabel(trajectory.id, index, key[2], float(verdict), verdict, 1.0, 0, str(row.get("note") or ""))
        kind = "added" if old is None else "unchanged" if old == label else "replaced"
        counts[kind] += 1
        existing[key] = label
        chains.setdefault(trajectory.id, trajectory)
        known_problems.setdefault(problem.id, problem)
    if counts["added"] or counts["replaced"]:
        write_human(human, HumanData(list(known_problems.values()), list(chains.values()), list(existing.values())))
    return ImportReport(**{k: counts[k] for k in ("added", "replaced", "unchanged", "unanswered")},
                        new_chains=len(chains) - before)


Finder = Callable[[str, str], tuple[Problem, Trajectory] | None]


def _finder(data: HumanData, trajectories: Path, problems: Path) -> Finder:
    """A look-up by (trajectory id, chain digest): among the human chains first, then the generated ones."""
    human_problems = {p.id: p for p in data.problems}
    human = {t.id: t for t in data.trajectories}
    has_shards = any(trajectories.glob("part-*.parquet"))
    generated = {t.id: t for t in store.read_shards(Trajectory, trajectories)} if has_shards else {}
    train = {p.id: p for p in store.read_jsonl(Problem, problems)} if generated else {}

    def find(trajectory_id: str, chain: str) -> tuple[Problem, Trajectory] | None:
        known = human.get(f"{trajectory_id}@{chain}")
        if known is not None:
            return human_problems[known.problem_id], known
        found = generated.get(trajectory_id)
        problem = train.get(found.problem_id) if found else None
        if found is None or problem is None or chain_digest(problem.prompt, found) != chain:
            return None
        return _durable(problem, found, chain)

    return find


def _located(row: Mapping[str, Any], where: str, find: Finder) -> tuple[Problem, Trajectory, int]:
    trajectory_id, chain, index = row["trajectory_id"], row["chain"], row["step_index"]
    if not isinstance(trajectory_id, str) or not isinstance(chain, str):
        raise InputError(f"{where}: trajectory_id and chain must be texts; keep them as exported")
    if not isinstance(index, int) or isinstance(index, bool):
        raise InputError(f"{where}: step_index is {index!r}, expected a number")
    found = find(trajectory_id, chain)
    if found is None:
        raise InputError(f"{where}: no trajectory {trajectory_id!r} with these steps is known; the chains were "
                         "generated anew since the export: export the queue again and answer that")
    problem, trajectory = found
    if not 0 <= index < len(trajectory.steps):
        raise InputError(f"{where}: trajectory {trajectory_id!r} has {len(trajectory.steps)} steps, there is no step "
                         f"{index}; keep step_index as exported")
    return problem, trajectory, index


def read_queue(path: Path) -> list[dict[str, Any]]:
    """The review queue of a workspace; empty where nothing was left to review.

    Raises InputError when the calibrate stage has not run.
    """
    if not path.is_file():
        raise InputError(f"{path}: no review queue there; run the chain (`prm run`) first")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
