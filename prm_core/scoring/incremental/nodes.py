"""What a reward model said of chains' beginnings, as a tree of steps: a chain is looked up a step at a time, without
tokens."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prm_core.scoring.domain import NOTHING, News
from prm_core.turns import is_plain, unnamed
from prm_core.types import Step

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prm_core.models.prefixes.tree import Branch, Place
    from prm_core.scoring.scorer import Slot


@dataclass(frozen=True, slots=True)
class Said:
    """What is known of a beginning of a chain, which ends with a step (or is a prompt).

    Attributes:
        slot: what the model says where it ends.
        lowest: of each surprisal feature the lowest of its steps, (features,); None of a model without.
        total: sum of the hidden states of its tokens, (width,).
        news: what of its tokens is new to the model's domain.
        unknown: tokens that the tokenizer cannot read.
    """

    slot: Slot
    lowest: NDArray[np.float32] | None
    total: NDArray[np.float32]
    news: News
    unknown: int


def key_of(step: Step) -> Hashable:
    """What tells steps apart that a model reads differently: of a step that is a text alone that, which is fast."""
    return step.text if is_plain(step) else unnamed(step)


class Node:
    """A beginning of chains, after a step, a prompt, or nothing.

    Attributes:
        parent: the beginning one step shorter; None of that which is nothing.
        key: the last step, or the prompt.
        place: where its tokens are.
        said: of it.
        following: beginnings one step longer.
    """

    __slots__ = ("following", "key", "parent", "place", "said")

    def __init__(self, parent: Node | None, key: Hashable, place: Place, said: Said | None) -> None:
        self.parent = parent
        self.key = key
        self.place = place
        self.said = said
        self.following: dict[Hashable, Node] = {}

    @property
    def news(self) -> News:
        """Of its tokens."""
        return self.said.news if self.said else NOTHING


def grow(parent: Node, key: Hashable, place: Place, said: Said) -> Node:
    """A new beginning, known until its tokens are dropped."""
    node = Node(parent, key, place, said)
    parent.following[key] = node
    place.branch.notes.append(node)
    return node


def forget(branch: Branch) -> None:
    """Drops the beginnings that end in a branch."""
    for node in branch.notes:
        if node.parent.following.get(node.key) is node:
            del node.parent.following[node.key]
