"""Fitting the surprisal's weights: the solution of the regression, and where it goes."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from prm_core.training.examples import Example, encode_examples
from prm_core.training.reward.loop import pack_rows
from prm_core.training.reward.probe import RIDGE, fit_surprisal, logistic_regression
from prm_core.training.reward.trees import collate_trees
from tests.builders.training import CHAINS, make_encoder, reward_model_on, save_lm, small_config, weights

ENCODER = make_encoder()
GENERATOR = torch.Generator().manual_seed(0)


def test_the_solution_is_that_of_a_library() -> None:
    features = torch.randn(300, 3, generator=GENERATOR).double() * torch.tensor([1.0, 20.0, 0.1]) + 5
    right = (features[:, 0] - features[:, 1] / 20 + torch.randn(300, generator=GENERATOR) > 0).double()
    weight = torch.randint(1, 4, (300,), generator=GENERATOR).double()
    found = logistic_regression(features, right, weight)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    # Their penalty is 1 / 2C on the sum of losses, ours RIDGE on the mean.
    library = LogisticRegression(C=1 / (2 * RIDGE * weight.sum().item()), tol=1e-10, max_iter=1000)
    library.fit(scaled, right.numpy(), sample_weight=weight.numpy())
    logits = features @ found[:-1] + found[-1]
    assert logits.tolist() == pytest.approx(library.decision_function(scaled).tolist(), abs=1e-3)


def test_soft_targets_and_a_feature_that_never_changes() -> None:
    features = torch.tensor([[0.0, 7.0], [1.0, 7.0]]).double()
    found = logistic_regression(features, torch.tensor([0.3, 0.3]).double(), torch.ones(2).double())
    assert torch.sigmoid(features @ found[:-1] + found[-1]).tolist() == pytest.approx([0.3, 0.3], abs=1e-3)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_the_model_starts_as_the_regression_and_nothing_else_moves(tmp_path, kind: str) -> None:
    examples = [Example(f"p{i}", *chain, tuple(float("+" in step.text) for step in chain[1]) if kind == "process"
                        else (float(i % 2),)) for i, chain in enumerate(CHAINS)]
    encoded, _ = encode_examples(ENCODER, examples, kind)
    rows = pack_rows(encoded, [], small_config().train_prm, share=True, seed=0).rows
    model = reward_model_on(save_lm(tmp_path / "lm", ENCODER), kind, encoder=ENCODER)
    before = weights(model)
    fit_surprisal(model, rows, pad_id=ENCODER.pad_id, rows_per_pass=2, mixed=False)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"surprisal.weight", "network.score.bias"}
    batch = collate_trees(rows, ENCODER.pad_id)
    known = batch.weights > 0
    with torch.no_grad():
        logits = model(batch.chains)[known]
        features = model.surprisal_features(batch.chains)[known].double()
    solution = logistic_regression(features, batch.targets[known].double(), batch.weights[known].double())
    assert logits.tolist() == pytest.approx((features @ solution[:-1] + solution[-1]).tolist(), abs=1e-3)


def test_class_weights_count_a_class_as_often(tmp_path) -> None:
    examples = [Example(f"p{i}", *chain, tuple(0.3 if "+" in step.text else 1.0 for step in chain[1]))
                for i, chain in enumerate(CHAINS)]
    encoded, _ = encode_examples(ENCODER, examples, "process")
    rows = pack_rows(encoded, [], small_config().train_prm, share=True, seed=0).rows
    path = save_lm(tmp_path / "lm", ENCODER)
    found = {}
    for factors in ((1.0, 1.0), (3.0, 1.0)):
        model = reward_model_on(path, encoder=ENCODER)
        fit_surprisal(model, rows, pad_id=ENCODER.pad_id, rows_per_pass=2, mixed=False, class_weights=factors)
        found[factors] = model.eval()
    batch = collate_trees(rows, ENCODER.pad_id)
    known = batch.weights > 0
    with torch.no_grad():
        features = found[3.0, 1.0].surprisal_features(batch.chains)[known].double()
        logits = found[3.0, 1.0](batch.chains)[known]
        plain = found[1.0, 1.0](batch.chains)[known]
    target, weight = batch.targets[known].double(), batch.weights[known].double()
    # Every target as a right one and a wrong one, each with its share: the same loss, term by term.
    solution = logistic_regression(torch.cat([features, features]),
                                   torch.cat([torch.ones_like(target), torch.zeros_like(target)]),
                                   torch.cat([weight * target, 3 * weight * (1 - target)]))
    assert logits.tolist() == pytest.approx((features @ solution[:-1] + solution[-1]).tolist(), abs=0.02)
    assert logits.mean() < plain.mean() - 0.1
