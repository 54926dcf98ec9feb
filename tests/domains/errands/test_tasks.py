"""What an errand wants, how it is told, and how its answers read."""

from __future__ import annotations

import json

import pytest

from prm_core.domains.errands import tasks
from prm_core.domains.errands.tasks import task_of
from prm_core.errors import InputError
from prm_core.types import Problem
from tests.builders import errands


@pytest.mark.parametrize(("changes", "ending"), [
    # 24 pieces in boxes of 6 at 4 coins.
    ({}, (((errands.RED, 4),), "done")),
    ({"limit": 16}, (((errands.RED, 4),), "done")),
    ({"stock": 4}, (((errands.RED, 4),), "done")),
    # Of the second choice 3 boxes of 8 at 3 coins are wanted, and 2 are left.
    ({"limit": 15}, ((), "not possible")),
    ({"stock": 3}, ((), "not possible")),
    ({"stock": 3, "amount": 16, "unit": ""}, (((errands.RED, 3),), "done")),
    ({"stock": 2, "amount": 16, "unit": ""}, (((errands.BLUE, 2),), "done")),
    ({"stock": 2, "amount": 16, "unit": "", "colors": ("red",)}, ((), "not possible")),
    ({"stock": 0, "limit": None}, ((), "not possible")),
    ({"goal": "price", "limit": None, "stock": 0}, ((), "16")),
    ({"goal": "price", "limit": None, "amount": 25, "unit": ""}, ((), "20")),
    ({"goal": "unit", "amount": 7, "unit": "trios"}, ((), "21")),
])
def test_how_a_run_must_end(changes, ending):
    assert task_of(errands.problem(**changes)).ending() == ending


@pytest.mark.parametrize(("changes", "turned", "prompt"), [
    ({}, False, 'Mia: order 2 dozen "pens" of my color for Ben, else "pens blue", pay at most 30 coins.'),
    ({}, True, 'Mia: pay at most 30 coins, order 2 dozen "pens" of my color for Ben, else "pens blue".'),
    ({"open": ("amount", "limit")}, False,
     'Mia: order enough "pens red" for Ben, else "pens blue", pay at most my limit.'),
    ({"limit": None, "open": (), "unit": "", "colors": ("red",)}, False, 'Mia: order 2 "pens red" for Ben.'),
    ({"limit": None, "open": (), "unit": "", "colors": ("red",)}, True, 'Mia: for Ben order 2 "pens red".'),
    ({"goal": "price"}, False, 'Mia: what do 2 dozen "pens" of my color for Ben cost?'),
    ({"goal": "price"}, True, 'Mia: for Ben what do 2 dozen "pens" of my color cost?'),
    ({"goal": "unit"}, False, "Mia: how many pens are 2 dozen?"),
    ({"goal": "unit"}, True, "Mia: 2 dozen are how many pens?"),
])
def test_how_an_errand_is_told(changes, turned, prompt):
    assert tasks.prompt_of(task_of(errands.problem(**changes)), "Mia", "Ben", turned=turned) == prompt


def test_a_task_is_kept_as_json():
    problem = errands.problem()
    read = Problem("p", "errands", "", "", json.loads(json.dumps(problem.meta)))

    assert task_of(read) == errands.TASK


@pytest.mark.parametrize("meta", [{}, {"task": {}}, {"task": None},
                                  {"task": {**errands.problem().meta["task"], "x": 1}}])
def test_a_problem_without_a_task_is_named(meta):
    with pytest.raises(InputError, match="problem q: no task"):
        task_of(Problem("q", "errands", "", "", meta))


@pytest.mark.parametrize(("text", "answer"), [
    ("Done.", "done"), (" Not possible.\n", "not possible"), ("The answer is 16.", "16"), ("The answer is 016.", "16"),
    ("The answer is -1.", None), ("The answer is 16", None), ("Done", None), ("", None), ("It is done.", None),
])
def test_answers_are_read(text, answer):
    assert tasks.read_answer(text) == answer


@pytest.mark.parametrize("answer", ["done", "not possible", "16"])
def test_answers_are_written_and_read_back(answer):
    assert tasks.read_answer(tasks.write_answer(answer)) == answer


def test_answers_are_the_same_where_they_read_the_same():
    assert tasks.answer_classes(["done", "16", "done", "1"]) == [0, 1, 0, 2]
