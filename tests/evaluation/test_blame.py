"""prm_core/evaluation/blame.py: who is named, what agents did, and what their turns cost, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.domains import DOMAINS
from prm_core.evaluation import blame
from prm_core.evaluation.blame import Cost, FailedRun
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.metrics import Bootstrap
from prm_core.types import Step, Trajectory
from tests.builders import errands

P, W, C = "planner", "worker", "checker"


def chain(problem, agents, gold, scores, right=False, **more):
    steps = tuple(Step("step", agent=agent) for agent in agents)
    trajectory = Trajectory("t", str(problem), "p", steps, None, right, 0)
    return Chain(problem, trajectory, None if gold is None else tuple(gold), tuple(scores), 0.5, None, **more)


def values(statistics, problems):
    bootstrap = Bootstrap(problems, 1, 0)
    return {name: bootstrap.draws(statistic)[0] for name, statistic in statistics.items()}


@pytest.mark.parametrize(("scores", "named"), [
    ([0.9, 0.4, 0.1, 0.2], W), ([0.4, 0.1, 0.1, 0.1], P), ([0.9, 0.8, 0.9, 0.6], C), ([0.6, 0.6, 0.6, 0.6], P),
    # Beyond the context there is no score.
    ([0.9, 0.8], W),
])
def test_the_first_step_below_the_threshold_or_else_the_lowest_is_named(scores, named):
    assert FailedRun([P, W, W, C], scores, 0, 0).named(0.5) == named


def test_naming_by_hand():
    runs = [
        FailedRun([P, W, C], [0.9, 0.1, 0.1], 1, 0),        # the worker, named
        FailedRun([P, W, W, C], [0.9, 0.9, 0.1, 0.9], 0, 0),  # the planner, the worker is named
        FailedRun([P, W], [0.9, 0.1], 1, 1),                # the worker, named
        FailedRun([P, W, C], [0.9, 0.9, 0.1], 2, 2),        # the checker, named
    ]
    found = values(blame.naming_statistics(runs, 3, 0.5), 3)
    assert found["prm/faulty_agent"] == pytest.approx(3 / 4)
    assert found["random/faulty_agent"] == pytest.approx((1 / 3 + 1 / 3 + 1 / 2 + 1 / 3) / 4)
    # Of others' runs: checker or worker once each (the checker is first by name), planner, checker and worker once
    # each, the worker twice.
    assert found["majority/faulty_agent"] == pytest.approx(0 / 4)
    assert values(blame.naming_statistics(runs[:3], 2, 0.5), 2)["majority/faulty_agent"] == pytest.approx(1 / 3)
    # Nothing is known of others' runs.
    assert values(blame.naming_statistics(runs[:2], 1, 0.5), 1)["majority/faulty_agent"] == 0


def test_failed_runs_are_those_of_named_agents_with_gold_and_scores():
    failed = chain(0, [P, W], [True, False], [0.9, 0.2])
    others = [
        chain(0, ["", ""], [True, False], [0.9, 0.2]), chain(0, [P, W], [True, False], [0.9, 0.2], right=True),
        chain(0, [P, W], None, [0.9, 0.2]), chain(0, [P, W], [True, True], [0.9, 0.2]),
        chain(0, [P, W], [True, False], []), chain(0, [], [], []),
    ]
    assert blame.failed_runs([failed, *others]) == [FailedRun([P, W], (0.9, 0.2), 1, 0)]
    # One agent without a name beside others is an agent.
    [mixed] = blame.failed_runs([chain(1, [P, ""], [True, False], [0.9, 0.2])])
    assert mixed.faulty == ""


def test_without_names_nothing_is_reported():
    chains = [chain(0, ["", ""], [True, False], [0.9, 0.2])]
    assert blame.agent_statistics(chains, 1) == {}
    assert blame.naming_statistics(blame.failed_runs(chains), 1, 0.5) == {}
    assert blame.one_a_problem(chains, 9) == []
    assert blame.cost_figures([]) == {}


def test_agents_by_hand():
    chains = [
        chain(0, [P, W, W, C], [True, False, True, False], [0.9, 0.2, 0.9, 0.9]),
        chain(1, [P, P, W, C], [True, False, True, True], [0.9, 0.2, 0.9, 0.9], right=True),
        chain(2, [P], [False], [0.1]),
    ]
    found = values(blame.agent_statistics(chains, 3), 3)
    assert found == pytest.approx({
        "agent/checker/steps": 2 / 3, "agent/checker/wrong": 1 / 2, "agent/checker/first_errors": 0,
        "agent/planner/steps": 4 / 3, "agent/planner/wrong": 2 / 4, "agent/planner/first_errors": 1 / 2,
        "agent/worker/steps": 1, "agent/worker/wrong": 1 / 3, "agent/worker/first_errors": 1 / 2,
    })


def test_costs_by_hand():
    # V: 0.5 before the plan, 0.75 after it, 0.25 and 0.5 after the worker's turns, 0 after the checker's.
    found = blame.turn_costs([P, W, W, C], [2, 3, 1, 2], 4, False)

    def variance(count):
        share = (count + 1) / 6
        return share * (1 - share) / 6

    assert found == {
        P: Cost(-0.25, pytest.approx(math.sqrt(variance(2) + variance(3))), 8),
        # What stands between two turns of one agent cancels.
        W: Cost(0.25, pytest.approx(math.sqrt(variance(3) + variance(2))), 8),
        C: Cost(0.5, pytest.approx(math.sqrt(variance(2))), 4),
    }
    assert blame.most_costly(found) == C
    assert blame.most_costly({P: Cost(0.5, 0, 1), W: Cost(0.5, 0, 1)}) == P


@given(st.lists(st.tuples(st.sampled_from([P, W, C]), st.integers(0, 4)), min_size=1, max_size=12), st.booleans())
def test_costs_add_up_to_what_the_run_lost(turns, success):
    agents, successes = zip(*turns, strict=True)
    found = blame.turn_costs(agents, successes, 4, success)
    assert sum(cost.value for cost in found.values()) == pytest.approx(successes[0] / 4 - success)
    assert list(found) == list(dict.fromkeys(agents))
    # No value is taken for sure.
    assert all(cost.error > 0 for cost in found.values() if cost.rollouts)


def test_costs_of_several_runs():
    costs = [{P: Cost(0.5, 0.1, 8), W: Cost(0.0, 0.1, 8)}, {P: Cost(0.1, 0.1, 8)}, {"": Cost(0.2, 0.1, 8)}]
    assert blame.cost_figures(costs) == pytest.approx({
        "agent/cost_runs": 3, "agent/planner/cost": 0.3, "agent/planner/cost_error": 0.2, "agent/worker/cost": 0.0})
    assert blame.cost_figures([{W: Cost(0.5, 0.1, 8)}]) == {"agent/cost_runs": 1, "agent/worker/cost": 0.5}


def test_one_failing_run_of_each_problem():
    chains = [chain(0, [P], [True], [1.0], right=True), chain(0, [P, W], [True, False], [1, 1]),
              chain(0, [W], [False], [1]), chain(1, [""], [False], [1]), chain(2, [C], [False], [1])]
    assert blame.one_a_problem(chains, 9) == [chains[1], chains[4]]
    assert blame.one_a_problem(chains, 1) == [chains[1]]


def test_what_turns_cost_is_asked_of_the_environment(monkeypatch):
    """A run whose plan is wrong and whose worker follows it: rollouts succeed from before the plan alone."""
    of = errands.problem(team=True, goal="price", limit=None, colors=("red",), open=())
    asked = []

    def played(policy, domains, starts, **sampling):
        asked.extend(starts)
        return [type("Run", (), {"success": not steps}) for _, steps in starts]

    monkeypatch.setattr("prm_core.sampling.episodes.run_episodes", played)
    steps = [Step("plan", agent=P), Step("Done.", agent=W), Step("Right.", agent=C)]
    found, again = blame.replay(None, DOMAINS, [(of, steps, False), (of, steps[:1], True)], rollouts=3, temperature=1.0,
                                max_new_tokens=9, batch_size=2, seed=0)
    assert {name: cost.value for name, cost in found.items()} == {P: 1.0, W: 0.0, C: 0.0}
    assert again[P].value == 0.0
    assert [len(start[1]) for start in asked] == list(np.repeat([0, 1, 2, 0], 3))
