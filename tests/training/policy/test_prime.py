"""The implicit reward model that learns beside the policy: what it learns from, what it pays, exact resume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from prm_core.config import CriticConfig, ImplicitConfig, PolicyTrainingConfig
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.platform import workers
from prm_core.sampling.policy import Policy
from prm_core.training.policy import experience, loop
from prm_core.training.policy.experience import Rewarded
from prm_core.training.policy.prime import OnlineReward
from tests.builders.training import (
    PROBLEMS,
    Interrupted,
    assert_same_weights,
    make_encoder,
    make_policy,
    small_config,
    weights,
)

ENCODER = make_encoder()
BETA = 0.5


def settings(placement: str = "token", learning_rate: float = 0.01, **values: Any) -> PolicyTrainingConfig:
    given = small_config().train_policy
    return dataclasses.replace(
        given, reward_model="implicit",
        implicit=ImplicitConfig(placement=placement, beta=BETA, learning_rate=learning_rate),
        advantages=dataclasses.replace(given.advantages, baseline="leave_one_out", scale="batch"),
        **{"max_grad_norm": 1e9, "inner_epochs": 1} | values)


def online(policy: Policy, config: PolicyTrainingConfig) -> OnlineReward:
    reference = make_policy(ENCODER).model.requires_grad_(False)
    return OnlineReward(policy, reference, config, Accelerator(cpu=True), seed=0)


def chain(prompt: list[int], sampled: list[int], outcome: float) -> Rewarded:
    return Rewarded([*prompt, *sampled], [*[None] * len(prompt), *[-1.0] * len(sampled)],
                    [*[-1] * len(prompt), *[0] * len(sampled)], "p", (), outcome, True)


# Of unlike lengths; the last token of each ends it.
CHAINS = [chain([5, 6], [7, 8, 9, 2], 1.0), chain([5, 6], [7, 2], 0.0), chain([5], [10, 11, 12, 13, 2], 0.0),
          chain([5], [14, 2], 1.0)]


def log_ratios(model: torch.nn.Module, reference: torch.nn.Module, given: Rewarded) -> torch.Tensor:
    """BETA · log-ratio of each token, by whole logits; 0 at those that were not sampled."""
    ids = torch.tensor([given.ids])
    one, other = (network(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                  for network in (model, reference))
    sampled = torch.tensor([value is not None for value in given.logprobs])
    return torch.cat([torch.zeros(1), BETA * (one - other)]).where(sampled, 0.0)


def test_it_learns_first_and_then_pays_each_sampled_token_its_log_ratio() -> None:
    policy = make_policy(ENCODER)
    found = online(policy, settings(minibatch_size=4))
    with found.at_work() as reward:
        rewards, figures = reward(CHAINS, 0)
    # Before it has learned its logits are 0, and it holds no chain for right.
    assert figures == pytest.approx({"implicit/loss": math.log(2), "implicit/accuracy": 0.5})
    reference = make_policy(ENCODER).model
    for row, given in enumerate(CHAINS):
        expected = log_ratios(found._model.network, reference, given)
        assert_close(rewards[row, : len(given.ids)], expected, atol=1e-5, rtol=1e-4)
        assert not rewards[row, len(given.ids) :].any()
        assert (rewards[row].sum() > 0) == (given.outcome == 1.0), "one step is enough here"
    # The policy and what it is compared with stay as they were.
    assert_same_weights(weights(policy.model), weights(reference))


def test_its_gradient_is_that_of_the_cross_entropy_of_outcomes(monkeypatch) -> None:
    """Logits are 0 at first, so dL/dQ of a chain is (1/2 - outcome) / chains."""
    reference = make_policy(ENCODER).model
    expected = make_policy(ENCODER).model
    sum((0.5 - given.outcome) / len(CHAINS) * log_ratios(expected, reference, given).sum()
        for given in CHAINS).backward()
    found = online(make_policy(ENCODER), settings(minibatch_size=4))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *given, **named: None)
    with found.at_work() as reward:
        rewards, _ = reward(CHAINS, 0)
    assert not rewards.any()
    for name, parameter in expected.named_parameters():
        assert_close(found._model.network.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-3)


def test_a_minibatch_is_foretold_by_what_was_learned_from_those_before(monkeypatch) -> None:
    found = online(make_policy(ENCODER), settings(minibatch_size=1, learning_rate=0.05))
    same = [CHAINS[0]] * 4
    with found.at_work() as reward:
        _, figures = reward(same, 0)
    assert figures["implicit/accuracy"] == 3 / 4
    assert figures["implicit/loss"] < math.log(2)


def test_what_it_cannot_do_stops_before_or_with_the_way_out() -> None:
    policy = make_policy(ENCODER)
    with online(policy, settings(learning_rate=1e30)).at_work() as reward:
        for update in range(2):
            reward(CHAINS, update)
        with pytest.raises(InputError, match=r"loss is nan at update 2; lower train_policy.implicit.learning_rate"):
            reward(CHAINS, 2)
    policy.model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match=r"model that is trained: LlamaForCausalLM scales or caps its logits"):
        online(policy, settings())


# In the loop


def by_the_first_token(*among: str) -> Callable[..., list[Rewarded]]:
    """Chains whose outcome is whether their first token is even, of problems of these ids, or of all: no answer of a
    policy with random weights is right."""
    plain = experience._chains

    def first(chain: Rewarded) -> int:
        return next(token for token, known in zip(chain.ids, chain.logprobs, strict=True) if known is not None)

    return lambda *given, **sampling: [
        dataclasses.replace(chain, outcome=float(first(chain) % 2 == 0 and (not among or chain.problem in among)))
        for chain in plain(*given, **sampling)]


@pytest.fixture(autouse=True)
def outcomes_by_the_first_token(monkeypatch) -> None:
    monkeypatch.setattr(experience, "_chains", by_the_first_token())


def train(policy: Policy, work: Path, given: PolicyTrainingConfig, crash_after: int | None = None
          ) -> list[dict[str, float]]:
    def report(figures: dict[str, float], update: int) -> None:
        if update == crash_after:
            raise Interrupted

    return loop.train_policy(policy, None, DOMAINS, PROBLEMS[:5], given, dev=(), batch_size=64, seed=0, work=work,
                             report=report).history


@pytest.fixture(scope="module", params=["token", "step"])
def undisturbed(request, tmp_path_factory) -> tuple[PolicyTrainingConfig, list[dict[str, float]], dict[str, Any]]:
    """Settings, the records of a run and the weights it ends with."""
    given, policy = settings(request.param), make_policy(ENCODER)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experience, "_chains", by_the_first_token())
        return given, train(policy, tmp_path_factory.mktemp(request.param), given), weights(policy.model)


def test_the_first_update_has_process_rewards(undisturbed) -> None:
    _, history, _ = undisturbed
    assert all(record["reward/process"] != 0 for record in history)
    assert all(record["chain/unjudged_share"] == 0 for record in history)


def test_what_it_learned_from_some_chains_foretells_others() -> None:
    policy = make_policy(ENCODER)
    with online(policy, settings(minibatch_size=16, learning_rate=0.03)).at_work() as reward:
        losses = [reward(experience.sample_chains(
            policy, DOMAINS, PROBLEMS * 4, temperature=1.0, max_new_tokens=1, batch_size=64, seed=update,
        ), update)[1]["implicit/loss"] for update in range(10)]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.1


# Checkpoints are written after updates 2 and 4.
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, undisturbed) -> None:
    given, history, trained = undisturbed
    with pytest.raises(Interrupted):
        train(make_policy(ENCODER), tmp_path / "work", given, crash_after=3)
    again = make_policy(ENCODER)
    assert train(again, tmp_path / "work", given) == history
    assert_same_weights(weights(again.model), trained)


def test_workers_change_nothing(tmp_path, monkeypatch, undisturbed) -> None:
    given, history, trained = undisturbed
    shared = make_policy(ENCODER)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert train(shared, tmp_path, given) == history
    assert_same_weights(weights(shared.model), trained)


def test_it_pays_a_policy_with_a_critic_too(tmp_path) -> None:
    critic = CriticConfig(kind="shared", over="tokens")
    [record] = train(make_policy(ENCODER), tmp_path, settings(updates=1, critic=critic))
    assert record["loss/value"] > 0
    assert record["implicit/loss"] > 0


def test_questions_whose_chains_end_alike_are_replaced_before_it_learns(tmp_path, monkeypatch) -> None:
    """Nothing but outcomes is known then; where all end alike one batch is learned from for want of others."""
    seen: list[int] = []
    plain = OnlineReward._learn
    monkeypatch.setattr(OnlineReward, "_learn", lambda self, chains, *rest: (
        seen.append(len({one.outcome for one in chains})), plain(self, chains, *rest))[1])
    monkeypatch.setattr(experience, "_chains", by_the_first_token(PROBLEMS[2].id))
    train(make_policy(ENCODER), tmp_path, settings(updates=2, resample=5))
    assert seen == [2, 2]
