"""Served trajectories: which are taken, and what their outcomes say of all that could have been chosen."""

from __future__ import annotations

import math
import random

import pytest

from prm_core.adaptation.relabel import Chain, Trust
from prm_core.adaptation.traffic import chances, is_held_out, success, to_served, weighted_share, window
from prm_core.adaptation.training import served_examples, weights
from prm_core.serving.drift.outcomes import Outcome
from prm_core.serving.drift.samples import sample, write
from prm_core.types import Step
from tests.builders.quality import make_config


def one(question: str, *steps: str, chance: float = 1.0, tenant: str = "", texts: bool = True, time: float = 100.0):
    return sample(question, [Step(text) for text in steps], [0.5] * len(steps), time=time, threshold=0.5, renderer=2,
                  chance=chance, texts=texts, tenant=tenant)


def test_each_trajectory_is_taken_once_and_whole(tmp_path) -> None:
    rows = [one("q", "a"), one("q", "a", "b"), one("q", "a", "b"), one("r", "a", texts=False), one("s", "a")]
    write(tmp_path / "served/samples/19700101T000140-0-0.parquet", rows)
    taken = [to_served(row, "arithmetic") for row in window(tmp_path, make_config(), 1000.0)]
    assert sorted((row.problem.prompt, len(row.trajectory.steps)) for row in taken) == [("q", 2), ("s", 1)]
    assert all(row.trajectory.id.startswith("served-") for row in taken)


def test_a_share_of_what_was_chosen_by_hand() -> None:
    # One that had a chance of a quarter stands for four.
    found = weighted_share([True, False, False], [1.0, 1.0, 0.25], ["a", "b", "c"], 0)
    assert found.value == pytest.approx(1 / 6)
    assert not weighted_share([], [], [], 0).defined


def test_outcomes_of_what_a_model_chose_have_no_bias_once_they_are_weighed() -> None:
    rng = random.Random(3)
    plain, inside = [], 0
    for seed in range(20):
        hits, chance, questions = [], [], []
        for question in range(400):
            # Two trajectories; the model likes the one that succeeds, and explores one time in five.
            good = rng.random() < 0.9
            liked = rng.random() >= 0.1
            hits.append(good if liked else not good)
            chance.append(0.9 if liked else 0.1)
            questions.append(str(question))
        plain.append(sum(hits) / len(hits))
        found = weighted_share(hits, chance, questions, seed)
        # Each trajectory had a chance of its own: half of all succeed.
        inside += found.low <= 0.5 <= found.high
    assert min(plain) > 0.6
    assert inside >= 18


def test_success_counts_what_is_known() -> None:
    served = [to_served(one(name, "a", chance=0.5), "arithmetic") for name in "qrs"]
    told = [Outcome(served[0].trajectory.id, True, "", 0.5), Outcome(served[1].trajectory.id, False, "", 1.0)]
    assert chances(served, told) == {served[0].trajectory.id: 0.25, served[1].trajectory.id: 0.5}
    assert success(served, told, 0).value == pytest.approx(4 / 6)


def test_the_held_out_are_the_same_in_every_round_and_of_their_share() -> None:
    names = [f"served-{number}" for number in range(2000)]
    held = [name for name in names if is_held_out(name, 0.25)]
    assert 400 < len(held) < 600
    assert {name for name in names if is_held_out(name, 0.1)} <= set(held)


def test_what_had_little_chance_counts_as_much_as_it_stands_for_up_to_a_limit() -> None:
    assert weights({"a": 1.0, "b": 0.25, "c": 0.01}, 10.0) == {"a": 1, "b": 4, "c": 10}
    assert weights({"a": 0.5, "b": 0.2}, 10.0) == {"a": 1, "b": 2.5}
    assert weights({}, 10.0) == {}


def test_who_tells_the_same_of_everything_teaches_nothing_of_how_chains_end() -> None:
    served = [to_served(one(name, "a"), "arithmetic") for name in "qrst"]
    told = [[("honest", False), ("always", True)], [("always", True)], [("never", False)],
            [("honest", True), ("other", False)]]
    trust = Trust({}, {"honest": (0.95, 0.1), "other": (0.95, 0.1), "always": (0.95, 0.9), "never": (0.1, 0.1)})
    names = [row.trajectory.id for row in served]
    chains = {name: Chain([0.9], (), tuple(said)) for name, said in zip(names, told, strict=True)}
    _, ends = served_examples(served, chains, trust, dict.fromkeys(names, 1.0), make_config())
    assert ends[0].targets == (0.0,)
    assert all(math.isnan(example.targets[0]) for example in ends[1:])
