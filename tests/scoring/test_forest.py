"""Texts that begin alike come out as they do alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaModel

from prm_core.scoring.forest import Forest, plant, shared, tree_share

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12).map(sorted)


@pytest.fixture(scope="module")
def backbone() -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                  num_attention_heads=2, num_key_value_heads=2)).eval()


def test_the_share_of_a_tree_by_hand():
    assert shared([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared([1, 2], [1, 2, 3]) == 2
    # 3 + 1 + 2 tokens of 3 + 3 + 3.
    assert tree_share([[1, 2, 3], [1, 2, 4], [1, 5, 6]]) == pytest.approx(6 / 9)
    assert tree_share([]) == 1


def test_a_row_by_hand():
    [row] = plant([[1, 2, 3], [1, 2, 4], [5]], width=10)
    assert row.ids == [1, 2, 3, 4, 5]
    assert row.depths == [0, 1, 2, 2, 0]
    assert [path.tolist() for path in row.paths] == [[0, 1, 2], [0, 1, 3], [4]]
    assert row.mask(6).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1]]


@given(TEXTS, st.integers(1, 12))
def test_rows_hold_every_text_and_keep_to_their_width(texts, width):
    rows = plant(texts, width)
    found = [[row.ids[column] for column in path] for row in rows for path in row.paths]
    assert found == texts
    assert all([row.depths[column] for column in path] == list(range(len(path))) for row in rows for path in row.paths)
    assert all(len(row.ids) <= max(width, *(len(path) for path in row.paths)) for row in rows)
    assert all(len(row.ids) <= width or len(row.paths) == 1 for row in rows if len(row.ids) > len(row.paths[0]))


@given(TEXTS)
@settings(max_examples=25)
def test_states_are_those_of_each_text_alone(backbone, texts):
    columns = max(map(len, texts)) + 1
    with torch.inference_mode():
        found = Forest(backbone, 0).hidden(texts, columns)
        for text, states in zip(texts, found, strict=True):
            alone = backbone(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
            np.testing.assert_allclose(states[: len(text)], alone, atol=1e-5)
            assert not states[len(text) :].any()


def test_it_pays_where_texts_share_and_the_backbone_takes_trees(backbone):
    alike, unlike = [[1, 2, 3, 4, one] for one in range(5)], [[one] * 5 for one in range(5)]
    assert Forest(backbone, 0).pays(alike)
    assert not Forest(backbone, 0).pays(unlike)
    windowed = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                      num_attention_heads=2, num_key_value_heads=2)).eval()
    windowed.config.sliding_window = 2
    assert not Forest(windowed, 0).pays(alike)
