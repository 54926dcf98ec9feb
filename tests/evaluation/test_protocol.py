"""What a threshold is held against, and how far a committee's members differ."""

from __future__ import annotations

import numpy as np
import pytest

from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.protocol import METHODS, choose_threshold, f1_spread, selection_accuracies, step_table
from prm_core.scoring.domain import moderate
from prm_core.types import Problem, Step, Trajectory


def chain(number, gold, scores, *, strange="", members=()):
    steps = tuple(Step(f"step {i}") for i in range(len(gold)))
    trajectory = Trajectory(f"t{number}", f"p{number}", "base", steps, "1", all(gold), 0)
    return Chain(number, trajectory, tuple(gold), tuple(scores), min(scores), None, strange, None, tuple(members))


def test_a_chain_out_of_domain_is_judged_as_if_it_were_in_it():
    """Moderation moves what is surely right below a threshold that was chosen on other text."""
    scores = (0.97, 0.95)
    strange = chain(0, (True, True), moderate(scores), strange="unlike")
    assert max(strange.step_scores) < 0.9
    table = step_table([strange, chain(1, (True, True), scores)])
    assert table.compared[0] == pytest.approx(scores)
    assert table.compared[1] == scores
    assert table.scores[0] == strange.step_scores
    wrong = chain(2, (True, False), moderate((0.97, 0.7)), strange="unlike")
    threshold, reason = choose_threshold([strange, wrong], 0.5)
    assert reason is None
    assert 0.7 < threshold < 0.95


def test_the_spread_is_that_of_the_members_f1():
    # Two members: the first finds the error at its place, the second calls the sound chain wrong too.
    wrong = chain(0, (True, False), (0.9, 0.1), members=((0.9, 0.9), (0.1, 0.1)))
    sound = [chain(n, (True, True), (0.9, 0.9), members=((0.9, low), (0.9, 0.9))) for n, low in ((1, 0.2), (2, 0.9))]
    spread = f1_spread([wrong, *sound], 3, 0.5)
    # F1 of the first is 1; of the second, with half of the sound chains passed, 2/3.
    assert spread == pytest.approx(np.std([1.0, 2 / 3], ddof=1))
    assert f1_spread([chain(0, (True, False), (0.9, 0.1))], 1, 0.5) is None


def test_of_what_is_chosen_something_else_may_be_counted():
    chains = [Chain(0, Trajectory(str(number), "p", "base", (Step("a"),), answer, None, 0), prm_score=score,
                    orm_score=score, combined_score=score)
              for number, (answer, score) in enumerate((("6", 0.9), ("6", 0.5), (None, 0.1), (None, 0.2)))]
    found = selection_accuracies(chains, [Problem("p", "general", "p", "6")], [1, 2], 0, [True, False, True, True])
    # Of one chain there is no choice; the best is chosen whatever it says.
    assert {method: values[0] for (method, n), values in found.items() if n == 1} == pytest.approx(
        dict.fromkeys(METHODS, 0.75))
    assert found["prm_best_of_n", 2][0] == pytest.approx((3 * 1 + 2 * 0 + 1 * 1) / 6)
    # In five of six pairs the answer 6 wins, one of whose chains counts; in the sixth nobody votes.
    assert found["majority", 2][0] == found["weighted_majority", 2][0] == pytest.approx(5 / 6 * 0.5 + 1 / 6)
