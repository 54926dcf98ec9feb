"""The chains of a question as one tree: what chains share, a model reads once. Forward passes are in `networks.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prm_core.models.chains import ChainBatch
from prm_core.training.trees import Piece, Tree, collate_trees, cut, like_lengths

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Widest row of a tree, where no chain is longer, by the width of the model's states: a token is compared with all
# others of its row, which then costs about as much as all else.
ROW_WIDTHS = 4
# Of a pass, padding counted. On a CPU more of them leave its cache, on a GPU fewer leave it idle.
CPU_TOKENS, GPU_TOKENS = 1024, 16384


@dataclass(frozen=True, slots=True)
class Layout:
    """How chains are laid out for a model.

    Attributes:
        share: one tree for all chains of a question; otherwise one for each chain, of twins one.
        width: tokens of a row at most, where no chain is longer.
        tokens: of a pass at most, where no row is longer.
    """

    share: bool
    width: int
    tokens: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """That of a causal LM and its copies."""
        from prm_core.models.causal import takes_trees

        return cls(takes_trees(model.base_model), ROW_WIDTHS * model.config.get_text_config().hidden_size,
                   CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS)


@dataclass(frozen=True, slots=True)
class Group:
    """Chains of a question.

    Attributes:
        tree: of the chains, each up to the token before its last learned one, after which nothing is chosen.
        leaves: number of a chain → the node it ends with.
    """

    tree: Tree
    leaves: Mapping[int, int]

    @property
    def tokens(self) -> int:
        """That a model reads."""
        return sum(len(node.ids) for node in self.tree.nodes)

    @property
    def longest(self) -> int:
        """Tokens of its longest chain."""
        return max(sum(len(self.tree.nodes[node].ids) for node in self.tree.path(leaf))
                   for leaf in set(self.leaves.values()))


@dataclass(frozen=True, slots=True)
class Pass:
    """Chains that go through a model together.

    Attributes:
        rows: their numbers, (rows,).
        chains: what the model reads.
        states: places in `chains`, its rows one after the other, of the states that tokens are chosen from, (states,).
        learned: True at the chains' learned tokens, (rows, tokens).
        targets: these tokens, row by row, (learned tokens,).
        chosen: number of the state that each was chosen from, (learned tokens,).
    """

    rows: Tensor
    chains: ChainBatch
    states: Tensor
    learned: Tensor
    targets: Tensor
    chosen: Tensor

    def to(self, device: Any) -> Pass:
        """The same on a device; the numbers stay."""
        return Pass(self.rows, self.chains.to(device), *(
            values.to(device) for values in (self.states, self.learned, self.targets, self.chosen)))


def grow(ids: Tensor, learned: Tensor, layout: Layout) -> list[Group]:
    """Groups of the chains that are learned from, in the order of their questions.

    Args:
        ids: of tokens, (chains, tokens).
        learned: True at those that are learned from, likewise.
    """
    questions: dict[tuple[int, ...], dict[int, tuple[int, ...]]] = {}
    rows = learned.any(1).nonzero()[:, 0].tolist()
    for row, own, found in zip(rows, ids[rows].tolist(), learned[rows], strict=True):
        places = found.nonzero()[:, 0].tolist()
        chain = tuple(own[: places[-1]])
        questions.setdefault(chain[: places[0]] if layout.share else chain, {})[row] = chain
    return [_group(chains, apart=not layout.share) for chains in questions.values()]


def _group(chains: Mapping[int, tuple[int, ...]], *, apart: bool) -> Group:
    distinct = list(dict.fromkeys(chains.values()))
    # A node ends where two chains part; up to the first of these places all are one.
    cuts = {chain: {len(chain)} for chain in distinct}
    for one, other in itertools.combinations(distinct, 2):
        both = min(len(one), len(other))
        shared = next((at for at in range(both) if one[at] != other[at]), both)
        cuts[one].add(shared)
        cuts[other].add(shared)
    tree = Tree.of_prompt(distinct[0][: min(cuts[distinct[0]])], apart=apart)
    ends = {}
    for chain, places in cuts.items():
        node = 0
        for start, end in itertools.pairwise(sorted(places)):
            node = tree.add(node, chain[start:end], (True,) * (end - start))
        # Some piece of the tree has to hold the path to it.
        tree.nodes[node].weight = 1.0
        ends[chain] = node
    return Group(tree, {row: ends[chain] for row, chain in chains.items()})


def passes(ids: Tensor, learned: Tensor, layout: Layout) -> Iterator[Pass]:
    """Every chain that is learned from once, in passes over trees of like size; see `grow`."""
    held: dict[int, list[tuple[int, int]]] = {}
    pieces: list[Piece] = []
    groups = grow(ids, learned, layout)
    width = max([layout.width, *(group.longest for group in groups)])
    for group in groups:
        found = cut(group.tree, width)
        for row, leaf in group.leaves.items():
            held.setdefault(next(at for at, piece in enumerate(found, len(pieces)) if leaf in piece.scored), []).append(
                (row, leaf))
        pieces += found
    order = sorted(range(len(pieces)), key=lambda at: -pieces[at].tokens)
    numbers = iter(order)
    for together in like_lengths([pieces[at] for at in order], layout.tokens):
        yield _pass(ids, learned, [(piece, held[next(numbers)]) for piece in together])


def _pass(ids: Tensor, learned: Tensor, pieces: Sequence[tuple[Piece, Sequence[tuple[int, int]]]]) -> Pass:
    """Args:
        pieces: each with the chains that end in it, and the node they end with.
    """
    import torch

    # Pads are seen by nobody: any token will do.
    chains = collate_trees([[piece] for piece, _ in pieces], 0).chains
    rows, places = [], []
    for number, (piece, ending) in enumerate(pieces):
        columns = _columns(piece, chains.ends[number].tolist(), number * chains.ids.shape[1])
        for row, leaf in ending:
            path = torch.tensor([column for node in piece.tree.path(leaf) for column in columns[node]])
            rows.append(row)
            # A token is chosen from the state at the one before it.
            places.append(path[learned[row].nonzero()[:, 0] - 1])
    states, chosen = torch.cat(places).unique(return_inverse=True)
    numbers = torch.tensor(rows)
    return Pass(numbers, chains, states, learned[numbers], ids[numbers][learned[numbers]], chosen)


def _columns(piece: Piece, ends: Sequence[int], first: int) -> dict[int, range]:
    """Where each node of a piece stands, in a row that begins at `first`."""
    return {node: range(first + end + 1 - len(piece.tree.nodes[node].ids), first + end + 1)
            for node, end in zip(piece.nodes, ends, strict=False)}
