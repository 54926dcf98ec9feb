"""The three values of every kind of turn, and what they have to do with success."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains.errands.judge import grade
from prm_core.domains.errands.problems import LEVELS, draw_problem, shifts
from prm_core.domains.errands.seen import Seen
from prm_core.domains.errands.tasks import FACTS, UNITS, Task, task_of
from prm_core.domains.errands.team import RIGHT, SEND_BACK, write_plan
from prm_core.domains.errands.teamwork import next_turn
from prm_core.domains.errands.tools import make_call
from prm_core.domains.errands.world import World, succeeded
from prm_core.domains.oracle import GRADERS, ORACLES, is_lucky
from prm_core.platform.steps import parse_steps
from prm_core.types import Call, Problem, Step
from tests.builders import errands
from tests.builders.errands import (
    ASK,
    BLUE,
    CONVERT,
    DONE,
    GREEN,
    IMPOSSIBLE,
    LOOK,
    MULTIPLY,
    ORDER,
    PACK,
    RED,
    SEARCH,
    WORKED,
    call,
    problem,
)

ANY_LEVEL = st.sampled_from([one for level in LEVELS.values() for one in (level, *shifts(level))])
SEEDS = st.integers(0, 10**9)
TOLD = {"open": ()}
PRICE = {"goal": "price", "limit": None, "colors": ("red",)}
OTHER = call("search", "pens blue")
PAIR = Step("", calls=(*SEARCH.calls, *CONVERT.calls))
# 24 pieces: 4 boxes of 6 pens red at 4 coins; 3 boxes of 8 pens blue at 3 coins, 2 of them left.
RUNS = {
    "worked": ({}, WORKED, [1] * 8),
    "in another order": ({}, (CONVERT, ASK, call("search", "red pens"), LOOK, PACK, MULTIPLY, ORDER, DONE), [1] * 8),
    "told without asking": (TOLD, WORKED[1:], [1] * 7),
    "asked though it was told": (TOLD, WORKED, [0, *[1] * 7]),
    "asked about what has nothing to do with it": ({"limit": None}, (ASK, call("ask", "limit"), SEARCH, DONE),
                                                  [1, 0, 1, -1]),
    "asked twice": ({}, (ASK, ASK, *WORKED[1:]), [1, 0, *[1] * 7]),
    "searched twice": ({}, (ASK, SEARCH, SEARCH, *WORKED[2:]), [1, 1, 0, *[1] * 6]),
    "searched for the second choice too early": (
        {}, (ASK, OTHER, *WORKED[1:]), [1, 0, *[1] * 7]),
    "searched for a color that nobody wants": (
        {}, (ASK, call("search", "pens green"), *WORKED[1:]), [1, -1, *[1] * 7]),
    "found something else, and searched again": (
        {"noise": 13, **TOLD}, (SEARCH, SEARCH, *WORKED[2:]), [1] * 8),
    "took what was found for what was meant": (
        {"noise": 13, **TOLD}, (SEARCH, call("look", GREEN), IMPOSSIBLE), [1, -1, -1]),
    "searched for no color": ({}, (ASK, call("search", "pens"), *WORKED[1:]), [1, -1, 0, *[1] * 6]),
    "searched for another thing": ({}, (ASK, call("search", "cups red"), *WORKED[1:]), [1, -1, *[1] * 7]),
    "looked at without a search": ({}, (ASK, LOOK, *WORKED[1:]), [1, -1, 1, 0, *[1] * 5]),
    "guessed a color, right by luck": ({}, WORKED[1:], [-1, -1, 1, 0, 0, -1, 1]),
    "guessed a color, then asked": ({}, (SEARCH, ASK, *WORKED[2:]), [-1, *[1] * 7]),
    "guessed an item, then asked": ({}, (SEARCH, LOOK, ASK, *WORKED[3:]), [-1, -1, *[1] * 6]),
    "looked at what is not wanted": (
        {}, (ASK, SEARCH, call("look", GREEN), LOOK, *WORKED[3:]), [1, 1, -1, *[1] * 6]),
    "worked on what is not wanted": (
        {}, (ASK, SEARCH, call("look", GREEN), CONVERT, call("pack", 24, 4), call("multiply", 6, 5),
             call("order", GREEN, 6), DONE), [1, 1, -1, 1, 0, 0, -1, 1]),
    "looked at the second choice too early": (
        {}, (ASK, OTHER, call("look", BLUE), *WORKED[1:]), [1, 0, 0, *[1] * 7]),
    "looked at the other and ordered the first": (
        {}, (ASK, SEARCH, LOOK, CONVERT, PACK, MULTIPLY, OTHER, call("look", BLUE), ORDER, DONE),
        [*[1] * 6, 0, 0, -1, 1]),
    "looked twice": ({}, (*WORKED[:3], LOOK, *WORKED[3:]), [1, 1, 1, 0, *[1] * 5]),
    "did not convert": ({}, (ASK, SEARCH, LOOK, PACK, MULTIPLY, ORDER, DONE), [1, 1, 1, -1, 1, 1, 1]),
    "took the wrong unit": (
        {}, (ASK, SEARCH, LOOK, call("convert", 2, "pairs"), call("pack", 4, 6), call("multiply", 1, 4),
             call("order", RED, 1), DONE), [1, 1, 1, -1, 1, 1, 1, 1]),
    "took the wrong unit and noticed": (
        {}, (ASK, SEARCH, LOOK, call("convert", 2, "pairs"), *WORKED[3:]), [1, 1, 1, -1, *[1] * 5]),
    "converted twice": ({}, (*WORKED[:4], CONVERT, *WORKED[4:]), [1, 1, 1, 1, 0, *[1] * 4]),
    "converted what needs none": ({"amount": 24, "unit": ""}, (ASK, SEARCH, LOOK, CONVERT, *WORKED[4:]),
                                  [1, 1, 1, -1, *[1] * 4]),
    "a wrong number that rounds to the same boxes": (
        {}, (*WORKED[:4], call("pack", 23, 6), *WORKED[5:]), [1, 1, 1, 1, -1, 1, 1, 1]),
    "a wrong number, and again the right one": (
        {}, (*WORKED[:4], call("pack", 25, 6), *WORKED[4:]), [1, 1, 1, 1, -1, 1, 1, 1, 1]),
    "a wrong number, worked on": (
        {}, (*WORKED[:4], call("pack", 42, 6), call("multiply", 7, 4), call("order", RED, 7), DONE),
        [1, 1, 1, 1, -1, 1, 1, 1]),
    "too dear by a wrong number, then put right": (
        {}, (*WORKED[:4], call("pack", 60, 6), call("multiply", 10, 4), *WORKED[4:]), [1, 1, 1, 1, -1, 1, 0, 1, 1, 1]),
    "packed without a look": ({}, (ASK, SEARCH, CONVERT, PACK, DONE), [1, 1, 1, -1, -1]),
    "packed twice": ({}, (*WORKED[:5], PACK, *WORKED[5:]), [*[1] * 5, 0, *[1] * 3]),
    "did not check the limit, right by luck": ({}, (*WORKED[:5], ORDER, DONE), [1, 1, 1, 1, 1, -1, 1]),
    "multiplied the other way round": (
        {"amount": 5, "unit": ""},
        (ASK, SEARCH, LOOK, call("pack", 5, 6), call("multiply", 4, 1), call("order", RED, 1), DONE), [1] * 7),
    "multiplied something else": ({}, (*WORKED[:5], call("multiply", 4, 6), MULTIPLY, ORDER, DONE),
                                  [*[1] * 5, -1, 1, 1, 1]),
    "multiplied twice": ({}, (*WORKED[:6], MULTIPLY, *WORKED[6:]), [*[1] * 6, 0, 1, 1]),
    "multiplied where there is no limit": ({"limit": None}, WORKED, [1, 1, 1, 1, 1, 0, 1, 1]),
    "ordered above the limit": ({"limit": 15}, WORKED, [1, 1, 1, 1, 1, 1, -1, 1]),
    "did not know the limit": ({"open": ("limit",)}, (*WORKED[1:],), [1, 1, 1, 1, 1, -1, 1]),
    "learned the limit late": ({"open": ("limit",)}, (*WORKED[1:6], call("ask", "limit"), ORDER, DONE), [1] * 8),
    "ordered too many": ({}, (*WORKED[:6], call("order", RED, 5), DONE), [1, 1, 1, 1, 1, 1, -1, 1]),
    "ordered twice": ({}, (*WORKED[:7], ORDER, DONE), [*[1] * 7, -1, 1]),
    "looked again after the order": ({}, (*WORKED[:7], LOOK, DONE), [*[1] * 7, 0, 1]),
    "ordered where a price was asked for": (PRICE, (*WORKED[:6], ORDER, Step("The answer is 16.")),
                                            [1, 1, 1, 1, 1, 1, -1, 1]),
    "refused, the second choice": (
        {"stock": 2, "amount": 16, "unit": "", "limit": None},
        (ASK, SEARCH, LOOK, call("pack", 16, 6), call("order", RED, 3), OTHER, call("look", BLUE),
         call("pack", 16, 8), call("order", BLUE, 2), DONE), [1] * 10),
    "refused, and tried again": (
        {"stock": 3, "limit": None}, (ASK, SEARCH, LOOK, CONVERT, PACK, ORDER, ORDER, DONE), [*[1] * 6, -1, -1]),
    "refused, and took what was left": (
        {"stock": 3, "limit": None}, (ASK, SEARCH, LOOK, CONVERT, PACK, ORDER, call("order", RED, 3), DONE),
        [*[1] * 6, -1, 1]),
    "refused, gave up before the second choice": (
        {"stock": 3, "limit": None}, (ASK, SEARCH, LOOK, CONVERT, PACK, ORDER, IMPOSSIBLE), [*[1] * 6, -1]),
    "refused, nothing else will do": (
        {"stock": 3, "limit": None, "colors": ("red",)},
        (ASK, SEARCH, LOOK, CONVERT, PACK, ORDER, IMPOSSIBLE), [1] * 7),
    "refused, and said done": (
        {"stock": 3, "limit": None, "colors": ("red",)}, (ASK, SEARCH, LOOK, CONVERT, PACK, ORDER, DONE),
        [*[1] * 6, -1]),
    "too dear, nothing else will do": ({"limit": 15, "colors": ("red",)}, (*WORKED[:6], IMPOSSIBLE), [1] * 7),
    "gave up at once": ({}, (IMPOSSIBLE,), [-1]),
    "done at once": ({}, (DONE,), [-1]),
    "a price": (PRICE, (*WORKED[:6], Step("The answer is 16.")), [1] * 7),
    "a price in the head": (PRICE, (*WORKED[:5], Step("The answer is 16.")), [1] * 5 + [-1]),
    "another price than was found": (PRICE, (*WORKED[:6], Step("The answer is 18.")), [1] * 6 + [-1]),
    "a price of something else": (
        PRICE, (ASK, SEARCH, call("look", GREEN), CONVERT, call("pack", 24, 4), call("multiply", 6, 5),
                Step("The answer is 30.")), [1, 1, -1, 1, 0, 0, -1]),
    "done where a price was asked for": (PRICE, (*WORKED[:6], DONE), [1] * 6 + [-1]),
    "pieces": ({"goal": "unit", **TOLD}, (CONVERT, Step("The answer is 24.")), [1, 1]),
    "pieces in the head": ({"goal": "unit", **TOLD}, (Step("The answer is 24."),), [-1]),
    "a search that nobody needs": ({"goal": "unit", **TOLD}, (SEARCH, CONVERT, Step("The answer is 24.")), [0, 1, 1]),
    "an amount that nobody said": ({"open": ("amount",)}, (CONVERT, call("ask", "amount"), CONVERT, SEARCH, DONE),
                                   [-1, 1, 0, 1, -1]),
    "an answer that is none": ({}, (*WORKED[:7], Step("I have ordered them.")), [*[1] * 7, -1]),
    "no answer": ({}, WORKED[:7], [*[1] * 6, -1]),
    "goes on after the end": ({}, (*WORKED, LOOK, DONE), [*[1] * 8, -1, -1]),
    "two calls at once": ({}, (ASK, PAIR, *WORKED[2:3], *WORKED[4:]), [1] * 7),
    "two calls at once, one redundant": ({}, (ASK, SEARCH, PAIR, LOOK, *WORKED[4:]), [1] * 8),
    "two calls at once, one twice": (
        {}, (ASK, replace(SEARCH, calls=SEARCH.calls * 2), *WORKED[2:]), [1, 1, *[1] * 6]),
    "the same order twice at once": ({}, (*WORKED[:6], replace(ORDER, calls=ORDER.calls * 2), DONE),
                                     [*[1] * 6, -1, 1]),
    "called before the other has answered": (
        {}, (ASK, replace(SEARCH, calls=(*SEARCH.calls, *LOOK.calls)), *WORKED[3:]), [1, -1, *[1] * 5]),
    "no such tool": ({}, (Step("", calls=(Call("buy"),)), *WORKED), [-1, *[1] * 8]),
    "bad arguments": ({}, (Step("", calls=(Call("ask", '{"about": "size"}'),)), *WORKED), [-1, *[1] * 8]),
    "failed for no reason of its own, called again": (
        {"noise": errands.BUSY, **TOLD}, (SEARCH, SEARCH, IMPOSSIBLE), [1, 1, -1]),
    "nothing": ({}, (), []),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_turn(name):
    changes, steps, grades = RUNS[name]

    assert grade(problem(**changes), steps) == grades


def test_the_oracle_takes_needed_and_redundant_turns_for_right():
    steps = (ASK, SEARCH, SEARCH, call("look", GREEN), DONE)

    assert GRADERS["errands"](problem(), steps) == [1, 1, 0, -1, -1]
    assert ORACLES["errands"](problem(), steps) == [True, True, True, False, False]


@pytest.mark.parametrize(("steps", "lucky"), [
    (WORKED, False), ((ASK, *WORKED), False), (WORKED[1:], True), ((SEARCH, call("look", GREEN), DONE), False),
])
def test_a_success_with_a_wrong_step_is_lucky(steps, lucky):
    of = problem()

    assert is_lucky(succeeded(of, steps), ORACLES["errands"](of, steps)) is lucky


@given(ANY_LEVEL, SEEDS)
def test_worked_solutions_are_needed_turn_by_turn_and_succeed(level, seed):
    made = draw_problem(random.Random(seed), "p", level)
    steps = parse_steps(made.meta["solution"], "test")

    mistakes = made.meta.get("mistakes", [])
    grades = grade(made, steps)
    assert [index for index, value in enumerate(grades) if value < 0] == mistakes
    assert min(grades) == 1 or mistakes
    assert succeeded(made, steps)
    assert not succeeded(made, steps[:-1])


def _any_step(rng: random.Random, task: Task) -> Step:
    """Something that an agent may write, more or less to the point."""
    item, other = (rng.choice(task.items) for _ in range(2))
    number = rng.choice([task.amount, task.pieces, item.box, item.price, rng.randint(1, 12)])
    return rng.choice([
        Step("", calls=(make_call("ask", about=rng.choice(FACTS)),)),
        Step("", calls=(make_call("search", words=item.name),)),
        Step("", calls=(make_call("look", item=item.code),)),
        Step("", calls=(make_call("convert", amount=number, unit=task.unit or rng.choice(list(UNITS))),)),
        Step("", calls=(make_call("pack", pieces=task.pieces, box=other.box),)),
        Step("", calls=(make_call("multiply", a=number, b=other.price),)),
        Step("", calls=(make_call("order", item=item.code, boxes=number),)),
        Step("Done."), Step("Not possible."), Step(f"The answer is {number}."),
        *([Step(RIGHT), Step(SEND_BACK), Step(write_plan(replace(task, amount=number)))] if task.team else []),
    ])


def _wander(made: Problem, rng: random.Random, strays: float) -> list[Step]:
    """A run of an agent that does what is needed next, or now and then something else."""
    world = World(task_of(made))
    seen, steps = Seen(world.task), []
    while not world.ended:
        stray = rng.random() < strays
        step, outcomes = world.turn(_any_step(rng, world.task) if stray else next_turn(world, seen))
        seen.hear(outcomes)
        seen.ordered = seen.ordered and bool(world.orders)
        steps.append(step)
    return steps


@given(ANY_LEVEL, SEEDS, st.sampled_from([0.1, 0.3, 0.6]))
def test_a_run_without_a_wrong_turn_succeeds(level, seed, strays):
    rng = random.Random(seed)
    made = draw_problem(rng, "p", level)
    steps = _wander(made, rng, strays)

    grades = grade(made, steps)
    assert len(grades) == len(steps)
    if min(grades) >= 0:
        assert succeeded(made, steps)


@given(ANY_LEVEL, SEEDS)
def test_a_prefix_is_judged_as_in_the_run_but_for_its_missing_answer(level, seed):
    rng = random.Random(seed)
    made = draw_problem(rng, "p", level)
    steps = _wander(made, rng, 0.3)
    grades = grade(made, steps)

    world = World(task_of(made))
    for count, step in enumerate(steps[:-1], 1):
        world.turn(step)
        assert grade(made, steps[:count]) == [*grades[: count - 1], grades[count - 1] if world.closed else -1]


def test_lucky_and_failing_runs_are_met():
    """The property above is not an empty one, nor is luck."""
    found = set()
    for seed in range(300):
        rng = random.Random(seed)
        made = draw_problem(rng, "p")
        steps = _wander(made, rng, 0.15)
        found.add((succeeded(made, steps), min(grade(made, steps))))

    assert found == {(True, 1), (True, 0), (True, -1), (False, -1)}
