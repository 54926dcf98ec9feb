"""GRPO with a hybrid reward: groups of chains per question, process rewards from a PRM, outcomes from the answers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import PolicyTrainingConfig
from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.models.padding import pad
from prm_core.registry import Registry
from prm_core.sampling.policy import Policy
from prm_core.sampling.rollouts import rollout_succeeds
from prm_core.scoring.scorer import ChainScorer
from prm_core.training.checkpoint import Checkpoints
from prm_core.training.policy.loss import clipped_surrogate, k3_kl, masked_mean
from prm_core.types import Problem, Step

if TYPE_CHECKING:
    from torch import Tensor

# Chains of like length that go through the model together.
ROWS_PER_PASS = 32


@dataclass(frozen=True, slots=True)
class Experience:
    """Sampled chains of one update, chains of a question next to each other. Shapes (chains, tokens) or as noted.

    Attributes:
        ids: prompt and sampled tokens, right-padded.
        sampled: True at sampled tokens.
        old_logprobs: of the sampled tokens when they were sampled, 0 elsewhere.
        advantages: 0 at tokens that were not sampled.
        figures: means of the reward's components and of the chains, for logging.
    """

    ids: Tensor
    sampled: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    figures: dict[str, float]


def collect(
    policy: Policy, scorer: ChainScorer, domains: Registry[Domain], problems: Sequence[Problem],
    config: PolicyTrainingConfig, *, batch_size: int, seed: int,
) -> Experience:
    """Samples `group_size` chains for each problem and rewards them."""
    import torch

    from prm_core.sampling.sampler import Prefix
    from prm_core.training.policy.estimators import ESTIMATORS, GroupRewards

    encoder = policy.encoder
    prompts = [encoder.encode_prompt(problem.prompt) for problem in problems]
    prefixes = [Prefix(i, len(ids)) for i, ids in enumerate(prompts) for _ in range(config.group_size)]
    drawn = policy.continue_chains(prompts, prefixes, temperature=config.temperature,
                                   max_new_tokens=config.max_new_tokens, batch_size=batch_size, seed=seed)
    owners = [problem for problem in problems for _ in range(config.group_size)]
    outcomes = torch.tensor([
        float(rollout_succeeds(policy, domains[problem.domain], problem, one))
        for problem, one in zip(owners, drawn, strict=True)
    ])
    split = [encoder.split_steps(one.ids) for one in drawn]
    # A chain without any step has nothing to score; its outcome alone speaks against it.
    scored = [i for i, steps in enumerate(split) if steps]
    scores = scorer.score([(owners[i].prompt, [Step(text) for text, _ in split[i]]) for i in scored])
    width = max((len(steps) for steps in split), default=1) or 1
    rewards, exists = torch.zeros(len(drawn), width), torch.zeros(len(drawn), width, dtype=torch.bool)
    for i, score in zip(scored, scores, strict=True):
        rewards[i, : len(score.step_scores)] = torch.tensor(score.step_scores)
        exists[i, : len(score.step_scores)] = True
    starts = [prefix.length for prefix in prefixes]
    ids = pad([[*prompts[p.chain], *one.ids] for p, one in zip(prefixes, drawn, strict=True)], encoder.pad_id)
    token_steps = torch.full(ids.shape, -1)
    sampled = torch.zeros(ids.shape, dtype=torch.bool)
    old = torch.zeros(ids.shape)
    for row, (start, one, steps) in enumerate(zip(starts, drawn, split, strict=True)):
        sampled[row, start : start + len(one.ids)] = True
        old[row, start : start + len(one.ids)] = torch.tensor(one.logprobs)
        begin = start
        for number, (_, end) in enumerate(steps):
            token_steps[row, begin : start + end + 1] = number
            begin = start + end + 1
    advantages = ESTIMATORS[config.estimator](
        GroupRewards(outcomes, rewards, exists, token_steps, sampled, config.group_size), config)
    process = (rewards.sum() / exists.sum().clamp(min=1)).item()
    figures = {
        "reward/outcome": outcomes.mean().item(),
        "reward/process": process,
        "reward/hybrid": config.outcome_weight * outcomes.mean().item() + config.process_weight * process,
        "chain/steps": exists.sum(1).float().mean().item(),
        "chain/tokens": sampled.sum(1).float().mean().item(),
        "chain/unfinished_share": sum(not one.finished for one in drawn) / len(drawn),
    }
    return Experience(ids, sampled, old, advantages, figures)


def token_logprobs(model: Any, ids: Tensor, sampled: Tensor, temperature: float) -> Tensor:
    """Log-probability of each sampled token at the sampling temperature, 0 elsewhere: (chains, tokens)."""
    import torch

    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    targets = sampled[:, 1:]
    logits = model.get_output_embeddings()(hidden[:, :-1][targets]).float() / temperature
    values = torch.log_softmax(logits, -1).gather(1, ids[:, 1:][targets][:, None]).squeeze(1)
    result = torch.zeros(ids.shape, device=ids.device)
    result[:, 1:] = result[:, 1:].masked_scatter(targets, values)
    return result


def train_policy(
    policy: Policy, scorer: ChainScorer, domains: Registry[Domain], problems: Sequence[Problem],
    config: PolicyTrainingConfig, *, batch_size: int, seed: int, work: Path,
    report: Callable[[dict[str, float], int], None],
) -> list[dict[str, Any]]:
    """Trains the policy in place by GRPO. Returns one record an update.

    Source: Shao et al. 2024, "DeepSeekMath"; token-mean loss as in Yu et al. 2025, "DAPO".

    Raises InputError when the loss is not finite.
    """
    import torch
    from accelerate import Accelerator

    from prm_core.platform.progress import track

    reference = copy.deepcopy(policy.model).requires_grad_(False)
    accelerator = Accelerator(cpu=policy.model.device.type == "cpu")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    # The first update has a rate too: the usual schedules begin at 0, and its chains would be sampled for nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / (config.warmup_updates + 1), 1.0)
    )
    model, optimizer, schedule = accelerator.prepare(policy.model, optimizer, schedule)
    checkpoints = Checkpoints(accelerator, work / "checkpoints")
    position = checkpoints.restore()
    todo = range(position.update, config.updates)
    for update in track(todo, "train policy", total=config.updates, done=position.update, unit="update"):
        rng = random.Random(f"grpo/{seed}/{update}")
        batch = rng.sample(list(problems), min(config.problems_per_update, len(problems)))
        experience = collect(policy, scorer, domains, batch, config, batch_size=batch_size, seed=rng.getrandbits(31))
        losses: list[dict[str, float]] = []
        for _ in range(config.inner_epochs):
            order = rng.sample(range(len(experience.ids)), len(experience.ids))
            for start in range(0, len(order), config.minibatch_size):
                rows = torch.tensor(order[start : start + config.minibatch_size])
                figures: dict[str, float] = {}
                for part, share in _passes(experience, rows):
                    loss, found = _loss(model, reference, experience, part, config)
                    if not torch.isfinite(loss):
                        raise InputError(f"the policy's loss is {loss.item()} at update {update}; lower "
                                         "train_policy.learning_rate")
                    accelerator.backward(loss * share)
                    for name, value in found.items():
                        figures[name] = figures.get(name, 0.0) + share * value
                figures["grad_norm"] = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                losses.append(figures)
        schedule.step()
        means = {name: sum(one[name] for one in losses) / len(losses) for name in losses[0]}
        record = {"update": update + 1, **experience.figures, **means}
        position.update = update + 1
        position.history.append(record)
        if (update + 1) % config.log_every == 0:
            report({name: value for name, value in record.items() if name != "update"}, update + 1)
        if (update + 1) % config.checkpoint_every == 0:
            checkpoints.save(position)
    return position.history


def _passes(experience: Experience, rows: Tensor) -> Iterator[tuple[Tensor, float]]:
    """The rows of a minibatch (rows,) in passes of like length, and the share of its sampled tokens in each.

    Token means of the passes, weighted by these shares, are those of the minibatch, with less padding.
    """
    import torch

    sampled = experience.sampled[rows]
    lengths = (sampled * torch.arange(sampled.shape[1])).amax(1)
    order, tokens = lengths.argsort(stable=True), sampled.sum(1)
    for part in order.split(ROWS_PER_PASS):
        yield rows[part], (tokens[part].sum() / tokens.sum()).item()


def _loss(
    model: Any, reference: Any, experience: Experience, rows: Tensor, config: PolicyTrainingConfig
) -> tuple[Tensor, dict[str, float]]:
    import torch

    device = reference.device
    ids, sampled = experience.ids[rows].to(device), experience.sampled[rows].to(device)
    # Pads at the right of every chain of the pass cost time and nothing else.
    width = int(sampled.any(0).nonzero().max()) + 1
    ids, sampled = ids[:, :width], sampled[:, :width]
    old = experience.old_logprobs[rows, :width].to(device)
    advantages = experience.advantages[rows, :width].to(device)
    logprobs = token_logprobs(model, ids, sampled, config.temperature)
    with torch.inference_mode():
        anchor = token_logprobs(reference, ids, sampled, config.temperature)
    surrogate, clipped = clipped_surrogate(logprobs, old, advantages, config.clip)
    kl = masked_mean(k3_kl(logprobs, anchor.clone()), sampled)
    policy_loss = masked_mean(surrogate, sampled)
    figures = {
        "loss/policy": policy_loss.item(),
        "kl": kl.item(),
        "clip_share": masked_mean(clipped.float(), sampled).item(),
        "logprob": masked_mean(logprobs.detach(), sampled).item(),
    }
    return policy_loss + config.kl_coef * kl, figures
