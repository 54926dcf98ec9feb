"""Muon: torch's updates but for their rounding, in the parameters' own precision."""

from __future__ import annotations

import copy

import pytest
import torch

from prm_core.training.muon import Muon, orthogonalize

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def parameters(shapes: list[tuple[int, int]]) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def updated(kind: type[torch.optim.Muon], values: list[torch.nn.Parameter], **settings: object) -> list[torch.Tensor]:
    """The parameters after three updates with the same gradients; the last one never gets any."""
    values = copy.deepcopy(values)
    optimizer = kind(values, lr=0.05, weight_decay=0.1, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for value in values[:-1]:
            value.grad = torch.randn(value.shape, generator=generator)
        optimizer.step()
    return [value.detach() for value in values]


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_are_torch_s_within_the_rounding_of_bfloat16(nesterov) -> None:
    values = parameters([(8, 8), (8, 8), (24, 8), (8, 24), (24, 8), (5, 7), (6, 6)])
    ours, theirs = updated(Muon, values, nesterov=nesterov), updated(torch.optim.Muon, values, nesterov=nesterov)
    for start, own, other in zip(values[:-1], ours, theirs, strict=False):
        change = (other - start).norm()
        assert change > 0.1
        assert (own - other).norm() < 0.03 * change
    assert torch.equal(ours[-1], values[-1])


def test_singular_values_go_to_one_and_vectors_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 6, 20, generator=generator, dtype=torch.float64)
    found = orthogonalize(matrices, COEFFICIENTS, 5, 1e-7)
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.35
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ found @ right.mT
    assert inner.sub(torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-9


def test_matrices_of_one_shape_do_not_mix() -> None:
    values = parameters([(8, 8), (8, 8), (24, 8), (4, 4)])
    together = updated(Muon, values)
    generator = torch.Generator().manual_seed(1)
    gradients = [[torch.randn(value.shape, generator=generator) for value in values[:-1]] for _ in range(3)]
    for index, value in enumerate(values[:-1]):
        alone = copy.deepcopy(value)
        optimizer = Muon([alone], lr=0.05, weight_decay=0.1)
        for row in gradients:
            alone.grad = row[index]
            optimizer.step()
        assert torch.allclose(alone, together[index], atol=1e-6)


def test_the_state_is_torch_s_own_and_continues_exactly() -> None:
    value = parameters([(8, 8)])[0]
    gradients = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2))
    through, resumed = copy.deepcopy(value), copy.deepcopy(value)
    first, second = Muon([through], lr=0.1), Muon([resumed], lr=0.1)
    for index, gradient in enumerate(gradients):
        if index == 2:
            state = copy.deepcopy(second.state_dict())
            assert set(state["state"][0]) == {"momentum_buffer"}
            second = Muon([resumed], lr=0.1)
            second.load_state_dict(state)
        for parameter, optimizer in ((through, first), (resumed, second)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(through, resumed)


def test_a_closure_is_called_with_gradients_on() -> None:
    value = parameters([(4, 4)])[0]

    def closure() -> float:
        loss = value.square().sum()
        loss.backward()
        return loss.item()

    start = value.detach().clone()
    assert Muon([value], lr=0.1).step(closure) == pytest.approx(start.square().sum().item())
    assert not torch.equal(value, start)
