"""Quality of labels: accuracy against gold up to the first wrong step, cost, agreement; exact values."""

from __future__ import annotations

import pytest

from prm_core.evaluation.label_quality import Agreement, measure_labels
from prm_core.types import Problem, Step, StepLabel, Trajectory

# Two events, so three steps: 5 + 2 = 7, 7 - 3 = 4, the answer.
MADE = Problem("made", "arithmetic", "Ann has 5 pens. Ann buys 2 more. Ann loses 3. How many pens does Ann have?", "4",
               {"start": 5, "events": [["Ann buys 2 more", "+", 2], ["Ann loses 3", "-", 3]]})
OWN = Problem("own", "general", "How many?", "4")


def chain(name, problem, *texts):
    return Trajectory(name, problem.id, "policy", tuple(map(Step, texts)), None, False, 0)


RIGHT = chain("right", MADE, "Ann buys 2 more: 5 + 2 = 7.", "Ann loses 3: 7 - 3 = 4.", "The answer is 4.")
WRONG = chain("wrong", MADE, "Ann buys 2 more: 5 + 2 = 7.", "Ann loses 3: 7 - 3 = 5.", "The answer is 5.")
FREE = chain("free", OWN, "one", "two", "three")


def rows(strategy, verdicts, tokens=1):
    return [StepLabel(name, index, strategy, None, verdict, 0.9, tokens, "")
            for name, said in verdicts.items() for index, verdict in enumerate(said)]


def test_accuracy_cost_and_agreement():
    labels = [*rows("a", {"right": [True, False, True], "wrong": [True, False, False]}, 4),
              *rows("b", {"wrong": [True, True, None]}, 0)]
    merged = rows("merged", {"right": [True, True, True], "wrong": [True, False, False]}, 0)
    found = measure_labels(labels, merged, [RIGHT, WRONG], {"made": MADE}, {})
    # Three steps of the one, two of the other, whose second is wrong.
    assert (found.chains, found.steps, found.gold, found.gold_steps) == (2, 6, "oracle", 5)
    assert found.gold_right == pytest.approx(4 / 5)
    a, b, whole = found.strategies
    assert (a.name, a.reach, a.tokens_per_step, a.judged) == ("a", 1.0, 4.0, 5)
    assert (a.accuracy, a.wrong, a.wrong_found, a.right_passed) == (pytest.approx(4 / 5), 1, 1.0, 0.75)
    assert (b.reach, b.judged, b.accuracy, b.wrong_found, b.right_passed) == (0.5, 2, 0.5, 0.0, 1.0)
    assert (whole.name, whole.accuracy, whole.tokens_per_step) == ("merged", 1.0, 4.0)
    # Of the two steps both judge before the chain ends for the merged labels, they differ on the second.
    assert found.agreement == [Agreement("a", "b", 0.5, 2)]
    assert found.flat()["labels/b/wrong_found"] == 0.0


def test_where_no_oracle_judges_people_do_as_far_as_they_went():
    labels = rows("a", {"free": [True, False, True]})
    people = {("free", 0): True, ("free", 2): True}
    found = measure_labels(labels, [], [FREE], {"own": OWN}, people)
    assert (found.gold, found.gold_steps, found.strategies[0].judged) == ("people", 1, 1)
    both = measure_labels(labels, [], [FREE, RIGHT], {"own": OWN, "made": MADE}, people)
    assert (both.gold, both.gold_steps) == ("oracle and people", 4)


def test_without_gold_nothing_is_claimed():
    found = measure_labels(rows("a", {"free": [True]}), [], [FREE], {"own": OWN}, {})
    assert (found.gold, found.gold_steps, found.gold_right) == ("", 0, None)
    assert (found.strategies[0].accuracy, found.strategies[0].judged) == (None, 0)
    assert "labels/a/accuracy" not in found.flat()
    assert found.agreement == []
