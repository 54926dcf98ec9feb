"""Tree search: one tree of steps per question, rooted at the question and shared by all its chains."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prm_core import store
from prm_core.labeling.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.tree import SELECTIONS, Node, Tree, as_record, first_error_search, sound_out
from prm_core.labeling.verdicts import any_success
from prm_core.rollouts import Start, roll_out
from prm_core.types import Problem, Step, StepLabel

NAME = "mcts"


class MctsLabeler(Strategy):
    """Grows a tree for each question and labels its chains' steps by what the policy reaches from their nodes.

    With the selection `omega` each wrong chain is first searched for its first error by halving, then rollouts that
    went wrong elsewhere in the tree are; with `ucb1` and `puct` states are rolled out from the question down. A
    rollout counts for every node it passes, so chains of one question pay for each other. The trees of all questions
    of a shard buy their rollouts in the same batches.
    """

    version = 2

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.mcts
        self.select = SELECTIONS[self.settings.selection]
        self.chosen: set[str] = set()
        self.trees: list[Tree] = []

    @property
    def model(self) -> str:
        """See `Strategy.model`."""
        return self.tools.policy.version

    @property
    def parameters(self) -> dict[str, Any]:
        """See `Strategy.parameters`."""
        return {**self.settings.model_dump(), "max_new_tokens": self.tools.config.label.max_new_tokens}

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Picks the questions that get a tree: the first `mcts.problems`. Trees are costly."""
        self.chosen = set(list(dict.fromkeys(chain.problem.id for chain in chains))[: self.settings.problems])

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Chains of questions without a tree get no label.

        Source: Luo et al. 2024 (OmegaPRM); METHODS 2.
        """
        kept = [chain for chain in chains if chain.problem.id in self.chosen]
        by_problem: dict[str, list[Chain]] = defaultdict(list)
        for chain in kept:
            by_problem[chain.problem.id].append(chain)
        grown = {problem_id: self._plant(group) for problem_id, group in by_problem.items()}
        self.trees = list(grown.values())
        problems = {problem_id: group[0].problem for problem_id, group in by_problem.items()}
        self._grow({problem_id: self._search(tree) for problem_id, tree in grown.items()}, grown, problems, seed)
        labels = [self._read(grown[chain.problem.id], chain) for chain in kept]
        return [label for chain, rows in zip(kept, labels, strict=True)
                for label in _with_cost(rows, grown[chain.problem.id], chain)]

    def keep_evidence(self, folder: Path, shard: int) -> None:
        """Writes the trees of the last call of `label`, one a line of trees-<shard>.jsonl."""
        records = [as_record(tree, model=self.model, selection=self.settings.selection) for tree in self.trees]
        store.write_jsonl(folder / f"trees-{shard:05d}.jsonl", records)

    def _plant(self, chains: Sequence[Chain]) -> Tree:
        """A question's tree with its given chains in it."""
        problem = chains[0].problem
        tree = Tree(problem.id, problem.prompt, problem.answer)
        for chain in chains:
            trajectory = chain.trajectory
            nodes = tree.add(
                tree.root, [step.text for step in trajectory.steps], ended=trajectory.outcome is not None,
                success=bool(trajectory.outcome), tokens=0,
                sampled=trajectory.policy == self.tools.policy.version and trajectory.outcome is not None,
            )
            for node in (tree.root, *nodes):
                node.chains.append(trajectory.id)
        return tree

    def _search(self, tree: Tree) -> Iterator[tuple[Node, int]]:
        """Everything that is bought for one tree."""
        most = self.settings.rollouts
        if self.settings.selection == "omega":
            yield from sound_out(tree.root, most)
            # Where the policy never gets there from the question itself, no step can be blamed.
            given = tree.pool if tree.root.reached else []
            tree.pool = []
            for one in given:
                yield from first_error_search((one.start, *one.nodes), most)
        for _ in range(self.settings.simulations):
            yield from self.select(tree, self.settings.exploration, most)

    def _grow(
        self, searches: dict[str, Iterator[tuple[Node, int]]], trees: dict[str, Tree], problems: dict[str, Problem],
        seed: int,
    ) -> None:
        """Runs all searches side by side: what each wants next is bought in one batch."""
        policy, rng = self.tools.policy, random.Random(f"{NAME}/{seed}")
        while searches:
            wanted: dict[str, tuple[Node, int]] = {}
            for problem_id in list(searches):
                purchase = next(searches[problem_id], None)
                if purchase is None:
                    del searches[problem_id]
                else:
                    wanted[problem_id] = purchase
            purchases, buyers = [], []
            for problem_id, (node, count) in wanted.items():
                path, problem = node.path(), problems[problem_id]
                node.rolled = True
                ids, lengths = policy.encode(problem.prompt, [Step(text) for text in path])
                if len(lengths) <= len(path):
                    # A path that has outgrown the context never reaches an answer.
                    node.rollouts += count
                    continue
                purchases.append((Start(problem, ids, node.step), count))
                buyers.append((trees[problem_id], node))
            drawn = roll_out(
                policy, self.tools.domains, purchases, temperature=self.settings.temperature,
                max_new_tokens=self.tools.config.label.max_new_tokens,
                batch_size=self.tools.config.label.batch_size, seed=rng.getrandbits(31),
            )
            for (tree, node), group in zip(buyers, drawn, strict=True):
                for one in group:
                    tree.add(node, one.steps, ended=one.finished, success=one.success, tokens=one.tokens)

    def _read(self, tree: Tree, chain: Chain) -> list[StepLabel]:
        """Labels up to the first step from which the policy no longer gets there; none is right or wrong after it."""
        labels: list[StepLabel] = []
        node, most, open_ended = tree.root, self.settings.rollouts, tree.root.reached
        for index, step in enumerate(chain.trajectory.steps):
            node = node.children[step.text]
            verdict: bool | None = None
            if not open_ended:
                reason = ("an earlier step is wrong" if labels and tree.root.reached
                          else "no rollout from the question reaches the answer")
            elif node.reached:
                verdict, reason = True, f"{node.wins} of {node.rollouts} rollouts through this step reach the answer"
            elif node.right is False or node.rollouts >= most:
                verdict = False
                reason = ("the chain ends here with a wrong answer" if node.right is False
                          else f"none of {node.rollouts} rollouts through this step reaches the answer")
            else:
                reason = f"only {node.rollouts} rollouts through this step"
            open_ended = open_ended and verdict is True
            # A success below that no rollout through here had is still one.
            tally = node.tally.with_more(1, 1) if node.reached and not node.wins else node.tally
            if node.right is False and not node.rollouts:
                tally = tally.with_more(0, most)
            confidence = 0.0 if verdict is None else any_success(tally, tally, most).confidence
            value = node.value if node.rollouts and verdict is not None else None
            labels.append(StepLabel(chain.trajectory.id, index, NAME, value, verdict, confidence, 0, reason))
        return labels


def _with_cost(labels: Sequence[StepLabel], tree: Tree, chain: Chain) -> Sequence[StepLabel]:
    """The tree's tokens on the first label of its first chain: they paid for all labels of the question together."""
    if tree.root.chains[0] != chain.trajectory.id or not labels:
        return labels
    tokens = sum(node.tokens for node in tree.root.walk())
    return [dataclasses.replace(labels[0], tokens=tokens), *labels[1:]]


STRATEGIES.register(NAME)(MctsLabeler)
