"""Quality of labels: accuracy against gold up to the first wrong step, cost, agreement; exact values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prm_core.evaluation.label_quality import Agreement, first_errors, measure_labels
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
    found = measure_labels(labels, merged, [RIGHT, WRONG], [], {"made": MADE}, {}, {})
    own = found.generated
    # Three steps of the one, two of the other, whose second is wrong.
    assert (own.chains, own.steps, own.gold, own.gold_steps) == (2, 6, "oracle", 5)
    assert own.gold_right == pytest.approx(4 / 5)
    a, b, whole = own.strategies
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
    found = measure_labels(labels, [], [FREE], [], {"own": OWN}, people, {}).generated
    assert (found.gold, found.gold_steps, found.strategies[0].judged) == ("people", 1, 1)
    both = measure_labels(labels, [], [FREE, RIGHT], [], {"own": OWN, "made": MADE}, people, {}).generated
    assert (both.gold, both.gold_steps) == ("oracle and people", 4)


def test_without_gold_nothing_is_claimed():
    found = measure_labels(rows("a", {"free": [True]}), [], [FREE], [], {"own": OWN}, {}, {})
    own = found.generated
    assert (own.gold, own.gold_steps, own.gold_right) == ("", 0, None)
    assert (own.strategies[0].accuracy, own.strategies[0].judged) == (None, 0)
    assert not {"labels/a/accuracy", "labels/a/first_error_f1"} & found.flat().keys()
    assert found.agreement == []


def test_the_policys_chains_and_those_with_human_labels_are_measured_apart():
    """A strategy may be right on all corrupted solutions and on none of the policy's chains."""
    other = replace(WRONG, id="human-0")
    labels = rows("a", {"right": [True, True, True], "wrong": [True, True, True], "human-0": [True, False, None]}, 3)
    merged = rows("merged", {"right": [True, True, True], "wrong": [True, False, True], "human-0": [False, True, True]})

    found = measure_labels(labels, merged, [RIGHT, WRONG], [other], {"made": MADE}, {}, {})
    assert found.human is not None
    assert (found.generated.chains, found.human.chains) == (2, 1)
    table = found.flat()
    assert (table["labels/a/wrong_found"], table["labels/a/human_chains/wrong_found"]) == (0.0, 1.0)
    assert (table["labels/merged/wrong_found"], table["labels/merged/human_chains/accuracy"]) == (1.0, 0.0)
    assert table["labels/merged/human_chains/tokens_per_step"] == 3
    assert measure_labels(labels, merged, [RIGHT, WRONG], [], {"made": MADE}, {}, {}).human is None


@pytest.mark.parametrize(("said", "f1"), [
    # Both errors found at their step, one sound chain of two passed: 2 * 1 * 0.5 / 1.5.
    ({"right": [True] * 3, "also": [True, None, False], "wrong": [True, False, True], "bad": [None, False]}, 2 / 3),
    # Every sound chain passed, one error found, the other named a step too early.
    ({"right": [True] * 3, "wrong": [None, False, True], "bad": [False, False]}, 2 / 3),
    # Says nothing, so no step is wrong: errors are never found.
    ({}, 0.0),
    # After the first wrong step anything may be said.
    ({"wrong": [True, False, False], "bad": [True, False]}, 1.0),
    ({"right": [False], "also": [False], "wrong": [False], "bad": [False]}, 0.0),
])
def test_first_error_f1_counts_a_step_that_a_strategy_abstains_on_as_not_wrong(said, f1):
    chains = [RIGHT, replace(RIGHT, id="also"), WRONG, replace(WRONG, id="bad")]

    found = measure_labels(rows("a", said), rows("merged", {"right": [True]}), chains, [], {"made": MADE}, {}, {})

    assert found.flat().get("labels/a/first_error_f1", 0.0) == pytest.approx(f1)
    # Of two chains of each kind, the half of both kinds' shares.
    quality = next((one for one in found.generated.strategies if one.name == "a"), None)
    if quality is not None:
        ends = {name: next((i for i, v in enumerate(verdicts) if v is False), -1) for name, verdicts in said.items()}
        gold = {"right": -1, "also": -1, "wrong": 1, "bad": 1}
        assert quality.chain_error == sum(ends.get(name, -1) != error for name, error in gold.items()) / 4


def test_first_error_f1_takes_chains_of_both_kinds_whose_gold_is_known_to_the_first_error():
    gold = {("free", 0): True, ("free", 1): False, ("right", 0): True}
    assert first_errors([FREE, RIGHT], gold) == {"free": 1}
    only_sound = measure_labels(rows("a", {"right": [True]}), [], [RIGHT], [], {"made": MADE}, {}, {})
    assert only_sound.generated.strategies[0].first_error_f1 is None
