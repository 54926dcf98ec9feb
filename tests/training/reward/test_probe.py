"""Heads that are solved for: the solution of the regression, where it goes, and what no seed moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from prm_core.training.examples import Example, Pair, encode_examples, encode_pairs
from prm_core.training.reward.loop import pack_rows
from prm_core.training.reward.probe import (
    HIDDEN_RIDGE,
    SURPRISAL_RIDGE,
    Regression,
    fit_arithmetic,
    fit_committee,
    fit_head,
    fit_surprisal,
    read_regression,
    solve,
)
from prm_core.training.trees import collate_trees
from prm_core.types import Step
from tests.builders.training import CHAINS, make_encoder, reward_model_on, save_lm, small_config, weights

ENCODER = make_encoder()
GENERATOR = torch.Generator().manual_seed(0)
READING = {"pad_id": ENCODER.pad_id, "rows_per_pass": 2, "mixed": False}


def regression(features, targets, weights=None, surprisals=0, pairs=(), prompts=None) -> Regression:
    count = len(features)
    return Regression(features.double(), torch.as_tensor(targets).double(),
                      torch.ones(count).double() if weights is None else weights,
                      torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
                      torch.arange(count) if prompts is None else torch.tensor(prompts), surprisals)


def rows_of(kind: str, pairs=()):
    examples = [Example(f"p{i}", *chain, tuple(float("+" in step.text) for step in chain[1]) if kind == "process"
                        else (float(i % 2),)) for i, chain in enumerate(CHAINS)]
    encoded, _ = encode_examples(ENCODER, examples, kind)
    kept, _ = encode_pairs(ENCODER, pairs, 512)
    return pack_rows(encoded, kept, small_config().train_prm, share=True, seed=0).rows


def test_the_solution_is_that_of_a_library() -> None:
    features = torch.randn(300, 3, generator=GENERATOR).double() * torch.tensor([1.0, 20.0, 0.1]) + 5
    right = (features[:, 0] - features[:, 1] / 20 + torch.randn(300, generator=GENERATOR) > 0).double()
    weight = torch.randint(1, 4, (300,), generator=GENERATOR).double()
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    for surprisals, ridge in ((0, HIDDEN_RIDGE), (3, SURPRISAL_RIDGE)):
        found = solve(regression(features, right, weight, surprisals))
        # Their penalty is 1 / 2C on the sum of losses, ours the ridge on the mean.
        library = LogisticRegression(C=1 / (2 * ridge * weight.sum().item()), tol=1e-10, max_iter=1000)
        library.fit(scaled, right.numpy(), sample_weight=weight.numpy())
        logits = features @ found[:-1] + found[-1]
        assert logits.tolist() == pytest.approx(library.decision_function(scaled).tolist(), abs=1e-3)


def test_preferences_pull_the_chosen_above_the_rejected_as_the_loss_says() -> None:
    features = torch.randn(40, 2, generator=GENERATOR).double()
    data = regression(features, (features[:, 0] > 0).double(), pairs=[(0, 1), (2, 3), (5, 4)])
    found = solve(data, preference_weight=0.7)
    mean, spread = features.mean(0).numpy(), features.std(0, correction=0).numpy()
    x, y = (features.numpy() - mean) / spread, data.targets.numpy()

    def loss(values):
        logits = x @ values[:-1] + values[-1]
        gaps = logits[data.pairs[:, 0].numpy()] - logits[data.pairs[:, 1].numpy()]
        return (np.logaddexp(0, np.where(y == 1, -logits, logits)).mean() + HIDDEN_RIDGE * (values[:-1] ** 2).sum()
                + 0.7 * np.logaddexp(0, -gaps).mean())

    best = minimize(loss, np.zeros(3), tol=1e-12).x
    assert (found[:-1].numpy() * spread).tolist() == pytest.approx(best[:-1].tolist(), abs=1e-3)


def test_soft_targets_and_a_feature_that_never_changes() -> None:
    features = torch.tensor([[0.0, 7.0], [1.0, 7.0]]).double()
    found = solve(regression(features, [0.3, 0.3]))
    assert torch.sigmoid(features @ found[:-1] + found[-1]).tolist() == pytest.approx([0.3, 0.3], abs=1e-3)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_the_model_starts_as_the_regression_and_nothing_else_moves(tmp_path, kind: str) -> None:
    rows = rows_of(kind)
    model = reward_model_on(save_lm(tmp_path / "lm", ENCODER), kind, encoder=ENCODER)
    before = weights(model)
    data = read_regression(model, rows, **READING, whole_chain=kind == "outcome")
    fit_surprisal(model, data)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"surprisal.weight", "network.score.bias"}
    surprisal = data.features[:, -data.surprisals :]
    solution = solve(replace(data, features=surprisal))
    assert logits_of(model, rows) == pytest.approx((surprisal @ solution[:-1] + solution[-1]).tolist(), abs=1e-3)


def logits_of(model, rows) -> list[float]:
    found = []
    for start in range(0, len(rows), READING["rows_per_pass"]):
        batch = collate_trees(rows[start : start + READING["rows_per_pass"]], ENCODER.pad_id)
        with torch.no_grad():
            found += model(batch.chains)[batch.weights > 0].tolist()
    return found


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_the_whole_head_is_solved_for_and_the_backbone_stays(tmp_path, kind: str) -> None:
    rows = rows_of(kind)
    model = reward_model_on(save_lm(tmp_path / "lm", ENCODER), kind, encoder=ENCODER)
    before = weights(model)
    data = read_regression(model, rows, **READING, whole_chain=kind == "outcome")
    solution = fit_head(model, data)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"surprisal.weight", "network.score.weight", "network.score.bias"}
    assert data.features.shape[1] == model.feature_count
    expected = data.features @ solution[:-1] + solution[-1]
    assert logits_of(model, rows) == pytest.approx(expected.tolist(), abs=1e-2)


def test_a_pair_is_read_where_its_two_steps_end(tmp_path) -> None:
    prompt, steps = CHAINS[0]
    pair = Pair("p0", prompt, steps[:1], steps[1], Step("Ann has 0 pens."))
    rows = rows_of("process", [pair])
    model = reward_model_on(save_lm(tmp_path / "lm", ENCODER), encoder=ENCODER)
    data = read_regression(model, rows, **READING, whole_chain=False)
    ((chosen, rejected),) = data.pairs.tolist()
    assert data.weights[rejected] == 0 < data.weights[chosen]
    for row, step in ((chosen, pair.chosen), (rejected, pair.rejected)):
        encoded = ENCODER.encode(prompt, [*pair.steps, step])
        from prm_core.models.chains import collate

        with torch.no_grad():
            alone = model.features(collate([encoded], ENCODER.pad_id), whole_chain=False)[0, len(encoded.step_ends) - 1]
        assert data.features[row].tolist() == pytest.approx(alone.tolist(), abs=1e-4)


def test_class_weights_count_a_class_as_often() -> None:
    features = torch.randn(50, 2, generator=GENERATOR).double()
    target = torch.rand(50, generator=GENERATOR).double()
    found = solve(regression(features, target), (3.0, 1.0))
    # Every target as a right one and a wrong one, each with its share: the same loss, term by term.
    twice = regression(torch.cat([features, features]), torch.cat([torch.ones(50), torch.zeros(50)]),
                       torch.cat([target, 3 * (1 - target)]))
    assert found.tolist() == pytest.approx(solve(twice).tolist(), abs=1e-3)


def test_a_committee_is_fitted_to_draws_of_prompts() -> None:
    features = torch.randn(60, 2, generator=GENERATOR).double()
    data = regression(features, (features[:, 0] + 0.5 * torch.randn(60, generator=GENERATOR) > 0).double(),
                      prompts=[i // 3 for i in range(60)])
    main = solve(data)
    members = fit_committee(data, 5, main, seed=3)
    assert members.shape == (5, 3)
    assert torch.equal(members, fit_committee(data, 5, main, seed=3))
    assert not torch.allclose(members, fit_committee(data, 5, main, seed=4), atol=1e-3)
    assert members.std(0).min() > 1e-3
    drawn = data.drawn(torch.Generator().manual_seed(0))
    # All rows of a prompt are drawn as often.
    assert all(len(set(drawn.weights[i : i + 3].tolist())) == 1 for i in range(0, 60, 3))
    assert drawn.weights.sum() == 60
    assert fit_committee(data, 0, main, seed=0).shape == (0, 3)
    # From another start the same problem has the same solution.
    assert solve(data, start=members[0]).tolist() == pytest.approx(main.tolist(), abs=1e-3)


def test_a_verdict_of_the_calculator_shifts_logits_until_they_say_what_the_labels_do() -> None:
    right = (torch.arange(800) % 10 < 7).double()
    texts = ["1 + 1 = 3" if at % 2 else "so" for at in range(800)]
    of_false = torch.arange(800) % 2 == 1
    targets = right.where(~of_false, (torch.arange(800) % 8 == 1).double())
    # The one feature says nothing, so that heads say what share is right in all: (0.8 + 0.25) / 2.
    data = replace(regression(torch.zeros(800, 1), targets, prompts=[at // 40 for at in range(800)]), texts=texts)
    found = fit_arithmetic(data)
    share = 1 / (1 + np.exp(-(np.log(0.525 / 0.475) + found.false)))
    # One more target of each kind, which 400 labels hardly notice.
    assert share == pytest.approx(0.25, abs=0.01)
    assert found.true == pytest.approx(0, abs=1e-9)
    never = fit_arithmetic(replace(data, targets=torch.where(of_false, 0.0, right)))
    assert -8 < never.false < -4
