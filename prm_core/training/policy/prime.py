"""The implicit reward model of PRIME: it learns from the outcomes of an update's chains, and then rewards their tokens.

What lives here is its training beside the policy's; the model itself is `scoring/implicit.py`, and what becomes of its
rewards is `advantages/`.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prm_core.config import PolicyTrainingConfig
from prm_core.errors import InputError
from prm_core.models.chains import ChainBatch
from prm_core.models.padding import pad
from prm_core.sampling.policy import Policy
from prm_core.scoring.implicit import ImplicitRewardModel, check_logits
from prm_core.training import data_parallel
from prm_core.training.data_parallel import balanced
from prm_core.training.policy.experience import Rewarded
from prm_core.training.sharding import Sharding, adamw

if TYPE_CHECKING:
    from accelerate import Accelerator

# Distinct chains that go through the model together.
ROWS_PER_PASS = 32
# Chains of an update and their number → rewards of their tokens (chains, tokens), and figures.
Rewarder = Callable[[Sequence[Rewarded], int], tuple[Tensor, dict[str, float]]]


class OnlineReward:
    """An implicit reward model that starts as the base policy, without an opinion, and its optimizer.

    Args:
        policy: as it is before training.
        reference: the same, frozen.
        accelerator: what it prepares here is in its checkpoints.
        sharding: as of the policy.

    Raises InputError for an architecture whose log-probabilities are not those of its output layer.

    Source: Cui et al. 2025, "Process Reinforcement through Implicit Rewards" (PRIME), algorithm 1.
    """

    def __init__(
        self, policy: Policy, reference: Any, config: PolicyTrainingConfig, accelerator: Accelerator, seed: int,
        sharding: Sharding = "none",
    ) -> None:
        check_logits(policy.model, "that is trained")
        network = copy.deepcopy(policy.model)
        self._model = ImplicitRewardModel(network, reference, asdict(policy.encoder.config), config.implicit.beta)
        self._pad_id = policy.encoder.pad_id
        self._config, self._seed = config, seed
        self._accelerator = accelerator
        self._network = accelerator.prepare_model(network, evaluation_mode=True)
        self._optimizer = accelerator.prepare_optimizer(adamw(
            [{"params": list(network.parameters())}], accelerator, sharding, lr=config.implicit.learning_rate,
            weight_decay=0.0), device_placement=False)

    @contextmanager
    def at_work(self) -> Iterator[Rewarder]:
        """Learns once from the outcomes of an update's chains, and says what it then thinks of their tokens."""

        def judge(chains: list[Rewarded]) -> Tensor:
            with torch.no_grad():
                found = torch.zeros(len(chains), max(len(chain.ids) for chain in chains))
                for rows, batch in self._passes(chains):
                    found[rows, : batch.ids.shape[1]] = self._model.token_rewards(batch).cpu()
            return found

        with (data_parallel.gradients(self._accelerator, self._network, self._losses) as gradients,
              data_parallel.shared_out(judge, gradients.parts) as judges):

            def reward(chains: Sequence[Rewarded], update: int) -> tuple[Tensor, dict[str, float]]:
                figures = self._learn(chains, update, gradients)
                parts = balanced([len(chain.ids) for chain in chains], gradients.parts)
                found = torch.zeros(len(chains), max(len(chain.ids) for chain in chains))
                for rows, own in zip(parts, judges.map([[chains[row] for row in rows] for rows in parts]), strict=True):
                    found[rows, : own.shape[1]] = own
                return found, figures

            yield reward

    def _learn(
        self, chains: Sequence[Rewarded], update: int, gradients: data_parallel.Gradients[list[Rewarded]]
    ) -> dict[str, float]:
        """One step for each minibatch. What is said of its figures was said before it learned from those chains."""
        size = self._config.minibatch_size
        order = random.Random(f"implicit/{self._seed}/{update}").sample(range(len(chains)), len(chains))
        totals: dict[str, float] = {}
        for start in range(0, len(order), size):
            batch = [chains[row] for row in order[start : start + size]]
            parts = balanced([len(chain.ids) for chain in batch], gradients.parts)
            figures = gradients.of([[batch[row] for row in part] for part in parts])
            if not math.isfinite(figures["implicit/loss"]):
                raise InputError(f"the implicit reward model's loss is {figures['implicit/loss']} at update {update}; "
                                 "lower train_policy.implicit.learning_rate")
            # Losses are summed over chains, so that parts of a minibatch add up to it.
            for parameter in self._network.parameters():
                parameter.grad /= len(batch)
            self._accelerator.clip_grad_norm_(self._network.parameters(), self._config.max_grad_norm)
            self._optimizer.step()
            totals = {name: totals.get(name, 0.0) + value for name, value in figures.items()}
        return {name: value / len(chains) for name, value in totals.items()}

    def _losses(self, chains: list[Rewarded]) -> Iterator[tuple[Tensor, dict[str, float]]]:
        """Of each pass the cross-entropy of its chains' outcomes, summed, and how many of them were foretold."""
        for rows, batch in self._passes(chains):
            outcomes = torch.tensor([chains[row].outcome for row in rows], device=self._model.device)
            logits = self._model.token_rewards(batch).sum(1)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, outcomes, reduction="sum")
            foretold = ((logits > 0) == (outcomes > 0.5)).float().sum()
            yield loss, {"implicit/loss": loss.item(), "implicit/accuracy": foretold.item()}

    def _passes(self, chains: Sequence[Rewarded]) -> Iterator[tuple[list[int], ChainBatch]]:
        """Rows of like length with what the model reads of them: every token that was sampled is one that it rewards,
        that which ends a chain among them."""
        order = sorted(range(len(chains)), key=lambda row: len(chains[row].ids))
        for start in range(0, len(order), ROWS_PER_PASS):
            rows = order[start : start + ROWS_PER_PASS]
            ids = pad([chains[row].ids for row in rows], self._pad_id)
            sampled = pad([[0 if one is not None else -1 for one in chains[row].logprobs] for row in rows], -1)
            yield rows, ChainBatch(ids, sampled, torch.zeros(len(rows), 1, dtype=torch.int64)).to(self._model.device)
