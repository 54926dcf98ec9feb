"""MC dropout: what the uncertainty is, that passes really differ, and that right steps do get labelled correct."""

from __future__ import annotations

import dataclasses
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from prm_core.labeling.mc_dropout import McDropoutLabeler
from prm_core.models import dropout, likelihood
from tests import tiny
from tests.tiny import RIGHT, WRONG, chain


def labeler(samples=4, rate=0.1, batch_size=8, fit_chains=20, policy=None):
    settings = {"samples": samples, "dropout": rate, "batch_size": batch_size, "fit_chains": fit_chains}
    return McDropoutLabeler(tiny.make_tools(policy or tiny.make_policy(), mc_dropout=settings))


def scripted(monkeypatch, strategy, uncertainty):
    """The strategy with given uncertainties of each chain's steps instead of the backbone's."""
    monkeypatch.setattr(strategy, "uncertainties", lambda chains, seed: [
        np.array([uncertainty(one, index) for index in range(len(one.trajectory.steps))]) for one in chains])
    return strategy


def chains(count):
    """Every second one is wrong."""
    return [chain(WRONG if n % 2 else RIGHT, trajectory_id=f"t{n}") for n in range(count)]


def by_outcome(one, index):
    """Right chains are expected; wrong ones surprise at their first step only."""
    return 8.0 if index == 0 and not one.trajectory.outcome else 0.1 + 0.01 * index


def test_without_dropout_passes_agree_and_the_uncertainty_is_plain_surprisal():
    policy = tiny.make_policy()
    strategy = labeler(rate=1e-9, policy=policy)

    (found,) = strategy.uncertainties([chain(RIGHT)], seed=1)

    encoded = policy.encoder.encode(tiny.mia().prompt, RIGHT)
    with torch.inference_mode():
        logprobs = torch.log_softmax(policy.model(input_ids=torch.tensor([encoded.ids])).logits[0], -1)
    expected, start = [], encoded.prompt_length
    for end in encoded.step_ends:
        expected.append(max(-logprobs[i - 1, encoded.ids[i]].item() for i in range(start, end + 1)))
        start = end + 1
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_uncertainty_averages_probabilities_over_passes_that_differ(monkeypatch):
    """The guide's passes are all the same: most models ship with dropout 0 (METHODS 1)."""
    passes = []
    genuine = likelihood.token_logprobs
    monkeypatch.setattr(likelihood, "token_logprobs", lambda *args: passes.append(genuine(*args)) or passes[-1])
    policy = tiny.make_policy()
    (found,) = labeler(samples=3, rate=0.2, policy=policy).uncertainties([chain(RIGHT)], seed=1)

    assert len(passes) == 3
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(passes) for b in passes[:i])
    mean = torch.stack(passes).exp().mean(0)[0]
    encoded = policy.encoder.encode(tiny.mia().prompt, RIGHT)
    starts = [encoded.prompt_length, *(end + 1 for end in encoded.step_ends)]
    expected = [-math.log(mean[a:b].min()) for a, b in pairwise(starts)]
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_gives_the_same_and_another_another():
    strategy = labeler(rate=0.2)
    one, same, other = (strategy.uncertainties(chains(3), seed) for seed in (1, 1, 10**6))

    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert all(not np.allclose(a, b, atol=1e-3) for a, b in zip(one, other, strict=True))


def test_batches_of_unlike_chains_come_back_in_order():
    """Chains are sorted by length for the passes; each must get its own uncertainties back."""
    shard = [chain(RIGHT), chain(RIGHT[2:], trajectory_id="t1"), chain(WRONG[:2], trajectory_id="t2")]
    strategy = labeler(rate=1e-9, batch_size=2)

    together = strategy.uncertainties(shard, seed=1)

    assert [len(row) for row in together] == [3, 1, 2]
    for one, row in zip(shard, together, strict=True):
        assert row == pytest.approx(strategy.uncertainties([one], seed=1)[0], abs=1e-3)


def test_the_backbone_and_the_random_state_are_left_as_they_were(monkeypatch):
    strategy = labeler()
    model = strategy.tools.backbone.model
    plain = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    before = torch.get_rng_state()

    strategy.prepare(chains(20), seed=1)
    strategy.label(chains(2), seed=1)

    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, plain)

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.model.layers[1], "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        strategy.label(chains(2), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_right_steps_are_labelled_correct_with_confidence(monkeypatch):
    """The guide asks for low variance and then drops it for low confidence: nothing is labelled correct (METHODS 1)."""
    strategy = scripted(monkeypatch, labeler(), by_outcome)
    strategy.prepare(chains(40), seed=1)

    labels = strategy.label(chains(2), seed=1)

    assert [(row.trajectory_id, row.step_index, row.is_correct) for row in labels] == [
        ("t0", 0, True), ("t0", 1, True), ("t0", 2, True), ("t1", 0, False), ("t1", 1, True), ("t1", 2, True)]
    # 20 chains fitted on, told apart without fault: Laplace's 1/22 bounds both sides.
    assert [row.value for row in labels] == pytest.approx([21 / 22, 21 / 22, 21 / 22, 1 / 22, 21 / 22, 21 / 22])
    assert [row.confidence for row in labels] == pytest.approx([21 / 22] * 6)
    assert min(row.confidence for row in labels) > strategy.tools.config.calibrate.min_confidence
    assert labels[3].reasoning == "predictive uncertainty 8.00 nats under dropout"


def test_the_map_falls_with_the_uncertainty(monkeypatch):
    """Noisy outcomes: P(right) is a falling function of uncertainty, between its knots and clipped beyond them."""
    rng = np.random.default_rng(0)
    levels = {f"t{n}": float(rng.uniform(0, 4)) for n in range(200)}
    shard = [chain(RIGHT if rng.uniform() > level / 4 else WRONG, trajectory_id=name)
             for name, level in levels.items()]
    strategy = scripted(monkeypatch, labeler(fit_chains=200), lambda one, index: levels[one.trajectory.id])
    strategy.prepare(shard, seed=1)

    levels.update({f"x{n}": n / 2 - 1 for n in range(14)})
    probes = strategy.label([chain(RIGHT[:1], trajectory_id=f"x{n}") for n in range(14)], seed=1)

    values = [row.value for row in probes]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.85
    assert values[-1] < 0.15
    assert all(row.is_correct is (row.value > 0.5) and row.confidence == max(row.value, 1 - row.value)
               for row in probes)


def test_the_fit_takes_a_seeded_sample_of_chains_with_outcomes(monkeypatch):
    shard = chains(60)
    unknown = [dataclasses.replace(one, trajectory=dataclasses.replace(one.trajectory, outcome=None, id=f"u{n}"))
               for n, one in enumerate(chains(30))]
    seen = []

    def uncertainty(one, index):
        seen.append(one.trajectory.id)
        return by_outcome(one, index)

    for seed in (1, 1, 2):
        scripted(monkeypatch, labeler(fit_chains=20), uncertainty).prepare([*unknown, *shard], seed)
    samples = [tuple(dict.fromkeys(seen[i : i + 60])) for i in (0, 60, 120)]

    assert [len(set(sample)) for sample in samples] == [20, 20, 20]
    assert samples[0] == samples[1] != samples[2]
    assert not any(name.startswith("u") for name in seen)


def test_it_abstains_where_all_chains_end_alike(monkeypatch, caplog):
    strategy = scripted(monkeypatch, labeler(), by_outcome)
    with caplog.at_level(logging.WARNING):
        strategy.prepare([chain(RIGHT, trajectory_id=f"t{n}") for n in range(30)], seed=1)

    labels = strategy.label(chains(2), seed=1)

    assert "mc_dropout abstains: the 20 chains sampled to fit it all end alike" in caplog.text
    assert [(row.value, row.is_correct, row.confidence) for row in labels] == [(None, None, 0.0)] * 6


def test_a_chain_that_does_not_encode_is_not_fitted_on(monkeypatch):
    broken = [chain(["Mia\nbuys."], trajectory_id=f"b{n}") for n in range(5)]
    seen = []
    strategy = labeler()
    monkeypatch.setattr(strategy, "uncertainties", lambda found, seed: seen.extend(found) or [
        np.array([by_outcome(one, 0)]) for one in found])

    strategy.prepare([*broken, *chains(10)], seed=1)

    assert {one.trajectory.id for one in seen} == {f"t{n}" for n in range(10)}


def test_dropout_is_switched_on_at_the_configured_rate(monkeypatch):
    rates = []
    genuine = dropout.dropout_on
    monkeypatch.setattr(dropout, "dropout_on", lambda model, rate, seed: rates.append(rate) or genuine(
        model, rate, seed))

    labeler(rate=0.07).uncertainties(chains(2), seed=1)

    assert rates == [0.07]
