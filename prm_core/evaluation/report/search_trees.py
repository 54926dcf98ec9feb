"""The search trees that mcts left as evidence: reading and checking them, and which of them teach most.

The files are written by labeling/mcts.py in the format of labeling/tree.py; nothing is searched or valued here. Drawing
trees is tree_drawing.py's.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.platform.steps import written_step
from prm_core.turns import heard, written

FILES = "trees-*.jsonl"
# Nodes drawn of a tree beyond those on given chains and beside a first error.
MAX_NODES = 40
# Failed rollouts, without a success, that make a prefix a failed one.
SURE = 4


def _shown(step: Any) -> Any:
    """A turn as text: what was said, the calls without the tags of `written`, and after an arrow what was heard."""
    if not isinstance(step, Mapping):
        return step
    try:
        turn = written_step(step)
        said = [written(replace(turn, calls=())), *(f"{call.name} {call.arguments}" for call in turn.calls)]
        return " → ".join(filter(None, ["\n".join(filter(None, said)), heard(turn)]))
    except TypeError as error:
        raise ValueError(f"not a step ({error})") from None


@dataclass(frozen=True, slots=True)
class Node:
    """A prefix of steps.

    Attributes:
        id, parent: parent is None at the root, which is the bare question.
        step: the step that leads here, as text.
        rollouts, wins: rollouts that started here or came through here, and those that reached the right answer.
        value: their share, None without any.
        visits: how often the search chose it or one below.
        tokens: of the rollouts that started here.
        reached: a rollout or chain through here reached the right answer.
        right: where a chain ends here, whether its answer is right.
        chains: ids of the given trajectories through here.
    """

    id: int
    parent: int | None
    step: Annotated[str, BeforeValidator(_shown)]
    rollouts: int
    wins: int
    value: float | None
    visits: int
    tokens: int
    reached: bool
    right: bool | None
    chains: Sequence[str]

    @property
    def worth(self) -> float | None:
        """Its value, where it has none a terminal's outcome."""
        return self.value if self.value is not None or self.right is None else float(self.right)


@dataclass(frozen=True, slots=True)
class Tree:
    """One question's search tree.

    Attributes:
        problem_id, prompt, answer: of the question.
        model: the policy its rollouts were sampled from.
        selection: the rule that chose states.
        nodes: by id.
        children: id → ids, the more valuable first.
        root: its id.
    """

    problem_id: str
    prompt: str
    answer: str
    model: str
    selection: str
    nodes: Mapping[int, Node]
    children: Mapping[int, Sequence[int]]
    root: int

    def first_errors(self) -> set[int]:
        """Nodes whose step loses the question: nothing right follows from them, though it did from their parent.

        Where fewer than SURE rollouts failed, that is chance, unless a given chain ends there.
        """
        return {
            node.id for node in self.nodes.values()
            if node.parent is not None and self.nodes[node.parent].reached and not node.reached
            and (node.rollouts >= SURE or (node.chains and node.right is False))
        }

    def preorder(self, start: int | None = None) -> Iterator[int]:
        """Ids, parents before children."""
        todo = [self.root if start is None else start]
        while todo:
            node = todo.pop()
            yield node
            todo += reversed(self.children[node])


@dataclass(frozen=True, slots=True)
class _File:
    """A line of a tree file."""

    problem_id: str
    prompt: str
    answer: str
    model: str
    selection: str
    nodes: list[Node]


_FILE = TypeAdapter(_File)


def _tree(record: Mapping[str, Any], where: str) -> Tree:
    """A tree from its JSON. Raises InputError naming `where` when a field is wrong or the nodes form no tree."""
    try:
        file = _FILE.validate_python(record)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(f"{where}: not a search tree ({faults[0]}; {len(faults)} faults in all); run the label stage "
                         "again") from None
    nodes = {node.id: node for node in file.nodes}
    roots = [node.id for node in nodes.values() if node.parent is None]
    children: dict[int, list[int]] = {node: [] for node in nodes}
    for node in nodes.values():
        if node.parent in children:
            children[node.parent].append(node.id)
    for below in children.values():
        # Right ways up, wrong ways down, what nobody tried last.
        below.sort(key=lambda child: (-1.0 if (worth := nodes[child].worth) is None else worth), reverse=True)
    tree = Tree(file.problem_id, file.prompt, file.answer, file.model, file.selection, nodes, children,
                roots[0] if roots else -1)
    if len(roots) != 1 or len(nodes) != len(file.nodes) or sum(1 for _ in tree.preorder()) != len(nodes):
        raise InputError(f"{where}: its nodes do not form one tree (ids unique, one root, every parent there); run the "
                         "label stage again")
    return tree


def read_trees(folder: Path) -> Iterator[Tree]:
    """The trees of a folder, file by file; none when it has none. Raises InputError on a broken file."""
    for path in sorted(folder.glob(FILES)):
        # A shard of chains whose questions got no tree.
        if path.stat().st_size:
            for where, record in store.read_json_lines(path):
                yield _tree(record, where)


def interest(tree: Tree) -> tuple[int, ...]:
    """How much a tree teaches, larger is more: given chains that part at a first error, one of them going on right;
    a first error on a given chain with a better step beside it; given chains with both outcomes; any first error."""
    errors = [tree.nodes[node] for node in tree.first_errors() if tree.nodes[node].chains]
    better = [tree.nodes[other] for error in errors for other in tree.children[error.parent or tree.root]
              if tree.nodes[other].reached]
    outcomes = {node.right for node in tree.nodes.values() if node.chains and node.right is not None}
    known = sum(node.rollouts >= SURE for node in tree.nodes.values())
    return any(other.chains for other in better), bool(better), len(outcomes), bool(errors), min(known, MAX_NODES)


def choose(trees: Iterator[Tree], count: int) -> tuple[list[Tree], int]:
    """The trees of most interest and how many there were; of equal ones the first."""
    seen = 0

    def ranked() -> Iterator[tuple[tuple[int, ...], int, Tree]]:
        nonlocal seen
        for tree in trees:
            seen += 1
            yield interest(tree), -seen, tree

    return [tree for _, _, tree in heapq.nlargest(count, ranked(), key=lambda item: item[:2])], seen


def drawn_nodes(tree: Tree, limit: int = MAX_NODES) -> set[int]:
    """Ids of the nodes to draw: given chains and the right ways beside their first errors, whatever their number; then
    those with most rollouts, each with its ancestors, up to `limit` in all."""
    kept = {tree.root, *(node.id for node in tree.nodes.values() if node.chains)}
    for error in tree.first_errors() & kept:
        kept |= {other for other in tree.children[tree.nodes[error].parent or tree.root]
                 if tree.nodes[other].reached}
    for node in sorted(tree.nodes.values(), key=lambda node: (-node.rollouts, -node.visits, node.id)):
        path = {node.id}
        above = node.parent
        while above is not None and above not in kept:
            path.add(above)
            above = tree.nodes[above].parent
        if len(kept | path) <= limit:
            kept |= path
    return kept
