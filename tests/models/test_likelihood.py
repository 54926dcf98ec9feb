"""Log-likelihood of steps: against the full softmax, exact placement, padding that changes nothing."""

from __future__ import annotations

import pytest
import torch

from prm_core.models.likelihood import reduce_by_step, step_index, token_logprobs
from prm_core.models.padding import pad
from prm_core.types import Step
from tests.builders import tiny

CHAINS = [tiny.RIGHT, tiny.RIGHT[:1], (Step("Mia buys 4 more.", "It is 7."), Step("The answer is 7."))]


@pytest.fixture(scope="module")
def policy():
    return tiny.make_policy()


def logprobs(policy, chains):
    encoded = [policy.encoder.encode(tiny.mia().prompt, steps) for steps in chains]
    ids = pad([chain.ids for chain in encoded], policy.encoder.pad_id)
    steps = step_index(encoded, ids.shape[1])
    with torch.inference_mode():
        hidden = policy.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        values = token_logprobs(hidden, policy.model.get_output_embeddings(), ids, steps)
    return encoded, ids, steps, values


def test_each_written_token_knows_its_step(policy):
    encoder = policy.encoder
    encoded = encoder.encode("Mia has 3.", [Step("Mia buys 4.", "Ok."), Step("It is 7.")])
    lengths = [len(encoder.tokenizer.encode(text)) for text in ("Mia buys 4.", "Ok.", "It is 7.")]

    row = step_index([encoded], len(encoded.ids) + 2)[0].tolist()

    # The policy wrote that it waits, not the mark of what came.
    assert row == [-1] * encoded.prompt_length + [0] * (lengths[0] + 1) + [-1] * (lengths[1] + 1) + [0] + [
        1] * lengths[2] + [1, -1, -1]


def test_a_token_is_judged_by_what_stands_before_it(policy):
    encoded, ids, steps, values = logprobs(policy, CHAINS)
    with torch.inference_mode():
        full = torch.log_softmax(policy.model(input_ids=ids).logits, -1)

    written = 0
    for row, chain in enumerate(encoded):
        for place in range(ids.shape[1]):
            if place < len(chain.ids) and chain.scored[place]:
                expected = full[row, place - 1, ids[row, place]].item()
                assert values[row, place].item() == pytest.approx(expected, abs=1e-4)
                written += 1
            else:
                assert values[row, place] == 0
    assert written == int((steps >= 0).sum()) > 50
    # The tiny model is no uniform one, so a shift by one place would show.
    assert values[steps >= 0].std() > 0.5


def test_padding_changes_nothing(policy):
    _, _, _, batch = logprobs(policy, CHAINS)
    for row, chain in enumerate(CHAINS):
        alone = logprobs(policy, [chain])[3][0]
        assert torch.allclose(batch[row, : len(alone)], alone, atol=1e-4)
        assert not batch[row, len(alone) :].any()


def test_reducing_by_step():
    values = torch.tensor([[0.0, -1.0, -3.0, -2.0, 0.0], [0.0, 0.0, -5.0, 0.0, 0.0]])
    steps = torch.tensor([[-1, 0, 0, 1, -1], [-1, -1, 0, -1, -1]])

    assert reduce_by_step(values, steps, 2, "sum").tolist() == [[-4.0, -2.0], [-5.0, 0.0]]
    assert reduce_by_step(values, steps, 2, "amin").tolist() == [[-3.0, -2.0], [-5.0, 0.0]]


def test_a_step_without_doubt_reduces_to_zero_not_to_the_neutral_element():
    values, steps = torch.tensor([[0.0, 0.0, -1.0]]), torch.tensor([[0, 0, 1]])

    assert reduce_by_step(values, steps, 3, "amin").tolist() == [[0.0, -1.0, 0.0]]


def test_reducing_keeps_gradients_and_gives_none_to_the_rest():
    values = torch.tensor([[-1.0, -3.0, -2.0]], requires_grad=True)
    steps = torch.tensor([[-1, 0, 0]])

    reduce_by_step(values, steps, 1, "amin").sum().backward()

    assert values.grad.tolist() == [[0.0, 1.0, 0.0]]


def test_pad():
    assert pad([[1, 2, 3], [4], []], 9).tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert pad([[1]], 0).dtype == torch.int64
