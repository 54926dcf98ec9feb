"""MC dropout: what each measure is, that passes really differ, and that right steps do get labelled correct."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.strategies.base import STRATEGIES
from prm_core.labeling.strategies.mc_dropout import McDropoutLabeler
from prm_core.labeling.strategies.uncertainty import (
    MEASURES,
    likelihood_spread,
    mutual_information,
    predictive_uncertainty,
    representation_spread,
)
from prm_core.models import dropout, likelihood
from prm_core.models.batching import in_batches
from tests.builders import tiny
from tests.builders.tiny import RIGHT, WRONG, chain

SPREADS = ["likelihood", "bald", "representation"]


def labeler(samples=4, rate=0.1, batch_size=8, fit_chains=20, policy=None, measure="predictive"):
    chosen = {"samples": samples, "dropout": rate, "batch_size": batch_size, "fit_chains": fit_chains,
              "measure": measure}
    return McDropoutLabeler(tiny.make_tools(policy or tiny.make_policy(), mc_dropout=chosen))


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
    """Noisy outcomes: P(right) is a falling function of uncertainty."""
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
    broken = [chain([""], trajectory_id=f"b{n}") for n in range(5)]
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


# measures

# Two chains of four tokens: the first is asked one token and has steps of one and two, the second two steps of one.
STEPS = torch.tensor([[-1, 0, 1, 1], [-1, 0, -1, 1]])


def test_predictive_uncertainty_is_that_of_the_least_expected_token():
    probabilities = torch.tensor([[[1, 0.5, 0.1, 0.8], [1, 0.2, 1, 0.5]], [[1, 0.3, 0.3, 0.1], [1, 0.6, 1, 0.5]]])

    found = predictive_uncertainty(probabilities.log(), STEPS, 2)

    assert torch.allclose(found, -torch.tensor([[0.4, 0.2], [0.4, 0.5]]).log())


def test_likelihood_spread_is_the_deviation_of_the_steps_log_likelihood():
    logprobs = torch.tensor([[[9.0, -1, -2, -3], [9, -4, 9, 0]], [[8, -3, -2, -1], [8, -4, 8, -6]]])

    # First chain: steps at -1, -3 (deviation 1) and -5, -3 (1); second: -4, -4 (0) and 0, -6 (3).
    assert likelihood_spread(logprobs, STEPS, 2).tolist() == [[1, 1], [0, 3]]


def test_mutual_information_is_entropy_of_the_mean_less_mean_entropy():
    """Hidden states that are the log-probabilities themselves."""
    head = torch.nn.Identity()
    passes = torch.tensor([[[1, 0], [0.5, 0.5], [0.9, 0.1]], [[0, 1], [0.5, 0.5], [0.3, 0.7]]])

    found = mutual_information(passes.clamp(min=1e-30).log(), head)

    def entropy(*p):
        return -sum(x * math.log(x) for x in p)

    third = entropy(0.6, 0.4) - (entropy(0.9, 0.1) + entropy(0.3, 0.7)) / 2
    assert found.tolist() == pytest.approx([math.log(2), 0, third], abs=1e-6)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 10), st.integers(0, 99))
def test_mutual_information_is_bounded_and_the_same_in_any_chunks(passes, tokens, chunk, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(passes, tokens, 4, generator=generator)
    head = torch.nn.Linear(4, 11)

    found = mutual_information(hidden, head, chunk)

    assert torch.allclose(found, mutual_information(hidden, head, 100), atol=1e-6)
    assert (found >= 0).all()
    assert (found <= math.log(passes) + 1e-5).all()


def test_mutual_information_never_holds_all_passes_over_the_vocabulary():
    """(tokens of a chunk, vocabulary) at most, not (passes, tokens, vocabulary)."""
    rows = []

    class Head(torch.nn.Module):
        def forward(self, hidden):
            rows.append(len(hidden))
            return hidden

    mutual_information(torch.zeros(6, 25, 3), Head(), chunk=10)

    assert rows == [10] * 6 + [10] * 6 + [5] * 6


def test_representation_spread_is_relative_to_the_states_size():
    hidden = torch.tensor([[[[3.0, 4.0], [1.0, 0.0]]], [[[3.0, 4.0], [3.0, 0.0]]]])

    # Second step: variance 1 over the passes, mean (2, 0).
    assert representation_spread(hidden).tolist() == [[0, 0.25]]
    assert torch.allclose(representation_spread(10 * hidden), representation_spread(hidden))


@pytest.mark.parametrize("measure", SPREADS)
def test_passes_that_agree_have_no_spread(measure):
    (none,) = labeler(rate=1e-9, measure=measure).uncertainties([chain(RIGHT)], seed=1)
    (some,) = labeler(rate=0.2, measure=measure).uncertainties([chain(RIGHT)], seed=1)

    assert none == pytest.approx([0, 0, 0], abs=1e-5)
    assert (some > 1e-3).all()


@pytest.mark.parametrize("measure", [*SPREADS, "predictive"])
def test_every_measure_gives_each_step_its_own_figure_whatever_the_batch(measure):
    shard = [chain(RIGHT), chain(RIGHT[2:], trajectory_id="t1"), chain(WRONG[:2], trajectory_id="t2")]
    strategy = labeler(rate=1e-9 if measure == "predictive" else 0.2, measure=measure)

    together = strategy.uncertainties(shard, seed=1)

    assert [len(row) for row in together] == [3, 1, 2]
    assert all(np.isfinite(row).all() and (row > 0).all() for row in together)


def test_measures_look_only_at_what_the_policy_wrote_and_at_the_steps_end():
    """What is seen of a pass, against the model run by hand."""
    policy = tiny.make_policy()
    encoded = policy.encoder.encode(tiny.mia().prompt, RIGHT)
    with torch.inference_mode():
        hidden = policy.model.base_model(input_ids=torch.tensor([encoded.ids])).last_hidden_state[0]
    seen = {}
    for name in ("bald", "representation"):
        strategy = labeler(rate=1e-9, samples=2, policy=policy, measure=name)
        genuine = strategy.measure
        strategy.measure = dataclasses.replace(genuine, combine=lambda kept, batch, name=name, genuine=genuine: (
            seen.update({name: kept}) or genuine.combine(kept, batch)))
        strategy.uncertainties([chain(RIGHT)], seed=1)

    written = range(encoded.prompt_length, encoded.step_ends[-1] + 1)
    assert torch.allclose(seen["bald"][0], hidden[[i - 1 for i in written]], atol=1e-4)
    assert torch.allclose(seen["representation"][0, 0], hidden[encoded.step_ends], atol=1e-4)


@pytest.mark.parametrize("measure", [*SPREADS, "predictive"])
def test_the_backbone_is_left_as_it_was_when_a_measure_breaks(measure):
    strategy = labeler(measure=measure)
    model = strategy.tools.backbone.model
    plain = model(input_ids=torch.tensor([[1, 2, 3]])).logits

    def broken(*args):
        raise RuntimeError("broken")

    strategy.measure = dataclasses.replace(strategy.measure, combine=broken)
    with pytest.raises(RuntimeError, match="broken"):
        strategy.uncertainties(chains(2), seed=1)

    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert torch.equal(model(input_ids=torch.tensor([[1, 2, 3]])).logits, plain)


@pytest.fixture(scope="module")
def unfitted():
    return labeler(fit_chains=40)


@settings(max_examples=30, deadline=None)
@given(known=st.lists(st.tuples(st.floats(0, 10), st.booleans()), min_size=20, max_size=40))
def test_the_map_never_rises_whatever_the_outcomes(unfitted, known):
    """More uncertainty, by whatever measure, never means more P(right), and no P is 0 or 1."""
    ends = {right: chain(RIGHT if right else WRONG) for right in (True, False)}
    shard = [dataclasses.replace(ends[right], trajectory=dataclasses.replace(ends[right].trajectory, id=f"t{n}"))
             for n, (_, right) in enumerate(known)]
    levels = {f"t{n}": level for n, (level, _) in enumerate(known)}
    strategy = copy.copy(unfitted)
    strategy.uncertainties = lambda chains, seed: [np.array([levels[one.trajectory.id]]) for one in chains]
    strategy.prepare(shard, seed=1)
    if strategy.map is None:
        assert len({right for _, right in known}) == 1
        return

    values = strategy.map(np.linspace(-1, 11, 200))

    assert (np.diff(values) <= 1e-12).all()
    assert values.min() >= 1 / (len(known) + 2) - 1e-12
    assert values.max() <= 1 - 1 / (len(known) + 2) + 1e-12


def test_out_of_memory_halves_the_batch_and_goes_on(caplog):
    sizes = []

    def work(batch, start):
        sizes.append((start, len(batch)))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return [10 * item for item in batch]

    with caplog.at_level(logging.WARNING):
        assert in_batches([1, 2, 3, 4, 5, 6, 7], 6, work, "test") == [10, 20, 30, 40, 50, 60, 70]
    assert sizes == [(0, 6), (0, 3), (0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]
    assert "test: out of memory with 6 at once; going on with 3" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), torch.OutOfMemoryError("one item does not fit")])
def test_other_errors_and_a_single_item_that_does_not_fit_raise(error):
    def work(batch, start):
        raise error

    with pytest.raises(RuntimeError, match=str(error)):
        in_batches([1, 2], 1 if isinstance(error, torch.OutOfMemoryError) else 2, work, "test")


def test_it_says_what_made_its_labels_and_refuses_an_unknown_measure():
    strategy = labeler(measure="bald")

    assert (strategy.version, strategy.model) == (4, "tiny-0")
    assert strategy.parameters == {"samples": 4, "measure": "bald", "dropout": 0.1, "fit_chains": 20, "batch_size": 8}
    assert STRATEGIES["mc_dropout"] is McDropoutLabeler
    with pytest.raises(InputError, match="unknown uncertainty measure 'variance'; known: bald, likelihood, pred"):
        labeler(measure="variance")


@pytest.mark.parametrize(("measure", "words"), [
    ("predictive", "predictive uncertainty 0.10 nats under dropout"),
    ("likelihood", "log-likelihood spread 0.10 nats under dropout"),
    ("bald", "information about the weights 0.100 nats under dropout"),
    ("representation", "relative spread of states 0.100 under dropout"),
])
def test_the_reasoning_names_the_measure(monkeypatch, measure, words):
    strategy = scripted(monkeypatch, labeler(measure=measure), by_outcome)
    strategy.prepare(chains(40), seed=1)

    assert strategy.label(chains(1), seed=1)[0].reasoning == words
    assert set(MEASURES) == {"predictive", *SPREADS}
