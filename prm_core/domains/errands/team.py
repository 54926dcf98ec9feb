"""A team on an errand: who there is, which tools each has, and what a planner and a checker say.

The planner asks about what is open and states a plan; the worker does it and answers; the checker lets the run end or
sends the worker back, once. Who is next follows from the turns, whatever name stands at them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from prm_core.domains.errands.tasks import UNITS, Task
from prm_core.domains.errands.tools import TOOLS

PLANNER, WORKER, CHECKER = "planner", "worker", "checker"
DUTIES = {PLANNER: ("ask",), WORKER: tuple(name for name in TOOLS if name != "ask"), CHECKER: ()}
NOT_YOURS = "not yours"
# What the checker says: that the run may end, or that the worker is to go on.
RIGHT, SEND_BACK = "Right.", "Wrong."

_AMOUNT = rf"([1-9]\d{{0,3}})(?: ({'|'.join(UNITS)}))?"
_NAME = '"([a-z]+) ([a-z]+)"'
_PLANS = {
    "order": re.compile(rf"Order {_AMOUNT} {_NAME}(?:, else {_NAME})?(?:, at most ([1-9]\d{{0,4}}) coins)?\."),
    "price": re.compile(rf"Price of {_AMOUNT} {_NAME}\."),
    "unit": re.compile(rf"Count {_AMOUNT}\."),
}


def write_plan(task: Task) -> str:
    """The plan that says what the task wants."""
    amount, first = task.said_amount, f'"{task.thing} {task.colors[0]}"'
    if task.goal == "unit":
        return f"Count {amount}."
    if task.goal == "price":
        return f"Price of {amount} {first}."
    others = "".join(f', else "{task.thing} {color}"' for color in task.colors[1:])
    limit = "" if task.limit is None else f", at most {task.limit} coins"
    return f"Order {amount} {first}{others}{limit}."


def read_plan(task: Task, text: str) -> Task | None:
    """The task as a plan has it, with nothing left open; None for a text that is no plan."""
    goal, found = next(((goal, found) for goal, plan in _PLANS.items() if (found := plan.fullmatch(text.strip()))),
                       ("", None))
    if found is None:
        return None
    amount, unit, *named = found.groups()
    planned = replace(task, goal=goal, amount=int(amount), unit=unit or "", limit=None, open=())
    if goal == "unit":
        return planned
    thing, color, *more = named
    planned = replace(planned, thing=thing, colors=(color,))
    if goal == "price":
        return planned
    other_thing, other, limit = more
    if other is not None and (other_thing != thing or other == color):
        return None
    return replace(planned, colors=(color,) if other is None else (color, other),
                   limit=None if limit is None else int(limit))
