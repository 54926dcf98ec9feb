"""States of prefixes that are kept: those of whole passes, each token computed once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.models.prefix_states import PrefixStates
from tests.builders.tiny import make_policy

END = 3
# Two steps after one prompt, one of which goes on; another prompt.
PROMPT = (5, 6, END)
LEFT, RIGHT, FURTHER, OTHER = (*PROMPT, 7, 8, END), (*PROMPT, 9, END), (*PROMPT, 7, 8, END, 10, END), (11, END)


def backbone():
    return make_policy().model.base_model


def whole(model, text):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([text])).last_hidden_state[0]


def test_each_token_is_computed_once():
    states = PrefixStates(backbone(), END)
    # The prompt is computed for the first that begins with it, and the first step of LEFT; the second LEFT is there.
    assert [cost for _, cost in states.read([FURTHER, RIGHT, LEFT, LEFT, OTHER])] == [8, 2, 0, 0, 2]
    assert [cost for _, cost in states.read([(*FURTHER, 4, END), RIGHT])] == [2, 0]
    # A text that ends just before a boundary is a beginning too.
    assert [states.read([text])[0][1] for text in ((*OTHER, 4), (*OTHER, 4, END))] == [1, 1]


def test_states_are_those_of_a_whole_pass():
    model = backbone()
    states = PrefixStates(model, END)
    states.read([LEFT, OTHER])
    for text, (state, _) in zip((FURTHER, OTHER, RIGHT), states.read([FURTHER, OTHER, RIGHT]), strict=True):
        torch.testing.assert_close(state.hidden, whole(model, text), rtol=1e-4, atol=1e-5)
        assert {keys.shape[1] for layer in state.layers for keys in layer} == {len(text)}


def test_what_was_not_read_for_longest_goes_first():
    model = backbone()
    states = PrefixStates(model, END, kept=len(LEFT) + len(OTHER))
    for text in (LEFT, OTHER, RIGHT):
        states.read([text])
    [(state, cost)] = states.read([FURTHER])
    assert cost == len(FURTHER), "LEFT is gone"
    torch.testing.assert_close(state.hidden, whole(model, FURTHER), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 10_000])
def test_batches_change_nothing(monkeypatch, at_once):
    monkeypatch.setattr("prm_core.models.prefix_states.AT_ONCE", at_once)
    model = backbone()
    found = PrefixStates(model, END).read([LEFT, FURTHER, OTHER])
    for text, (state, _) in zip((LEFT, FURTHER, OTHER), found, strict=True):
        torch.testing.assert_close(state.hidden, whole(model, text), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([LEFT, RIGHT, FURTHER, OTHER, PROMPT]), min_size=1, max_size=8), st.randoms())
def test_the_sum_of_costs_does_not_depend_on_the_order(texts, random):
    model = backbone()
    shuffled = random.sample(texts, len(texts))
    costs = [sum(cost for _, cost in PrefixStates(model, END).read(order)) for order in (texts, shuffled)]
    assert costs[0] == costs[1]
