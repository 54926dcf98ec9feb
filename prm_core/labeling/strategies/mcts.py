"""Tree search: one tree of turns per question, rooted at the question and shared by all its chains."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.labeling.strategies.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.labeling.strategies.tree import SELECTIONS, Node, Tree, as_record, first_error_search, sound_out
from prm_core.labeling.strategies.verdicts import Tally, any_success
from prm_core.platform import store
from prm_core.sampling.rollouts import Start, roll_out
from prm_core.turns import unnamed
from prm_core.types import Problem, StepLabel

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
        self.parallel = tools.policy.forks
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
        return {**dataclasses.asdict(self.settings), "max_new_tokens": self.tools.config.label.max_new_tokens}

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
        problems = {problem_id: group[0].problem for problem_id, group in by_problem.items()}
        self._grow({problem_id: self._search(tree) for problem_id, tree in grown.items()}, grown, problems, seed)
        labels = [self._read(grown[chain.problem.id], chain) for chain in kept]
        self.trees += grown.values()
        return [label for chain, rows in zip(kept, labels, strict=True)
                for label in _with_cost(rows, grown[chain.problem.id], chain)]

    def keep_evidence(self, folder: Path, shard: int) -> None:
        """Writes the trees grown since the last call, one a line of trees-<shard>.jsonl; without any, no file."""
        records = [as_record(tree, model=self.model, selection=self.settings.selection) for tree in self.trees]
        if records:
            store.write_jsonl(folder / f"trees-{shard:05d}.jsonl", records)
        self.trees = []

    def _plant(self, chains: Sequence[Chain]) -> Tree:
        """A question's tree with its given chains in it."""
        problem = chains[0].problem
        tree = Tree(problem.id, problem.prompt, problem.answer)
        for chain in chains:
            trajectory = chain.trajectory
            # One that cannot be encoded fails here, before anything is bought.
            self.tools.policy.encode(problem.prompt, trajectory.steps)
            nodes = tree.add(
                tree.root, trajectory.steps, ended=trajectory.outcome is not None, success=bool(trajectory.outcome),
                tokens=0,
                sampled=trajectory.policy == self.tools.policy.version and trajectory.outcome is not None,
            )
            for node in (tree.root, *nodes):
                node.chains.append(trajectory.id)
        return tree

    def _search(self, tree: Tree) -> Iterator[tuple[Node, int]]:
        """Everything that is bought for one tree."""
        most = self.settings.rollouts
        if self.settings.selection == "omega":
            given, tree.pool = tree.pool, []
            if given:
                yield from sound_out(tree.root, most)
            # Where the policy never gets there from the question itself, no step can be blamed.
            for one in given if tree.root.reached else []:
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
                node.rolled = True
                start = self._start(problems[problem_id], node)
                if start is None:
                    node.rollouts += count
                    node.started += count
                else:
                    purchases.append((start, count))
                    buyers.append((trees[problem_id], node))
            drawn = roll_out(
                policy, self.tools.domains, purchases, temperature=self.settings.temperature,
                max_new_tokens=self.tools.config.label.max_new_tokens,
                batch_size=self.tools.config.label.batch_size, seed=rng.getrandbits(31),
            )
            for (tree, node), group in zip(buyers, drawn, strict=True):
                for one in group:
                    tree.add(node, one.steps, ended=one.finished, success=one.success, tokens=one.tokens)

    def _start(self, problem: Problem, node: Node) -> Start | None:
        """The node as a prefix; None for a path that has outgrown the context, which never reaches an answer."""
        path = node.path()
        try:
            ids, lengths = self.tools.policy.encode(problem.prompt, path)
        except InputError:
            # Not even the first step fits: one of a rollout, since those of given chains do.
            return None
        return Start(problem, ids, path) if len(lengths) > len(path) else None

    def _read(self, tree: Tree, chain: Chain) -> list[StepLabel]:
        """Labels up to the first step from which the policy no longer gets there; nothing is asked after it."""
        labels: list[StepLabel] = []
        node, over, steps = tree.root, "", chain.trajectory.steps
        for index, step in enumerate(steps):
            node = node.children[unnamed(step)]
            ends_wrong = index == len(steps) - 1 and chain.trajectory.outcome is False
            verdict, tally, reason = (None, node.tally, over) if over else self._judge(tree, node, ends_wrong)
            if verdict is None:
                labels.append(StepLabel(chain.trajectory.id, index, NAME, None, None, 0.0, 0, reason))
                over = over or "an earlier step is undecided"
                continue
            # More rollouts than K can show a smaller success rate than 1/K.
            confidence = any_success(tally, tally, max(self.settings.rollouts, tally.rollouts)).confidence
            labels.append(StepLabel(chain.trajectory.id, index, NAME, tally.value, verdict, confidence, 0, reason))
            over = "" if verdict else "an earlier step is wrong"
        return labels

    def _judge(self, tree: Tree, node: Node, ends_wrong: bool) -> tuple[bool | None, Tally, str]:
        """The verdict on the step that leads to a node, the rollouts it rests on, and why."""
        most, tally = self.settings.rollouts, node.tally
        if ends_wrong:
            # Whatever the policy would have gone on to.
            return False, Tally(0, most), "the chain ends here without the right answer"
        if node.wins:
            return True, tally, f"{tally.successes} of {tally.rollouts} rollouts through this step reach the answer"
        if node.reached:
            # From further down, or by the hand that wrote a given chain.
            return True, tally.with_more(1, 1), "a chain through this step reaches the answer"
        if not tree.root.reached:
            return None, tally, "no rollout from the question reaches the answer"
        if tally.rollouts >= most:
            return False, tally, f"none of {tally.rollouts} rollouts through this step reaches the answer"
        return None, tally, f"only {tally.rollouts} rollouts through this step"


def _with_cost(labels: Sequence[StepLabel], tree: Tree, chain: Chain) -> Sequence[StepLabel]:
    """The tree's tokens on the first label of its first chain: they paid for all labels of the question together."""
    if tree.root.chains[0] != chain.trajectory.id or not labels:
        return labels
    tokens = sum(node.tokens for node in tree.root.walk())
    return [dataclasses.replace(labels[0], tokens=tokens), *labels[1:]]


STRATEGIES.register(NAME)(MctsLabeler)
