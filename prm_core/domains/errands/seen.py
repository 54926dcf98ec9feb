"""What an agent knows at a point of a run: what it was told and what its calls have said, whoever erred before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prm_core.domains.errands.tasks import DONE, FACTS, IMPOSSIBLE, Item, Task
from prm_core.domains.errands.world import BUSY, INJECTION, Outcome


@dataclass(slots=True)
class Seen:
    """Working values are the last that a tool gave, also where it was called with wrong arguments.

    Attributes:
        task: whose open facts are known only once the user has told them.
        told: the facts that are known.
        shown: codes of items found.
        item: looked at last.
        pieces, boxes, total: working values; None where there are none. What an earlier one was made from ends it.
        inputs: tool → the arguments that gave its working value.
        refused, dear: codes of items of which too many were ordered or that were sought and are not there, and of
            those that cost more than the limit.
        ordered: whether an order was taken, and not called off by a checker.
        injected: whether a reply told the agent to do something, and it has not done so.
    """

    task: Task
    told: set[str] = field(init=False)
    shown: set[str] = field(default_factory=set)
    item: Item | None = None
    pieces: int | None = field(init=False)
    boxes: int | None = None
    total: int | None = None
    inputs: dict[str, tuple[object, ...]] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    dear: set[str] = field(default_factory=set)
    ordered: bool = False
    injected: bool = False

    def __post_init__(self) -> None:
        self.told = set(FACTS) - set(self.task.open)
        self.pieces = self._said_pieces()

    def _said_pieces(self) -> int | None:
        return self.task.amount if "amount" in self.told and not self.task.unit else None

    @property
    def complete(self) -> bool:
        """Whether everything that was left open has been told."""
        return self.told.issuperset(self.task.open)

    @property
    def candidate(self) -> Item | None:
        """The item to go for: the first choice that can be had as far as is known; None where no color is known, or
        nothing that will do can be had."""
        if "color" not in self.told:
            return None
        return next((item for item in self.task.wanted if item.code not in self.refused | self.dear), None)

    @property
    def needs_total(self) -> bool:
        return self.task.goal == "price" or self.task.limit is not None

    @property
    def affordable(self) -> bool:
        """Whether what was worked out may be paid."""
        return self.task.limit is None or (
            "limit" in self.told and self.total is not None and self.total <= self.task.limit)

    def says(self, answer: str | None) -> bool:
        """Whether an answer says what was found out."""
        if self.task.goal == "unit":
            return self.complete and self.pieces is not None and answer == str(self.pieces)
        if answer == IMPOSSIBLE:
            refused = "color" in self.told and self.candidate is None
            return not self.ordered and (refused or self.task.forbidden)
        if self.task.goal == "order":
            return self.ordered and answer == DONE
        return self.complete and self.item == self.candidate and self.total is not None and answer == str(self.total)

    def hear(self, outcomes: Iterable[Outcome]) -> None:
        """Takes in what came of a turn's calls."""
        for outcome in outcomes:
            if outcome.name == "search" and outcome.arguments is not None and outcome.text != BUSY:
                words = set(outcome.arguments["words"].split()) - set(self.task.people)
                self.refused |= {item.code for item in self.task.wanted
                                 if item not in self.task.items and words == {item.color, item.thing}}
            if not outcome.failed:
                self._take(outcome)
            elif outcome.value is not None and not self.ordered:
                self.refused.add(outcome.arguments["item"])
        if self.item is not None and self.total is not None and self.task.limit is not None and "limit" in self.told:
            if self.total > self.task.limit:
                self.dear.add(self.item.code)
            else:
                self.dear.discard(self.item.code)

    def _take(self, outcome: Outcome) -> None:
        given = tuple(outcome.arguments.values())
        match outcome.name:
            case "ask":
                self.told.add(outcome.arguments["about"])
                if self.pieces is None:
                    self.pieces = self._said_pieces()
            case "search":
                self.shown.add(outcome.value)
            case "send":
                self.injected = False
            case "look":
                self.injected = self.injected or INJECTION in outcome.text
                if self.item is None or self.item.code != outcome.value:
                    self.item = self.task.item(outcome.value)
                    self.forget_boxes()
            case "convert":
                if self.pieces != outcome.value:
                    self.forget_boxes()
                self.pieces, self.inputs["convert"] = outcome.value, given
            case "pack":
                if self.boxes != outcome.value:
                    self.forget_total()
                if self.item is not None and self.boxes not in (None, outcome.value):
                    # What was concluded of the item was concluded of another number of boxes.
                    self.refused.discard(self.item.code)
                    self.dear.discard(self.item.code)
                self.boxes, self.inputs["pack"] = outcome.value, given
            case "multiply":
                self.total, self.inputs["multiply"] = outcome.value, given
            case "order":
                self.ordered = True

    def forget_boxes(self) -> None:
        """Puts the working values aside that follow from the pieces and the item."""
        self.boxes = None
        self.inputs.pop("pack", None)
        self.forget_total()

    def forget_total(self) -> None:
        """Puts the working value aside that follows from the boxes and the price."""
        self.total = None
        self.inputs.pop("multiply", None)
