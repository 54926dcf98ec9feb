"""What every tool does and says, noise, how a run ends, and that whatever an agent writes gets its reply."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains.errands.problems import LEVELS, draw_problem, shifts
from prm_core.domains.errands.tools import TOOLS
from prm_core.domains.errands.world import ASTRAY, FAILURES, MOST_TURNS, NOISY, World, reply, speaker, succeeded
from prm_core.platform.steps import parse_steps
from prm_core.types import Call, Message, Problem, Step
from tests.builders import errands
from tests.builders.errands import BLUE, CUPS, DONE, GREEN, RED, WORKED, call, problem, run

ANY_LEVEL = st.sampled_from([one for level in LEVELS.values() for one in (level, *shifts(level))])
SEEDS = st.integers(0, 10**9)


def one(step: Step, of: Problem | None = None, before: tuple[Step, ...] = ()) -> tuple[str | None, bool]:
    [answered] = reply(of or problem(), [*before, step]).step.calls
    return answered.result, answered.failed


@pytest.mark.parametrize(("step", "result", "failed"), [
    (call("ask", "color"), "asked", False),
    (call("search", "pens red"), '"pens red 31" exact', False),
    (call("search", "red  cups"), '"cups red 20" exact', False),
    (call("search", "hats red"), '"pens red 31" close', False),
    (call("search", "hats"), "nothing", True),
    (call("search", ""), "nothing", True),
    (call("look", RED), "price 4, box of 6", False),
    (call("look", "pens red 52"), "no such item", True),
    (call("convert", 2, "dozen"), "24 pieces", False),
    (call("convert", 5, "trios"), "15 pieces", False),
    (call("convert", 5, "pairs"), "10 pieces", False),
    (call("pack", 24, 6), "4 boxes", False),
    (call("pack", 25, 6), "5 boxes", False),
    (call("pack", 1, 6), "1 boxes", False),
    (call("multiply", 4, 5), "20", False),
    (call("multiply", 9999, 9999), "99980001", False),
    (call("order", RED, 4), "ordered", False),
    (call("order", RED, 9), "ordered", False),
    (call("order", RED, 10), "only 9 left", True),
    (call("order", BLUE, 3), "only 2 left", True),
    (call("order", "pens red 52", 1), "no such item", True),
    (Step("", calls=(Call("buy"),)), "no such tool", True),
    (Step("", calls=(Call("look", RED),)), "bad arguments", True),
])
def test_what_a_tool_says(step, result, failed):
    assert one(step) == (result, failed)


def test_stock_goes_down_with_every_order():
    assert one(call("order", RED, 6), before=(call("order", RED, 4),)) == ("only 5 left", True)
    assert one(call("order", RED, 5), before=(call("order", RED, 4), call("order", BLUE, 9))) == ("ordered", False)


@pytest.mark.parametrize(("about", "changes", "said"), [
    ("color", {}, "red"), ("amount", {}, "2 dozen"), ("amount", {"unit": ""}, "2"), ("limit", {}, "30 coins"),
    ("limit", {"limit": None}, "no limit"),
])
def test_the_user_answers(about, changes, said):
    answered = reply(problem(**changes), [call("ask", about)])

    assert answered.step.context == (Message("user", said),)
    assert not answered.ended


def test_a_tool_that_fails_works_when_it_is_called_again():
    of = problem(noise=errands.BUSY)
    assert one(call("look", RED), of) == ("busy", True)
    assert one(call("look", RED), of, (call("look", RED),)) == ("price 4, box of 6", False)
    # An order that failed was not placed.
    assert one(call("order", RED, 9), of, (call("order", RED, 9),)) == ("ordered", False)


def test_tools_fail_as_often_as_they_are_said_to_and_never_twice_in_a_row():
    failed = []
    for noise in range(300):
        heard = run(problem(noise=noise), [call("look", RED)] * 6)
        failed.append([step.calls[0].failed for step in heard])
    share = sum(first for first, *_ in failed) / len(failed)

    assert abs(share - FAILURES) < 0.05
    assert not any(one and two for row in failed for one, two in itertools.pairwise(row))
    for tool in set(TOOLS) - set(NOISY):
        arguments = {"ask": ("color",), "convert": (2, "dozen")}.get(tool, (2, 3))
        assert not any(one(call(tool, *arguments), problem(noise=noise))[1] for noise in range(50))


def test_a_search_finds_something_else_at_times_and_never_twice_in_a_row():
    first, wrong = Counter(), 0
    for noise in range(400):
        heard = run(problem(noise=noise), [call("search", "pens red")] * 4)
        found = [step.calls[0].result for step in heard if not step.calls[0].failed]
        first[found[0]] += 1
        wrong += any(RED not in one and RED not in two for one, two in itertools.pairwise(found))

    right = f'"{RED}" exact'
    assert set(first) == {right, *(f'"{code}" close' for code in (BLUE, GREEN, CUPS))}
    assert abs(first[right] / 400 - (1 - ASTRAY)) < 0.08
    assert wrong == 0


def test_a_run_ends_with_a_text_and_after_its_last_turn():
    assert reply(problem(), WORKED).ended
    assert not reply(problem(), WORKED[:-1]).ended
    assert reply(problem(), [Step("Well, let me see.")]).ended
    assert not reply(problem(), [call("look", RED)] * (MOST_TURNS - 1)).ended
    assert reply(problem(), [call("look", RED)] * MOST_TURNS).ended


def test_nothing_happens_after_the_end():
    steps = [*WORKED, call("order", RED, 1)]
    assert one(steps[-1], before=tuple(steps[:-1])) == ("over", True)
    assert succeeded(problem(), steps)
    assert not succeeded(problem(), [DONE, *WORKED])


@pytest.mark.parametrize(("steps", "success"), [
    (WORKED, True),
    (WORKED[:-1], False),
    ((), False),
    # However it came about.
    ((call("order", RED, 4), DONE), True),
    ((call("order", RED, 4), call("order", RED, 1), DONE), False),
    ((call("order", RED, 3), DONE), False),
    ((call("order", BLUE, 3), DONE), False),
    ((DONE,), False),
    ((Step("Not possible."),), False),
    ((call("order", RED, 4), Step("Not possible.")), False),
    ((call("order", RED, 4), Step("The answer is 16.")), False),
])
def test_success_is_in_the_orders_and_the_answer(steps, success):
    assert succeeded(problem(), steps) is success


@given(ANY_LEVEL, SEEDS)
def test_replies_of_any_prefix_are_those_of_the_run(level, seed):
    made = draw_problem(random.Random(seed), "p", level)
    steps = list(parse_steps(made.meta["solution"], "test"))

    for count, step in enumerate(steps, 1):
        bare = Step(step.text, agent=step.agent, calls=tuple(Call(c.name, c.arguments) for c in step.calls))
        assert speaker(made, steps[: count - 1]) == step.agent
        answered = reply(made, [*steps[: count - 1], bare])
        assert (answered.step, answered.ended) == (step, count == len(steps))


@given(st.lists(st.builds(Step, st.text(max_size=8), calls=st.lists(st.builds(
    Call, st.sampled_from([*TOOLS, "buy", ""]),
    st.text(max_size=9) | st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                                       lambda inner: st.dictionaries(st.sampled_from(
                                           ["item", "boxes", "a", "b", "word", "about", "amount", "unit"]), inner)
                                       ).map(json.dumps)), max_size=3).map(tuple)),
    min_size=1, max_size=5))
def test_whatever_is_written_gets_a_reply(steps):
    heard = run(problem(), steps)

    for step, answered in zip(steps, heard, strict=True):
        assert [(c.name, c.arguments) for c in answered.calls] == [(c.name, c.arguments) for c in step.calls]
        assert all(c.result is not None for c in answered.calls)
    assert succeeded(problem(), heard) in (True, False)


def test_what_was_heard_before_is_not_what_counts():
    """The state is rebuilt of what the agent wrote."""
    told = [Step("", calls=(Call("order", '{"item": "pens red 31", "boxes": 9}', "refused", failed=True),)), DONE]
    assert reply(problem(), told[:1]).step.calls[0] == Call("order", '{"item": "pens red 31", "boxes": 9}', "ordered")


def test_calls_of_one_turn_are_made_in_order():
    world = World(errands.TASK)
    step, outcomes = world.turn(Step("", calls=(*WORKED[1].calls, *WORKED[2].calls)))
    assert (world.calls, world.turns) == (2, 1)
    assert [outcome.value for outcome in outcomes] == [RED, RED]
    assert [c.result for c in step.calls] == ['"pens red 31" exact', "price 4, box of 6"]
