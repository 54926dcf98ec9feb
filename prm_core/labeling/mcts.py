"""MCTS: one tree of steps per question, rooted at the question, shared by all its chains."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prm_core.labeling.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.verdicts import VERDICTS
from prm_core.rollouts import rollout_succeeds
from prm_core.types import Problem, Step, StepLabel

NAME = "mcts"


@dataclass(slots=True)
class Node:
    """A prefix of steps. The root is the bare question; a chain's prefixes are a path from it.

    Attributes:
        step: the step that leads here, empty at the root.
        visits, wins: simulations that passed through, and those of them that reached the right answer.
        tokens: tokens generated below it.
        expanded: continuations have been sampled from here. The prefixes of a given chain are not, at first: they have
            a child, but whether the policy does better from them is open.
        terminal: a chain ended here, so there is nothing to expand.
    """

    step: str
    parent: Node | None
    children: dict[str, Node] = field(default_factory=dict)
    visits: int = 0
    wins: int = 0
    tokens: int = 0
    expanded: bool = False
    terminal: bool = False

    @property
    def value(self) -> float:
        """Share of the simulations through this node that won."""
        return self.wins / self.visits if self.visits else 0.0

    def child(self, step: str) -> Node:
        """The child reached by a step, made when new."""
        if step not in self.children:
            self.children[step] = Node(step, self)
        return self.children[step]

    def path(self) -> list[str]:
        """Steps from the root to here."""
        steps: list[str] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            steps.append(node.step)
            node = node.parent
        return steps[::-1]

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def backup(node: Node, won: bool, tokens: int) -> None:
    """Counts a simulation at a node and at all above it."""
    current: Node | None = node
    while current is not None:
        current.visits += 1
        current.wins += won
        current.tokens += tokens
        current = current.parent


def ucb1(node: Node, exploration: float) -> float:
    """UCB1 = value + c·√(ln N_parent / N), infinite for a node never visited."""
    if node.parent is None or node.visits == 0:
        return math.inf
    return node.value + exploration * math.sqrt(math.log(node.parent.visits) / node.visits)


def select(root: Node, exploration: float) -> Node:
    """From the root down by UCB1 to a node that is not expanded, or where nothing follows."""
    node = root
    while node.expanded and node.children:
        node = max(node.children.values(), key=lambda child: ucb1(child, exploration))
    return node


class MctsLabeler(Strategy):
    """Grows a tree for each question and labels its chains' steps by the values of their nodes.

    A simulation selects a node by UCB1 that nothing was sampled from yet, samples `branching` continuations from it,
    adds the first step of each as a child and counts the continuation's outcome there and above: expansion and
    simulation share one sampling.
    """

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.mcts
        self.rule = VERDICTS[self.settings.rule]
        self.chosen: set[str] = set()

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Picks the questions that get a tree: the first `mcts.problems`. Trees are costly."""
        self.chosen = set(list(dict.fromkeys(chain.problem.id for chain in chains))[: self.settings.problems])

    def grow(self, chains: Sequence[Chain], seed: int) -> dict[str, Node]:
        """The trees of all questions of `chains`, by problem id, grown together: one batch a simulation round."""
        from prm_core.models.sampler import Prefix

        problems = {chain.problem.id: chain.problem for chain in chains}
        trees = {problem_id: Node("", None) for problem_id in problems}
        for chain in chains:
            node = trees[chain.problem.id]
            for step in chain.trajectory.steps:
                node = node.child(step.text)
            if chain.trajectory.outcome is not None:
                node.terminal = True
                backup(node, chain.trajectory.outcome, 0)
        rng = random.Random(f"{NAME}/{seed}")
        policy, branching = self.tools.policy, self.settings.branching
        for _ in range(self.settings.simulations):
            leaves: list[tuple[Problem, Node]] = []
            encoded: list[list[int]] = []
            for problem_id, root in trees.items():
                leaf = select(root, self.settings.exploration)
                if not leaf.terminal:
                    path = leaf.path()
                    ids, lengths = policy.encode(problems[problem_id].prompt, [Step(text) for text in path])
                    # A path that has outgrown the context never reaches an answer.
                    leaf.terminal = len(lengths) <= len(path)
                if leaf.terminal:
                    # Its outcome is known: visiting it again costs nothing and lets UCB1 move on.
                    backup(leaf, leaf.wins > 0, 0)
                else:
                    leaves.append((problems[problem_id], leaf))
                    encoded.append(ids)
            drawn = policy.continue_chains(
                encoded, [Prefix(i, len(ids)) for i, ids in enumerate(encoded) for _ in range(branching)],
                temperature=self.settings.temperature, max_new_tokens=self.tools.config.label.max_new_tokens,
                batch_size=self.tools.config.label.batch_size, seed=rng.getrandbits(31),
            )
            for index, (problem, leaf) in enumerate(leaves):
                for continuation in drawn[index * branching : (index + 1) * branching]:
                    domain = self.tools.domains[problem.domain]
                    won = rollout_succeeds(policy, domain, problem, continuation, leaf.step)
                    steps = policy.encoder.decode_steps(continuation.ids)
                    node = leaf.child(steps[0]) if steps else leaf
                    node.terminal |= len(steps) == 1
                    backup(node, won, len(continuation.ids))
                leaf.expanded = True
                leaf.terminal = not leaf.children
        return trees

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Chains of questions without a tree get no label."""
        kept = [chain for chain in chains if chain.problem.id in self.chosen]
        trees = self.grow(kept, seed) if kept else {}
        return [label for chain in kept for label in self._read(trees[chain.problem.id], chain)]

    def _read(self, root: Node, chain: Chain) -> list[StepLabel]:
        labels, node = [], root
        for index, step in enumerate(chain.trajectory.steps):
            before, node = node, node.children[step.text]
            wins_before = round(before.value * node.visits)
            verdict = self.rule(node.wins, wins_before, node.visits)
            known = node.visits >= self.settings.min_visits or node.terminal
            labels.append(StepLabel(
                chain.trajectory.id, index, NAME, node.value, verdict.is_correct if known else None,
                verdict.confidence if known else 0.0, node.tokens,
                f"{node.wins} of {node.visits} simulations through this step reach the answer",
            ))
        return labels


STRATEGIES.register(NAME)(MctsLabeler)
