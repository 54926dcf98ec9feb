"""What a critic says, and of which state."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from prm_core.training.policy import networks
from prm_core.training.policy.groups import Layout, passes
from prm_core.training.policy.networks import Critic, states_before
from tests.builders.training import assert_same_weights, make_encoder, make_lm, weights

MODEL = make_lm(make_encoder())
IDS = tensor([[1, 7, 9, 11, 5], [1, 7, 9, 12, 5]])
SAMPLED = tensor([[False, False, True, True, True], [False, False, True, False, True]])
(READ,) = passes(IDS, SAMPLED, Layout(share=True, width=99, tokens=99))


def opened(*, separate: bool) -> Critic:
    """A critic with an opinion."""
    critic = Critic(MODEL, separate=separate)
    with torch.no_grad():
        critic.head.weight.copy_(torch.linspace(-1, 1, critic.head.in_features)[None])
        critic.head.bias.fill_(0.5)
    return critic


def values(critic: Critic) -> torch.Tensor:
    with torch.no_grad():
        return critic(states_before(MODEL, READ), READ)


@pytest.mark.parametrize("separate", [False, True])
def test_a_value_is_that_of_the_state_before_its_token(separate: bool) -> None:
    critic = opened(separate=separate)
    found = values(critic)
    with torch.no_grad():
        hidden = MODEL.base_model(input_ids=IDS).last_hidden_state
        expected = critic.head(hidden[:, :-1]).squeeze(-1)
    assert_close(found[:, 1:], expected.where(SAMPLED[:, 1:], 0.0), atol=1e-5, rtol=1e-5)
    # Up to the token that differs both chains are in one state.
    assert found[0, 2] == found[1, 2] != 0
    assert found[0, 4] != found[1, 4]


def test_a_backbone_of_its_own_begins_as_the_policy_s_and_is_another() -> None:
    critic = Critic(MODEL, separate=True)
    assert_same_weights(weights(critic.backbone), weights(MODEL.base_model))
    own = {parameter.data_ptr() for parameter in critic.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in MODEL.parameters())
    assert [name for name, _ in Critic(MODEL, separate=False).named_parameters()] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("separate", [False, True])
def test_before_it_has_learned_it_expects_nothing(separate: bool) -> None:
    assert not values(Critic(MODEL, separate=separate)).any()


def test_logits_in_parts_give_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, learned = torch.nn.Linear(8, 11, bias=False), torch.rand(3, 6) > 0.4
    count = int(learned.sum())
    # Two tokens may be chosen from one state.
    states, chosen = torch.randn(count - 2, 8, requires_grad=True), torch.arange(count) % (count - 2)
    read = SimpleNamespace(learned=learned, targets=torch.randint(11, (count,)), chosen=chosen)
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    found = []
    for most in (networks.LOGITS, 25):
        monkeypatch.setattr(networks, "LOGITS", most)
        values = networks.token_logprobs(model, states, read, 0.7)
        weighed = (values * torch.arange(18).view(3, 6)).sum()
        found.append((values.detach(), *torch.autograd.grad(weighed, (states, head.weight))))
    assert count * 11 > 25, "several parts"
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
