"""A small shop: 2 dozen pens of an open color, else blue, for at most 30 coins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prm_core.domains.errands.tasks import NAME, Item, Task, prompt_of, to_meta
from prm_core.domains.errands.tools import TOOLS, make_call
from prm_core.domains.errands.world import reply
from prm_core.types import Problem, Step

# Noise with which no tool fails, and with which the first call does (and, tried apart, the next two).
CALM, BUSY = 31, 7
ITEMS = (Item(31, "red", "pens", 4, 6, 9), Item(52, "blue", "pens", 3, 8, 2), Item(74, "green", "pens", 5, 4, 9),
         Item(20, "red", "cups", 4, 6, 9))
RED, BLUE, GREEN, CUPS = (item.code for item in ITEMS)
TASK = Task("order", "pens", ("red", "blue"), 2, "dozen", 30, ("color",), ITEMS, CALM)


def problem(**changes: Any) -> Problem:
    """The shop's problem; `stock` is of the pens red, other changes are of the task."""
    stock = changes.pop("stock", None)
    task = replace(TASK, **changes)
    if stock is not None:
        task = replace(task, items=(replace(task.items[0], stock=stock), *task.items[1:]))
    return Problem("p", NAME, prompt_of(task, "Mia", "Ben"), task.ending()[1], {"task": to_meta(task)})


def call(name: str, *values: Any) -> Step:
    """A turn that calls a tool, its arguments in the order of their definition."""
    return Step("", calls=(make_call(name, **dict(zip(TOOLS[name][1], values, strict=True))),))


def run(of: Problem, steps: Sequence[Step]) -> list[Step]:
    """The turns with what was heard, one reply at a time."""
    heard: list[Step] = []
    for step in steps:
        heard.append(reply(of, [*heard, step]).step)
    return heard


ASK, SEARCH, LOOK = call("ask", "color"), call("search", "pens red"), call("look", RED)
CONVERT, PACK = call("convert", 2, "dozen"), call("pack", 24, 6)
MULTIPLY, ORDER = call("multiply", 4, 4), call("order", RED, 4)
DONE, IMPOSSIBLE = Step("Done."), Step("Not possible.")
WORKED = (ASK, SEARCH, LOOK, CONVERT, PACK, MULTIPLY, ORDER, DONE)
# A team's: the planner asks and plans, the worker does it, the checker lets it end or sends it back.
PLAN = Step('Order 2 dozen "pens red", else "pens blue", at most 30 coins.')
ACCEPT, SEND_BACK = Step("Right."), Step("Wrong.")
TEAM_WORKED = (ASK, PLAN, *WORKED[1:], ACCEPT)
SPEAKERS = (*["planner"] * 2, *["worker"] * 7, "checker")
