"""GRPO with a hybrid reward: groups of chains per question, process rewards from a PRM, outcomes from the answers."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import PolicyTrainingConfig
from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.models.padding import pad
from prm_core.platform import workers
from prm_core.registry import Registry
from prm_core.sampling.episodes import run_episodes
from prm_core.sampling.policy import Policy
from prm_core.sampling.rollouts import rollout_succeeds
from prm_core.scoring.scorer import ChainScorer
from prm_core.training import data_parallel
from prm_core.training.checkpoint import Checkpoints
from prm_core.training.data_parallel import balanced
from prm_core.training.policy.loss import clipped_surrogate, k3_kl, masked_mean
from prm_core.types import Problem, Step

if TYPE_CHECKING:
    from torch import Tensor

# Chains of like length, no two the same, that go through the model together.
ROWS_PER_PASS = 32


@dataclass(frozen=True, slots=True)
class Experience:
    """Sampled chains of one update, chains of a question next to each other. Shapes (chains, tokens) or as noted.

    Attributes:
        ids: prompt, sampled tokens and what was heard between them, right-padded.
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

    def take(self, rows: list[int]) -> Experience:
        """These chains alone, without the figures."""
        return Experience(self.ids[rows], self.sampled[rows], self.old_logprobs[rows], self.advantages[rows], {})


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A chain with its rewards. Lists are by token.

    Attributes:
        ids: prompt, and what was sampled and heard.
        logprobs: of sampled tokens, None of all others.
        steps: number of the step that a token belongs to, -1 for none.
        outcome: 1 where it ends by itself as the problem wants it, else 0.
        scores: of the steps that fit the scorer's context.
        finished: whether it ended by itself.
    """

    ids: list[int]
    logprobs: list[float | None]
    steps: list[int]
    outcome: float
    scores: tuple[float, ...]
    finished: bool


def sample_and_score(
    policy: Policy, scorer: ChainScorer, domains: Registry[Domain], problems: Sequence[Problem],
    config: PolicyTrainingConfig, *, batch_size: int, seed: int,
) -> list[Rewarded]:
    """`group_size` chains for each problem, with their rewards."""
    sample = _episodes if any(domains[problem.domain].environment for problem in problems) else _chains
    drawn = sample(policy, domains, [problem for problem in problems for _ in range(config.group_size)],
                   temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch_size=batch_size,
                   seed=seed)
    owners = [problem for problem in problems for _ in range(config.group_size)]
    # A chain without any step has nothing to score; its outcome alone speaks against it.
    scores = iter(scorer.score([(owner.prompt, steps) for owner, (steps, _) in zip(owners, drawn, strict=True)
                                if steps]))
    return [replace(chain, scores=next(scores).step_scores if steps else ()) for steps, chain in drawn]


def _chains(policy: Policy, domains: Registry[Domain], problems: Sequence[Problem], **sampling: Any
            ) -> list[tuple[list[Step], Rewarded]]:
    """A chain written in one go for each problem, without scores."""
    from prm_core.sampling.sampler import Prefix

    prompts = [policy.encoder.encode_prompt(problem.prompt) for problem in problems]
    drawn = policy.continue_chains(prompts, [Prefix(row, len(ids)) for row, ids in enumerate(prompts)], **sampling)
    found = []
    for problem, prompt, one in zip(problems, prompts, drawn, strict=True):
        split = policy.encoder.split_steps(one.ids)
        places = [-1] * (len(prompt) + len(one.ids))
        begin = len(prompt)
        for number, (_, end) in enumerate(split):
            places[begin : len(prompt) + end + 1] = [number] * (len(prompt) + end + 1 - begin)
            begin = len(prompt) + end + 1
        outcome = float(rollout_succeeds(policy, domains[problem.domain], problem, one))
        found.append(([Step(text) for text, _ in split], Rewarded(
            [*prompt, *one.ids], [*[None] * len(prompt), *one.logprobs], places, outcome, (), one.finished)))
    return found


def _episodes(policy: Policy, domains: Registry[Domain], problems: Sequence[Problem], **sampling: Any
              ) -> list[tuple[list[Step], Rewarded]]:
    """An episode for each problem, without scores; what was heard is no sampled token."""
    found = []
    ends = policy.encoder.turn_ends
    for run in run_episodes(policy, domains, [(problem, ()) for problem in problems], **sampling):
        encoded = policy.encoder.encode(run.problem.prompt, run.steps, may_be_empty=True)
        ids = encoded.ids[: encoded.prompt_length]
        logprobs: list[float | None] = [None] * len(ids)
        places, start = [-1] * len(ids), len(ids)
        for number, (end, written) in enumerate(zip(encoded.step_ends, run.written, strict=False)):
            block = encoded.ids[start : end + 1]
            # The tokens as they were sampled: a policy may spell a word in others than the encoder, and is to learn
            # from those it chose. What was heard begins where the turn ends or waits.
            heard = block[next(at for at, token in enumerate(block) if token in ends) :]
            own, known = list(written.ids), list(written.logprobs)
            if written.finished:
                last, logprob = own.pop(), known.pop()
                known.append(logprob if last == heard[0] else None)
            ids += [*own, *heard]
            logprobs += [*known, *[None] * (len(own) + len(heard) - len(known))]
            places += [number] * (len(own) + len(heard))
            start = end + 1
        found.append((list(run.steps[: len(encoded.step_ends)]), Rewarded(
            ids, logprobs, places, float(run.success), (), run.ended)))
    return found


def to_experience(chains: Sequence[Rewarded], pad_id: int, config: PolicyTrainingConfig) -> Experience:
    """The chains of an update, those of a problem next to each other, with their advantages."""
    import torch

    from prm_core.training.policy.estimators import ESTIMATORS, GroupRewards

    outcomes = torch.tensor([chain.outcome for chain in chains])
    width = max(1, *(step + 1 for chain in chains for step in chain.steps))
    rewards, exists = torch.zeros(len(chains), width), torch.zeros(len(chains), width, dtype=torch.bool)
    ids = pad([chain.ids for chain in chains], pad_id)
    token_steps = torch.full(ids.shape, -1)
    sampled = torch.zeros(ids.shape, dtype=torch.bool)
    old = torch.zeros(ids.shape)
    for row, chain in enumerate(chains):
        rewards[row, : len(chain.scores)] = torch.tensor(chain.scores)
        exists[row, : len(chain.scores)] = True
        token_steps[row, : len(chain.ids)] = torch.tensor(chain.steps)
        sampled[row, : len(chain.ids)] = torch.tensor([one is not None for one in chain.logprobs])
        old[row, : len(chain.ids)] = torch.tensor([one or 0.0 for one in chain.logprobs])
    advantages = ESTIMATORS[config.estimator](
        GroupRewards(outcomes, rewards, exists, token_steps, sampled, config.group_size), config)
    process = (rewards.sum() / exists.sum().clamp(min=1)).item()
    figures = {
        "reward/outcome": outcomes.mean().item(),
        "reward/process": process,
        "reward/hybrid": config.outcome_weight * outcomes.mean().item() + config.process_weight * process,
        "chain/steps": exists.sum(1).float().mean().item(),
        "chain/tokens": sampled.sum(1).float().mean().item(),
        "chain/unfinished_share": sum(not chain.finished for chain in chains) / len(chains),
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

    def draw(item: tuple[list[Problem], int]) -> list[Rewarded]:
        part, part_seed = item
        return sample_and_score(policy, scorer, domains, part, config, batch_size=batch_size, seed=part_seed)

    def passes(item: tuple[Experience, int]) -> Iterator[tuple[Tensor, dict[str, float]]]:
        part, tokens = item
        for rows in _passes(part):
            share = (part.sampled[rows].sum() / tokens).item()
            loss, found = _loss(model, reference, part, rows, config)
            yield loss * share, {name: share * value for name, value in found.items()}

    todo = range(position.update, config.updates)
    # The workers that sample see the weights that the gradients' context moves to shared memory.
    with (
        data_parallel.gradients(accelerator, model, passes) as gradients,
        workers.forked(draw, gradients.parts) as samplers,
    ):
        for update in track(todo, "train policy", total=config.updates, done=position.update, unit="update"):
            rng = random.Random(f"grpo/{seed}/{update}")
            batch = rng.sample(list(problems), min(config.problems_per_update, len(problems)))
            parts = workers.shards(len(batch), -(-len(batch) // gradients.parts))
            drawn = samplers.map([(batch[part], rng.getrandbits(31)) for part in parts])
            experience = to_experience([chain for part in drawn for chain in part], policy.encoder.pad_id, config)
            losses: list[dict[str, float]] = []
            for _ in range(config.inner_epochs):
                # By question, since a policy writes many a chain twice, and twins take one pass.
                order = [row for start in rng.sample(range(0, len(experience.ids), config.group_size), len(batch))
                         for row in range(start, start + config.group_size)]
                for start in range(0, len(order), config.minibatch_size):
                    minibatch = experience.take(order[start : start + config.minibatch_size])
                    tokens = int(minibatch.sampled.sum())
                    figures = gradients.of([(minibatch.take(part), tokens)
                                            for part in _parts(minibatch, gradients.parts)])
                    loss = figures["loss/policy"] + config.kl_coef * figures["kl"]
                    if not math.isfinite(loss):
                        raise InputError(f"the policy's loss is {loss} at update {update}; lower "
                                         "train_policy.learning_rate")
                    figures["grad_norm"] = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm))
                    optimizer.step()
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


def _distinct(ids: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each chain once, as `ids` and `sampled` of (chains, tokens), and which of these each given one is, (chains,)."""
    import torch

    distinct, which = torch.cat([ids, sampled.long()], 1).unique(dim=0, return_inverse=True)
    return distinct[:, : ids.shape[1]], distinct[:, ids.shape[1] :].bool(), which


def _parts(experience: Experience, count: int) -> list[list[int]]:
    """Its rows in parts of about equal work, twins together."""
    _, sampled, which = _distinct(experience.ids, experience.sampled)
    return [_rows(which, part).tolist() for part in balanced(sampled.sum(1).tolist(), count)]


def _passes(experience: Experience) -> list[Tensor]:
    """Its rows in passes of like length (rows,), twins together: token means of the passes, weighted by their shares of
    the sampled tokens, are those of the whole, with less padding."""
    import torch

    _, sampled, which = _distinct(experience.ids, experience.sampled)
    lengths = (sampled * torch.arange(sampled.shape[1])).amax(1)
    return [_rows(which, chosen.tolist()) for chosen in lengths.argsort(stable=True).split(ROWS_PER_PASS)]


def _rows(which: Tensor, chosen: Sequence[int]) -> Tensor:
    """Rows that are one of the chosen distinct chains."""
    import torch

    return torch.isin(which, torch.tensor(chosen)).nonzero()[:, 0]


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
    *once, which = _distinct(ids, sampled)
    logprobs = token_logprobs(model, *once, config.temperature)[which]
    with torch.inference_mode():
        anchor = token_logprobs(reference, *once, config.temperature)[which]
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
