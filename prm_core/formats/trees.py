"""What PRM800K and MATH-APS share: a record is a tree of labelled steps, read as its chains from root to leaf.

Steps that several chains share are labelled in each. Their records come together again by meta: `tree` (which record,
by file and line), `rest` (what it holds besides steps) and `nodes` (one dict a step, saying where in the record it
stands).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prm_core.formats.base import LabelledChain


@dataclass(frozen=True, slots=True)
class Node:
    """A step in a tree of steps: its text, its label, the index of the step before it, and its place in the record."""

    text: str
    label: float | None
    parent: int | None
    place: dict[str, Any]


def leaf_paths(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    """The nodes from root to leaf for each leaf, in the order of the leaves."""
    parents = {node.parent for node in nodes}
    for index in range(len(nodes)):
        if index in parents:
            continue
        path, at = [], index
        while at is not None:
            path.append(nodes[at])
            at = nodes[at].parent
        yield path[::-1]


def trees(chains: Iterable[LabelledChain], name: str) -> Iterator[list[LabelledChain]]:
    """Chains grouped by the record they were read from; a chain of another format is a tree of its own."""
    alone = itertools.count()
    for _, group in itertools.groupby(
        chains, lambda chain: (True, chain.meta["tree"]) if chain.source == name else (False, next(alone))
    ):
        yield list(group)


def labelled_once(chains: Iterable[LabelledChain]) -> Iterator[LabelledChain]:
    """The same chains with the label of a step that several share in the first of them only: each trains once.

    PRM800K and MATH-APS record many candidates after one prefix; read as chains, the prefix has its labels in all of
    them. For chains in the order they were read, and for training: a writer would take the missing labels for unknown.
    """
    tree, seen = None, set()
    for chain in chains:
        if "tree" not in chain.meta:
            yield chain
            continue
        if chain.meta["tree"] != tree:
            tree, seen = chain.meta["tree"], set()
        places = [repr(node["at"]) for node in chain.meta["nodes"]]
        yield replace(chain, labels=tuple(
            None if place in seen else label for place, label in zip(places, chain.labels, strict=True)))
        seen.update(places)
