"""The maths of a policy's update, by hand on small cases, and properties that hold for all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from prm_core.training.policy.loss import cispo, clipped_surrogate, k3_kl, token_weights


def close(found, expected) -> None:
    assert_close(found, tensor(expected), atol=1e-4, rtol=1e-4)


def test_k3_by_hand() -> None:
    policy, reference = tensor([0.5, 0.2, 0.9]).log(), tensor([0.25, 0.2, 0.9]).log()
    close(k3_kl(policy, reference), [0.5 + math.log(2) - 1, 0.0, 0.0])


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative_and_zero_only_where_they_agree(policy: float, reference: float) -> None:
    found = k3_kl(tensor(policy, dtype=torch.float64), tensor(reference, dtype=torch.float64)).item()
    assert found >= -1e-15
    if abs(policy - reference) > 1e-3:
        assert found > 0


def test_k3_is_an_unbiased_estimate_of_the_kl() -> None:
    policy, reference = tensor([0.7, 0.2, 0.1]), tensor([0.3, 0.3, 0.4])
    expected = (policy * (policy / reference).log()).sum()
    assert_close((policy * k3_kl(policy.log(), reference.log())).sum(), expected)


def test_the_clip_by_hand() -> None:
    ratios = tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.0])
    advantages = tensor([1.0, -1.0, 1.0, -1.0, 2.0, 3.0])
    loss, clipped = clipped_surrogate(ratios.log(), torch.zeros(6), advantages, 0.2, 0.2)
    # A gain is cut at 1.2, a loss that grew is not; the other way round below 1.
    close(loss, [-1.2, 1.5, -0.5, 0.8, -2.2, -3.0])
    assert clipped.tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [
    (1.5, 1.0, False), (1.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False), (1.1, 1.0, True),
])
def test_where_the_clip_is_active_no_gradient_flows(ratio: float, advantage: float, moves: bool) -> None:
    logprobs = tensor([math.log(ratio)], requires_grad=True)
    clipped_surrogate(logprobs, torch.zeros(1), tensor([advantage]), 0.2, 0.2)[0].sum().backward()
    close(logprobs.grad, [-ratio * advantage if moves else 0.0])


def test_a_clip_may_be_higher_above() -> None:
    ratios, gain = tensor([1.25, 1.5, 0.5]), torch.ones(3)
    loss, clipped = clipped_surrogate(ratios.log(), torch.zeros(3), gain, 0.2, 0.28)
    close(loss, [-1.25, -1.28, -0.5])
    assert clipped.tolist() == [False, True, False]


@pytest.mark.parametrize(("ratio", "weight"), [(1.1, 1.1), (3.0, 1.28), (0.2, 0.2)])
def test_cispo_cuts_the_weight_of_a_token_and_never_its_gradient(ratio: float, weight: float) -> None:
    logprobs = tensor([math.log(ratio)], requires_grad=True)
    loss, cut = cispo(logprobs, torch.zeros(1), tensor([2.0]), 0.2, 0.28)
    loss.sum().backward()
    close(logprobs.grad, [-2.0 * weight])
    assert cut.tolist() == [ratio > 1.28]


MASK = tensor([[True, True, True], [True, False, False]])


@pytest.mark.parametrize(("normaliser", "expected"), [
    ("token_mean", [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0.0, 0.0]]),
    ("sequence_mean", [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0.0, 0.0]]),
    ("constant", [[1 / 20, 1 / 20, 1 / 20], [1 / 20, 0.0, 0.0]])])
def test_how_tokens_weigh(normaliser: str, expected: list[list[float]]) -> None:
    close(token_weights(MASK, normaliser, 10), expected)
    assert not token_weights(torch.zeros(2, 3, dtype=torch.bool), normaliser, 10).any()
