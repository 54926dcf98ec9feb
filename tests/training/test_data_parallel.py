"""Gradients of a batch in parts: those of the whole, whoever computes them; parts of like size."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from prm_core.platform import workers
from prm_core.training import data_parallel

BATCH = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize("cores", [1, 2])
def test_parts_add_up_to_the_batch_after_every_change_of_the_weights(monkeypatch, cores: int) -> None:
    monkeypatch.setattr(workers, "cores", lambda: cores)
    model, twin = linear(), linear()

    def passes(rows):
        for row in rows:
            loss = model(row).square().sum()
            yield loss, {"loss": loss.item(), "rows": 1}

    with data_parallel.gradients(Accelerator(cpu=True), model, passes) as gradients:
        assert gradients.parts == 2
        for batch in ([BATCH[:3], BATCH[3:]], [BATCH[:5]], [BATCH[2:4], BATCH[:2]]):
            found = gradients.of(batch)
            twin.zero_grad()
            loss = twin(torch.cat(batch)).square().sum()
            loss.backward()
            assert found == {"loss": pytest.approx(loss.item()), "rows": sum(map(len, batch))}
            assert_close(model.weight.grad, twin.weight.grad)
            assert model.bias.grad is None
            with torch.no_grad():
                for one in (model, twin):
                    one.weight -= 0.1 * one.weight.grad
    assert_close(model.weight, twin.weight)


def test_a_failing_pass_fails_the_batch(monkeypatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)

    def passes(part):
        raise ArithmeticError(part)
        yield

    with (data_parallel.gradients(Accelerator(cpu=True), linear(), passes) as gradients,
          pytest.raises(ArithmeticError, match="first")):
        gradients.of(["first", "second"])


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 3))
def test_parts_are_of_like_size(sizes: list[int], parts: int) -> None:
    found = data_parallel.balanced(sizes, parts)
    assert sorted(item for part in found for item in part) == list(range(len(sizes)))
    assert len(found) == min(parts, len(sizes))
    assert all(part == sorted(part) for part in found)
    totals = [sum(sizes[item] for item in part) for part in found]
    assert not totals or max(totals) - min(totals) <= max(sizes)


def test_parts_are_the_same_every_time() -> None:
    assert data_parallel.balanced([5, 9, 5, 1, 2], 2) == [[1, 4], [0, 2, 3]]
