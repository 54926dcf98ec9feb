"""Whether a way to make advantages pays or fines stopping: each form and baseline where the gradient is known.

    python -m benchmarks.stopping_bias --out benchmarks/results/stopping_bias.json

A chain has a first step; after each step its policy goes on with probability p or stops, up to some number of steps.
Answers are right by a coin's toss, whatever was written. Two games: all steps score alike; and those after the first
score more than it, as padding does. What a chain is worth in a form then depends on its length alone, so the gradient
of the expected worth by the logit of p is a short sum; the estimate is the mean over sampled chains of advantage times
the gradient of the log-probability, as in training. Estimate less exact is the bias. Whoever pays for length shows it
in the exact gradient, whoever has a bias in the estimate.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.config import AdvantageConfig
from prm_core.training.policy.advantages import BASELINES, FILTERS, FORMS, GroupRewards, advantages
from prm_core.training.policy.advantages.compose import process_rewards

STEPS, GROUP, GO_ON = 5, 8, 0.6
# Score of the first step, and of those after it.
GAMES = {"equal": (0.8, 0.8), "padding": (0.5, 0.95)}
# At a time.
GROUPS = 5_000
# Of what a prover's value says after the question and after each step, by score: it rises towards it.
START = 0.4


def lengths_of(groups: int, generator: torch.Generator) -> Tensor:
    """Number of steps of sampled chains, (groups * GROUP,)."""
    stops = torch.rand((groups * GROUP, STEPS - 1), generator=generator) >= GO_ON
    return 1 + (~stops).long().cumprod(1).sum(1)


def play(lengths: Tensor, outcomes: Tensor, game: str) -> GroupRewards:
    """The rewards of chains of these lengths: a token a slot, and one for the choice to stop."""
    slots = torch.arange(STEPS + 1)
    steps = slots < lengths[:, None]
    there = (slots <= lengths[:, None]) & (slots < STEPS)
    first, later = GAMES[game]
    scores = torch.where(slots == 0, first, later).expand(steps.shape).where(steps, 0.0)
    token_slots = torch.where(there, slots, -1)
    chains = len(lengths)
    return GroupRewards(
        outcomes, scores, torch.full((chains,), START), steps, there, torch.ones(chains, dtype=torch.bool),
        torch.zeros(steps.shape, dtype=torch.long), slots + (STEPS + 1) * (torch.arange(chains) // GROUP)[:, None],
        # What is written is in the length: two chains read alike until one of them stops.
        torch.where(steps, 1, 0) + 2 * torch.where(there & ~steps, 1, 0), token_slots, token_slots >= 0, GROUP)


def score_gradients(lengths: Tensor) -> Tensor:
    """Gradient of each slot's log-probability by the logit of going on, (chains, slots); 0 where there is no choice."""
    slots = torch.arange(STEPS + 1)
    went_on = (slots > 0) & (slots < lengths[:, None])
    stopped = (slots == lengths[:, None]) & (slots < STEPS)
    return (1 - GO_ON) * went_on - GO_ON * stopped.float()


def exact(settings: AdvantageConfig, game: str) -> float:
    """Gradient of the expected worth of a chain by the logit of going on."""
    lengths = torch.arange(1, STEPS + 1)
    found = 0.0
    for outcome in (0.0, 1.0):
        rewards = dataclasses.replace(play(lengths, torch.full((STEPS,), outcome), game), group_size=STEPS)
        worth = settings.outcome_weight * rewards.outcomes
        # A step that is credited with its own reward alone says nothing of stopping.
        if settings.process_weight and settings.credit != "step":
            worth = worth + settings.process_weight * process_rewards(rewards, settings).sum(1)
        found += 0.5 * (probability(lengths) * worth * score_gradients(lengths).sum(1)).sum().item()
    return found


def probability(lengths: Tensor) -> Tensor:
    """Of chains of these lengths."""
    return GO_ON ** (lengths - 1.0) * torch.where(lengths < STEPS, 1 - GO_ON, 1.0)


def estimate(settings: AdvantageConfig, game: str, chains: int, seed: int = 0) -> tuple[float, float]:
    """The mean over sampled chains of advantage times gradient, and its standard error over groups."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    left = chains // GROUP
    while left > 0:
        groups = min(left, GROUPS)
        left -= groups
        lengths = lengths_of(groups, generator)
        outcomes = torch.randint(2, (len(lengths),), generator=generator).float()
        rewards = play(lengths, outcomes, game)
        kept = FILTERS[settings.chain_filter](rewards, settings)
        made = advantages(rewards, kept, settings)
        share = kept.reshape(-1, GROUP).float().mean(1)
        found.append((made * score_gradients(lengths)).sum(1).reshape(-1, GROUP).mean(1).double() / share)
    values = torch.cat(found)
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item()


def ways(default: AdvantageConfig) -> Iterator[tuple[str, AdvantageConfig]]:
    """What is looked at: the configured way, published ones, and each form with each baseline, without scaling."""
    def made(**values: Any) -> AdvantageConfig:
        return dataclasses.replace(default, **{
            "outcome_weight": 0.0, "process_weight": 1.0, "credit": "to_go", "scale": "none", "gate": False,
            "chain_filter": "none", "left_out": 0, "turn_weight": 0.0, "process_sets": False} | values)

    yield "configured", default
    yield "process form of GRPO (DeepSeekMath 4.1.3)", made(form="sum", baseline="step", scale="group")
    yield "min form (PURE), baseline per token", made(form="min", baseline="token")
    yield "outcome (GRPO)", made(outcome_weight=1.0, process_weight=0.0, baseline="group", scale="group")
    yield "outcome (λ-GRPO)", made(outcome_weight=1.0, process_weight=0.0, baseline="group", scale="group",
                                   process_sets=True)
    yield "turns (GiGPO)", made(form="sum", credit="chain", baseline="group", turn_weight=1.0)
    yield "chosen chains (PROF)", made(outcome_weight=1.0, process_weight=0.0, baseline="group",
                                       chain_filter="prof", left_out=2)
    yield "top_k_rejected (the guide)", made(form="mean", credit="chain", baseline="group", right_bonus=0.3,
                                             late_weights=(0.5, 1.5), chain_filter="top_k_rejected", left_out=2)
    for form in FORMS:
        credit = {"mean": "chain", "min": "chain", "pav": "step"}.get(form, "to_go")
        for baseline in BASELINES:
            yield f"{form}, {credit}, {baseline}", made(form=form, credit=credit, baseline=baseline)


def measure(given: Sequence[tuple[str, AdvantageConfig]], chains: int) -> list[dict[str, Any]]:
    """Exact gradient, estimate, its standard error and the bias in those, for each way and game."""
    rows = []
    for name, settings in given:
        for game in GAMES:
            wanted = exact(settings, game)
            # The filters look at one group after the other.
            found, error = estimate(settings, game, chains if settings.chain_filter == "none" else chains // 20)
            bias = found - wanted
            rows.append({"way": name, "game": game, "exact": wanted, "estimate": found, "error": error, "bias": bias,
                         "errors": bias / error if error > 1e-9 else 0.0 if abs(bias) < 1e-6 else math.inf})
    return rows


def main() -> None:
    """Measures every way, prints the table, writes it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stopping_bias")
    parser.add_argument("--chains", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    given = parsed(parser)
    default = configuration.load(Path(__file__).parents[1]).train_policy.advantages
    rows = measure([*ways(default)], given.chains)
    table = Table("way", "game", "exact", "estimate", "bias", "in standard errors")
    for row in rows:
        table.add_row(row["way"], row["game"], *(f"{row[name]:.4f}" for name in ("exact", "estimate", "bias")),
                      f"{row['errors']:.1f}")
    Console(file=sys.stdout).print(table)
    own = [row for row in rows if row["way"] == "configured"]
    worst = max(own, key=lambda row: abs(row["errors"]))
    bars = [
        Bar("bias of the configured way, standard errors, worst game", worst["errors"], -3, 3, "within 3",
            abs(worst["errors"]) <= 3),
        Bar("what it pays for going on, worst game", max(abs(row["exact"]) for row in own), 0, 0, "0",
            all(abs(row["exact"]) < 1e-6 for row in own)),
    ]
    write(given, bars,
          rows=[{key: None if value == math.inf else value for key, value in row.items()} for row in rows],
          games=GAMES, go_on=GO_ON, steps=STEPS, group=GROUP)


if __name__ == "__main__":
    main()
