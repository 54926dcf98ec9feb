"""Rollout consistency: the Monte-Carlo value of every prefix, from real continuations by the policy."""

from __future__ import annotations

from collections.abc import Sequence

from prm_core.labeling.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.verdicts import VERDICTS
from prm_core.rollouts import rollout_succeeds
from prm_core.types import StepLabel

NAME = "rollout"


class RolloutLabeler(Strategy):
    """Samples K continuations of each prefix and asks how many end in the right answer.

    The prefix before the first step is valued too (the rule `relative` compares with it). The value after the last
    step is the chain's own outcome: nothing is left to sample.
    """

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.rollout
        self.rule = VERDICTS[self.settings.rule]

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Source: Wang et al. 2023, "Math-Shepherd"; METHODS 2."""
        from prm_core.models.sampler import Prefix

        policy, count = self.tools.policy, self.settings.rollouts
        encoded = [policy.encode(chain.problem.prompt, chain.trajectory.steps) for chain in chains]
        prefixes = [
            Prefix(number, length)
            for number, (_, lengths) in enumerate(encoded)
            for length in lengths[:-1]
            for _ in range(count)
        ]
        drawn = policy.continue_chains(
            [ids for ids, _ in encoded], prefixes, temperature=self.settings.temperature,
            max_new_tokens=self.tools.config.label.max_new_tokens, batch_size=self.tools.config.label.batch_size,
            seed=seed,
        )
        labels: list[StepLabel] = []
        position = 0
        for chain, (_, lengths) in zip(chains, encoded, strict=True):
            domain = self.tools.domains[chain.problem.domain]
            successes, tokens = [], []
            last_steps = ("", *(step.text for step in chain.trajectory.steps))
            for _, last in zip(lengths[:-1], last_steps, strict=False):
                group = drawn[position : position + count]
                position += count
                successes.append(sum(rollout_succeeds(policy, domain, chain.problem, one, last) for one in group))
                tokens.append(sum(len(one.ids) for one in group))
            labels += self._labels(chain, successes, tokens)
        return labels

    def _labels(self, chain: Chain, successes: list[int], tokens: list[int]) -> list[StepLabel]:
        """Labels of one chain from the successes and cost of its prefixes 0…steps-1."""
        count = self.settings.rollouts
        # A chain that lost trailing steps to the context has no outcome at its last kept step, and some chains have
        # none at all.
        whole = len(successes) == len(chain.trajectory.steps) and chain.trajectory.outcome is not None
        after = [*successes[1:], count if chain.trajectory.outcome else 0] if whole else successes[1:]
        labels = []
        for index, won in enumerate(after):
            verdict = self.rule(won, successes[index], count)
            last = whole and index == len(after) - 1
            reasoning = (
                f"the chain ends here, its answer is {'right' if won else 'wrong'}" if last
                else f"{won} of {count} rollouts after this step reach the answer ({successes[index]} before it)"
            )
            cost = (0 if last else tokens[index + 1]) + (0 if index else tokens[0])
            labels.append(StepLabel(chain.trajectory.id, index, NAME, won / count, verdict.is_correct,
                                    verdict.confidence, cost, reasoning))
        return labels


STRATEGIES.register(NAME)(RolloutLabeler)
