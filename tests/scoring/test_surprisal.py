"""The surprisal's term: features by hand, where the vocabulary is computed, and what no label may move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from prm_core.models.bases import Base
from prm_core.models.chains import ChainBatch, collate
from prm_core.scoring import surprisal as module
from prm_core.scoring.kinds import load_reward_model
from prm_core.scoring.surprisal import FEATURES, HISTORY, Surprisal, mark_numbers, token_logprobs
from prm_core.types import Step
from tests.builders.training import CHAINS, make_encoder, make_lm, make_reward_model

ENCODER = make_encoder()
# After state 0 the three tokens have probabilities 1/2, 1/4, 1/4; after state 1: 1/10, 1/10, 8/10.
PROBABILITIES = tensor([[0.5, 0.1], [0.25, 0.1], [0.25, 0.8]])
ZERO, ONE = [1.0, 0.0], [0.0, 1.0]
#                      prompt      step 0: 0, 2 | step 1: 1, an observation, 2 | padding
ROW = ChainBatch(ids=tensor([[0, 0, 0, 2, 1, 0, 2, 0]]), steps=tensor([[-1, -1, 0, 0, 1, -1, 1, -1]]),
                 ends=tensor([[3, 6]]))
HIDDEN = tensor([[ONE, ZERO, ONE, ONE, ZERO, ZERO, ZERO, ONE]])
# Of each written token under the state before it: 0 after ZERO, 2 after ONE, 1 after ONE, 2 after ZERO.
LOGPROBS = [[math.log(0.5), math.log(0.8)], [math.log(0.1), math.log(0.25)]]


def reader() -> Surprisal:
    result = Surprisal(2, 3)
    # Log-probabilities as logits of the two states.
    result.vocabulary.data.copy_(PROBABILITIES.log())
    result.numbers[2] = True
    return result


def test_the_features_of_a_step_by_hand(monkeypatch) -> None:
    monkeypatch.setattr(module, "CAP", -1.0)
    found = reader().features(HIDDEN, ROW)[0]
    for features, values in zip(found.tolist(), LOGPROBS, strict=True):
        # Token 2, the second of either step, is a number.
        expected = [min(values), sum(values) / 2, sum(values) / 50, values[1], values[1] / 10,
                    max(min(values), -1.0), max(sum(values) / 2, -1.0), max(values[1], -1.0)]
        assert features == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("on_a_base", [False, True])
def test_a_model_saved_before_there_were_all_features_scores_as_it_did(tmp_path, on_a_base: bool) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    with torch.no_grad():
        model.surprisal.weight.data = tensor([0.05, 0.03, 0.04, 0.02, 0.03])
        batch = collate([ENCODER.encode(*chain) for chain in CHAINS[:2]], ENCODER.pad_id)
        expected = model(batch).tolist()
        if on_a_base:
            model.base = Base.of(str(tmp_path / "lm"), str(tmp_path / "lm"))
        model.save_pretrained(tmp_path / "old")
        again = load_reward_model(str(tmp_path / "old"), device="cpu")
        assert again.feature_count == model.feature_count == model.network.config.hidden_size + 5
        assert again(batch).tolist() == expected


def test_tokens_with_a_digit_are_numbers() -> None:
    surprisal = Surprisal(4, len(ENCODER.tokenizer) + 3)
    mark_numbers(surprisal, ENCODER.tokenizer)
    ids = ENCODER.tokenizer.encode("Ann has 39 pens, x2.", add_special_tokens=False)
    texts = [ENCODER.tokenizer.decode([token]) for token in ids]
    assert [text for text, number in zip(texts, surprisal.numbers[ids].tolist(), strict=True) if number] == [
        text for text in texts if set(text) & set("0123456789")] != []
    assert not surprisal.numbers[-3:].any(), "rows of the vocabulary that no token has"


def test_the_term_is_linear_in_the_features_and_starts_at_nothing() -> None:
    surprisal = reader()
    assert surprisal(surprisal.features(HIDDEN, ROW, False)).tolist() == [[0.0, 0.0]]
    surprisal.weight.data.copy_(tensor([1.0, 2.0, -3.0, 0.5, 4.0, 5.0, -1.0, 0.25]))
    expected = surprisal.features(HIDDEN, ROW)[0] @ tensor([1.0, 2.0, -3.0, 0.5, 4.0, 5.0, -1.0, 0.25])
    assert surprisal(surprisal.features(HIDDEN, ROW, False))[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def term(surprisal, batch):
    return surprisal(surprisal.features(HIDDEN, batch, whole_chain=True))[0].tolist()


def test_of_a_whole_chain_the_least_expected_step_so_far_counts_feature_by_feature() -> None:
    surprisal = reader()
    surprisal.weight.data.copy_(torch.eye(len(FEATURES))[0])
    assert term(surprisal, ROW) == pytest.approx([math.log(0.5), math.log(0.1)], abs=1e-6)
    lineage = tensor([[[True, False], [False, True]]])
    tree = ChainBatch(ROW.ids, ROW.steps, ROW.ends, previous=tensor([[-1, *range(7)]]), lineage=lineage)
    # As two first steps of a tree neither is before the other.
    assert term(surprisal, tree) == pytest.approx([math.log(0.5), math.log(0.1)], abs=1e-6)
    backwards = ChainBatch(ROW.ids, ROW.steps, ROW.ends, previous=tree.previous,
                           lineage=tensor([[[True, True], [False, True]]]))
    assert term(surprisal, backwards) == pytest.approx([math.log(0.1)] * 2, abs=1e-6)


def test_a_term_that_reads_the_chain_before_knows_the_lowest_so_far_and_how_many_steps_there_were() -> None:
    surprisal = Surprisal(2, 3, len(FEATURES) + len(HISTORY))
    plain = reader().to(HIDDEN.dtype)
    surprisal.vocabulary.data.copy_(plain.vocabulary)
    surprisal.numbers.copy_(plain.numbers)
    own, chain = plain.features(HIDDEN, ROW)[0], plain.features(HIDDEN, ROW, whole_chain=True)[0]
    both = surprisal.features(HIDDEN, ROW)[0]
    assert both[:, : len(FEATURES)].tolist() == own.tolist()
    assert both[:, len(FEATURES) : -2].tolist() == chain.tolist()
    assert both[:, -2:].tolist() == [[0, 1], [pytest.approx(0.1), 0]]
    # Two first steps of a tree.
    apart = ChainBatch(ROW.ids, ROW.steps, ROW.ends, previous=tensor([[-1, *range(7)]]),
                       lineage=torch.eye(2, dtype=torch.bool)[None])
    assert surprisal.features(HIDDEN, apart)[0, :, -2:].tolist() == [[0, 1], [0, 1]]
    far = surprisal.with_history(own, own, tensor([25, 3]))
    assert far[:, -2:].tolist() == [[1, 0], [pytest.approx(0.3), 0]]


def test_the_token_before_is_the_one_before_it_in_its_chain() -> None:
    surprisal = reader()
    # Column 4 (token 1) now follows column 1, which is ZERO: 1/4, not 1/10.
    tree = ChainBatch(ROW.ids, ROW.steps, ROW.ends, previous=tensor([[-1, 0, 1, 2, 1, 4, 5, -1]]))
    assert surprisal.features(HIDDEN, tree)[0, 1, 0].item() == pytest.approx(math.log(0.25), abs=1e-6)
    assert surprisal.features(HIDDEN, tree)[0, 1, 2].item() == pytest.approx(2 * math.log(0.25) / 50, abs=1e-6)


def test_slots_without_a_step_have_no_features() -> None:
    batch = ChainBatch(ROW.ids, ROW.steps, tensor([[3, 6, -1]]))
    assert reader().features(HIDDEN, batch)[0, 2].tolist() == [0.0] * len(FEATURES)
    nothing = ChainBatch(ROW.ids, torch.full_like(ROW.steps, -1), tensor([[1]]))
    assert reader().features(HIDDEN, nothing).tolist() == [[[0.0] * len(FEATURES)]]


def test_labels_move_the_weights_and_nothing_that_surprisal_is_measured_with() -> None:
    surprisal = reader()
    surprisal.weight.data.fill_(1.0)
    hidden = tensor([[ONE, ZERO, ONE, ZERO, ZERO, ZERO, ONE, ONE]], requires_grad=True)
    surprisal(surprisal.features(hidden, ROW, False)).sum().backward()
    assert surprisal.vocabulary.grad is None
    assert not surprisal.vocabulary.requires_grad
    assert hidden.grad is None
    assert surprisal.weight.grad.abs().min() > 0.01


def test_logits_exist_a_chunk_at_a_time(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, vocabulary = torch.randn(23, 4, generator=generator), torch.randn(9, 4, generator=generator)
    targets = torch.randint(9, (23,), generator=generator)
    expected = torch.log_softmax(hidden @ vocabulary.T, -1)[torch.arange(23), targets]
    assert token_logprobs(hidden, vocabulary, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    monkeypatch.setattr(module, "CHUNK", 5)
    shapes, linear = [], torch.nn.functional.linear

    def watched(*args):
        shapes.append(linear(*args).shape)
        return linear(*args)

    monkeypatch.setattr(module.nn.functional, "linear", watched)
    assert token_logprobs(hidden, vocabulary, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert shapes == [(5, 9)] * 4 + [(3, 9)]
    assert token_logprobs(hidden[:0], vocabulary, targets[:0]).shape == (0,)


def lowest_logprobs(prompt: str, steps: tuple[Step, ...]) -> list[float]:
    """By hand from the causal LM: each step's least likely written token."""
    chain = ENCODER.encode(prompt, steps)
    logprobs = torch.log_softmax(make_lm(ENCODER)(input_ids=tensor([chain.ids])).logits[0], -1)
    begin, result = chain.prompt_length, []
    for end in chain.step_ends:
        written = [t for t in range(begin, end + 1) if chain.scored[t]]
        result.append(min(logprobs[t - 1, chain.ids[t]].item() for t in written))
        begin = end + 1
    return result


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_a_model_s_surprisal_is_that_of_the_language_model_it_started_from(tmp_path, kind: str, observed: bool) -> None:
    chains = CHAINS[:3]
    if observed:
        chains = [(prompt, (Step(steps[0].text, observation="Zoe has 39 pens"), *steps[1:]))
                  for prompt, steps in chains]
    model = make_reward_model(tmp_path, ENCODER, kind)
    with torch.no_grad():
        model.head.weight.zero_()
        model.surprisal.weight.copy_(torch.eye(len(FEATURES))[0])
        batch = collate([ENCODER.encode(*chain) for chain in chains], ENCODER.pad_id, prompt_slot=model.prompt_slot)
        found = model(batch)
    for logits, chain in zip(found.tolist(), chains, strict=True):
        expected = lowest_logprobs(*chain)
        if kind == "outcome":
            expected = [min(expected[: k + 1]) for k in range(len(expected))]
        if kind == "advantage":
            expected = [0.0, *expected]
        assert logits[: len(expected)] == pytest.approx(expected, abs=1e-4)
