"""What a policy learns from: chains sampled in groups, scored, and laid out with an advantage for each token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prm_core import turns
from prm_core.config import PolicyTrainingConfig
from prm_core.domains.base import Domain
from prm_core.errors import InputError
from prm_core.models.padding import pad
from prm_core.registry import Registry
from prm_core.rules.verdicts import Overseer
from prm_core.sampling.episodes import run_episodes
from prm_core.sampling.policy import Policy
from prm_core.sampling.rollouts import says_answer
from prm_core.scoring.scorer import ChainScore, ChainScorer
from prm_core.training.policy.advantages import FILTERS, GroupRewards, advantages, placed
from prm_core.training.policy.advantages.compose import EPSILON, process_rewards, slot_rewards
from prm_core.training.policy.advantages.constraint import Limit, less_costs
from prm_core.training.policy.gae import advantages_and_returns, choices, explained, place_rewards, whiten
from prm_core.training.policy.loss import sampler_weights, token_weights
from prm_core.training.policy.rules import Broken, broken_by, rule_figures, share_broken
from prm_core.types import Problem, Step

if TYPE_CHECKING:
    from torch import Tensor

    from prm_core.sampling.drawing import Seed


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A chain with its rewards. Lists are by token.

    Attributes:
        ids: prompt, and what was sampled and heard.
        logprobs: of sampled tokens, None of all others.
        slots: number of the step that a token belongs to, the number of steps for what was sampled after the last, -1
            for none.
        problem: its question's id.
        steps: as they were scored.
        outcome: 1 where it ends by itself as the problem wants it, else 0.
        finished: whether it ended by itself.
        broken: ids of the rules that each step breaks, None where there are no rules.
        scores: of the steps that fit the scorer's context.
        start: the scorer's value of the bare question, None of scorers that say nothing of it.
    """

    ids: list[int]
    logprobs: list[float | None]
    slots: list[int]
    problem: str
    steps: tuple[Step, ...]
    outcome: float
    finished: bool
    broken: Broken | None = None
    scores: tuple[float, ...] = ()
    start: float | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What a critic is asked, and what it is to learn. Shapes (chains, tokens).

    Attributes:
        made: True at learned tokens with which a choice begins; see `gae.choices`.
        rewards: of the tokens.
        values: of the choices, as the critic said them before it learned from these chains.
        returns: what they should have been.
        weights: how much each choice counts in its minibatch.
    """

    made: Tensor
    rewards: Tensor
    values: Tensor
    returns: Tensor
    weights: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Choices:
        """With each tensor changed."""
        return Choices(*(change(values) for values in (
            self.made, self.rewards, self.values, self.returns, self.weights)))


@dataclass(frozen=True, slots=True)
class Experience:
    """Sampled chains of one update, chains of a question next to each other. Shapes (chains, tokens) or as noted.

    Attributes:
        ids: prompt, sampled tokens and what was heard between them, right-padded.
        learned: True at sampled tokens of chains that are learned from.
        old_logprobs: of the sampled tokens when they were sampled, 0 elsewhere.
        advantages: 0 at tokens that were not sampled.
        weights: how much each token's loss counts in its minibatch.
        kl_coef: weight of the KL divergence in the loss.
        figures: means of the reward's components and of the chains, for logging.
        choices: of a policy with a critic, else None.
    """

    ids: Tensor
    learned: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    kl_coef: float
    figures: dict[str, float]
    choices: Choices | None = None

    def take(self, rows: Sequence[int] | Tensor) -> Experience:
        """These chains alone, without the figures."""
        return replace(self.each(lambda values: values[rows]), figures={})

    def each(self, change: Callable[[Tensor], Tensor]) -> Experience:
        """With each tensor changed."""
        return Experience(*(change(values) for values in (
            self.ids, self.learned, self.old_logprobs, self.advantages, self.weights)), self.kl_coef, self.figures,
            None if self.choices is None else self.choices.each(change))

    def weighed(self, normaliser: str, longest: int) -> Experience:
        """With the weights of these chains as one minibatch; see `token_weights`."""
        weighed = None if self.choices is None else replace(
            self.choices, weights=token_weights(self.choices.made, normaliser, longest))
        return replace(self, weights=token_weights(self.learned, normaliser, longest), choices=weighed)


class Reading(NamedTuple):
    """What the models say of the sampled tokens before an update's first step; (chains, tokens), 0 where not asked.

    Attributes:
        logprobs: the policy's log-probabilities, as the trainer computes them.
        values: the critic's.
        anchor: the reference's log-probabilities.
    """

    logprobs: Tensor
    values: Tensor
    anchor: Tensor


def sample_and_score(
    policy: Policy, scorer: ChainScorer | None, domains: Registry[Domain], problems: Sequence[Problem],
    config: PolicyTrainingConfig, *, batch_size: int, seed: Seed, overseer: Overseer | None = None,
) -> list[Rewarded]:
    """`group_size` chains for each problem, with their outcomes, the rules that they break where there are rules, and
    scores where there is a scorer. Raises InputError for a score that is no number.

    Args:
        seed: of all chains; or a seed and a stream for each.
    """
    drawn = sample_chains(policy, domains, [problem for problem in problems for _ in range(config.group_size)],
                          temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch_size=batch_size,
                          seed=seed)
    prompts = {problem.id: problem.prompt for problem in problems}
    if overseer is not None:
        said = broken_by(overseer, [(prompts[chain.problem], chain.steps) for chain in drawn])
        drawn = [replace(chain, broken=broken) for chain, broken in zip(drawn, said, strict=True)]
    if scorer is None:
        return drawn
    # A chain without any step has nothing to score; its outcome alone speaks against it.
    scores = iter(scorer.score([(prompts[chain.problem], chain.steps) for chain in drawn if chain.steps]))
    return [_rewarded(chain, next(scores)) if chain.steps else chain for chain in drawn]


def sample_chains(
    policy: Policy, domains: Registry[Domain], problems: Sequence[Problem], **sampling: Any
) -> list[Rewarded]:
    """A chain for each problem, in order, with its outcome and without scores."""
    sample = _episodes if any(domains[problem.domain].environment for problem in problems) else _chains
    return sample(policy, domains, problems, **sampling)


def _rewarded(chain: Rewarded, score: ChainScore) -> Rewarded:
    known = (*score.step_scores, *(() if score.prompt_score is None else (score.prompt_score,)))
    if not all(map(math.isfinite, known)):
        raise InputError(f"the reward model scores a step of problem {chain.problem} as {known}: not a number; train "
                         "it again, or name another in train_policy.reward_model")
    return replace(chain, scores=score.step_scores, start=score.prompt_score)


def _chains(policy: Policy, domains: Registry[Domain], problems: Sequence[Problem], **sampling: Any) -> list[Rewarded]:
    """A chain written in one go for each problem, without scores."""
    from prm_core.sampling.sampler import Prefix

    # The chains of a question share what is computed of its prompt.
    numbers = {text: number for number, text in enumerate(dict.fromkeys(problem.prompt for problem in problems))}
    prompts = [policy.encoder.encode_prompt(text) for text in numbers]
    asked = [Prefix(number, len(prompts[number])) for number in (numbers[problem.prompt] for problem in problems)]
    found = []
    for problem, prefix, one in zip(problems, asked, policy.continue_chains(prompts, asked, **sampling), strict=True):
        prompt = prompts[prefix.chain]
        split = policy.encoder.split_steps(one.ids)
        # What comes after the last step, the end token, is a choice of its own.
        slots = [-1] * len(prompt) + [len(split)] * len(one.ids)
        begin = len(prompt)
        for number, (_, end) in enumerate(split):
            slots[begin : len(prompt) + end + 1] = [number] * (len(prompt) + end + 1 - begin)
            begin = len(prompt) + end + 1
        right = one.finished and says_answer(domains[problem.domain], problem, split[-1][0] if split else "")
        found.append(Rewarded([*prompt, *one.ids], [*[None] * len(prompt), *one.logprobs], slots, problem.id,
                              tuple(Step(text) for text, _ in split), float(right), one.finished))
    return found


def _episodes(
    policy: Policy, domains: Registry[Domain], problems: Sequence[Problem], **sampling: Any
) -> list[Rewarded]:
    """An episode for each problem, without scores; what was heard is no sampled token."""
    found = []
    ends = policy.encoder.turn_ends
    for run in run_episodes(policy, domains, [(problem, ()) for problem in problems], **sampling):
        encoded = policy.encoder.encode(run.problem.prompt, run.steps, may_be_empty=True)
        ids = encoded.ids[: encoded.prompt_length]
        logprobs: list[float | None] = [None] * len(ids)
        slots, start = [-1] * len(ids), len(ids)
        for number, (end, written) in enumerate(zip(encoded.step_ends, run.written, strict=False)):
            block = encoded.ids[start : end + 1]
            # The tokens as they were sampled: a policy may spell a word in others than the encoder, and is to learn
            # from those it chose. What was heard begins where the turn ends or waits.
            heard = block[next(at for at, token in enumerate(block) if token in ends) :]
            own, known = list(written.ids), list(written.logprobs)
            if written.finished:
                last, logprob = own.pop(), known.pop()
                known.append(logprob if last == heard[0] else None)
            # Whose turn it is was told to the policy.
            opening = policy.encoder.opening(run.steps[number].agent)
            turn = [*opening, *own, *heard]
            ids += turn
            logprobs += [*[None] * len(opening), *known, *[None] * (len(turn) - len(opening) - len(known))]
            slots += [number] * len(turn)
            start = end + 1
        found.append(Rewarded(ids, logprobs, slots, run.problem.id, run.steps[: len(encoded.step_ends)],
                              float(run.success), run.ended))
    return found


def lay_out(chains: Sequence[Rewarded], pad_id: int, group_size: int) -> GroupRewards:
    """The rewards of chains, those of a problem next to each other, as tensors."""
    import torch

    # A chain that stops at once has the slot of that choice.
    counts = [max([1, len(chain.steps), *(slot + 1 for slot in chain.slots)]) for chain in chains]
    shape = (len(chains), max(counts))
    scores = torch.zeros(shape)
    steps, slots = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    agents, states = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    costs = torch.zeros(shape)
    ids = pad([chain.ids for chain in chains], pad_id)
    token_slots, sampled = torch.full(ids.shape, -1), torch.zeros(ids.shape, dtype=torch.bool)
    names: dict[str, int] = {}
    begins: dict[tuple[str, str], int] = {}
    for row, (chain, count) in enumerate(zip(chains, counts, strict=True)):
        scores[row, : len(chain.scores)] = torch.tensor(chain.scores)
        steps[row, : len(chain.steps)], slots[row, :count] = True, True
        for at, rules in enumerate(chain.broken or ()):
            costs[row, at] = float(bool(rules))
        for at, step in enumerate(chain.steps):
            agents[row, at] = names.setdefault(step.agent, len(names))
        read = turns.identity(chain.steps)
        for at in range(count):
            states[row, at] = begins.setdefault((chain.problem, repr(read[:at])), len(begins))
        token_slots[row, : len(chain.ids)] = torch.tensor(chain.slots)
        sampled[row, : len(chain.ids)] = torch.tensor([one is not None for one in chain.logprobs])
    return GroupRewards(
        torch.tensor([chain.outcome for chain in chains]), scores,
        torch.tensor([math.nan if chain.start is None else chain.start for chain in chains]), steps, slots,
        torch.tensor([0 < len(chain.steps) == len(chain.scores) for chain in chains]), agents, states, ids, token_slots,
        sampled, group_size, costs)


def uniform_groups(rewards: GroupRewards, config: PolicyTrainingConfig) -> list[bool]:
    """Of each group, whether all of its chains are worth the same."""
    import torch

    worth = config.advantages.outcome_weight * rewards.outcomes
    if config.advantages.process_weight:
        worth = torch.stack([worth, process_rewards(rewards, config.advantages).sum(1)], 1)
    if config.constraint.kind != "none":
        worth = torch.cat([worth.reshape(len(worth), -1), rewards.costs.sum(1, keepdim=True)], 1)
    grouped = worth.reshape(-1, rewards.group_size, worth[0].numel())
    return ((grouped.amax(1) - grouped.amin(1)).amax(1) <= EPSILON).tolist()


def to_experience(
    chains: Sequence[Rewarded], pad_id: int, config: PolicyTrainingConfig, kl_coef: float,
    of_tokens: Tensor | None = None, multiplier: float = 0.0, rules: Sequence[str] = (), alone: bool = False,
) -> Experience:
    """The chains of an update, those of a problem next to each other, with their advantages; with a critic these are
    `estimated` later, and a chain whose process reward nobody knows is not learned from.

    Args:
        of_tokens: process rewards of the tokens (chains, tokens), in place of the scores of steps.
        multiplier: what a step that breaks a rule costs, where the constraint is Lagrangian.
        rules: ids of those that chains were judged by.
        alone: whether these alone are learned, and nothing is paid.
    """
    import torch

    rewards = lay_out(chains, pad_id, config.group_size)
    if of_tokens is not None:
        rewards = placed(rewards, of_tokens, config.implicit.placement)
    kept = FILTERS[config.advantages.chain_filter](rewards, config.advantages)
    broken = [chain.broken for chain in chains]
    limit = Limit(config.constraint.kind, multiplier, share_broken(broken) > config.constraint.limit,
                  alone)
    old = torch.zeros(rewards.ids.shape)
    for row, chain in enumerate(chains):
        old[row, : len(chain.ids)] = torch.tensor([one or 0.0 for one in chain.logprobs])
    if config.critic.kind == "none":
        found, asked = advantages(rewards, kept, config.advantages, limit), None
    else:
        if config.advantages.process_weight:
            # A chain without a step earns nothing by steps, which is known.
            kept = kept & (rewards.judged | ~rewards.steps.any(1))
        made = choices(rewards.token_slots, rewards.token_mask & kept[:, None], config.critic.over)
        earned = less_costs(slot_rewards(rewards, config.advantages) * (not alone), rewards.costs, multiplier)
        paid = place_rewards(earned, rewards.token_slots, rewards.token_mask)
        found, nothing = torch.zeros(old.shape), torch.zeros(old.shape)
        asked = Choices(made, paid, nothing, nothing, nothing)
    return Experience(rewards.ids, rewards.token_mask & kept[:, None], old, found, torch.zeros(old.shape), kl_coef,
                      _figures(chains, rewards, old, config) | rule_figures(broken, rules), asked)


def informed(experience: Experience, reading: Reading, config: PolicyTrainingConfig) -> Experience:
    """With what the models say of it before the first step: advantages by the critic, and the correction for a sampler
    whose probabilities are not the trainer's."""
    sampled = experience.old_logprobs
    if config.sampler_cap:
        experience = replace(experience, old_logprobs=reading.logprobs)
    if config.critic.kind != "none":
        experience = estimated(experience, reading.values, reading.anchor, config)
    if config.sampler_cap:
        ratios, weights = sampler_weights(reading.logprobs, sampled, config.sampler_cap)
        own = ratios[experience.learned]
        experience = replace(experience, advantages=experience.advantages * weights, figures=experience.figures | {
            "sampler/ratio": own.mean().item(),
            "sampler/capped_share": (own > config.sampler_cap).float().mean().item()})
    return experience


def estimated(experience: Experience, values: Tensor, anchor: Tensor, config: PolicyTrainingConfig) -> Experience:
    """With the advantages that follow from a critic's values, whitened over the tokens of all chains.

    Args:
        values: at the sampled tokens, (chains, tokens).
        anchor: log-probabilities of the sampled tokens by the reference, likewise.
    """
    critic, asked, learned = config.critic, experience.choices, experience.learned
    paid, kl_coef = asked.rewards, experience.kl_coef
    if critic.kl_in_reward:
        paid, kl_coef = paid - kl_coef * (experience.old_logprobs - anchor), 0.0
    found, returns = advantages_and_returns(paid, values, asked.made, learned, critic.gamma, critic.gae_lambda)
    figures = experience.figures | {
        "value/mean": values[asked.made].mean().item() if asked.made.any() else 0.0,
        "value/explained": explained(values, returns, asked.made)}
    return replace(experience, advantages=whiten(found, learned), kl_coef=kl_coef, figures=figures,
                   choices=replace(asked, values=values, returns=returns))


def _figures(
    chains: Sequence[Rewarded], rewards: GroupRewards, old: Tensor, config: PolicyTrainingConfig
) -> dict[str, float]:
    judged = rewards.judged
    worth = process_rewards(rewards, config.advantages).sum(1)[judged]
    paid = rewards.scores[rewards.steps & judged[:, None]]
    lowest = rewards.scores.where(rewards.steps, math.inf).amin(1)[judged]
    steps = max(1, sum(len(chain.steps) for chain in chains))
    return {
        "reward/outcome": rewards.outcomes.mean().item(),
        **_by_question(rewards, config.group_size),
        "reward/process": paid.mean().item() if len(paid) else 0.0,
        "reward/lowest_step": lowest.mean().item() if len(lowest) else 0.0,
        "reward/paid": worth.mean().item() if len(worth) else 0.0,
        "chain/steps": steps / len(chains),
        "chain/tokens": rewards.token_mask.sum(1).float().mean().item(),
        "chain/unfinished_share": sum(not chain.finished for chain in chains) / len(chains),
        "chain/unjudged_share": 1 - judged.float().mean().item(),
        "chain/repeated_share": sum(len(chain.steps) - len({repr(one) for one in turns.identity(chain.steps)})
                                    for chain in chains) / steps,
        "chain/nothing_new_share": sum(_nothing_new(chain.steps) for chain in chains) / steps,
        # On the policy's own tokens the mean of -log-probability is its entropy.
        "entropy": -(old.sum() / rewards.token_mask.sum().clamp(min=1)).item(),
    }


def _by_question(rewards: GroupRewards, group_size: int) -> dict[str, float]:
    """How far chance moves an update's figures, which other questions would have others of: standard errors over
    questions of outcomes and of the lowest step, and the correlation of the two; 0 where there are too few."""
    import torch

    outcomes = rewards.outcomes.reshape(-1, group_size)
    lowest = rewards.scores.where(rewards.steps, math.inf).amin(1).reshape(-1, group_size)
    judged = rewards.judged.reshape(-1, group_size)
    there = judged.any(1)
    right, worst = ((values.where(judged, 0.0).sum(1) / judged.sum(1))[there] for values in (outcomes, lowest))

    def error(of_questions: Tensor) -> float:
        return (of_questions.std() / len(of_questions) ** 0.5).item() if len(of_questions) > 1 else 0.0

    both = torch.stack([right, worst])
    known = len(right) > 1 and bool((both.std(1) > EPSILON).all())
    return {"reward/outcome_error": error(outcomes.mean(1)), "reward/lowest_error": error(worst),
            "reward/agreement": torch.corrcoef(both)[0, 1].item() if known else 0.0}


def _nothing_new(steps: Sequence[Step]) -> int:
    """Steps of a chain that hold no word which no step before them holds."""
    seen: set[str] = set()
    count = 0
    for step in steps:
        words = set(turns.written(step).split())
        count += words <= seen
        seen |= words
    return count
