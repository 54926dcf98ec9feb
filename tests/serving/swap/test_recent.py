"""What was asked of late is kept, within a number of trajectories and of characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prm_core.serving.service import parse_request
from prm_core.serving.swap import recent as kept
from prm_core.serving.swap.recent import Recent
from tests.builders.versions import served, source

ONE = served(1)


def add(recent: Recent, number: int, *prompts: str) -> None:
    requests = [parse_request({"prompt": prompt, "steps": ["ok"]}, "row") for prompt in prompts]
    recent.add(source(number), requests, ONE.service.answer(requests, threshold=0.5, aggregate="min"))


def prompts(recent: Recent, number: int) -> list[str]:
    return [seen.request.prompt for seen in recent.answered_by(source(number))]


def test_the_last_ones_are_there_each_under_the_version_that_answered() -> None:
    recent = Recent(3)
    add(recent, 1, "a", "b")
    add(recent, 2, "c")
    assert (prompts(recent, 1), prompts(recent, 2)) == (["a", "b"], ["c"])
    assert [seen.step_scores for seen in recent.answered_by(source(2))] == [[0.9]]
    add(recent, 2, "d", "e", "f", "g")
    assert (prompts(recent, 1), prompts(recent, 2)) == ([], ["e", "f", "g"])
    none = Recent(0)
    add(none, 1, "a")
    assert prompts(none, 1) == []


@given(st.lists(st.integers(1, 40), max_size=8), st.integers(1, 4))
def test_they_take_no_more_room_than_there_is(lengths, most) -> None:
    recent = Recent(most)
    before, kept.CHARACTERS = kept.CHARACTERS, 50
    try:
        for length in lengths:
            add(recent, 1, "x" * length)
    finally:
        kept.CHARACTERS = before
    found = [len(prompt) for prompt in prompts(recent, 1)]
    # Two characters are the step's.
    assert len(found) <= most
    assert sum(found) + 2 * len(found) <= 50
    assert found == lengths[len(lengths) - len(found) :]
    if len(found) < min(most, len(lengths)):
        assert sum(lengths[-len(found) - 1 :]) + 2 * (len(found) + 1) > 50
