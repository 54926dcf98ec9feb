"""Rollouts a second: our sampler against Hugging Face `generate`, one rollout a call and 512 a call."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.label_data import GoldChain
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Prefix

GENERATE_BATCH = 512


@dataclass(frozen=True, slots=True)
class Speeds:
    """Rollouts a second of each way, by round, on the same prefixes of the same chains with the same K."""

    ours: list[float]
    generate_batch: list[float]
    generate_one: list[float]

    def ratios(self, other: str) -> list[float]:
        """Ours over another way, round by round."""
        return [mine / theirs for mine, theirs in zip(self.ours, getattr(self, other), strict=True)]


def measure_speeds(
    policy: Policy, gold: Sequence[GoldChain], *, rollouts: int, batch: int, single: int, max_new_tokens: int,
    rounds: int, seed: int,
) -> Speeds:
    """Times the three ways in turn, `rounds` times.

    Args:
        gold: chains; all prefixes of all of them are rolled out `rollouts` times by the two batched ways.
        single: how many of these rollouts the one-a-call way draws, a seeded sample (it would take hours for all).
        batch: rows our sampler decodes together.
    """
    encoded = [policy.encode(one.chain.problem.prompt, one.chain.trajectory.steps) for one in gold]
    prefixes = [
        Prefix(number, length) for number, (_, lengths) in enumerate(encoded) for length in lengths[:-1]
        for _ in range(rollouts)
    ]
    texts = [ids for ids, _ in encoded]
    sample = random.Random(seed).sample(prefixes, min(single, len(prefixes)))
    speeds = Speeds([], [], [])
    for number in range(rounds):
        speeds.ours.append(_rate(len(prefixes), lambda number=number: policy.continue_chains(
            texts, prefixes, temperature=1.0, max_new_tokens=max_new_tokens, batch_size=batch, seed=seed + number)))
        speeds.generate_batch.append(_rate(len(prefixes), lambda: [
            _generate(policy, texts, prefixes[start : start + GENERATE_BATCH], max_new_tokens)
            for start in range(0, len(prefixes), GENERATE_BATCH)
        ]))
        speeds.generate_one.append(_rate(len(sample), lambda: [
            _generate(policy, texts, [prefix], max_new_tokens) for prefix in sample
        ]))
    return speeds


def _rate(rollouts: int, work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return rollouts / (time.monotonic() - start)


@torch.inference_mode()
def _generate(policy: Policy, texts: Sequence[Sequence[int]], prefixes: Sequence[Prefix], max_new_tokens: int) -> None:
    """One call of `generate`, prefixes padded on the left, as its documentation says."""
    rows = [texts[prefix.chain][: prefix.length] for prefix in prefixes]
    longest = max(map(len, rows))
    pad = policy.encoder.pad_id
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    policy.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=max_new_tokens, eos_token_id=policy.encoder.eos_id, pad_token_id=pad,
    )


def median(values: Sequence[float]) -> float:
    """Of the rounds."""
    return statistics.median(values)
