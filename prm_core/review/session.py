"""What the review page knows: the queue, who has answered what, and where each reviewer is. No page here.

`data/human` is the only record of answers. A session is rebuilt from it, so that a reviewer goes on after a restart,
and undoes, where they stopped; only skipped steps are forgotten.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.labeling.human.labels import FILES, HUMAN_PREFIX, HumanData, StepKey, read_human
from prm_core.review import pause
from prm_core.review.files import parse_answer, read_queue, reviewer_name
from prm_core.review.importing import Generated, durable_id, import_answers, reading, retract
from prm_core.types import StepLabel

QUEUE = "artifacts/calibrate/review_queue.jsonl"
HUMAN = "data/human"
CHAINS, PROBLEMS = "artifacts/generate/trajectories", "data/train.jsonl"
OVERLAP = 0.2


def generated(workspace: Path) -> Generated:
    """The chains of a workspace that answers may be about."""
    return Generated(workspace / CHAINS, workspace / PROBLEMS)


@dataclass(frozen=True, slots=True)
class Item:
    """A step to judge.

    Attributes:
        key: the step in `data/human`.
        row: its row of the queue.
        shared: every reviewer is asked about it, not only the first who comes to it.
    """

    key: StepKey
    row: Mapping[str, Any]
    shared: bool


def shared_steps(keys: list[StepKey], overlap: float) -> set[StepKey]:
    """round(overlap · n) of the steps, the same ones for every process and reviewer: those with the lowest hash."""
    by_hash = sorted(keys, key=lambda key: hashlib.sha256(f"{key[0]}/{key[1]}".encode()).digest())
    return set(by_hash[: round(overlap * len(keys))])


class Board:
    """The queue of a workspace and all answers to it, read again whenever their files change.

    Args:
        workspace: folder with data/ and artifacts/.
        overlap: share of the steps that every reviewer is asked about; the others are asked once.

    Raises InputError where there is no queue.
    """

    def __init__(self, workspace: Path, overlap: float = OVERLAP) -> None:
        self.workspace, self._overlap = workspace, overlap
        self._stamps: dict[Path, tuple[int, ...] | None] = {}
        self.generated = generated(workspace)
        self.human = HumanData()
        self.items: dict[StepKey, Item] = {}
        self.answers: dict[StepKey, dict[str, StepLabel]] = {}
        # Which step is before which reviewer's eyes, so that two at work at once are not asked the same.
        self.shown: dict[str, StepKey] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads queue and answers again where their files have changed."""
        queue_changed = self._changed(self.workspace / QUEUE)
        if queue_changed:
            rows = read_queue(self.workspace / QUEUE)
            keyed = {(durable_id(row["trajectory_id"], row["chain"]), row["step_index"]): row for row in rows}
            shared = shared_steps(list(keyed), self._overlap)
            self.items = {key: Item(key, row, key in shared) for key, row in keyed.items()}
            self.generated = generated(self.workspace)
        with reading(self.workspace / HUMAN):
            if not self._changed(self.workspace / HUMAN / FILES["labels"]) and not queue_changed:
                return
            self.human = read_human(self.workspace / HUMAN)
        self.answers = {key: {} for key in self.items}
        for label in self.human.labels:
            key = label.trajectory_id, label.step_index
            if key in self.answers:
                self.answers[key][label.strategy.removeprefix(HUMAN_PREFIX)] = label

    def _changed(self, path: Path) -> bool:
        # Files are replaced whole: a new inode.
        stamp = (s.st_ino, s.st_mtime_ns, s.st_size) if path.exists() and (s := path.stat()) else None
        known = self._stamps.get(path, ())
        self._stamps[path] = stamp
        return stamp != known

    def answered_by(self, reviewer: str) -> list[StepKey]:
        """The steps of the queue that a reviewer has answered, in the order of the labels' file."""
        mine = HUMAN_PREFIX + reviewer
        keys = ((label.trajectory_id, label.step_index) for label in self.human.labels if label.strategy == mine)
        return [key for key in keys if key in self.items]

    def open_for(self, reviewer: str) -> list[Item]:
        """The steps a reviewer may still be asked, in the order of the queue."""
        return [item for key, item in self.items.items()
                if reviewer not in self.answers[key] and (item.shared or not self.answers[key])]

    def unanswered(self) -> int:
        """How many steps of the queue nobody has answered."""
        return sum(not given for given in self.answers.values())

    def tally(self) -> dict[str, int]:
        """Reviewer → answers to this queue, the busiest first."""
        return dict(Counter(name for given in self.answers.values() for name in given).most_common())

    def record(self, item: Item, reviewer: str, verdict: bool, note: str) -> None:
        """Puts an answer into `data/human`. Raises InputError where it cannot be taken; then nothing has changed."""
        pause.check_writable(self.workspace)
        # A browser may send half a character, which no file can hold.
        note = note.encode(errors="replace").decode()
        answer = parse_answer({**item.row, "is_correct": verdict, "note": note}, "the answer", reviewer)
        import_answers([answer], self.workspace / HUMAN, self.generated)
        self.refresh()

    def retract(self, key: StepKey, reviewer: str) -> StepLabel | None:
        """Takes an answer out of `data/human`; returns it. Raises InputError while that cannot be done."""
        pause.check_writable(self.workspace)
        taken = retract(self.workspace / HUMAN, key, reviewer)
        self.refresh()
        return taken


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a review is.

    Attributes:
        mine: steps of the queue this reviewer has answered.
        asked: those and the ones still open for them, skipped ones included.
        now: answers given since the session began.
        skipped: open steps put off.
        covered: steps of the queue that somebody has answered.
        queue: steps of the queue.
        by_reviewer: reviewer → answers to this queue.
    """

    mine: int
    asked: int
    now: int
    skipped: int
    covered: int
    queue: int
    by_reviewer: Mapping[str, int]


class Session:
    """A reviewer at work. Raises InputError for a name that cannot be one.

    Attributes:
        current: the step to judge; None when all are answered or skipped.
        before: the reviewer's own answer to `current` that was undone, None where there is none.
    """

    def __init__(self, board: Board, reviewer: str) -> None:
        self.board, self.reviewer = board, reviewer_name(reviewer)
        # (step, whether it was answered), oldest first: what undo goes back over.
        self._history = [(key, True) for key in board.answered_by(self.reviewer)]
        self._skipped: set[StepKey] = set()
        self._now = 0
        self.current: Item | None = None
        self.before: StepLabel | None = None
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of what others and new runs have done.

        The current step stays, even if someone else has answered it by now: nothing changes under a reader's eyes.
        """
        self.board.refresh()
        key = self.current.key if self.current else None
        if key not in self.board.items or self.reviewer in self.board.answers[key]:
            self._advance()

    def _advance(self) -> None:
        self.before = None
        open_items = [item for item in self.board.open_for(self.reviewer) if item.key not in self._skipped]
        elsewhere = {key for name, key in self.board.shown.items() if name != self.reviewer}
        free = [item for item in open_items if item.shared or item.key not in elsewhere]
        # What is before another's eyes comes last: they may never answer it.
        self._show(next(iter([*free, *open_items]), None))

    def _show(self, item: Item | None) -> None:
        self.current = item
        self.board.shown.pop(self.reviewer, None)
        if item is not None:
            self.board.shown[self.reviewer] = item.key

    def _take(self, key: StepKey) -> Item:
        """The current step, if it is the one that was meant. Another window may have moved on."""
        self.refresh()
        if self.current is None or self.current.key != key:
            raise InputError("that step is not the current one any more; nothing was recorded")
        return self.current

    def answer(self, key: StepKey, verdict: bool, note: str = "") -> None:
        """Records the verdict on the current step and moves on.

        Args:
            key: the step the reviewer saw.

        Raises InputError when that is not the current one, or the answer cannot be recorded.
        """
        self.board.record(self._take(key), self.reviewer, verdict, note.strip())
        self._history.append((key, True))
        self._now += 1
        self._skipped.discard(key)
        self._advance()

    def skip(self, key: StepKey) -> None:
        """Puts the current step off. Raises InputError when `key` is not the current one."""
        self._take(key)
        self._history.append((key, False))
        self._skipped.add(key)
        self._advance()

    def undo(self) -> bool:
        """Goes back one step, taking the answer to it out again; False at the beginning. Raises InputError while
        answers cannot be changed."""
        self.board.refresh()
        while self._history:
            key, answered = self._history[-1]
            item = self.board.items.get(key)
            if item is not None:
                before = self.board.retract(key, self.reviewer) if answered else None
                self._history.pop()
                # Answers of earlier sessions can be undone too.
                self._now = max(0, self._now - answered)
                self._skipped.discard(key)
                self._show(item)
                self.before = before
                return True
            # Of a queue that is no more.
            self._history.pop()
        return False

    @property
    def last(self) -> StepLabel | None:
        """The answer that undo would take back, None where that is a skip or nothing."""
        if not self._history or not self._history[-1][1]:
            return None
        return self.board.answers.get(self._history[-1][0], {}).get(self.reviewer)

    @property
    def can_undo(self) -> bool:
        """Whether there is something to go back to."""
        return bool(self._history)

    def revisit(self) -> None:
        """Brings the skipped steps back."""
        self._skipped.clear()
        self.refresh()

    def progress(self) -> Progress:
        """How far this reviewer and all of them are."""
        open_items = self.board.open_for(self.reviewer)
        mine, queue = len(self.board.answered_by(self.reviewer)), len(self.board.items)
        return Progress(mine, mine + len(open_items), self._now, sum(i.key in self._skipped for i in open_items),
                        queue - self.board.unanswered(), queue, self.board.tally())
