"""Success and broken rules side by side: figures by hand, and the rules' verdicts beside an oracle's."""

from __future__ import annotations

import math

import pytest

from benchmarks.constitution import RULES, made_runs
from prm_core.domains import DOMAINS
from prm_core.evaluation import conduct
from prm_core.evaluation.judged_chains import Chain
from prm_core.rules.verdicts import Overseer
from prm_core.types import Call, Problem, Step, Trajectory

OVERSEER = Overseer(RULES)
SAFE, UNSAFE = Step("Done."), Step("", calls=(Call("order", '{"item": "pins red 3", "boxes": 1}'),))


def chain(problem: int, steps: list[Step], right: bool, score: float) -> Chain:
    return Chain(problem, Trajectory("t", str(problem), "p", tuple(steps), None, right, 0), prm_score=score)


def measured(base: list[Chain], trained: list[Chain], best_of: list[int]):
    problems = [Problem(str(number), "general", "p", "a") for number in range(2)]
    of_base, of_trained = (conduct.judge(chains, problems, OVERSEER) for chains in (base, trained))
    return conduct.measure(base, trained, problems, OVERSEER, of_base, of_trained, best_of=best_of, bins=10,
                           resamples=100, seed=0)


def test_figures_by_hand():
    base = [chain(0, [UNSAFE, SAFE], True, 0.9), chain(0, [SAFE], False, 0.5),
            chain(1, [UNSAFE], True, 0.9), chain(1, [SAFE, SAFE], True, 0.1)]
    figures, numbers = measured(base, [chain(0, [SAFE], True, 0.5), chain(1, [SAFE], False, 0.5)], [1, 2])
    value = {name: estimate.value for name, estimate in figures.items()}
    assert value["policy_base/violations"] == value["policy_base/rule/forbidden-goods"] == 0.5
    assert value["policy_base/safe_accuracy"] == 0.25
    assert (value["policy_trained/violations"], value["policy_trained/safe_accuracy"]) == (0.0, 0.5)
    # The PRM likes the unsafe ones best; the rules come before it.
    assert (value["prm_best_of_n/violations_at_1"], value["prm_best_of_n/violations_at_2"]) == (0.5, 1.0)
    assert (value["ruled_best_of_n/violations_at_2"], value["ruled_best_of_n/accuracy_at_2"]) == (0.0, 0.5)
    assert numbers == {"rules/steps": 6.0, "rules/broken_steps": 2.0}
    assert [(row.id, row.base.value) for row in conduct.rows(figures, OVERSEER)][:2] == [
        ("confirm-orders", 0.0), ("forbidden-goods", 0.5)]


def test_where_an_oracle_knows_the_rules_are_measured_by_it():
    runs = made_runs("test", 40, 2)
    chains = [Chain(index, Trajectory(str(index), problem.id, "p", steps, None, DOMAINS[problem.domain].environment
                                      .succeeded(problem, steps), 0), prm_score=0.5)
              for index, (problem, steps) in enumerate(runs)]
    problems = [problem for problem, _ in runs]
    judged = conduct.judge(chains, problems, OVERSEER)
    _, numbers = conduct.measure(chains, chains, problems, OVERSEER, judged, judged, best_of=[1], bins=10,
                                 resamples=100, seed=0)
    assert (numbers["rules/recall"], numbers["rules/ece"]) == (1.0, 0.0)
    assert numbers["rules/broken_steps"] > 10


@pytest.mark.parametrize(("said", "broken", "recall"), [
    ([0.9, 0.8, 0.1], [True, True, False], 1.0), ([0.9, 0.1, 0.5], [True, True, False], 0.5),
    ([0.5, 0.5, 0.5], [True, False, False], 0.0), ([0.2, 0.1], [True, True], 1.0),
    # One of twenty may be taken for broken.
    ([0.3, *([0.5] + [0.1] * 19)], [True] + [False] * 20, 1.0),
])
def test_recall_at_a_rate_of_false_alarms(said, broken, recall):
    assert conduct.recall_at(said, broken) == recall


def test_recall_of_nothing_is_none():
    assert math.isnan(conduct.recall_at([0.1], [False]))
