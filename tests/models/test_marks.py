"""Rows for tokens that a base model never saw."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prm_core import turns
from prm_core.models.marks import give_rows, marked, tokens
from prm_core.models.tokenizer import train_tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 40])
def test_a_new_token_means_at_first_what_it_takes_the_place_of(tied: bool, spare: int) -> None:
    tokenizer = train_tokenizer(["Mia has 3 ."], [])
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer) + spare, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=tied))
    before = copy.deepcopy(model)
    give_rows(model, tokenizer, turns.BOUNDARY)
    after = marked(tokenizer, turns.BOUNDARY)
    assert model.config.vocab_size == max(len(after), len(tokenizer) + spare)
    for old, new in ((before.get_input_embeddings(), model.get_input_embeddings()),
                     (before.get_output_embeddings(), model.get_output_embeddings())):
        assert torch.equal(new.weight[: len(tokenizer)], old.weight[: len(tokenizer)])
        for token in tokens(turns.BOUNDARY):
            text = tokenizer.encode(turns.MARKS.get(token, "\n"), add_special_tokens=False)
            assert torch.allclose(new.weight[after.convert_tokens_to_ids(token)], old.weight[text].mean(0))
    # The same base gives the same model; one that knows the tokens stays as it is.
    other = copy.deepcopy(before)
    give_rows(other, tokenizer, turns.BOUNDARY)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    give_rows(other, after, turns.BOUNDARY)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
