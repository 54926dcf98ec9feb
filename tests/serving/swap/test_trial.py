"""A new version is tried on its example and on what was asked of late."""

from __future__ import annotations

import dataclasses

import pytest

from prm_core.errors import InputError
from prm_core.serving.service import parse_request
from prm_core.serving.swap.recent import Recent
from prm_core.serving.swap.trial import ENOUGH, Difference, compare, try_example
from tests.builders.scorer import FakeScorer
from tests.builders.versions import EXAMPLE, Version, served, source


class Nonsense(FakeScorer):
    def _score(self, prompt, steps):
        scores = (float("nan"),) * len(steps)
        return dataclasses.replace(super()._score(prompt, steps), step_scores=scores)


def seen(*rows: list[str]):
    recent, one = Recent(100), served(1)
    requests = [parse_request({"prompt": "p", "steps": steps}, "row") for steps in rows]
    recent.add(source(1), requests, one.service.answer(requests, threshold=0.5, aggregate="min"))
    return recent.answered_by(source(1))


def test_scores_and_verdicts_are_compared() -> None:
    # 0.9 and 0.1 become 0.4 and 0.
    found = compare(served(6), seen(["ok", "wrong"], ["ok", "ok"]))
    assert found == Difference(2, 4, pytest.approx(0.4), pytest.approx(0.5), 0.75)
    assert compare(served(6), []) == Difference(0, 0, 0.0, 0.0, 0.0)
    assert compare(served(1), seen(["ok"])) == Difference(1, 1, 0.0, 0.0, 0.0)


def test_a_difference_counts_where_there_are_enough_trajectories() -> None:
    Difference(ENOUGH - 1, 100, 0.6, 0.9, 0.5).check(0.5)
    Difference(ENOUGH, 100, 0.5, 0.9, 0.5).check(0.5)
    with pytest.raises(InputError, match=r"differ by 0\.6000 on average.*50\.00% of the verdicts.*allows 0\.5"):
        Difference(ENOUGH, 100, 0.6, 0.9, 0.5).check(0.5)


def test_what_another_version_answered_must_be_answered() -> None:
    given = seen(["ok"], ["a" * 50])

    class Short(FakeScorer):
        def _score(self, prompt, steps):
            if len(steps[0].text) > 9:
                return dataclasses.replace(super()._score(prompt, ()), truncated_steps=1)
            return super()._score(prompt, steps)

    with pytest.raises(InputError, match="longer than the model's context"):
        compare(served(2, Short()), given)
    with pytest.raises(InputError, match="1 steps 1 scores, or some that are no probabilities"):
        compare(served(2, Nonsense()), given)


def test_the_example_must_be_answered() -> None:
    try_example(served(1))
    try_example(dataclasses.replace(served(1, Nonsense()), example=None))
    with pytest.raises(InputError, match="no probabilities"):
        try_example(served(1, Nonsense()))
    with pytest.raises(InputError, match="`inputs` must be a list"):
        try_example(dataclasses.replace(served(1), example={}))
    refused = {**EXAMPLE, "inputs": [{"prompt": "p", "steps": ["refuse"]}]}
    with pytest.raises(InputError, match="step 0 is refused"):
        try_example(dataclasses.replace(served(1, Version(1)), example=refused))
