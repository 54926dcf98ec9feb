"""Texts that go on, branch and push each other out: always the states of a pass over each whole text."""

from __future__ import annotations

import random

import torch

from prm_core.models.static.states import StaticStates
from tests.models.static.test_decoder import TOLERANCE, backbone, whole


def test_states_are_those_of_whole_texts() -> None:
    model, rng = backbone(), random.Random(0)
    states = StaticStates(model, 100, 500)
    assert states.slots == 5

    def more(*counts: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.choice(counts))]

    texts, computed, tokens = [more(10)], 0, 0
    for _ in range(25):
        batch = []
        for _ in range(rng.randrange(1, 8)):
            text = rng.choice(texts)
            end = rng.randrange(1, len(text) + 1) if rng.random() < 0.4 else len(text)
            batch.append((text[:end] + more(0, 3, 12, 70))[:100])
        texts = (texts + batch)[-12:]
        for text, (state, cost) in zip(batch, states.read(batch), strict=True):
            torch.testing.assert_close(state, whole(model, torch.tensor(text)), atol=TOLERANCE, rtol=TOLERANCE)
            computed, tokens = computed + cost, tokens + len(text)
    assert computed < 0.6 * tokens


def test_a_text_costs_its_new_tokens() -> None:
    states = StaticStates(backbone(), 60, 180)
    begun = list(range(20))
    assert [cost for _, cost in states.read([begun, begun])] == [20, 0]
    assert [cost for _, cost in states.read([[*begun, 1, 2]])] == [2]
    # Two that branch off from what a third goes on from.
    assert [cost for _, cost in states.read([[*begun, 1, 2, 3], [*begun, 7], [*begun, 8, 9]])] == [1, 1, 2]
    assert [cost for _, cost in states.read([[*begun, 8, 9]])] == [0]


def test_more_texts_than_slots_at_one_time() -> None:
    model = backbone()
    states = StaticStates(model, 30, 60)
    batch = [[number, *range(10, 20 + number)] for number in range(5)]
    for text, (state, cost) in zip(batch, states.read(batch), strict=True):
        assert cost == len(text)
        torch.testing.assert_close(state, whole(model, torch.tensor(text)), atol=TOLERANCE, rtol=TOLERANCE)
