"""Worked solutions of a team, in some of which somebody slips: checkers learn from those, and workers to go on."""

from __future__ import annotations

import random
from dataclasses import replace

from prm_core.domains.errands.seen import Seen
from prm_core.domains.errands.solutions import next_step
from prm_core.domains.errands.tasks import DONE, IMPOSSIBLE, UNITS, Task, read_answer, write_answer
from prm_core.domains.errands.team import CHECKER, PLANNER, RIGHT, SEND_BACK, WORKER, read_plan, write_plan
from prm_core.domains.errands.tools import make_call, read_call
from prm_core.domains.errands.world import World
from prm_core.types import Call, Step

# Turns that may go wrong → how often they do: the plan, a call that works out or orders, the answer, the check.
SLIPS = {"plan": 2, "call": 2, "answer": 1, "check": 1}
# Share of the calls that may go wrong at which one does, where one is to.
SLIPPING = 0.5


def solve_as_team(task: Task, rng: random.Random, slip: str = "") -> tuple[list[Step], int | None]:
    """The turns of a team, and the index of the one that goes wrong, of the kind that `slip` names.

    After a slip the worker goes on from the plan or the numbers as they are, until the checker sends it back; what was
    right all along is only said again. None where nobody slipped, or it was not put right.
    """
    world, views, steps = World(task), [Seen(task)], []
    slipped: int | None = None
    while not world.ended:
        speaker, sent_back = world.speaker, world.sent_back
        step = next_turn(world, views[-1] if speaker == WORKER and not sent_back else views[0])
        wrong = _wrong(task, slip, speaker, step, rng) if slipped is None else None
        if wrong is not None:
            slipped, step = len(steps), wrong
        step, outcomes = world.turn(replace(step, agent=speaker))
        steps.append(step)
        for seen in views:
            seen.hear(outcomes)
        if speaker == PLANNER and not step.calls:
            views.append(Seen(read_plan(task, step.text) or task))
        elif speaker == CHECKER:
            _look_over(views[0])
    return steps, slipped if world.succeeded else None


def next_turn(world: World, seen: Seen) -> Step:
    """What is needed of whoever is next."""
    if world.speaker == CHECKER:
        return Step(RIGHT if world.right and seen.says(world.answer) else SEND_BACK)
    if world.speaker == PLANNER and seen.complete:
        return Step(write_plan(world.task))
    return next_step(seen)


def _look_over(seen: Seen) -> None:
    """Puts aside what does not follow, for a worker who was sent back to do it again."""
    task = seen.task
    seen.ordered = False
    if not task.unit:
        seen.pieces = task.amount
    elif seen.inputs.get("convert") != (task.amount, task.unit):
        seen.pieces = None
    if seen.item is None or seen.inputs.get("pack") != (seen.pieces, seen.item.box):
        seen.forget_boxes()
    elif seen.inputs.get("multiply") != (seen.boxes, seen.item.price):
        seen.forget_total()
    if seen.total is None:
        seen.dear.clear()


def _wrong(task: Task, slip: str, speaker: str, step: Step, rng: random.Random) -> Step | None:
    """What is done in place of a turn by who slips there; None where nobody does."""
    if step.calls:
        return _wrong_call(step.calls[0], rng) if slip == "call" else None
    if (slip, speaker) == ("plan", PLANNER):
        return Step(write_plan(_wrong_plan(task, rng)))
    if (slip, speaker) == ("check", CHECKER):
        return Step(SEND_BACK)
    if (slip, speaker) == ("answer", WORKER):
        answer = str(read_answer(step.text))
        return Step(write_answer({DONE: IMPOSSIBLE, IMPOSSIBLE: DONE}.get(answer) or str(_off(int(answer), rng))))
    return None


def _off(number: int, rng: random.Random) -> int:
    """Another number, not far from it."""
    return rng.choice([other for other in range(max(1, number - 4), number + 5) if other != number])


def _wrong_plan(task: Task, rng: random.Random) -> Task:
    """The task with something else in it that a plan says: the amount, the unit, the color or the limit."""
    changed = [replace(task, amount=_off(task.amount, rng))]
    if task.unit:
        changed.append(replace(task, unit=rng.choice([unit for unit in UNITS if unit != task.unit])))
    others = [item.color for item in task.items if item.thing == task.thing and item.color not in task.colors]
    if others and task.goal != "unit":
        changed.append(replace(task, colors=(rng.choice(others), *task.colors[1:])))
    if task.limit is not None:
        changed.append(replace(task, limit=_off(task.limit, rng)))
    return rng.choice(changed)


def _wrong_call(call: Call, rng: random.Random) -> Step | None:
    """The call with another number in it, where it has one and the draw says so."""
    arguments = read_call(call)
    assert isinstance(arguments, dict)
    numbers = [name for name, value in arguments.items() if isinstance(value, int)]
    if not numbers or rng.random() >= SLIPPING:
        return None
    chosen = rng.choice(numbers)
    return Step("", calls=(make_call(call.name, **arguments | {chosen: _off(arguments[chosen], rng)}),))
