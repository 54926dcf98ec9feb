"""Prefixes that are kept: states are those of whole passes, each token is computed and held once, within a limit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel, Qwen2Config, Qwen2Model

from prm_core.models.prefixes import attention
from prm_core.models.prefixes.pool import PrefixPool, packs
from prm_core.models.prefixes.tree import BLOCK, Place
from tests.builders.tiny import make_policy

# Two steps after one prompt, one of which goes on; another prompt.
PROMPT = (5, 6, 3)
LEFT, RIGHT, FURTHER, OTHER = (*PROMPT, 7, 8, 3), (*PROMPT, 9, 3), (*PROMPT, 7, 8, 3, 10, 3), (11, 3)


@pytest.fixture(scope="module")
def model():
    return make_policy().model.base_model


def whole(model, text):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([text])).last_hidden_state[0]


def is_as_whole(model, place: Place, text) -> None:
    torch.testing.assert_close(torch.cat(place.hidden(0)), whole(model, text), rtol=1e-4, atol=1e-5)


def test_each_token_is_computed_and_held_once(model):
    pool = PrefixPool(model)
    # LEFT and RIGHT share the prompt; the second LEFT is there.
    assert [cost for _, cost in pool.read([FURTHER, RIGHT, LEFT, LEFT, OTHER])] == [2, 5, 3, 0, 2]
    assert [cost for _, cost in pool.read([(*FURTHER, 4, 3), RIGHT])] == [2, 0]
    assert sum(branch.count for branch in pool.tree._used) == 8 + 2 + 2 + 2


def test_states_are_those_of_a_whole_pass(model):
    pool = PrefixPool(model)
    pool.read([LEFT, OTHER])
    for text, (place, _) in zip((FURTHER, OTHER, RIGHT), pool.read([FURTHER, OTHER, RIGHT]), strict=True):
        is_as_whole(model, place, text)
        assert {part.shape[1] for layer in place.layers() for part in layer} == {len(text)} == {place.depth}


@pytest.mark.parametrize(("together", "merged", "scores"), [
    (1, True, 1), (attention.TOGETHER, True, 1), (1, False, 1), (attention.TOGETHER, False, attention.SCORES)])
@pytest.mark.parametrize("kind", [(LlamaModel, LlamaConfig), (Qwen2Model, Qwen2Config)])
def test_texts_of_all_lengths_after_one_past_and_several_heads_a_key(monkeypatch, kind, together, merged, scores):
    monkeypatch.setattr(attention, "SCORES", scores)
    monkeypatch.setattr(attention, "TOGETHER", together)
    if not merged:
        # What other devices do.
        monkeypatch.setattr(attention, "_merged", attention._after)
    torch.manual_seed(0)
    model = kind[0](kind[1](vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, intermediate_size=48, initializer_range=0.3)).eval()
    assert packs(model)
    pool = PrefixPool(model)
    draw = torch.Generator().manual_seed(1)
    stem = torch.randint(50, (BLOCK + 7,), generator=draw).tolist()
    texts = [[*stem, first, *torch.randint(50, (length,), generator=draw).tolist()]
             for first, length in enumerate((1, 3, 4, 40, 70))]
    pool.read([stem])
    for text, (place, _) in zip(texts, pool.read(texts), strict=True):
        is_as_whole(model, place, text)
    # Further from the middle of one of them, and from its end.
    for text in ([*texts[3][:60], 7, 7], [*texts[3], 8]):
        [(place, _)] = pool.read([text])
        is_as_whole(model, place, text)


def test_a_model_whose_attention_is_of_another_kind_does_not_pack():
    model = MistralModel(MistralConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                       num_key_value_heads=2, intermediate_size=16, sliding_window=8))
    assert not packs(model.eval())


def test_what_was_not_read_for_longest_goes_first_and_what_is_held_stays(model):
    once = PrefixPool(model)
    once.read([LEFT])
    # Each of the three takes one block.
    pool = PrefixPool(model, 2 * once.tree.size)
    for text in (LEFT, OTHER):
        pool.read([text])
    pool.read([LEFT])
    assert pool.read([(12, 3)])[0][1] == 2
    assert pool.read([LEFT])[0][1] == 0
    assert pool.read([OTHER])[0][1] == len(OTHER), "it was there for longest"
    assert pool.tree.size <= pool.tree.limit
    [(place, _)] = pool.read([LEFT])
    place.branch.held += 1
    for first in range(20, 24):
        pool.read([(first, 3)])
    assert pool.read([LEFT])[0][1] == 0


def test_nothing_is_kept_where_nothing_may_be(model):
    pool = PrefixPool(model, 0)
    for _ in range(2):
        [(place, cost)] = pool.read([FURTHER])
        assert cost == len(FURTHER)
        is_as_whole(model, place, FURTHER)
        # What was read last stays until something else is.
        pool.read([OTHER])
        assert len(pool.tree) == 1


def test_the_models_own_attention_is_back_after_an_error(model):
    own = model.config._attn_implementation
    pool = PrefixPool(model)
    with pytest.raises(IndexError):
        pool.extend([pool.start], [[10**6]])
    assert model.config._attn_implementation == own
    assert (len(pool.tree), pool.tree.size) == (0, 0)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(5, 7), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 4000))
def test_any_texts_in_any_order_within_any_limit_read_as_whole(texts, limit):
    model = make_policy().model.base_model
    pool = PrefixPool(model, limit)
    for some in (texts[: len(texts) // 2] or texts, texts):
        for text, (place, _) in zip(some, pool.read(some), strict=True):
            is_as_whole(model, place, text)
