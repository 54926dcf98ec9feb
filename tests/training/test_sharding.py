"""Weights of 16 bits are trained through masters of 32, which are part of the optimizer's state."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from prm_core.training.sharding import MASTERS, adamw


def optimizer_of(weights: nn.Parameter, rate: float) -> torch.optim.Optimizer:
    return adamw([{"params": [weights], "lr": rate}], Accelerator(cpu=True), "none", weight_decay=0.0)


def step(weights: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    weights.grad = gradient.to(weights.dtype)
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_to_those_of_float32(dtype: torch.dtype) -> None:
    start = torch.linspace(-1, 1, 33).to(dtype)
    exact, rounded = nn.Parameter(start.float()), nn.Parameter(start.clone())
    own, other = optimizer_of(exact, 1e-4), optimizer_of(rounded, 1e-4)
    gradients = [(2 + torch.sin(torch.arange(33.0) + number / 9)).to(dtype) for number in range(60)]
    for number, gradient in enumerate(gradients):
        step(exact, own, gradient)
        step(rounded, other, gradient)
        assert rounded.dtype == dtype
        assert torch.equal(rounded, exact.to(dtype)), number
    # A step alone would have been rounded away.
    assert torch.equal((start - 1e-4).to(dtype)[0], start[0])
    assert rounded[0] != start[0]


def test_masters_are_saved_and_come_back() -> None:
    start = torch.linspace(-2, 2, 9).bfloat16()
    gradients = [torch.cos(torch.arange(9.0) + number) for number in range(8)]
    whole = nn.Parameter(start.clone())
    optimizer = optimizer_of(whole, 3e-4)
    for number, gradient in enumerate(gradients):
        if number == 4:
            halfway, state = whole.detach().clone(), optimizer.state_dict()
            state = {**state, MASTERS: [master.clone() for master in state[MASTERS]],
                     "state": {key: {name: value.clone() for name, value in one.items()}
                               for key, one in state["state"].items()}}
        step(whole, optimizer, gradient)
    resumed = nn.Parameter(halfway)
    optimizer = optimizer_of(resumed, 3e-4)
    optimizer.load_state_dict(state)
    for gradient in gradients[4:]:
        step(resumed, optimizer, gradient)
    assert torch.equal(resumed, whole)


def test_float32_weights_have_no_masters() -> None:
    weights = nn.Parameter(torch.ones(3))
    optimizer = optimizer_of(weights, 0.1)
    assert optimizer.param_groups[0]["params"][0] is weights
    assert MASTERS not in optimizer.state_dict()
