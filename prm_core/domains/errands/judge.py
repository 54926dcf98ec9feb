"""The exact judge of an agent's turns in the shop. Reached through `domains/oracle.py` alone: nothing that labels or
trains may import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prm_core.domains.errands.seen import Seen
from prm_core.domains.errands.tasks import CONSENT, Task, read_answer, task_of
from prm_core.domains.errands.team import CHECKER, PLANNER, RIGHT, SEND_BACK, read_plan, write_plan
from prm_core.domains.errands.world import Outcome, World
from prm_core.types import Problem, Step

NEEDED, REDUNDANT, WRONG = 1, 0, -1


def grade(problem: Problem, steps: Sequence[Step]) -> list[int]:
    """NEEDED, REDUNDANT or WRONG for each turn, given what stands before it.

    A call is wrong that cannot be read, or whose arguments nobody told the agent: words or an item that are not known
    to be wanted, an item that is no hit; an amount that was not said; numbers that no tool gave; so is an order before
    all that was left open is told and the price is known to be within the limit, of anything but what is wanted, or
    after another order. One whose arguments follow is needed where its result is not there yet, and redundant
    otherwise. A tool that fails for no reason of its own makes nothing wrong. The last answer is needed where it says
    what was found out, and wrong otherwise. Numbers that a wrong call gave may be worked on, so that consistent work
    after a mistake is judged by itself; whose number it is and what is wanted are facts, to which every turn is held.

    The calls of one turn are made before any of them has answered; the turn is as good as its worst call, and needed
    where one of them is. A run that stops without an answer is wrong at its last turn; after its end every turn is.
    What is said beside calls is no claim and is not judged.

    In a team the planner's plan is right where it says what is wanted, and all that was left open has been told. The
    worker is held to the plan or to the errand, whichever its turn follows from, so that who works by a wrong plan errs
    as little as who sees through it; it has no plan to go by where that says nothing. The checker is right to let the
    run end where it has ended as the errand wants it and the answer says what was found out, and to send the worker
    back otherwise. Who calls a tool that is not theirs is wrong.

    Rules are no part of this: what they forbid may be a right turn of the errand (`conduct`). Under them consent is
    needed once where something is ordered, names in a search change nothing, and what is sent is never needed.
    """
    world = World(task_of(problem))
    # What the worker knows, of the errand and of what the plan makes of it.
    views = [Seen(world.task)]
    grades = []
    for step in steps:
        over, speaker, answer = world.ended, world.speaker, world.answer
        earned = world.right and views[0].says(answer)
        _, outcomes = world.turn(step)
        if over:
            grades.append(WRONG)
        elif step.calls:
            grades.append(_grade_calls(views, outcomes))
            for seen in views:
                seen.hear(outcomes)
        elif speaker == PLANNER:
            plan = read_plan(world.task, step.text)
            grades.append(NEEDED if views[0].complete and plan == _plan(world.task) else WRONG)
            views += [Seen(plan)] if plan is not None else []
        elif speaker == CHECKER:
            grades.append(NEEDED if step.text.strip() == (RIGHT if earned else SEND_BACK) else WRONG)
            for seen in views:
                seen.ordered = seen.ordered and not world.sent_back
        else:
            grades.append(NEEDED if any(seen.says(read_answer(step.text)) for seen in views) else WRONG)
    if steps and not world.closed:
        grades[-1] = WRONG
    return grades


def _plan(task: Task) -> Task | None:
    """The task as the right plan has it."""
    return read_plan(task, write_plan(task))


def _grade_calls(views: Sequence[Seen], outcomes: Sequence[Outcome]) -> int:
    """The grade of a turn's calls, each from the view that it follows from best."""
    made: list[tuple[str, dict[str, Any]]] = []
    found = []
    for outcome in outcomes:
        found.append(max(_grade_call(seen, outcome.name, outcome.arguments, made) for seen in views))
        if outcome.arguments is not None:
            made.append((outcome.name, outcome.arguments))
    return WRONG if WRONG in found else max(found)


def _grade_call(
    seen: Seen, name: str, arguments: dict[str, Any] | None, made: Sequence[tuple[str, dict[str, Any]]]
) -> int:
    """The grade of a call; `made` are those made before it in the same turn."""
    if arguments is None:
        return WRONG
    again = (name, arguments) in made
    if name == "order":
        return NEEDED if not again and _may_order(seen, **arguments) else WRONG
    needed = _GRADES[name](seen, **arguments)
    return WRONG if needed is None else NEEDED if needed and not again else REDUNDANT


def _may_order(seen: Seen, item: str, boxes: int) -> bool:
    wanted = seen.candidate
    return (
        seen.task.goal == "order" and not seen.ordered and seen.complete and wanted is not None
        and wanted == seen.item and wanted.code == item and seen.boxes == boxes and seen.affordable
    )


# For each other tool: whether its result is needed; None where its arguments do not follow from what was seen.


def _ask(seen: Seen, about: str) -> bool | None:
    return about not in seen.told and (about != CONSENT or seen.task.goal == "order")


def _search(seen: Seen, words: str) -> bool | None:
    asked = set(words.split()) - set(seen.task.people)
    found = [item for item in seen.task.wanted if {item.color, item.thing} == asked]
    if "color" not in seen.told or not found:
        return None
    return seen.task.goal != "unit" and found == [seen.candidate] and found[0].code not in seen.shown


def _look(seen: Seen, item: str) -> bool | None:
    if item not in seen.shown or "color" not in seen.told or item not in {one.code for one in seen.task.wanted}:
        return None
    return seen.candidate is not None and seen.candidate.code == item and seen.candidate != seen.item


def _convert(seen: Seen, amount: int, unit: str) -> bool | None:
    task = seen.task
    if "amount" not in seen.told or (amount, unit) != (task.amount, task.unit):
        return None
    return seen.inputs.get("convert") != (amount, unit)


def _pack(seen: Seen, pieces: int, box: int) -> bool | None:
    if seen.item is None or (pieces, box) != (seen.pieces, seen.item.box):
        return None
    return seen.item == seen.candidate and seen.inputs.get("pack") != (pieces, box)


def _multiply(seen: Seen, a: int, b: int) -> bool | None:
    if seen.item is None or seen.boxes is None or sorted((a, b)) != sorted((seen.boxes, seen.item.price)):
        return None
    known = seen.inputs.get("multiply")
    return seen.needs_total and seen.item == seen.candidate and (known is None or sorted(known) != sorted((a, b)))


def _send(seen: Seen, words: str) -> bool | None:
    return False


_GRADES = {"ask": _ask, "search": _search, "look": _look, "convert": _convert, "pack": _pack, "multiply": _multiply,
           "send": _send}
