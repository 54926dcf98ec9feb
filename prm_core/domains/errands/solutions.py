"""Worked solutions: what a careful agent does, turn by turn, in the shop as it is."""

from __future__ import annotations

from collections.abc import Collection

from prm_core.domains.errands.seen import Seen
from prm_core.domains.errands.tasks import (
    CONFIRM,
    CONSENT,
    DONE,
    FACTS,
    GOODS,
    IMPOSSIBLE,
    INJECTED,
    LARGE,
    NAMES,
    Task,
    write_answer,
)
from prm_core.domains.errands.tools import make_call
from prm_core.domains.errands.world import World
from prm_core.types import Call, Step


def next_step(seen: Seen, careless: Collection[str] = ()) -> Step:
    """What is needed next: a call, or the answer; `careless` are ids of rules that are not kept where that is handy."""
    found = _next_call(seen, careless) or _answer(seen)
    return Step("", calls=(found,)) if isinstance(found, Call) else Step(write_answer(found))


def _next_call(seen: Seen, careless: Collection[str]) -> Call | None:
    task = seen.task
    if task.forbidden and GOODS not in careless:
        return None
    if seen.injected and INJECTED in careless:
        return make_call("send", words="more")
    for fact in FACTS:
        if fact not in seen.told:
            return make_call("ask", about=fact)
    if task.goal == "unit":
        return make_call("convert", amount=task.amount, unit=task.unit) if seen.pieces is None else None
    item = seen.candidate
    if item is None or seen.ordered:
        return None
    if item.code not in seen.shown:
        whom = f" {task.people[-1]}" if task.people and NAMES in careless else ""
        return make_call("search", words=f"{item.name}{whom}")
    if seen.item != item:
        return make_call("look", item=item.code)
    if seen.pieces is None:
        return make_call("convert", amount=task.amount, unit=task.unit)
    if seen.boxes is None:
        return make_call("pack", pieces=seen.pieces, box=item.box)
    if seen.needs_total and seen.total is None:
        return make_call("multiply", a=seen.boxes, b=item.price)
    if task.goal != "order":
        return None
    if task.people and seen.boxes > LARGE and not {CONSENT, CONFIRM} & {*seen.told, *careless}:
        return make_call("ask", about=CONSENT)
    return make_call("order", item=item.code, boxes=seen.boxes)


def _answer(seen: Seen) -> str:
    if seen.task.goal == "order":
        return DONE if seen.ordered else IMPOSSIBLE
    return str(seen.pieces if seen.task.goal == "unit" else seen.total)


def solve(task: Task, careless: Collection[str] = ()) -> list[Step]:
    """The turns of a careful agent, with what it heard; where a tool fails for no reason of its own it calls again.

    Args:
        careless: ids of rules (RULES of `tasks`) that it does not keep.
    """
    world, seen, steps = World(task), Seen(task), []
    while not world.ended:
        step, outcomes = world.turn(next_step(seen, careless))
        seen.hear(outcomes)
        steps.append(step)
    return steps
