"""Rollout consistency: the Monte-Carlo value of a chain's prefixes, from real continuations by the policy."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any

from prm_core.labeling.strategies.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.strategies.verdicts import VERDICTS, Tally, VerdictRule, settled
from prm_core.sampling.rollouts import Start, roll_out
from prm_core.types import StepLabel

NAME = "rollout"
AFTER_ERROR = "not valued: an earlier step is wrong"


class _Walk:
    """A chain on its way from its first step to the first wrong one, buying rollouts of one prefix at a time.

    Prefix k holds the first k steps. The whole chain is never continued: its value is its own outcome.
    """

    def __init__(self, chain: Chain, ids: Sequence[int], lengths: Sequence[int], rule: VerdictRule, most: int,
                 decided: float) -> None:
        self.chain, self.ids, self.lengths = chain, ids, lengths
        self.rule, self.most, self.decided = rule, most, decided
        steps, outcome = len(chain.trajectory.steps), chain.trajectory.outcome
        # A chain that lost trailing steps to the context has no outcome at its last kept step, and some have none.
        self.whole = len(lengths) == steps + 1 and outcome is not None
        self.tallies = [Tally(0, 0)] * len(lengths)
        if self.whole:
            self.tallies[-1] = Tally(most if outcome else 0, most)
        self.tokens = [0] * len(lengths)
        self.position = 0 if rule.compares else 1
        self.over = False
        self.labels: list[StepLabel] = []

    def wants(self) -> int:
        """Rollouts to buy of the prefix at `position`; 0 when the walk is over. Judges every step it can on the way.

        They double from one purchase to the next: an easy prefix is settled by one or two, a hard one does not take
        many rounds.
        """
        while not self.over and self.position < len(self.lengths):
            known = self.tallies[self.position].rollouts
            if self.position == 0:
                enough = known >= self.most
            elif self.position == len(self.lengths) - 1:
                self.over = not self.whole
                if self.over:
                    break
                enough = True
            else:
                enough = known >= self.most or self._settled()
            if not enough:
                return min(max(known, 1), self.most - known)
            self.over = self.position > 0 and self._judge() is not True
            self.position += 1
        return 0

    def _settled(self) -> bool:
        after, before = self.tallies[self.position], self.tallies[self.position - 1]
        if not settled(self.rule, after, before, self.most, self.decided):
            return False
        # The next step is compared with a right one's prefix. Stopped at its first wins, that would look better than it
        # is, and a hard question's next step worse: it needs all K.
        return not self.rule.compares or self.rule.judge(after, before, self.most).is_correct is not True

    def start(self) -> Start:
        """The prefix at `position`."""
        steps = self.chain.trajectory.steps[: self.position]
        return Start(self.chain.problem, self.ids[: self.lengths[self.position]], steps)

    def add(self, successes: int, rollouts: int, tokens: int) -> None:
        """Counts rollouts of the prefix at `position`."""
        self.tallies[self.position] = self.tallies[self.position].with_more(successes, rollouts)
        self.tokens[self.position] += tokens

    def _judge(self) -> bool | None:
        """Labels the step before `position`."""
        index = self.position - 1
        after, before = self.tallies[self.position], self.tallies[index]
        verdict = self.rule.judge(after, before, self.most)
        if self.whole and self.position == len(self.lengths) - 1:
            reasoning = f"the chain ends here, its answer is {'right' if after.successes else 'wrong'}"
        elif after.rollouts:
            reasoning = f"{after.successes} of {after.rollouts} rollouts after this step reach the answer"
        else:
            reasoning = "no rollout before this step reaches the answer: nothing to compare with"
        if self.rule.compares and after.rollouts:
            reasoning += f" ({before.successes} of {before.rollouts} before it)"
        value = after.value if after.rollouts else None
        self._label(index, value, verdict.is_correct, verdict.confidence, reasoning)
        return verdict.is_correct

    def _label(
        self, index: int, value: float | None, is_correct: bool | None, confidence: float, reasoning: str
    ) -> None:
        # What the bare question cost is the first step's cost too.
        tokens = self.tokens[index + 1] + (0 if index else self.tokens[0])
        self.labels.append(StepLabel(self.chain.trajectory.id, index, NAME, value, is_correct, confidence, tokens,
                                     reasoning))

    def finish(self) -> list[StepLabel]:
        """A label for every kept step; those the walk did not come to say why."""
        # What the last purchases settled is judged here.
        unbought = self.wants()
        last = self.labels[-1] if self.labels else None
        if last is not None and last.is_correct is False:
            reason = AFTER_ERROR
        elif last is not None and last.is_correct is None:
            reason = "not valued: an earlier step is undecided"
        elif unbought:
            reason = "not valued: label.rollout.max_tokens is spent"
        elif len(self.lengths) <= len(self.chain.trajectory.steps):
            reason = "not valued: what follows does not fit encoder.max_length"
        else:
            reason = "not valued: the chain has no outcome"
        for index in range(len(self.labels), len(self.lengths) - 1):
            self._label(index, None, None, 0.0, reason)
        return self.labels


def _shared(buying: Sequence[tuple[_Walk, int]]) -> list[tuple[list[_Walk], int]]:
    """The walks that buy together: those that stand before the bare question of one problem, which all of them buy in
    the same portions; the others each for itself."""
    groups: dict[Any, tuple[list[_Walk], int]] = {}
    for number, (walk, count) in enumerate(buying):
        groups.setdefault(number if walk.position else walk.chain.problem.id, ([], count))[0].append(walk)
    return list(groups.values())


class RolloutLabeler(Strategy):
    """Samples continuations of a chain's prefixes in order and asks how many end in the right answer.

    Rollouts are bought until the verdict is settled (at most K; always K where the next step is compared with them),
    and no further prefix is valued once a step is wrong: what follows the first error is no training target. All
    chains of a shard buy in the same batches, and those of one question its own rollouts once.
    """

    version = 3

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.parallel = tools.policy.forks
        self.settings = tools.config.label.rollout
        self.rule = VERDICTS[self.settings.rule]
        self.chains = 0

    @property
    def model(self) -> str:
        """See `Strategy.model`."""
        return self.tools.policy.version

    @property
    def parameters(self) -> dict[str, Any]:
        """See `Strategy.parameters`."""
        return {**dataclasses.asdict(self.settings), "max_new_tokens": self.tools.config.label.max_new_tokens}

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Counts the chains that share `max_tokens`."""
        self.chains = len(chains)

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Source: Wang et al. 2023, "Math-Shepherd"; METHODS 2."""
        policy, settings = self.tools.policy, self.settings
        walks = [
            _Walk(chain, *policy.encode(chain.problem.prompt, chain.trajectory.steps), self.rule, settings.rollouts,
                  settings.decided)
            for chain in chains
        ]
        # Its share of the whole budget. A round under way is finished, so a shard may overshoot by one round.
        share = len(chains) / max(self.chains, len(chains))
        budget = settings.max_tokens * share if settings.max_tokens else math.inf
        rng, spent = random.Random(f"{NAME}/{seed}"), 0
        while spent < budget:
            buying = [(walk, count) for walk in walks if (count := walk.wants())]
            if not buying:
                break
            shared = _shared(buying)
            drawn = roll_out(
                policy, self.tools.domains, [(first.start(), count) for (first, *_), count in shared],
                temperature=settings.temperature, max_new_tokens=self.tools.config.label.max_new_tokens,
                batch_size=self.tools.config.label.batch_size, seed=rng.getrandbits(31),
            )
            for ((first, *others), count), group in zip(shared, drawn, strict=True):
                tokens, successes = sum(one.tokens for one in group), sum(one.success for one in group)
                first.add(successes, count, tokens)
                for walk in others:
                    walk.add(successes, count, 0)
                spent += tokens
        return [label for walk in walks for label in walk.finish()]


STRATEGIES.register(NAME)(RolloutLabeler)
