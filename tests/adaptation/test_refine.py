"""Scores from labels and labels from scores, in turns: what failed chains have in common is found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from prm_core.adaptation import refine
from prm_core.adaptation.refine import refined
from prm_core.adaptation.relabel import Chain, find_trust, first_error
from prm_core.adaptation.traffic import Served
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.training.examples import Example
from prm_core.types import Problem, Step, Trajectory
from tests.builders.reward_models import tiny_reward_model

RIGHT, WRONG, LAST = "3 + 4 = 7 .", "3 + 4 = 8 .", "The answer is 7 ."
RIDGE, FLAT = 3e-3, 0.7


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> RewardScorer:
    return load_scorer(tiny_reward_model(tmp_path_factory.mktemp("parent") / "prm"), device="cpu")


def served(name: str, question: int, steps: Sequence[str]) -> Served:
    problem = Problem(f"q{question}", "arithmetic", "How many ?", "")
    return Served(problem, Trajectory(name, problem.id, "served", tuple(map(Step, steps)), None, None, 0), (), 1.0, "")


def traffic(count: int = 40) -> tuple[list[Served], dict[str, Chain], dict[str, int]]:
    """Chains of three steps, every other one with a wrong step, first or second; the champion's scores say nothing, and
    an agent tells how they ended. Also where each goes wrong, -1 for nowhere."""
    chains, known, wrong = [], {}, {}
    for number in range(count):
        at = -1 if number % 2 else number // 2 % 2
        steps = [WRONG if place == at else RIGHT for place in range(2)]
        chains.append(served(f"t{number}", number, [*steps, LAST]))
        known[f"t{number}"] = Chain([FLAT] * 3, (), [("agent", at < 0)])
        wrong[f"t{number}"] = at
    return chains, known, wrong


def test_where_failed_chains_go_wrong_is_found_from_how_they_ended(parent) -> None:
    chains, known, wrong = traffic()
    before = find_trust(list(known.values()))
    found = refined(parent, chains, known, (), [], dict.fromkeys(known, 1), RIDGE)
    after = find_trust(list(found.values()))
    for name, at in wrong.items():
        assert (found[name].verdicts, found[name].outcomes) == (known[name].verdicts, known[name].outcomes)
        said = first_error(found[name], after)
        assert said[at] > 0.6
        assert at < 0 or first_error(known[name], before)[at] < 0.45


def test_what_is_held_out_is_scored_by_what_the_others_tell(parent) -> None:
    chains, known, wrong = traffic()
    held = [name for number, name in enumerate(known) if number % 4 == 0 or number % 4 == 3]
    # Of these nobody knows how they ended.
    known |= {name: Chain([FLAT] * 3) for name in held[:4]}
    found = refined(parent, chains, known, held, [], dict.fromkeys(known, 1), RIDGE)
    for name in held:
        scores, at = found[name].scores, wrong[name]
        assert int(np.argmin(scores)) == at if at >= 0 else min(scores) > 0.5


def scores_of(found: dict[str, Chain]) -> np.ndarray:
    return np.array([chain.scores for chain in found.values()])


def test_a_chain_is_scored_by_heads_of_other_questions(parent, monkeypatch) -> None:
    monkeypatch.setattr(refine, "TURNS", 1)
    chains, known, _ = traffic()
    times = dict.fromkeys(known, 1)
    found = refined(parent, chains, known, (), [], times, RIDGE)
    told = known | {"t0": Chain([FLAT] * 3, (), [("agent", True)])}
    other = refined(parent, chains, told, (), [], times, RIDGE)
    # The agent is the same to all, which is believed a little otherwise.
    assert found["t0"].scores == pytest.approx(other["t0"].scores, abs=0.02)
    assert np.abs(scores_of(found) - scores_of(other)).max() > 0.02


def test_what_counts_for_nothing_moves_nothing_and_replay_does(parent, monkeypatch) -> None:
    monkeypatch.setattr(refine, "TURNS", 1)
    chains, known, _ = traffic()
    times = {name: int(number < 36) for number, name in enumerate(known)}
    some = {name: chain for name, chain in known.items() if times[name]}
    found = refined(parent, chains, known, (), [], times, RIDGE)
    without = refined(parent, chains, some, (), [], times, RIDGE)
    assert scores_of(without) == pytest.approx(scores_of({name: found[name] for name in some}), abs=0.02)
    # Eight chains by which what was right is wrong, and of a step nothing is known.
    replay = [Example(f"old{number}", "How many ?", (Step(RIGHT), Step(LAST)), (0.0, float("nan")))
              for number in range(8)]
    assert scores_of(refined(parent, chains, known, (), replay, times, RIDGE))[:, 0].mean() < (
        scores_of(found)[:, 0].mean() - 0.1)


def test_too_little_to_learn_from_leaves_the_scores(parent) -> None:
    chains, known, _ = traffic(1)
    assert refined(parent, chains, known, (), [], {"t0": 1}, RIDGE) == known
    assert refined(parent, [], {}, (), [], {}, RIDGE) == {}
