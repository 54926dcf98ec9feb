"""Chains of a question as a tree: what is read once, from which state a token is chosen, log-probabilities as alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from prm_core.models.padding import pad
from prm_core.training.policy.groups import Layout, grow, passes
from prm_core.training.policy.networks import states_before, token_logprobs
from tests.builders.training import make_encoder, make_lm

ENCODER = make_encoder()
MODEL = make_lm(ENCODER)
# A prompt of two tokens; chains that part after one and after two tokens, a twin, one that ends within another; a lone
# chain of another question, with a token that was heard.
CHAINS = [[1, 8, 3, 4, 5], [1, 8, 3, 4, 6, 7], [1, 8, 3, 9, 2], [1, 8, 3, 4, 5], [1, 8, 3, 4], [1, 7, 3, 4, 5]]
IDS = pad(CHAINS, 0)
LEARNED = torch.arange(6)[None] < tensor([len(chain) for chain in CHAINS])[:, None]
LEARNED[:, :2] = False
LEARNED[5, 3] = False
WIDE = Layout(share=True, width=99, tokens=99)


def test_what_chains_share_is_read_once() -> None:
    group, lone = grow(IDS, LEARNED, WIDE)
    # The last token of a chain is chosen, and nothing after it.
    assert [(node.parent, node.ids) for node in group.tree.nodes] == [
        (-1, (1, 8, 3)), (0, (4,)), (1, (6,)), (0, (9,))]
    assert group.leaves == {0: 1, 1: 2, 2: 3, 3: 1, 4: 0}
    assert (group.tokens, group.longest) == (6, 5)
    assert [node.ids for node in lone.tree.nodes] == [(1, 7, 3, 4)]
    assert lone.leaves == {5: 0}


def test_where_attention_takes_no_trees_twins_alone_are_one() -> None:
    groups = grow(IDS, LEARNED, Layout(share=False, width=99, tokens=99))
    assert [[node.ids for node in group.tree.nodes] for group in groups] == [
        [(1, 8, 3, 4)], [(1, 8, 3, 4, 6)], [(1, 8, 3, 9)], [(1, 8, 3)], [(1, 7, 3, 4)]]
    assert [list(group.leaves) for group in groups] == [[0, 3], [1], [2], [4], [5]]
    assert all(group.tree.apart for group in groups)


def test_a_token_is_chosen_from_the_state_at_the_one_before_it() -> None:
    (read,) = passes(IDS, LEARNED, WIDE)
    assert read.chains.ids.tolist() == [[1, 8, 3, 4, 6, 9], [1, 7, 3, 4, 0, 0]]
    # Nobody chose the token that was heard, so the state before it is not asked.
    assert read.states.tolist() == [1, 2, 3, 4, 5, 7, 9]
    assert read.rows.tolist() == [0, 1, 2, 3, 4, 5]
    assert read.targets.tolist() == [3, 4, 5, 3, 4, 6, 7, 3, 9, 2, 3, 4, 5, 3, 4, 3, 5]
    assert read.chosen.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 4, 0, 1, 2, 0, 1, 5, 6]


def test_passes_hold_trees_of_like_size_and_each_chain_once() -> None:
    # Cut to the longest chain of five tokens, one of the group's pieces has four: as many as the other question's tree.
    found = list(passes(IDS, LEARNED, Layout(share=True, width=1, tokens=8)))
    assert [read.chains.ids.tolist() for read in found] == [
        [[1, 8, 3, 4, 6]], [[1, 8, 3, 9], [1, 7, 3, 4]]]
    assert sorted(row for read in found for row in read.rows.tolist()) == list(range(6))


@settings(max_examples=15, deadline=None)
@given(st.data(), st.booleans(), st.integers(1, 30))
def test_log_probabilities_are_those_of_separate_forward_passes(data: st.DataObject, share: bool, width: int) -> None:
    tokens = st.integers(1, 3)
    prompts = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=2))
    chains, learned = [], []
    for prompt in prompts:
        for _ in range(data.draw(st.integers(1, 4))):
            own = data.draw(st.lists(tokens, min_size=1, max_size=6))
            chains.append([*prompt, *own])
            learned.append([*[False] * len(prompt), True, *(data.draw(st.booleans()) for _ in own[1:])])
    ids, mask = pad(chains, 0), pad(learned, 0).bool()
    found, seen = torch.zeros(ids.shape), []
    with torch.no_grad():
        for read in passes(ids, mask, Layout(share, width, 2 * width)):
            found[read.rows] = token_logprobs(MODEL, states_before(MODEL, read), read, 0.7)
            seen += read.rows.tolist()
        assert sorted(seen) == list(range(len(chains)))
        for row, chain in enumerate(chains):
            every = torch.log_softmax(MODEL(tensor([chain])).logits[0] / 0.7, -1)
            alone = torch.stack([every[at - 1, chain[at]] if learned[row][at] else tensor(0.0)
                                 for at in range(len(chain))])
            assert_close(found[row, : len(chain)], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("window", "share"), [(None, True), (4, False)])
def test_a_layout_follows_from_the_model(window: int | None, share: bool) -> None:
    model = make_lm(ENCODER)
    model.config.sliding_window = window
    assert Layout.of(model) == Layout(share, 4 * 16, 1024)
