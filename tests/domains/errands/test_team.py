"""A team on an errand: who is next, who may call what, what plans say, and what the oracle thinks of each role."""

from __future__ import annotations

import pytest

from prm_core.domains import DOMAINS
from prm_core.domains.errands.judge import grade
from prm_core.domains.errands.tasks import task_of, to_meta
from prm_core.domains.errands.team import CHECKER, DUTIES, PLANNER, WORKER, read_plan, write_plan
from prm_core.domains.errands.tools import TOOLS
from prm_core.domains.errands.world import TEAM_TURNS, reply, speaker, succeeded
from prm_core.types import Problem, Step
from tests.builders import errands
from tests.builders.errands import (
    ACCEPT,
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
    PLAN,
    RED,
    SEARCH,
    SEND_BACK,
    SPEAKERS,
    TEAM_WORKED,
    call,
    run,
)

# The worker's turns of the worked solution.
WORK = TEAM_WORKED[2:-1]
TOLD = {"open": ()}
PRICE = {"goal": "price", "limit": None, "colors": ("red",), **TOLD}
PRICED = Step('Price of 2 dozen "pens red".')
PRICES = (SEARCH, LOOK, CONVERT, PACK, MULTIPLY, Step("The answer is 16."))
# 24 pens green: 6 boxes of 4 at 5 coins.
GREENS = (call("search", "pens green"), call("look", GREEN), CONVERT, call("pack", 24, 4), call("multiply", 6, 5),
          Step("The answer is 30."))


def problem(**changes) -> Problem:
    return errands.problem(team=True, **changes)


def speakers(of: Problem, steps) -> list[str]:
    return [speaker(of, steps[:count]) for count in range(len(steps) + 1)]


def test_who_is_next_follows_from_the_turns():
    environment = DOMAINS["errands"].environment
    assert [environment.speaker(problem(), TEAM_WORKED[:count]) for count in range(len(TEAM_WORKED))] == list(SPEAKERS)
    assert reply(problem(), TEAM_WORKED).ended
    assert not reply(problem(), TEAM_WORKED[:-1]).ended
    assert succeeded(problem(), TEAM_WORKED)
    assert not succeeded(problem(), TEAM_WORKED[:-1])


def test_one_agent_has_no_name():
    assert speakers(errands.problem(), errands.WORKED) == [""] * (len(errands.WORKED) + 1)


def test_names_that_turns_have_change_nothing():
    named = [Step(step.text, agent=name, calls=step.calls) for step, name in zip(
        TEAM_WORKED, ["worker", "nobody", "", "worker", "worker", "planner", "a", "b", "c", "d"], strict=True)]
    assert speakers(problem(), named) == speakers(problem(), TEAM_WORKED)
    assert grade(problem(), named) == [1] * len(named)
    assert reply(problem(), named[:1]).step.agent == "worker"


def test_the_worker_goes_on_once_and_its_second_answer_ends_the_run():
    steps = (*TEAM_WORKED[:-1], SEND_BACK, ORDER, DONE)
    of = problem()
    assert speakers(of, steps)[-4:-1] == [CHECKER, WORKER, WORKER]
    assert reply(of, steps).ended
    assert not reply(of, steps[:-1]).ended
    # What was ordered first was called off, and could be ordered again.
    assert succeeded(of, steps)
    assert not succeeded(of, (*steps[:-2], DONE))
    assert run(of, steps)[-2].calls[0].result == "ordered"


def test_what_a_checker_says_ends_the_run_but_for_one_word():
    for text, ended in (("Right.", True), ("Hm.", True), (" Wrong.\n", False), ("Wrong", True)):
        assert reply(problem(), [*TEAM_WORKED[:-1], Step(text)]).ended is ended


def test_a_run_of_a_team_is_over_after_its_last_turn():
    assert not reply(problem(), [ASK] * (TEAM_TURNS - 1)).ended
    assert reply(problem(), [ASK] * TEAM_TURNS).ended
    assert not succeeded(problem(goal="unit", **TOLD), [
        *[ASK] * (TEAM_TURNS - 3), Step("Count 2 dozen."), CONVERT, Step("The answer is 24.")])


@pytest.mark.parametrize("role", [PLANNER, WORKER, CHECKER])
def test_each_role_has_its_own_tools(role):
    before = {PLANNER: (), WORKER: (ASK, PLAN), CHECKER: TEAM_WORKED[:-1]}[role]
    arguments = {"ask": ("color",), "convert": (2, "dozen"), "look": (RED,), "search": ("pens red",),
                 "order": (RED, 4)}
    for tool in TOOLS:
        steps = [*before, call(tool, *arguments.get(tool, (24, 6)))]
        refused = reply(problem(), steps).step.calls[0].result == "not yours"
        assert refused is (tool not in DUTIES[role])
        assert not refused or grade(problem(), [*steps, DONE, DONE, DONE])[len(before)] == -1
        assert speaker(problem(), steps) == role


@pytest.mark.parametrize(("changes", "text"), [
    ({}, PLAN.text), ({"limit": None}, 'Order 2 dozen "pens red", else "pens blue".'),
    ({"colors": ("red",)}, 'Order 2 dozen "pens red", at most 30 coins.'),
    ({"colors": ("red",), "limit": None, "unit": "", "amount": 7}, 'Order 7 "pens red".'),
    (PRICE, PRICED.text), ({"goal": "unit", "limit": None, **TOLD}, "Count 2 dozen."),
])
def test_a_plan_says_what_is_wanted(changes, text):
    task = task_of(problem(**changes))
    assert write_plan(task) == text
    planned = read_plan(task, f" {text}\n")
    assert write_plan(planned) == text
    assert (planned.items, planned.noise, planned.open) == (task.items, task.noise, ())
    assert (planned.goal, planned.amount, planned.unit, planned.limit) == (
        task.goal, task.amount, task.unit, task.limit)
    assert task.goal == "unit" or planned.colors == task.colors


@pytest.mark.parametrize("text", [
    "", "Order pens.", 'Order 2 dozen "pens red"', 'Order 0 "pens red".', 'Order 2 boxes "pens red".',
    'Order 2 "pens red", else "cups red".', 'Order 2 "pens red", else "pens red".',
    'Order 2 "pens red", at most 0 coins.', 'Price of 2 "pens red", at most 3 coins.',
    "Count dozen.", "Count 2 dozen pens.", "Done.", 'order 2 "pens red".',
])
def test_what_is_no_plan(text):
    assert read_plan(errands.TASK, text) is None


# 24 pieces: 4 boxes of 6 pens red at 4 coins; 3 boxes of 8 pens blue at 3 coins, 2 of them left.
RUNS = {
    "worked": ({}, TEAM_WORKED, [1] * 10),
    "a plan before all is told": ({}, (PLAN, *TEAM_WORKED[2:]), [-1, *[1] * 8]),
    "asked twice": ({}, (ASK, *TEAM_WORKED), [1, 0, *[1] * 9]),
    "a plan that is none, and work by the errand": (
        {}, (ASK, Step("Buy pens."), *TEAM_WORKED[2:]), [1, -1, *[1] * 8]),
    "a wrong plan, followed and sent back, then worked by the errand": (
        PRICE, (Step('Price of 2 dozen "pens green".'), *GREENS, SEND_BACK, *PRICES[:3], PACK, MULTIPLY, PRICES[-1]),
        [-1, *[1] * 6, 1, 1, 1, 0, *[1] * 3]),
    "a wrong plan, followed and let pass": (
        PRICE, (Step('Price of 2 dozen "pens green".'), *GREENS, ACCEPT), [-1, *[1] * 6, -1]),
    "a wrong plan that the worker sees through": (
        PRICE, (Step('Price of 2 dozen "pens green".'), *PRICES, ACCEPT), [-1, *[1] * 7]),
    "a wrong plan, half followed": (
        {**PRICE, "goal": "order"}, (
            Step('Order 2 dozen "pens green".'), SEARCH, LOOK, CONVERT, PACK, call("order", GREEN, 6), DONE, ACCEPT),
        [-1, 1, 1, 1, 1, -1, 1, -1]),
    "a right plan, not followed": (
        PRICE, (PRICED, *GREENS, SEND_BACK), [1, -1, -1, 1, 0, 0, -1, -1]),
    "a plan for what is not on the shelf": (
        {**PRICE, "goal": "order"}, (
            Step('Order 2 dozen "pens white".'), call("search", "pens white"), IMPOSSIBLE, SEND_BACK, SEARCH, LOOK,
            CONVERT, PACK, ORDER, DONE),
        # The search has shown the pens red.
        [-1, 1, 1, 1, 0, 1, 1, 1, 1, 1]),
    "a plan for what is not on the shelf, given up at once": (
        PRICE, (Step('Price of 2 dozen "pens white".'), IMPOSSIBLE, SEND_BACK, *PRICES),
        [-1, -1, 1, *[1] * 6]),
    "a plan without the limit, followed": (
        TOLD, (Step('Order 2 dozen "pens red", else "pens blue".'), SEARCH, LOOK, CONVERT, PACK, ORDER, DONE, ACCEPT),
        [-1, *[1] * 7]),
    "a plan without a limit that would have spoken against it": (
        {**TOLD, "limit": 15, "colors": ("red",)},
        (Step('Order 2 dozen "pens red".'), SEARCH, LOOK, CONVERT, PACK, ORDER, DONE, SEND_BACK, MULTIPLY, IMPOSSIBLE),
        [-1, *[1] * 9]),
    "a wrong call, let pass": (
        PRICE, (PRICED, SEARCH, LOOK, call("convert", 2, "pairs"), call("pack", 4, 6), call("multiply", 1, 4),
                Step("The answer is 4."), ACCEPT),
        [1, 1, 1, -1, 1, 1, 1, -1]),
    "a wrong call, sent back and put right": (
        PRICE, (PRICED, SEARCH, LOOK, call("convert", 2, "pairs"), call("pack", 4, 6), call("multiply", 1, 4),
                Step("The answer is 4."), SEND_BACK, CONVERT, PACK, MULTIPLY, PRICES[-1]),
        [1, 1, 1, -1, *[1] * 8]),
    "a wrong answer, let pass": (PRICE, (PRICED, *PRICES[:-1], Step("The answer is 15."), ACCEPT), [*[1] * 6, -1, -1]),
    "a right answer, sent back and said again": (PRICE, (PRICED, *PRICES, SEND_BACK, PRICES[-1]), [*[1] * 7, -1, 1]),
    "an order called off and forgotten": (
        {}, (*TEAM_WORKED[:-1], SEND_BACK, DONE), [*[1] * 9, -1, -1]),
    "given up without a try, sent back": (
        {**PRICE, "goal": "order"}, (
            Step('Order 2 dozen "pens red".'), IMPOSSIBLE, SEND_BACK, SEARCH, LOOK, CONVERT, PACK, ORDER, DONE),
        [1, -1, *[1] * 7]),
    "a guess that is right is not let pass": (
        PRICE, (PRICED, PRICES[-1], ACCEPT), [1, -1, -1]),
    "a guess that is right, sent back": (
        PRICE, (PRICED, PRICES[-1], SEND_BACK, *PRICES), [1, -1, 1, *[1] * 6]),
    "a checker who says something else": ({}, (*TEAM_WORKED[:-1], Step("Hm.")), [*[1] * 9, -1]),
    "a checker who works": ({}, (*TEAM_WORKED[:-1], SEARCH, ACCEPT), [*[1] * 9, -1, 1]),
    "a planner who works": ({}, (ASK, SEARCH, *TEAM_WORKED[1:]), [1, -1, *[1] * 9]),
    "a worker who asks": ({}, (ASK, PLAN, ASK, *TEAM_WORKED[2:]), [1, 1, -1, *[1] * 8]),
    "nobody checks": ({}, TEAM_WORKED[:-1], [*[1] * 8, -1]),
    "nobody works": ({}, TEAM_WORKED[:2], [1, -1]),
    "no answer after it was sent back": ({}, (*TEAM_WORKED[:-2], IMPOSSIBLE, SEND_BACK, ORDER), [*[1] * 8, -1, 1, -1]),
    "goes on after the end": ({}, (*TEAM_WORKED, LOOK), [*[1] * 10, -1]),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_role_is_judged(name):
    changes, steps, grades = RUNS[name]
    assert grade(problem(**changes), steps) == grades


@pytest.mark.parametrize(("name", "success"), [
    ("worked", True), ("a wrong plan, followed and let pass", False), ("a wrong call, sent back and put right", True),
    ("a wrong plan, followed and sent back, then worked by the errand", True), ("a wrong answer, let pass", False),
    ("a plan without the limit, followed", True), ("a guess that is right is not let pass", True),
    ("a plan without a limit that would have spoken against it", True), ("an order called off and forgotten", False),
    ("no answer after it was sent back", False), ("nobody checks", False),
])
def test_how_runs_of_a_team_end(name, success):
    changes, steps, _ = RUNS[name]
    assert succeeded(problem(**changes), steps) is success


def test_problems_of_one_agent_stay_as_they_were():
    assert "team" not in to_meta(errands.TASK)
    assert to_meta(task_of(problem()))["team"] is True
    assert not task_of(errands.problem()).team


def test_a_second_choice_is_looked_for_where_the_first_is_short():
    """The plan's second choice and the errand's are one."""
    of = problem(stock=3, amount=16, unit="", limit=None, **TOLD)
    plan = Step('Order 16 "pens red", else "pens blue".')
    steps = (plan, SEARCH, LOOK, call("pack", 16, 6), call("order", RED, 3), DONE, ACCEPT)
    assert (grade(of, steps), succeeded(of, steps)) == ([1] * 7, True)
    short = problem(stock=2, amount=16, unit="", limit=None, **TOLD)
    steps = (*steps[:5], call("search", "pens blue"), call("look", BLUE), call("pack", 16, 8), call("order", BLUE, 2),
             DONE, ACCEPT)
    assert (grade(short, steps), succeeded(short, steps)) == ([1] * 11, True)
