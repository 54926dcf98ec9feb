"""Losses of reward models by hand: cross-entropy, class weights, preferences, and the objective over rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from prm_core.errors import InputError
from prm_core.training.examples import Encoded
from prm_core.training.reward.loop import Objective, Rows, class_weights
from prm_core.training.reward.loss import balanced_weights, cross_entropy_sum, preference_sum
from prm_core.training.trees import Row, cut, grow
from tests.builders.training import small_config
from tests.builders.trees import chain, pair

PROMPT = [1, 9]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_the_loss_is_the_cross_entropy_of_known_targets() -> None:
    logits = tensor([[0.0, 2.0, 5.0], [-1.0, 9.0, 9.0]])
    targets, weights = tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 0.0]]), tensor([[1.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    # softplus(x) - target · x for each known step; a soft 0.9 stays 0.9.
    expected = math.log(2) + 2 * (softplus(2) - 0.9 * 2) + softplus(-1)
    assert cross_entropy_sum(logits, targets, weights).item() == pytest.approx(expected, abs=1e-6)


def test_class_weights_are_factors_of_the_terms_for_wrong_and_right() -> None:
    logits, ones = tensor([2.0, 2.0, 2.0]), torch.ones(3)
    found = cross_entropy_sum(logits, tensor([1.0, 0.0, 0.9]), ones, (3.0, 0.5)).item()
    right, wrong = softplus(-2), softplus(2)
    assert found == pytest.approx(0.5 * right + 3 * wrong + (0.5 * 0.9 * right + 3 * 0.1 * wrong), abs=1e-6)


def test_steps_without_a_target_never_train_whatever_their_logit() -> None:
    logits = tensor([[math.inf, 0.0], [-math.inf, math.inf]], requires_grad=True)
    loss = cross_entropy_sum(logits, tensor([[0.0, 1.0], [1.0, 0.0]]), tensor([[0.0, 1.0], [0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert logits.grad.tolist() == [[0.0, -0.5], [0.0, 0.0]]


def test_a_mean_of_targets_trains_as_the_targets_one_by_one() -> None:
    logit = tensor([0.7])
    alone = sum(cross_entropy_sum(logit, tensor([t]), torch.ones(1), (2.0, 0.5)) for t in (0.9, 0.0, 1.0, 0.5))
    assert cross_entropy_sum(logit, tensor([0.6]), tensor([4.0]), (2.0, 0.5)).item() == pytest.approx(alone.item())


def test_the_preference_loss_of_known_logits() -> None:
    logits = tensor([[0.0, 2.0, -1.0], [0.5, 0.5, 4.0]])
    # Chosen minus rejected: 3 in one row, 0 in the other, -4.5 between rows.
    pairs = tensor([[0, 1, 0, 2], [1, 0, 1, 1], [0, 2, 1, 2], [1, 0, 1, 2]])
    expected = [softplus(-3), math.log(2), softplus(5), softplus(3.5)]
    for number, value in enumerate(expected):
        assert preference_sum(logits, pairs[number : number + 1]).item() == pytest.approx(value, abs=1e-6)
    assert preference_sum(logits, pairs).item() == pytest.approx(sum(expected), abs=1e-6)


def test_balanced_weights_give_both_classes_half_of_the_total() -> None:
    wrong, right = balanced_weights(right=6, total=8)
    assert (wrong, right) == (2.0, 8 / 12)
    assert (wrong * 2, right * 6) == (4.0, 4.0)
    # Soft targets count by their share.
    assert balanced_weights(right=0.5, total=2) == (2 / 3, 2.0)


@pytest.mark.parametrize("right", [0, 8])
def test_one_class_cannot_be_balanced(right: int) -> None:
    with pytest.raises(ValueError, match=f"{right} of 8 targets are right"):
        balanced_weights(right, 8)
    train = Rows([], targets=8, right=right, pairs=0, tokens=0, chain_tokens=0)
    config = small_config(train_prm={"class_weights": "balanced"}).train_prm
    with pytest.raises(InputError, match=f"class_weights balanced: {right} of 8 targets are right.*set it to none"):
        class_weights(config, train)
    assert class_weights(small_config().train_prm, train) == (1.0, 1.0)


# The objective


class Fixed(torch.nn.Module):
    """A model whose logit at each slot is the id of the slot's second token, halved."""

    def forward(self, chains):
        first = torch.cat([torch.zeros_like(chains.ends[:, :1]), chains.ends[:, :-1] + 1], 1).clamp(min=0)
        return chains.ids.gather(1, first).float() / 2


def rows() -> list[Row]:
    """Two rows: steps [2], [3] with targets 1 and 0, [3] once more with 0.5; and [4] preferred to [2]."""
    one = grow([Encoded(chain(PROMPT, [[2], [3]]), (1.0, 0.0)), Encoded(chain(PROMPT, [[2], [3]]), (math.nan, 0.5))],
               [], share=True)
    other = grow([Encoded(chain([5, 9], [[2]]), (1.0,))], [pair([5, 9], [], [4], [2])], share=True)
    return [cut(tree, 99) for tree in (*one, *other)]


def test_rows_weigh_their_class_weighted_targets_and_their_pairs() -> None:
    objective = Objective(0, (3.0, 0.5), 1.0)
    assert objective.weight(rows()[:1]) == (0.5 * 1 + 3 * 1 + (0.5 * 0.5 + 3 * 0.5), 0)
    assert objective.weight(rows()[1:]) == (0.5, 1)
    assert objective.weight(rows()) == (5.75, 1)


@pytest.mark.parametrize("share", [1, 2])
def test_the_objective_is_the_weighted_mean_plus_the_mean_preference_loss(share: int) -> None:
    """In one pass or in two: each pass is its share of the same total."""
    objective, every = Objective(0, (3.0, 0.5), 0.25), rows()
    weight = objective.weight(every)
    passes = [every[i : i + share] for i in range(0, 2, share)]
    found = sum(objective.loss(Fixed(), part, torch.device("cpu"), weight).item() for part in passes)
    # Logits: step [2] 1, step [3] 1.5, step [4] 2.
    sums = 0.5 * softplus(-1) + 3 * softplus(1.5) + (0.25 * softplus(-1.5) + 1.5 * softplus(1.5)) + 0.5 * softplus(-1)
    assert found == pytest.approx(sums / 5.75 + 0.25 * softplus(-(2 - 1)), abs=1e-6)


def test_rows_of_pairs_alone_have_a_loss() -> None:
    tree, = grow([], [pair(PROMPT, [], [4], [2])], share=True)
    objective = Objective(0, (1.0, 1.0), 1.0)
    weight = objective.weight([cut(tree, 99)])
    assert weight == (0, 1)
    loss = objective.loss(Fixed(), [cut(tree, 99)], torch.device("cpu"), weight)
    assert loss.item() == pytest.approx(softplus(-1), abs=1e-6)
