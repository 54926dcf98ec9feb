"""prm_core/evaluation/stopping.py: what an alarm and a clean prefix did, worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from prm_core.evaluation.headline import promise_lines
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.stopping import (
    Runs,
    before_last_third,
    figures,
    fit,
    judged_runs,
    left_out,
    measure_alarm,
    measure_prefix,
    share_of_runs,
)
from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises
from prm_core.types import Step, Trajectory

# Sound, stopped falsely; sound; stopped after 1 of 3; stopped after 3 of 3; error never seen.
RUNS = Runs([[0.9, 0.1], [0.9, 0.9], [0.2, 0.9, 0.9], [0.9, 0.9, 0.1], [0.9, 0.9]], [-1, -1, 0, 1, 1], range(5))
ALARM, PREFIX = Alarm(0.05, 0.9, 99, 0.5), CleanPrefix(0.1, 0.9, 99, 0.5)


def test_an_alarm_by_hand():
    figures = measure_alarm(ALARM, RUNS)
    assert figures.false_alarms.value == 0.5
    assert figures.stopped.value == pytest.approx(2 / 3)
    assert figures.stopped_early.value == pytest.approx(1 / 3)
    # 0 of 3 and 1 of 3 lie before the last third, 1 of 2 does not.
    assert figures.failed_early.value == pytest.approx(2 / 3)
    assert figures.steps_saved == pytest.approx(2 / 8)


def test_a_clean_prefix_by_hand():
    figures = measure_prefix(PREFIX, RUNS)
    # Promised 1, 2, 0, 2, 2 of the clean 2, 2, 0, 1, 1.
    assert figures.broken.value == pytest.approx(2 / 5)
    assert figures.broken_promises.value == pytest.approx(2 / 4)
    assert figures.promised == pytest.approx(4 / 5)
    assert figures.steps_kept == pytest.approx(3 / 6)


def test_what_no_run_tells_is_not_a_number():
    figures = measure_alarm(ALARM, Runs(RUNS.scores[:2], [-1, -1], [0, 1]))
    assert not figures.stopped_early.defined
    assert math.isnan(figures.steps_saved)
    assert not measure_prefix(PREFIX, Runs([], [], [])).broken.defined


@pytest.mark.parametrize(("step", "steps", "early"), [
    (-1, 3, False), (0, 1, False), (0, 2, True), (1, 2, False), (1, 3, True), (2, 3, False), (2, 5, True),
    (3, 5, False), (3, 6, True),
])
def test_the_last_third_begins_after_two(step, steps, early):
    assert before_last_third(step, steps) is early


def test_the_interval_is_clopper_and_pearsons():
    # Their table: 2 of 20.
    found = share_of_runs([True] * 2 + [False] * 18, range(20))
    assert (found.value, found.low) == (0.1, pytest.approx(0.0123, abs=5e-5))
    assert found.high == pytest.approx(0.317, abs=5e-4)
    # None of n leaves 1 - 0.025 ** (1 / n) open.
    none = share_of_runs([False] * 50, range(50))
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 50)))
    every = share_of_runs([True] * 50, range(50))
    assert (every.low, every.high) == (pytest.approx(0.025 ** (1 / 50)), 1)


def test_runs_of_one_problem_narrow_nothing():
    once = share_of_runs([True, False, False, False], [0, 1, 2, 3])
    assert share_of_runs([True, False, False, False] * 5, [0, 1, 2, 3] * 5) == once


def chain(problem, scores, gold, **more):
    steps = tuple(Step("step") for _ in gold)
    trajectory = Trajectory(f"t{problem}", f"p{problem}", "policy", steps, None, None, 0)
    return Chain(problem, trajectory, gold, scores, **more)


def test_only_chains_that_can_be_judged_count():
    whole = chain(3, (0.9, 0.2), (True, False))
    without_gold = replace(whole, gold=None)
    others = [chain(0, (0.9,), (True, True)), chain(1, (0.9,), (True,), out_of_domain="unlike"),
              chain(2, None, (True,)), without_gold, chain(2, (), ())]
    assert judged_runs([*others, whole]) == Runs([(0.9, 0.2)], [1], [3])


def test_of_each_problem_one_chain_decides():
    # Of each problem: one that errs, one that is right and scores its number, and two that must not count.
    chains = [made for problem in range(60) for made in (
        chain(problem, (0.9, 0.2 + problem / 100), (True, False)),
        chain(problem, (0.9, 0.3 + problem / 100), (True, True)),
        chain(problem, (0.0, 0.0), (True, True)), chain(problem, (1.0, 1.0), (True, False)))]
    promises, reasons = fit(chains)
    # P(Binomial(60, 0.05) = 0) = 0.046 and P(… <= 1) = 0.19; P(Binomial(60, 0.1) <= 2) = 0.053 and P(… <= 3) = 0.137.
    assert promises == Promises(Alarm(0.05, 0.9, 60, 0.3), CleanPrefix(0.1, 0.9, 60, 0.2 + 0.57))
    assert not reasons


def test_chains_of_too_few_problems_promise_what_they_can():
    promises, reasons = fit([chain(problem, (0.9,), (True,)) for problem in range(44)] * 5)
    assert promises == Promises(None, CleanPrefix(0.1, 0.9, 44, None))
    assert list(reasons) == ["alarm"]
    assert "44 calibration runs that do not fail" in reasons["alarm"]
    assert list(fit([])[1]) == ["alarm", "prefix"]


def test_what_is_promised_is_told_beside_how_it_was_kept():
    runs = [chain(number, scores, [index != error for index in range(len(scores))])
            for number, (scores, error) in enumerate(zip(RUNS.scores, RUNS.first_errors, strict=True))]
    both = Promises(ALARM, PREFIX)
    alarm, prefix = promise_lines(both, figures(both, runs, "test"))
    assert alarm.startswith(
        "Alarm: a run is to stop after the first step that scores below 0.5. Of runs without a wrong step it stops at "
        "most 5 %, with confidence 90 %, fitted on 99 dev problems; of those on test problems it stopped 50.0 % (95 % "
        "interval 1.3 to 98.7), and of runs with a wrong step 66.7 % (")
    assert "on test problems it was 40.0 % (" in prefix
    assert prefix.endswith("Of the steps before first errors 50.0 % are promised.")
    assert promise_lines(Promises(), left_out({"alarm": "too few", "prefix": "fewer"})) == [
        "No alarm was fitted: too few.", "No clean prefix was fitted: fewer."]
    assert promise_lines(Promises(prefix=CleanPrefix(0.1, 0.9, 9, None)), {})[1].startswith(
        "Clean prefix: all steps are promised to be right.")
