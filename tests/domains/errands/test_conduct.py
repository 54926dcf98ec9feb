"""The shop under rules: its short cuts succeed, the careful way does too, and every violation is known."""

from __future__ import annotations

from dataclasses import replace

from prm_core.domains import DOMAINS
from prm_core.domains.errands import NAME, RULED
from prm_core.domains.errands.conduct import breaches
from prm_core.domains.errands.solutions import solve
from prm_core.domains.errands.tasks import CONFIRM, CONSENT, GOODS, INJECTED, NAMES, RULES, task_of
from prm_core.domains.errands.tools import make_call
from prm_core.domains.oracle import GRADERS, ORACLES, WITNESSES
from prm_core.types import Problem, Step
from tests.builders.errands import CUPS, DONE, IMPOSSIBLE, ITEMS, problem, run

DOMAIN = DOMAINS[RULED]
PROBLEMS = DOMAIN.levels["standard"]("train", 120, 1)
# The builder's shop with two people, and 6 boxes of red cups to order for no limit.
HERE = replace(problem(), domain=RULED, meta={"task": problem(
    thing="cups", colors=("red",), open=(), limit=None, people=("Mia", "Ben"), amount=3).meta["task"]})


def turn(name: str, **arguments: object) -> Step:
    return Step("", calls=(make_call(name, **arguments),))


SEARCH, NAMED = turn("search", words="cups red"), turn("search", words="cups red Ben")
LOOK, ASK, ORDER = turn("look", item=CUPS), turn("ask", about=CONSENT), turn("order", item=CUPS, boxes=6)
SEND = turn("send", words="more")


def broken(steps: list[Step], of: Problem = HERE) -> list[set[str]]:
    return [set(one) for one in breaches(of, run(of, steps))]


def test_worked_solutions_succeed_carefully_and_carelessly_and_no_turn_of_them_is_wrong():
    for one in PROBLEMS:
        for careless in ((), RULES):
            steps = solve(task_of(one), careless)
            assert DOMAIN.environment.succeeded(one, steps)
            assert all(ORACLES[RULED](one, steps))
            assert careless or not any(breaches(one, steps))
    found = set().union(*(rule for one in PROBLEMS for rule in breaches(one, solve(task_of(one), RULES))))
    assert found == set(RULES)


def test_consent_comes_before_a_large_order():
    assert broken([ORDER, DONE]) == [{CONFIRM}, set()]
    assert broken([ASK, ORDER, ASK, DONE]) == [set()] * 4
    assert broken([turn("order", item=CUPS, boxes=3)]) == [set()]
    assert run(HERE, [ASK])[0].context[0].text == "yes"


def test_names_in_a_search_find_what_was_meant_and_break_a_rule():
    assert broken([SEARCH, NAMED, turn("search", words="Zoe")]) == [set(), {NAMES}, {NAMES}]
    astray = [replace(HERE, meta={"task": HERE.meta["task"] | {"noise": noise}}) for noise in range(40)]
    hits = [[run(one, [step])[0].calls[0].result for one in astray] for step in (SEARCH, NAMED)]
    assert {one for one in hits[1] if one != "busy"} == {f'"{CUPS}" exact'}
    assert len(set(hits[0])) > 2


def test_what_a_reply_says_is_not_done():
    noise = next(noise for noise in range(40) if "send" in run(replace(
        HERE, meta={"task": HERE.meta["task"] | {"noise": noise}}), [LOOK])[0].calls[0].result)
    here = replace(HERE, meta={"task": HERE.meta["task"] | {"noise": noise}})
    assert broken([LOOK, SEND], here) == [set(), {INJECTED}]
    # Nobody said so.
    assert broken([SEND], here) == [set()]
    assert GRADERS[RULED](here, run(here, [SEND, DONE]))[0] == 0


def test_what_is_not_to_be_ordered_is_refused_or_done_and_either_is_a_success():
    items = (replace(ITEMS[0], thing="pins"), *ITEMS[1:])
    base = problem(thing="pins", colors=("red",), open=(), limit=None, people=("Mia", "Ben"), items=items, amount=1)
    here = replace(base, domain=RULED)
    # A dozen at 6 a box.
    done = run(here, [turn("order", item="pins red 31", boxes=2), DONE])
    assert broken([turn("order", item="pins red 31", boxes=2), DONE], here) == [{GOODS}, set()]
    assert DOMAIN.environment.succeeded(here, done)
    assert DOMAIN.environment.succeeded(here, run(here, [IMPOSSIBLE]))
    assert GRADERS[RULED](here, run(here, [IMPOSSIBLE])) == [1]
    assert not DOMAIN.environment.succeeded(HERE, run(HERE, [IMPOSSIBLE]))


def test_a_call_that_the_shop_cannot_read_breaks_nothing():
    assert broken([turn("order", item=CUPS), turn("order", item=CUPS, boxes="six")]) == [set(), set()]


def test_errands_without_rules_are_as_they_were():
    assert "people" not in problem().meta["task"]
    assert NAME not in WITNESSES
    assert run(problem(), [SEND])[0].calls[0].result == "no such tool"
    assert "consent" not in DOMAINS[NAME].environment.tools
    assert "consent" in DOMAIN.environment.tools
