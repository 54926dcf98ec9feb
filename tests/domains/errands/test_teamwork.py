"""Worked solutions of a team: where somebody slips, that turn alone is wrong, and the run ends well."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains import DOMAINS
from prm_core.domains.errands.judge import grade
from prm_core.domains.errands.problems import TEAM, draw_task, shifts
from prm_core.domains.errands.tasks import to_meta
from prm_core.domains.errands.team import CHECKER, PLANNER, WORKER
from prm_core.domains.errands.teamwork import SLIPS, solve_as_team
from prm_core.domains.errands.world import succeeded
from prm_core.platform.steps import parse_steps
from prm_core.types import Problem, Step
from tests.builders.errands import TASK

WHO = {"plan": PLANNER, "call": WORKER, "answer": WORKER, "check": CHECKER}
MADE = DOMAINS["errands"].levels["team"]("train", 600, 0, ())


@given(st.sampled_from([TEAM, *shifts(TEAM)]), st.integers(0, 10**9), st.sampled_from(["", *SLIPS]))
def test_who_slips_is_put_right(level, seed, slip):
    rng = random.Random(seed)
    task = draw_task(rng, level)
    steps, slipped = solve_as_team(task, rng, slip)
    of = Problem("p", "errands", "", task.ending()[1], {"task": to_meta(task)})

    grades = grade(of, steps)
    if slipped is not None:
        assert (steps[slipped].agent, slip in SLIPS) == (WHO[slip], True)
        assert [index for index, value in enumerate(grades) if value < 0] == [slipped]
        assert succeeded(of, steps)
    elif not slip:
        assert (set(grades), succeeded(of, steps)) == ({1}, True)
        assert steps[-1] == Step("Right.", agent=CHECKER)


def test_a_slip_is_gone_on_from_until_the_checker_speaks():
    task = replace(TASK, goal="price", colors=("red",), open=(), limit=None, team=True)
    for seed in range(20):
        steps, slipped = solve_as_team(task, random.Random(seed), "plan")
        said = [step.text for step in steps]
        assert slipped == 0
        assert said[0] != 'Price of 2 dozen "pens red".'
        # Of another unit or amount the boxes may cost the same.
        assert (said[-1] == "Right.") is ("Wrong." not in said)
        assert steps[-1].text in ("The answer is 16.", "Right.")


@pytest.mark.parametrize("slip", SLIPS)
def test_problems_have_slips_of_every_kind(slip):
    kinds = Counter()
    for problem in MADE:
        steps = parse_steps(problem.meta["solution"], problem.id)
        for index in problem.meta.get("mistakes", ()):
            step = steps[index]
            kinds[step.agent, bool(step.calls)] += 1
    assert kinds[WHO[slip], slip == "call"] >= 20
    assert 0.15 < sum(kinds.values()) / len(MADE) < 0.4
