"""Training chains as packed trees: a step that several chains share is computed once, and rows hold no padding.

A tree holds chains of one prompt, a node is a step. A token sees what stands before it in its own chain and nothing
else, so every step has the hidden state it has in its chain alone, and a node's weight counts the chains that label it:
loss and gradient are those of the chains one by one. Trees larger than a row are cut, the path to a cut is repeated.
What lives here is the order of tokens; the loops are in `reward` and `policy`.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prm_core.models.chains import ChainBatch
from prm_core.models.encoder import EncodedChain
from prm_core.training.examples import Encoded, EncodedPair

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Pieces that are packed into rows together. More fill rows better and cost more to sort.
WINDOW = 512


@dataclass(slots=True)
class Node:
    """A step, or as node 0 the prompt.

    Attributes:
        parent: node before it, -1 for the prompt.
        ids: token ids; the last is the SEP it is scored at.
        written: whether the policy wrote each token.
        target: mean of its targets, each a P(right) or a value.
        weight: of all its targets; 0 for a step that trains nothing itself.
    """

    parent: int
    ids: tuple[int, ...]
    written: tuple[bool, ...]
    target: float = 0.0
    weight: float = 0.0

    def add_target(self, target: float, weight: float = 1.0) -> None:
        """One more chain labels this step. Cross-entropy is linear in its target, so the mean loses nothing."""
        self.target = (self.target * self.weight + target * weight) / (self.weight + weight)
        self.weight += weight


@dataclass(slots=True)
class Tree:
    """Chains of one prompt.

    Attributes:
        nodes: parents before children; node 0 is the prompt.
        apart: its chains are computed one by one, for attention that takes no mask of a tree.
        pairs: (chosen, rejected) nodes for a preference loss, in the order they were added.
    """

    nodes: list[Node]
    apart: bool = False
    pairs: list[tuple[int, int]] = field(default_factory=list)
    _children: dict[tuple[int, tuple[int, ...], tuple[bool, ...]], int] = field(default_factory=dict)

    @classmethod
    def of_prompt(cls, ids: Sequence[int], *, apart: bool = False) -> Tree:
        """A tree of a prompt alone."""
        return cls([Node(-1, tuple(ids), (False,) * len(ids))], apart)

    def add(self, parent: int, ids: Sequence[int], written: Sequence[bool]) -> int:
        """The node of a step after `parent`: the one that is there, or a new one."""
        key = (parent, tuple(ids), tuple(written))
        index = self._children.get(key)
        if index is None:
            index = self._children[key] = len(self.nodes)
            self.nodes.append(Node(*key))
        return index

    def add_chain(self, chain: EncodedChain) -> list[int]:
        """The nodes of a chain of this prompt: the prompt's, then one for each step."""
        nodes, start = [0], chain.prompt_length
        for end in chain.step_ends:
            nodes.append(self.add(nodes[-1], chain.ids[start : end + 1], chain.scored[start : end + 1]))
            start = end + 1
        return nodes

    def path(self, index: int) -> list[int]:
        """From the prompt to a node."""
        path = []
        while index >= 0:
            path.append(index)
            index = self.nodes[index].parent
        return path[::-1]


def grow(examples: Sequence[Encoded], pairs: Sequence[EncodedPair], *, share: bool) -> list[Tree]:
    """Trees of examples and preference pairs, in the order their prompts appear.

    Args:
        examples: chains with their targets; the last target is that of the last step, the one before of the step
            before it, and so on up to the prompt.
        pairs: two next steps after the same prefix.
        share: one tree for all chains of a prompt; otherwise one for each chain and pair, kept apart.
    """
    trees: dict[object, Tree] = {}

    def tree_of(chain: EncodedChain, alone: object) -> Tree:
        prompt = tuple(chain.ids[: chain.prompt_length])
        return trees.setdefault(prompt if share else alone, Tree.of_prompt(prompt, apart=not share))

    for number, example in enumerate(examples):
        tree = tree_of(example.chain, number)
        nodes = tree.add_chain(example.chain)
        for node, target in zip(nodes[-len(example.targets) :], example.targets, strict=True):
            if not math.isnan(target):
                tree.nodes[node].add_target(target, example.weight)
    for number, pair in enumerate(pairs):
        tree = tree_of(pair.chosen, -1 - number)
        tree.pairs.append((tree.add_chain(pair.chosen)[-1], tree.add_chain(pair.rejected)[-1]))
    return list(trees.values())


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a tree that fits a row.

    Attributes:
        tree: of which it is a part.
        nodes: parents before children.
        scored: those whose targets train here; the others are there as prefixes.
        pairs: preference pairs that train here.
        tokens: of all its nodes.
    """

    tree: Tree
    nodes: tuple[int, ...]
    scored: frozenset[int]
    pairs: tuple[tuple[int, int], ...]
    tokens: int

    @property
    def weight(self) -> float:
        """Number of targets that train here."""
        return sum(self.tree.nodes[index].weight for index in self.scored)


Row = Sequence[Piece]


def _depth_first(tree: Tree) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for index, node in enumerate(tree.nodes):
        children.setdefault(node.parent, []).append(index)
    stack = [0]
    while stack:
        index = stack.pop()
        yield index
        stack += reversed(children.get(index, []))


def cut(tree: Tree, width: int) -> list[Piece]:
    """Pieces of at most `width` tokens that hold every target and every pair once, with the paths to them.

    Raises ValueError when a path (of a pair, both paths) alone is longer; encoders cut chains to their limit before.
    """
    partners: dict[int, list[tuple[int, ...]]] = {}
    for pair in tree.pairs:
        partners.setdefault(pair[0], []).append(pair)
    # Nodes that must be in a piece together, with the paths to them: one with a target, or a pair.
    units = [unit for index in _depth_first(tree)
             for unit in ([(index,)] if tree.nodes[index].weight else []) + partners.get(index, [])]
    pieces: list[Piece] = []
    nodes: dict[int, None] = {}
    held: list[tuple[int, ...]] = []
    tokens = 0

    def close() -> None:
        scored = frozenset(unit[0] for unit in held if len(unit) == 1)
        pairs = tuple((unit[0], unit[1]) for unit in held if len(unit) == 2)
        pieces.append(Piece(tree, tuple(nodes), scored, pairs, tokens))

    for unit in units:
        path = dict.fromkeys(node for end in unit for node in tree.path(end))
        new = [node for node in path if node not in nodes]
        size = sum(len(tree.nodes[node].ids) for node in new)
        if tokens + size > width and nodes:
            close()
            nodes, held, tokens, new = {}, [], 0, list(path)
            size = sum(len(tree.nodes[node].ids) for node in new)
        if size > width:
            raise ValueError(f"a chain of {size} tokens does not fit rows of {width}")
        nodes |= dict.fromkeys(new)
        held.append(unit)
        tokens += size
    if nodes:
        close()
    return pieces


def pack(pieces: Sequence[Piece], width: int, seed: int) -> list[Row]:
    """Rows of at most `width` tokens that hold every piece once, in random order.

    Within windows of shuffled pieces, so that what is in a row is still random: best fit, longest first, which leaves
    next to no room; of trees that are kept apart, pieces of like length, whose padding counts as tokens.
    """
    rng = random.Random(f"pack/{seed}")
    order = list(pieces)
    rng.shuffle(order)
    fill = like_lengths if order and order[0].tree.apart else _best_fit
    rows = [row for start in range(0, len(order), WINDOW)
            for row in fill(sorted(order[start : start + WINDOW], key=lambda piece: -piece.tokens), width)]
    rng.shuffle(rows)
    return rows


def _best_fit(longest_first: Sequence[Piece], width: int) -> list[list[Piece]]:
    rows: list[list[Piece]] = []
    # (room left, row), by room.
    room: list[tuple[int, int]] = []
    for piece in longest_first:
        fit = bisect.bisect_left(room, (piece.tokens, -1))
        if fit == len(room):
            rows.append([piece])
            left, row = width - piece.tokens, len(rows) - 1
        else:
            left, row = room.pop(fit)
            rows[row].append(piece)
            left -= piece.tokens
        bisect.insort(room, (left, row))
    return rows


def like_lengths(longest_first: Sequence[Piece], width: int) -> list[list[Piece]]:
    """Pieces of like length, padded to at most `width` tokens together."""
    rows: list[list[Piece]] = []
    for piece in longest_first:
        if rows and (len(rows[-1]) + 1) * rows[-1][0].tokens <= width:
            rows[-1].append(piece)
        else:
            rows.append([piece])
    return rows


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Rows as tensors.

    Attributes:
        chains: what the model reads; slots are nodes, the prompts among them.
        targets, weights: of each slot, weight 0 where it trains nothing, (batch, slots).
        pairs: (row, slot) of the chosen and of the rejected step of each preference, (pairs, 4).
        prompts: of each row, the prompt that each slot's step is of, as its ids.
    """

    chains: ChainBatch
    targets: Tensor
    weights: Tensor
    pairs: Tensor
    prompts: Sequence[Sequence[tuple[int, ...]]]

    def to(self, device: torch.device) -> TreeBatch:
        """The same on a device."""
        return TreeBatch(self.chains.to(device), self.targets.to(device), self.weights.to(device),
                         self.pairs.to(device), self.prompts)


class _Layout:
    """Where the nodes of a row stand: columns, slots and ancestors."""

    def __init__(self, row: Row) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.previous: list[int] = []
        self.steps: list[int] = []
        self.node: list[int] = []
        self.ends: list[int] = []
        self.parents: list[int] = []
        self.targets: list[float] = []
        self.weights: list[float] = []
        self.pairs: list[tuple[int, int]] = []
        self.prompts: list[tuple[int, ...]] = []
        for piece in row:
            self._add(piece)

    def _add(self, piece: Piece) -> None:
        slots: dict[int, int] = {}
        for index in piece.nodes:
            node = piece.tree.nodes[index]
            slot, column = len(self.ends), len(self.ids)
            parent = slots.get(node.parent, -1)
            before = self.ends[parent] if parent >= 0 else -1
            depth = self.positions[before] + 1 if parent >= 0 else 0
            self.ids += node.ids
            self.positions += range(depth, depth + len(node.ids))
            self.previous += [before, *range(column, column + len(node.ids) - 1)]
            self.steps += [slot if written else -1 for written in node.written]
            self.node += [slot] * len(node.ids)
            slots[index] = slot
            self.ends.append(len(self.ids) - 1)
            self.parents.append(parent)
            self.targets.append(node.target)
            self.weights.append(node.weight if index in piece.scored else 0.0)
            self.prompts.append(piece.tree.nodes[0].ids)
        self.pairs += [(slots[chosen], slots[rejected]) for chosen, rejected in piece.pairs]


def collate_trees(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu", width: int = 0) -> TreeBatch:
    """Tensors of rows, as wide as the longest; of trees that are kept apart, one chain a row.

    Args:
        device: where they are put, and the mask is made.
        width: they are at least as wide, as passes of one size are fastest on a GPU.
    """
    import torch

    from prm_core.models.padding import pad

    if rows[0][0].tree.apart:
        return _collate_chains(rows, pad_id).to(torch.device(device))
    layouts = [_Layout(row) for row in rows]
    width = max(width, *(len(layout.ids) for layout in layouts))
    for layout in layouts:
        layout.ids += [pad_id] * (width - len(layout.ids))
    ends = pad([layout.ends for layout in layouts], -1)
    slots = ends.shape[1]
    lineage = torch.zeros(len(rows), slots, slots, dtype=torch.bool)
    for number, layout in enumerate(layouts):
        for slot, parent in enumerate(layout.parents):
            if parent >= 0:
                lineage[number, slot] = lineage[number, parent]
            lineage[number, slot, slot] = True
    lineage = lineage.to(device)
    mask = torch.zeros(len(rows), 1, width, width, dtype=torch.bool, device=device)
    causal = torch.ones(width, width, dtype=torch.bool, device=device).tril_()
    for number, layout in enumerate(layouts):
        node = torch.tensor(layout.node).to(device)
        used = len(node)
        mask[number, 0, :used, :used] = lineage[number][node][:, node] & causal[:used, :used]
        # A padding token sees itself: a row of the softmax without any column would be NaN.
        mask[number, 0].fill_diagonal_(True)

    def wide(lists: Sequence[Sequence[int]], value: int) -> Tensor:
        found = pad(lists, value)
        return torch.nn.functional.pad(found, (0, width - found.shape[1]), value=value)

    pairs = [(number, chosen, number, rejected)
             for number, layout in enumerate(layouts) for chosen, rejected in layout.pairs]
    chains = ChainBatch(
        pad([layout.ids for layout in layouts], pad_id), wide([layout.steps for layout in layouts], -1), ends,
        wide([layout.positions for layout in layouts], 0), wide([layout.previous for layout in layouts], -1), mask,
        lineage,
    )
    return _with_targets(chains, layouts, pairs).to(torch.device(device))


def _collate_chains(rows: Sequence[Row], pad_id: int) -> TreeBatch:
    """Without positions and mask. A step that two chains of a pair share is a target in the first of them."""
    from prm_core.models.padding import pad

    layouts: list[_Layout] = []
    pairs: list[tuple[int, ...]] = []
    for piece in (piece for row in rows for piece in row):
        inner = {piece.tree.nodes[index].parent for index in piece.nodes}
        place: dict[int, tuple[int, int]] = {}
        for leaf in (index for index in piece.nodes if index not in inner):
            path = piece.tree.path(leaf)
            new = {index: (len(layouts), slot) for slot, index in enumerate(path) if index not in place}
            layouts.append(_Layout([Piece(piece.tree, tuple(path), piece.scored & new.keys(), (), piece.tokens)]))
            place |= new
        pairs += [(*place[chosen], *place[rejected]) for chosen, rejected in piece.pairs]
    ids, steps = pad([layout.ids for layout in layouts], pad_id), pad([layout.steps for layout in layouts], -1)
    return _with_targets(ChainBatch(ids, steps, pad([layout.ends for layout in layouts], -1)), layouts, pairs)


def _with_targets(chains: ChainBatch, layouts: Sequence[_Layout], pairs: Sequence[tuple[int, ...]]) -> TreeBatch:
    import torch

    targets, weights = torch.zeros(chains.ends.shape), torch.zeros(chains.ends.shape)
    for number, layout in enumerate(layouts):
        targets[number, : len(layout.targets)] = torch.tensor(layout.targets)
        weights[number, : len(layout.weights)] = torch.tensor(layout.weights)
    return TreeBatch(chains, targets, weights, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 4),
                     [layout.prompts for layout in layouts])
