"""Dropout under a context manager: passes differ, and everything is as before afterwards, also after an error."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from prm_core.errors import InputError
from prm_core.models.dropout import dropout_on, drops
from tests.builders import tiny
from tests.builders.training import make_encoder, make_lm


@pytest.fixture
def model():
    return tiny.make_policy().model


IDS = torch.tensor([[1, 5, 9, 30, 31]])


def forward(model):
    with torch.inference_mode():
        return model.base_model(input_ids=IDS).last_hidden_state


def state(model):
    """Everything the block might leave changed."""
    return (
        [module.training for module in model.modules()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(),
    )


def test_training_mode_alone_changes_nothing(model):
    """Why this module exists: most language models ship with dropout 0, so every pass is the same (METHODS 1)."""
    plain = forward(model)

    assert torch.equal(forward(model.train()), plain)


def test_passes_differ_and_are_seeded(model):
    plain = forward(model)
    with dropout_on(model, 0.2, seed=1):
        first, second = forward(model), forward(model)
    with dropout_on(model, 0.2, seed=1):
        again = forward(model)
    with dropout_on(model, 0.2, seed=2):
        other = forward(model)

    assert torch.equal(first, again)
    distinct = (plain, first, second, other)
    assert all(not torch.allclose(a, b, atol=1e-3) for i, a in enumerate(distinct) for b in distinct[:i])


@pytest.mark.parametrize("training", [True, False])
def test_all_is_as_before_afterwards(model, training):
    model.train(training)
    # A flag of its own inside the model must survive too.
    model.model.layers[0].train(not training)
    before, plain = state(model), forward(model)

    with dropout_on(model, 0.2, seed=1):
        forward(model)
        assert [module.training for module in model.modules()] == before[0]

    assert state(model) == before
    assert torch.equal(forward(model), plain)


def _fail_in_a_pass(model):
    forward(model)
    # A token the model does not have.
    model.base_model(input_ids=torch.tensor([[10**6]]))


def test_all_is_as_before_after_an_error(model):
    before, plain = state(model), forward(model)

    with pytest.raises(IndexError), dropout_on(model, 0.2, seed=1):
        _fail_in_a_pass(model)

    assert state(model) == before
    assert torch.equal(forward(model), plain)


def test_hooks_of_others_stay(model):
    calls = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: calls.append(1))

    with dropout_on(model, 0.2, seed=1):
        forward(model)
    forward(model)
    handle.remove()

    assert len(calls) == 2


def test_what_blocks_add_is_dropped_at_the_rate_and_scaled(model):
    seen = {}
    with dropout_on(model, 0.25, seed=1):
        # A hook registered later sees what the earlier one made of the output.
        handles = [
            module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: (args, output)}))
            for name, module in model.named_modules() if isinstance(module, nn.Linear)
        ]
        with torch.inference_mode():
            model.base_model(input_ids=IDS.repeat(40, 1))
    for handle in handles:
        handle.remove()

    dropped = {name: (output == 0).float().mean().item() for name, (_, output) in seen.items()}
    for layer in (0, 1):
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            assert dropped[f"model.layers.{layer}.{name}"] == pytest.approx(0.25, abs=0.03)
        assert dropped[f"model.layers.{layer}.self_attn.q_proj"] == 0
    (inputs,), output = seen["model.layers.0.mlp.down_proj"]
    with torch.inference_mode():
        whole = model.model.layers[0].mlp.down_proj(inputs)
    kept = output != 0
    assert torch.allclose(output[kept], whole[kept] / 0.75, atol=1e-5)


class Bare(nn.Module):
    """A backbone of another make."""

    device = torch.device("cpu")

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @property
    def base_model(self) -> nn.Module:
        return self


def test_unknown_architectures_get_dropout_after_every_linear_layer():
    model = Bare(nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50))
    plain = model.layers(torch.ones(50))

    with dropout_on(model, 0.5, seed=1):
        dropped = model.layers(torch.ones(50))

    assert 10 < int((dropped == 0).sum()) < 40
    assert torch.equal(model.layers(torch.ones(50)), plain)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(InputError, match=r"Bare has no linear layer; leave mc_dropout out of label\.strategies"), \
            dropout_on(Bare(nn.Embedding(3, 3)), 0.2, seed=1):
        pass


@pytest.mark.parametrize(("rates", "found"), [
    ({}, False), ({"attention_dropout": 0.1}, True)])
def test_models_that_drop_while_they_train_are_known(rates: dict[str, float], found: bool) -> None:
    assert drops(make_lm(make_encoder(), **rates)) == found


def test_layers_that_drop_are_found_wherever_they_stand() -> None:
    assert drops(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(0.2))))
    assert not drops(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.0)))
