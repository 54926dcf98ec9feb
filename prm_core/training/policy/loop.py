"""The loop: groups of chains for each question, advantages from process and outcome rewards, clipped updates. GRPO, or
with a critic PPO."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import PolicyTrainingConfig
from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.models.static.graph import CompiledLayers
from prm_core.platform import workers
from prm_core.registry import Registry
from prm_core.rules.verdicts import Overseer
from prm_core.sampling.policy import Policy
from prm_core.scoring.scorer import ChainScorer
from prm_core.training import data_parallel
from prm_core.training.checkpoint import Checkpoints, replace_folder
from prm_core.training.data_parallel import balanced, cut
from prm_core.training.policy.advantages.constraint import goes_on, next_multiplier
from prm_core.training.policy.experience import (
    Experience,
    Reading,
    Rewarded,
    informed,
    lay_out,
    sample_and_score,
    sample_chains,
    to_experience,
    uniform_groups,
)
from prm_core.training.policy.gae import adapted, value_loss
from prm_core.training.policy.groups import Layout, Pass, grow, passes
from prm_core.training.policy.guards import alarm
from prm_core.training.policy.loss import SURROGATES, k3_kl
from prm_core.training.policy.networks import Critic, states_before, token_logprobs
from prm_core.training.policy.prime import OnlineReward
from prm_core.training.policy.rules import ALONE, BROKEN, MULTIPLIER
from prm_core.training.sharding import Sharding, adamw
from prm_core.types import Problem

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)
# A problem, and seed and stream of each chain that is to be sampled for it.
Asked = tuple[Problem, list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training.

    Attributes:
        history: a record an update; one that was evaluated has `dev/outcome`.
        kept: number of updates of the policy that was kept.
        alarm: why a guard stopped it, or had rules alone learned from then on; None where none did.
    """

    history: list[dict[str, Any]]
    kept: int
    alarm: str | None


def train_policy(
    policy: Policy, scorer: ChainScorer | None, domains: Registry[Domain], problems: Sequence[Problem],
    config: PolicyTrainingConfig, *, dev: Sequence[Problem], batch_size: int, seed: int, work: Path,
    report: Callable[[dict[str, float], int], None], sharding: Sharding = "none", overseer: Overseer | None = None,
) -> Trained:
    """Trains the policy in place by GRPO, or with a critic by PPO. Launched on several processes, each samples, scores
    and learns from its share of every update; weights and records are those of one process.

    Args:
        scorer: of steps; None where an implicit reward model learns from the outcomes on the way (PRIME).
        problems: that it learns on.
        dev: others, on which it is evaluated, where `eval_every` says so; the policy that does best there is kept.
        report: receives figures and the number of updates done.
        sharding: full: each process has the optimizer's state of a share of the weights, which all sample with.
        overseer: the rules that the constraint is about, or that are counted.

    Source: Shao et al. 2024, "DeepSeekMath"; Schulman et al. 2017, "Proximal Policy Optimization"; what is taken from
    later work stands with the settings.

    Raises InputError when the loss is not finite, or there is nothing to evaluate on.
    """
    import torch
    from accelerate import Accelerator
    from torch import nn

    from prm_core.platform.progress import track

    if config.eval_every and not dev:
        raise InputError("no dev problem to evaluate the policy on; give some, or set train_policy.eval_every to 0")
    reference = copy.deepcopy(policy.model).requires_grad_(False)
    layout = Layout.of(reference)
    # The processes of a launcher take their steps together, so the schedule steps once.
    accelerator = Accelerator(cpu=policy.model.device.type == "cpu", step_scheduler_with_optimizer=False)
    critic = None if config.critic.kind == "none" else Critic(policy.model, separate=config.critic.kind == "separate")
    modules = [policy.model] if critic is None else [policy.model, critic]
    optimizer = adamw([
        {"params": list(module.parameters()), "lr": rate}
        for module, rate in zip(modules, (config.learning_rate, config.critic.learning_rate), strict=False)
    ], accelerator, sharding, weight_decay=0.0)
    # The first update has a rate too: the usual schedules begin at 0, and its chains would be sampled for nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda update: min((update + 1) / (config.warmup_updates + 1), 1.0)
    )
    modules = [accelerator.prepare_model(module, evaluation_mode=True) for module in modules]
    optimizer = accelerator.prepare_optimizer(optimizer, device_placement=False)
    schedule = accelerator.prepare(schedule)
    model, critic = modules[0], modules[1] if critic is not None else None
    online = None if scorer is not None else OnlineReward(policy, reference, config, accelerator, seed, sharding)
    checkpoints = Checkpoints(accelerator, work / "checkpoints")
    position = checkpoints.restore()

    def draw(asked: list[Asked]) -> list[Rewarded]:
        return sample_and_score(policy, scorer, domains, [problem for problem, _ in asked], config,
                                batch_size=batch_size, seed=[stream for _, streams in asked for stream in streams],
                                overseer=overseer)

    def judge(asked: list[Asked]) -> list[float]:
        return [chain.outcome for chain in sample_chains(
            policy, domains, [problem for problem, _ in asked], temperature=config.temperature,
            max_new_tokens=config.max_new_tokens, batch_size=batch_size,
            seed=[stream for _, streams in asked for stream in streams])]

    def gather(update: int) -> tuple[list[Rewarded], int]:
        """The chains of an update, and how many tokens were sampled for them and for questions that told nothing."""
        rng = random.Random(f"grpo/{seed}/{update}")
        order = rng.sample(list(problems), len(problems))
        chains: list[Rewarded] = []
        tokens = begin = 0
        for attempt in range(config.resample + 1):
            missing = config.problems_per_update - len(chains) // config.group_size
            batch = order[begin : begin + missing]
            if not batch:
                break
            begin += missing
            asked = _asked(batch, config.group_size, lambda: rng.getrandbits(31))
            parts = cut(len(asked), gradients.parts)
            drawn = [chain for part in samplers.map([asked[part] for part in parts]) for chain in part]
            tokens += sum(logprob is not None for chain in drawn for logprob in chain.logprobs)
            if config.resample:
                uniform = uniform_groups(lay_out(drawn, policy.encoder.pad_id, config.group_size), config)
                # Where no question tells anything there is still an update, of KL alone.
                spare = attempt == config.resample and not chains and all(uniform)
                drawn = [chain for row, chain in enumerate(drawn) if spare or not uniform[row // config.group_size]]
            chains += drawn
        return chains, tokens

    def dev_outcome() -> float:
        problems = [problem for problem in dev[: config.eval_problems] for _ in range(config.eval_samples)]
        # The same seed each time: less of the difference is luck.
        asked = _asked(problems, 1, lambda: seed)
        parts = cut(len(asked), gradients.parts)
        right = [found for part in judges.map([asked[part] for part in parts]) for found in part]
        return sum(right) / len(right)

    rules = [] if overseer is None else [rule.id for rule in overseer.constitution.rules]
    compiled = [CompiledLayers(one.base_model) for one in (policy.model, reference)]

    def losses_of(part: Experience) -> Iterator[tuple[Tensor, dict[str, float]]]:
        for read in passes(part.ids, part.learned, layout):
            with compiled[0].on(), compiled[1].on():
                found = _loss(model, critic, reference, part, read, config)
            yield found

    def reread(part: Experience) -> Reading:
        return _read(model, critic, reference, part, config, layout)

    def prepared(experience: Experience) -> Experience:
        """With what the models as they are now, before the first step, say of the sampled tokens."""
        learned = experience.learned.any(1).nonzero()[:, 0]
        if not len(learned):
            raise InputError("the reward model could score no chain of an update whole; lower "
                             "train_policy.max_new_tokens, or name another in train_policy.reward_model")
        parts = [learned[part] for part in _parts(experience.take(learned), gradients.parts, layout)]
        whole = Reading(*(torch.zeros(experience.ids.shape) for _ in range(3)))
        for rows, found in zip(parts, readers.map([experience.take(rows) for rows in parts]), strict=True):
            for values, own in zip(whole, found, strict=True):
                values[rows] = own
        return informed(experience, whole, config)

    best = work / "best"
    rereads = critic is not None or config.sampler_cap > 0
    hacked = _first_alarm(position.history, config)
    done = hacked and not goes_on(position.history[-1], config.constraint, BROKEN)
    todo = range(position.update, position.update if done else config.updates)
    # The workers that sample see the weights that the gradients' context moves to shared memory.
    with (
        data_parallel.gradients(accelerator, nn.ModuleList(modules), losses_of) as gradients,
        data_parallel.shared_out(draw, gradients.parts) as samplers,
        data_parallel.shared_out(judge, gradients.parts if config.eval_every else 1) as judges,
        data_parallel.shared_out(reread, gradients.parts if rereads else 1) as readers,
        nullcontext() if online is None else online.at_work() as reward,
    ):
        for update in track(todo, "train policy", total=config.updates, done=position.update, unit="update"):
            chains, sampled_tokens = gather(update)
            kl_coef = _kl_coef(position.history, config)
            of_tokens, learned_reward = (None, {}) if reward is None else reward(chains, update)
            multiplier = next_multiplier(position.history, config.constraint, BROKEN, MULTIPLIER)
            alone = hacked is not None
            experience = to_experience(chains, policy.encoder.pad_id, config, kl_coef, of_tokens, multiplier, rules,
                                       alone)
            if rereads:
                experience = prepared(experience)
            learned = experience.learned.any(1)
            rng = random.Random(f"grpo/order/{seed}/{update}")
            losses: list[dict[str, float]] = []
            for _ in range(config.inner_epochs):
                # By question: what chains share is read once.
                starts = range(0, len(chains), config.group_size)
                order = [row for start in rng.sample(starts, len(starts))
                         for row in range(start, start + config.group_size) if learned[row]]
                for start in range(0, len(order), config.minibatch_size):
                    minibatch = experience.take(order[start : start + config.minibatch_size]).weighed(
                        config.normaliser, policy.encoder.config.max_length)
                    parts = _parts(minibatch, gradients.parts, layout)
                    figures = gradients.of([minibatch.take(part) for part in parts])
                    loss = sum(figures[name] for name in ("loss/policy", "kl", "loss/value") if name in figures)
                    if not math.isfinite(loss):
                        rates = "train_policy.learning_rate" + (
                            "" if critic is None else " or train_policy.critic.learning_rate")
                        raise InputError(f"the policy's loss is {loss} at update {update}; lower {rates}")
                    norms = [float(accelerator.clip_grad_norm_(module.parameters(), config.max_grad_norm))
                             for module in modules]
                    figures |= dict(zip(("grad_norm", "value/grad_norm"), norms, strict=False))
                    optimizer.step()
                    losses.append(figures)
            schedule.step()
            means = {name: sum(one[name] for one in losses) / len(losses) for name in losses[0]}
            record = {"update": update + 1, **experience.figures, **learned_reward, **means,
                      "tokens": float(sampled_tokens)}
            if config.kl_target:
                record["kl_coef"] = kl_coef
            if config.constraint.kind == "lagrangian":
                record[MULTIPLIER] = multiplier
            if config.constraint.kind != "none":
                record[ALONE] = float(alone)
            position.update = update + 1
            position.history.append(record)
            hacked = hacked or alarm(position.history, config.guard)
            stops = hacked is not None and not goes_on(record, config.constraint, BROKEN)
            last = stops or update + 1 == config.updates
            if config.eval_every and ((update + 1) % config.eval_every == 0 or last):
                record["dev/outcome"] = dev_outcome()
                if _best(position.history) == update + 1 and accelerator.is_main_process:
                    _save_weights(policy.model, best)
            if (update + 1) % config.log_every == 0 or last:
                report({name: value for name, value in record.items() if name != "update"}, update + 1)
            if (update + 1) % config.checkpoint_every == 0:
                checkpoints.save(position)
            if stops:
                log.warning("policy training stops after update %d: %s", update + 1, hacked)
                break
            if hacked is not None and not alone:
                log.warning("from update %d on nothing is paid, and rules alone are learned: %s", update + 2, hacked)
    accelerator.wait_for_everyone()
    kept = _best(position.history)
    if kept != position.update:
        _load_weights(policy.model, best)
    # Whoever is through first may remove the folder.
    accelerator.wait_for_everyone()
    return Trained(position.history, kept, hacked)


def _first_alarm(history: Sequence[dict[str, Any]], config: PolicyTrainingConfig) -> str | None:
    """What an earlier call's alarm said: after it rules alone may have been learned, whose curves say other things."""
    return next((found for end in range(1, len(history) + 1)
                 if (found := alarm(history[:end], config.guard)) is not None), None)


def _asked(problems: Sequence[Problem], samples: int, seed: Callable[[], int]) -> list[Asked]:
    """Each problem with what its samples are drawn by, whichever process draws them: streams of a seed for each part
    of the problems, as many as small work is cut into."""
    found: list[Asked] = []
    for part in cut(len(problems), workers.PARTS):
        own = seed()
        found += [(problem, [(own, place * samples + number) for number in range(samples)])
                  for place, problem in enumerate(problems[part])]
    return found


def _kl_coef(history: Sequence[dict[str, Any]], config: PolicyTrainingConfig) -> float:
    """Of the update after these."""
    if not (config.kl_target and history):
        return config.kl_coef
    return adapted(history[-1]["kl_coef"], history[-1]["kl"], config.kl_target)


def _best(history: Sequence[dict[str, Any]]) -> int:
    """Number of updates of the policy with the best dev outcome, of equal ones the first; the last without any."""
    known = [record for record in history if "dev/outcome" in record]
    return int(max(known, key=lambda record: record["dev/outcome"])["update"] if known else history[-1]["update"])


def _save_weights(model: PreTrainedModel, folder: Path) -> None:
    written = folder.with_name(f".{folder.name}")
    model.save_pretrained(written)
    replace_folder(folder, written)


def _load_weights(model: PreTrainedModel, folder: Path) -> None:
    found = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(found.state_dict())


def _parts(experience: Experience, count: int, layout: Layout) -> list[list[int]]:
    """Its rows in parts of about equal work, those of a question together."""
    groups = grow(experience.ids, experience.learned, layout)
    return [sorted(row for number in part for row in groups[number].leaves)
            for part in balanced([group.tokens for group in groups], count)]


def _read(
    model: Any, critic: Critic | None, reference: Any, experience: Experience, config: PolicyTrainingConfig,
    layout: Layout,
) -> Reading:
    """What the models say of each sampled token, as far as it is asked."""
    import torch

    whole = Reading(*(torch.zeros(experience.ids.shape) for _ in range(3)))
    with torch.no_grad():
        for found in passes(experience.ids, experience.learned, layout):
            read = found.to(reference.device)
            states = states_before(model, read)
            if config.sampler_cap:
                whole.logprobs[read.rows] = token_logprobs(model, states, read, config.temperature).cpu()
            if critic is not None:
                whole.values[read.rows] = critic(states, read).cpu()
            if critic is not None and config.critic.kl_in_reward:
                whole.anchor[read.rows] = token_logprobs(
                    reference, states_before(reference, read), read, config.temperature).cpu()
    return whole


def _loss(
    model: Any, critic: Critic | None, reference: Any, experience: Experience, read: Pass,
    config: PolicyTrainingConfig,
) -> tuple[Tensor, dict[str, float]]:
    """The share of a pass in the loss of the minibatch, and in its figures."""
    import torch

    read = read.to(reference.device)
    part = experience.take(read.rows).each(lambda values: values.to(reference.device))
    states = states_before(model, read)
    logprobs = token_logprobs(model, states, read, config.temperature)
    with torch.inference_mode():
        anchor = token_logprobs(reference, states_before(reference, read), read, config.temperature)
    surrogate, clipped = SURROGATES[config.surrogate](logprobs, part.old_logprobs, part.advantages, *config.clip)
    kl = (k3_kl(logprobs, anchor.clone()) * part.weights).sum()
    policy_loss = (surrogate * part.weights).sum()
    figures = {
        "loss/policy": policy_loss.item(),
        "kl": kl.item(),
        "clip_share": (clipped * part.weights).sum().item(),
        "logprob": (logprobs.detach() * part.weights).sum().item(),
    }
    loss = policy_loss + part.kl_coef * kl
    if critic is None:
        return loss, figures
    asked = part.choices
    missed, cut = value_loss(critic(states, read), asked.values, asked.returns, config.critic.clip)
    of_values = (missed * asked.weights).sum()
    figures |= {"loss/value": of_values.item(), "value/clip_share": (cut * asked.weights).sum().item()}
    return loss + config.critic.coef * of_values, figures
