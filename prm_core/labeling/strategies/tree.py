"""A question's search tree: prefixes of turns with what rollouts say of them, how the next state to roll out from is
chosen, and what comes out of a finished tree. Pure; sampling is `mcts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prm_core.labeling.strategies.verdicts import Tally, probability_kept
from prm_core.platform.steps import to_record, written_step
from prm_core.registry import Registry
from prm_core.turns import unnamed
from prm_core.types import Step, StepPreference

# OmegaPRM's constants (Luo et al. 2024, "Improve Mathematical Reasoning in Language Models by Automated Process
# Supervision", section 3): how much the value of the state and the length of the rollout count.
ALPHA, BETA, LENGTH = 0.5, 0.9, 500


@dataclass(slots=True, eq=False)
class Node:
    """A prefix of steps. The root is the bare question; a chain's prefixes are a path from it.

    Attributes:
        step: the turn that leads here, with what was heard and without ids; empty at the root.
        children: by the turn that leads there.
        rollouts, wins: rollouts by the policy that started here or above and came through here, and those of them
            that reached the right answer: their share estimates the value of this prefix under the policy.
        reached: a rollout or chain through here or below reached the right answer. Only the policy's own count at the
            root: whether the question is within its reach is what the root says.
        started: those of the rollouts that started here.
        rolled: the search has rolled out from here.
        visits: how often the search chose this node or one below it.
        tokens: tokens of the rollouts that started here.
        right: whether the chain that ends here has the right answer, None where none ends.
        chains: ids of the given chains through here.
    """

    step: Step
    parent: Node | None
    children: dict[Step, Node] = field(default_factory=dict)
    rollouts: int = 0
    wins: int = 0
    reached: bool = False
    started: int = 0
    rolled: bool = False
    visits: int = 0
    tokens: int = 0
    right: bool | None = None
    chains: list[str] = field(default_factory=list)

    @property
    def tally(self) -> Tally:
        """Rollouts and wins."""
        return Tally(self.wins, self.rollouts)

    @property
    def value(self) -> float:
        """Share of the rollouts through here that reach the right answer, 0 without any."""
        return self.wins / self.rollouts if self.rollouts else 0.0

    def child(self, step: Step) -> Node:
        """The child reached by a turn, made when new."""
        step = unnamed(step)
        if step not in self.children:
            self.children[step] = Node(step, self)
        return self.children[step]

    def path(self) -> list[Step]:
        """Turns from the root to here."""
        return [node.step for node in self.ancestry()][1:]

    def ancestry(self) -> list[Node]:
        """Nodes from the root to here, both included."""
        nodes, node = [], self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children.values():
            yield from child.walk()


@dataclass(frozen=True, slots=True, eq=False)
class WrongRollout:
    """A rollout that missed the answer: where it started, the nodes of its steps from there on, its tokens."""

    start: Node
    nodes: tuple[Node, ...]
    tokens: int


class Tree:
    """The tree of one question.

    Args:
        problem_id, prompt, answer: of the question.
    """

    def __init__(self, problem_id: str, prompt: str, answer: str) -> None:
        self.problem_id, self.prompt, self.answer = problem_id, prompt, answer
        self.root = Node(Step(""), None)
        self.pool: list[WrongRollout] = []

    def add(
        self, start: Node, steps: Sequence[Step], *, ended: bool, success: bool, tokens: int, sampled: bool = True
    ) -> list[Node]:
        """Hangs a continuation under its start; returns the nodes of its steps.

        Args:
            ended: it ended by itself, so its last node is the end of a chain.
            success: it reached the right answer.
            sampled: the policy drew it, so it counts as a rollout of every prefix it passes. A chain by another hand
                is only hung in: what its author reached says nothing of the policy's values.
        """
        nodes = []
        for step in steps:
            nodes.append((nodes[-1] if nodes else start).child(step))
        if sampled:
            for node in (start, *nodes):
                node.rollouts += 1
                node.wins += success
            start.started += 1
            start.tokens += tokens
        last = nodes[-1] if nodes else start
        if ended and nodes:
            last.right = success
        if success:
            for node in last.ancestry() if sampled else nodes:
                node.reached = True
        elif len(nodes) > 1:
            self.pool.append(WrongRollout(start, tuple(nodes), tokens))
        return nodes


def first_error_search(path: Sequence[Node], most: int) -> Iterator[tuple[Node, int]]:
    """OmegaPRM's binary search for the first state from which the policy no longer gets there.

    Args:
        path: consecutive nodes; the first is reached, the last is known to fail.
        most: rollouts of a state without a win that make it a failed one.

    Yields:
        (node, rollouts to buy there), to be answered by adding them to the tree before going on.
    """
    low, high = 0, len(path) - 1
    while high - low > 1:
        middle = (low + high) // 2
        yield from sound_out(path[middle], most)
        if path[middle].reached:
            low = middle
        else:
            high = middle


def sound_out(node: Node, most: int) -> Iterator[tuple[Node, int]]:
    """Purchases at a node until one rollout wins or `most` have failed, doubling from one to the next."""
    while not node.reached and node.rollouts < most:
        yield node, min(max(node.rollouts, 1), most - node.rollouts)


# (tree, exploration constant, rollouts a purchase) → purchases as in `first_error_search`; ends when there is nothing
# left to choose.
Selection = Callable[[Tree, float, int], Iterator[tuple[Node, int]]]
SELECTIONS: Registry[Selection] = Registry("selection rule of the tree search")


def omega_score(rollout: WrongRollout, exploration: float, total: int) -> float:
    """Q(s, r) + U(s) of a rollout in the pool.

    Q = ALPHA^(1 - MC(s)) · BETA^(length / LENGTH), U = c · √(Σ N) / (1 + N(s)).
    Source: Luo et al. 2024, eq. (2) and (3).
    """
    state = rollout.start
    quality = ALPHA ** (1 - state.value) * BETA ** (rollout.tokens / LENGTH)
    return quality + exploration * math.sqrt(total) / (1 + state.visits)


@SELECTIONS.register("omega")
def select_omega(tree: Tree, exploration: float, most: int) -> Iterator[tuple[Node, int]]:
    """The wrong rollout of the pool with the largest Q + U, searched for its first error.

    States that always or never succeed are left out: there is nothing to learn below them.
    """
    candidates = [one for one in tree.pool if 0 < one.start.value < 1]
    if not candidates:
        return
    total = sum(node.visits for node in tree.root.walk())
    best = max(candidates, key=lambda one: omega_score(one, exploration, total))
    tree.pool.remove(best)
    best.start.visits += 1
    yield from first_error_search((best.start, *best.nodes), most)


def ucb1(node: Node, exploration: float) -> float:
    """UCB1 = value + c·√(ln N_parent / N), infinite for a node never visited. Source: Auer et al. 2002."""
    if node.visits == 0:
        return math.inf
    return node.value + exploration * math.sqrt(math.log(node.parent.visits) / node.visits)


def puct(node: Node, exploration: float) -> float:
    """PUCT = value + c·P·√N_parent / (1 + N). Source: Silver et al. 2017.

    The prior P is the policy's own: the share of its rollouts through the parent that took this step.
    """
    siblings = node.parent.children.values()
    taken = sum(child.rollouts - child.started for child in siblings)
    prior = (node.rollouts - node.started) / taken if taken else 1 / len(siblings)
    return node.value + exploration * prior * math.sqrt(node.parent.visits) / (1 + node.visits)


def _descend(score: Callable[[Node, float], float]) -> Selection:
    def select(tree: Tree, exploration: float, most: int) -> Iterator[tuple[Node, int]]:
        node = tree.root
        while node.rolled and node.children:
            node = max(node.children.values(), key=lambda child: score(child, exploration))
        for passed in node.ancestry():
            passed.visits += 1
        if node.right is None:
            yield node, most

    return select


SELECTIONS.register("ucb1")(_descend(ucb1))
SELECTIONS.register("puct")(_descend(puct))


def preferences(tree: Tree, confidence: float) -> list[StepPreference]:
    """Pairs of next steps after the same prefix: the best sibling against each that is worth less.

    Args:
        confidence: least posterior probability that the chosen step's value is the larger one.
    """
    pairs = []
    for node in tree.root.walk():
        known = [child for child in node.children.values() if child.rollouts]
        if len(known) < 2:
            continue
        best = max(known, key=lambda child: (child.tally.value, child.rollouts))
        prefix = tuple(node.path())
        pairs += [
            StepPreference(tree.problem_id, prefix, best.step, other.step, best.value, other.value, best.rollouts,
                           other.rollouts)
            for other in known
            if other.value < best.value and probability_kept(best.tally, other.tally, 1.0) >= confidence
        ]
    return pairs


def from_record(record: Mapping[str, Any]) -> Tree:
    """The tree that `as_record` wrote; the pool of rollouts to search is not kept."""
    tree = Tree(record["problem_id"], record["prompt"], record["answer"])
    nodes = []
    for row in record["nodes"]:
        step = Step(row["step"]) if isinstance(row["step"], str) else written_step(row["step"])
        node = tree.root if row["parent"] is None else nodes[row["parent"]].child(step)
        for name in ("rollouts", "wins", "visits", "tokens", "reached", "right", "chains"):
            setattr(node, name, row[name])
        nodes.append(node)
    return tree


def as_record(tree: Tree, **more: Any) -> dict[str, Any]:
    """The tree as plain JSON values: its question, `more`, and its nodes, parents before children. A
    turn that is a text alone is written as this text."""
    numbers: dict[int, int] = {}
    nodes = []
    for number, node in enumerate(tree.root.walk()):
        numbers[id(node)] = number
        nodes.append({
            "id": number, "parent": None if node.parent is None else numbers[id(node.parent)],
            "step": node.step.text if node.step == Step(node.step.text) else to_record(node.step),
            "rollouts": node.rollouts, "wins": node.wins, "value": node.value if node.rollouts else None,
            "visits": node.visits, "tokens": node.tokens, "reached": node.reached, "right": node.right,
            "chains": node.chains,
        })
    return {"problem_id": tree.problem_id, "prompt": tree.prompt, "answer": tree.answer, **more, "nodes": nodes}
