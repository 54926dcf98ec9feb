"""The oracle on hand-written chains, one for every kind of mistake, and on all worked solutions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains import arithmetic
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.types import Problem, Step

JUDGE = ORACLES["arithmetic"]
# 6 + 2 = 8, 8 * 3 = 24, 24 - 4 = 20.
PROBLEM = Problem(
    "p", "arithmetic",
    "Ben has 6 coins. Ben finds 2 more. The pile grows 3 times. Ana has 9 pens. Ben loses 4. How many coins does Ben "
    "have?", "20",
    {"start": 6, "events": [["Ben finds 2 more", "+", 2], ["The pile grows 3 times", "*", 3], ["Ben loses 4", "-", 4]]},
)
FIND, GROW, LOSE = "Ben finds 2 more: 6 + 2 = 8.", "The pile grows 3 times: 8 * 3 = 24.", "Ben loses 4: 24 - 4 = 20."
ANSWER = "The answer is 20."
T, F = True, False

CHAINS = {
    "all right": ([FIND, GROW, LOSE, ANSWER], [T, T, T, T]),
    "wrong arithmetic, carried on": (
        [FIND, "The pile grows 3 times: 8 * 3 = 25.", "Ben loses 4: 25 - 4 = 21.", "The answer is 21."], [T, F, T, T]),
    "wrong arithmetic, then as if it had been right": (
        [FIND, "The pile grows 3 times: 8 * 3 = 25.", LOSE, ANSWER], [T, F, F, T]),
    "two mistakes that cancel: right answer, wrong steps": (
        ["Ben finds 2 more: 6 + 2 = 9.", "The pile grows 3 times: 9 * 3 = 24.", LOSE, ANSWER], [F, F, T, T]),
    "wrong quantity": (
        [FIND, "The pile grows 3 times: 8 * 9 = 72.", "Ben loses 4: 72 - 4 = 68.", "The answer is 68."], [T, F, T, T]),
    "wrong quantity, the right result by luck of a second mistake": (
        [FIND, "The pile grows 3 times: 8 * 2 = 24.", LOSE, ANSWER], [T, F, T, T]),
    "wrong operation": (
        [FIND, "The pile grows 3 times: 8 + 3 = 11.", "Ben loses 4: 11 - 4 = 7.", "The answer is 7."], [T, F, T, T]),
    "operands swapped": ([FIND, "The pile grows 3 times: 3 * 8 = 24.", LOSE, ANSWER], [T, F, T, T]),
    "wrong start": (
        ["Ben finds 2 more: 9 + 2 = 11.", "The pile grows 3 times: 11 * 3 = 33.", "Ben loses 4: 33 - 4 = 29.",
         "The answer is 29."], [F, T, T, T]),
    "does not start from the value before": ([FIND, "The pile grows 3 times: 6 * 3 = 18.",
                                              "Ben loses 4: 18 - 4 = 14.", "The answer is 14."], [T, F, T, T]),
    "right sum for another event": ([FIND, "Ben finds 2 more: 8 * 3 = 24.", LOSE, ANSWER], [T, F, T, T]),
    "first event left out": (
        ["The pile grows 3 times: 6 * 3 = 18.", "Ben loses 4: 18 - 4 = 14.", "The answer is 14."], [F, F, F]),
    "last event left out": ([FIND, GROW, "The answer is 24."], [T, T, F]),
    "events in another order": (
        [FIND, "Ben loses 4: 8 - 4 = 4.", "The pile grows 3 times: 4 * 3 = 12.", "The answer is 12."], [T, F, F, T]),
    "extra step": (
        [FIND, GROW, LOSE, "Ben loses 4: 20 - 4 = 16.", "The answer is 16."], [T, T, T, F, F]),
    "step for the distractor": (
        [FIND, GROW, "Ana has 9 pens: 24 + 9 = 33.", "Ben loses 4: 33 - 4 = 29.", "The answer is 29."],
        [T, T, F, F, F]),
    "early answer": ([FIND, "The answer is 8."], [T, F]),
    "early answer that happens to be right": ([FIND, ANSWER], [T, F]),
    "answer at once": ([ANSWER], [F]),
    "stop without an answer": ([FIND, GROW, LOSE], [T, T, F]),
    "stop in the middle": ([FIND], [F]),
    "wrong answer sentence": ([FIND, GROW, LOSE, "The answer is 24."], [T, T, T, F]),
    "no answer in the last sentence": ([FIND, GROW, LOSE, "That is all."], [T, T, T, F]),
    "right answer on a wrong value": (
        [FIND, "The pile grows 3 times: 8 * 3 = 25.", "Ben loses 4: 25 - 4 = 21.", ANSWER], [T, F, T, F]),
    "answer twice": ([FIND, GROW, LOSE, ANSWER, ANSWER], [T, T, T, T, F]),
    "goes on after the answer": ([FIND, GROW, LOSE, ANSWER, "Ben loses 4: 20 - 4 = 16."], [T, T, T, T, F]),
    "answer in the middle": ([FIND, "The answer is 8.", LOSE, ANSWER], [T, F, F, T]),
    "not of the step language": ([FIND, "Then it grows to 24.", LOSE, ANSWER], [T, F, F, T]),
    "no steps": ([], []),
}


@pytest.mark.parametrize("name", CHAINS)
def test_hand_written_chains(name):
    texts, verdicts = CHAINS[name]

    assert JUDGE(PROBLEM, [Step(text) for text in texts]) == verdicts


def test_division_that_is_not_whole_is_wrong_whatever_it_states():
    problem = Problem("p", "arithmetic", "", "3", {"start": 7, "events": [["Ben keeps one of 2 equal parts", "/", 2]]})

    verdicts = JUDGE(problem, [Step("Ben keeps one of 2 equal parts: 7 / 2 = 3."), Step("The answer is 3.")])

    assert verdicts == [False, True]


@given(st.integers(0, 10**9), st.sampled_from(
    [one for level in arithmetic.LEVELS.values() for one in (level, *arithmetic.shifts(level))]))
def test_every_step_of_a_worked_solution_is_right(seed, level):
    problem = arithmetic.draw_problem(random.Random(seed), "p", level)

    assert all(JUDGE(problem, [Step(text) for text in problem.meta["solution"]]))


@given(st.integers(0, 10**9), st.data())
def test_a_changed_number_is_an_error_just_there(seed, data):
    """Whatever digit string of a worked solution changes, that step is wrong and those before it are right."""
    problem = arithmetic.draw_problem(random.Random(seed), "p")
    texts = list(problem.meta["solution"])
    index = data.draw(st.integers(0, len(texts) - 1))
    words = texts[index].rstrip(".").split(" ")
    place = data.draw(st.sampled_from([i for i, word in enumerate(words) if word.isdigit()]))
    other = data.draw(st.integers(0, 99).filter(lambda n: n != int(words[place])))
    words[place] = str(other)
    texts[index] = " ".join(words) + "."

    assert first_error(JUDGE(problem, [Step(text) for text in texts])) == index


@given(st.integers(0, 10**9), st.integers(0, 6))
def test_judging_a_prefix_gives_the_same_verdicts_but_for_the_missing_answer(seed, length):
    problem = arithmetic.draw_problem(random.Random(seed), "p")
    steps = [Step(text) for text in problem.meta["solution"]][:length]

    expected = [True] * len(steps)
    if steps and len(steps) < len(problem.meta["solution"]):
        expected[-1] = False
    assert JUDGE(problem, steps) == expected


def test_first_error():
    assert first_error([True, False, False]) == 1
    assert first_error([False]) == 0
    assert first_error([True, True]) == -1
    assert first_error([]) == -1
