"""A tree of token runs with what a model computed of each: every token that texts share is held once.

A branch is the run of tokens that one text added to another. Others leave it anywhere within it, so nothing is ever
split or copied when they do; a text that goes on from a branch's end grows it in place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

# Tokens by which room is made.
BLOCK = 32

Tokens = "NDArray[np.int64]"


class Branch:
    """Tokens after a place in another branch.

    Attributes:
        parent: the branch it leaves; None for the root, which has no tokens, and for a branch that was dropped.
        at: how many of the parent's tokens come before it.
        start: how many tokens come before it altogether.
        count: its tokens.
        states: keys and values, (layers, 2, heads, room, width).
        hidden: last hidden states, (room, width).
        children: branches that leave it, by the number of its tokens before them and their first token.
        notes: whatever its users keep about it.
        held: uses that it must stay for.
    """

    __slots__ = ("at", "children", "count", "held", "hidden", "notes", "parent", "start", "states", "tokens")

    def __init__(self, parent: Branch | None, at: int, start: int) -> None:
        self.parent = parent
        self.at = at
        self.start = start
        self.count = 0
        self.held = 0
        self.tokens: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.states: Tensor | None = None
        self.hidden: Tensor | None = None
        self.children: dict[tuple[int, int], Branch] = {}
        self.notes: list[Any] = []

    def append(self, tokens: NDArray[np.int64], states: Tensor, hidden: Tensor) -> None:
        """Adds tokens, and what was computed of them: (layers, 2, heads, tokens, width) and (tokens, width)."""
        end = self.count + len(tokens)
        if end > len(self.tokens):
            room = -(-max(end, self.count + self.count // 2) // BLOCK) * BLOCK
            self.tokens = np.concatenate([self.tokens[: self.count], np.zeros(room - self.count, dtype=np.int64)])
            self.states = _grown(self.states, states, self.count, room, 3)
            self.hidden = _grown(self.hidden, hidden, self.count, room, 0)
        assert self.states is not None
        assert self.hidden is not None
        self.tokens[self.count : end] = tokens
        self.states[:, :, :, self.count : end] = states
        self.hidden[self.count : end] = hidden
        self.count = end

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        if self.states is None or self.hidden is None:
            return 0
        return self.states.nbytes + self.hidden.nbytes + self.tokens.nbytes


class Place(NamedTuple):
    """A text in the tree: all tokens up to `count` of a branch's."""

    branch: Branch
    count: int

    @property
    def depth(self) -> int:
        """Tokens of the text."""
        return self.branch.start + self.count

    def path(self) -> list[Place]:
        """The runs that make up the text, the first first."""
        found, place = [], self
        while place.branch.parent is not None:
            if place.count:
                found.append(place)
            place = Place(place.branch.parent, place.branch.at)
        return found[::-1]

    def upto(self, depth: int) -> Place:
        """The place of the first `depth` tokens of the text."""
        place = self
        while depth <= place.branch.start and place.branch.parent is not None:
            place = Place(place.branch.parent, place.branch.at)
        return Place(place.branch, depth - place.branch.start)

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the text's tokens in each layer, (heads, tokens, width) each."""
        import torch

        states = torch.cat([run.branch.states[:, :, :, : run.count] for run in self.path()
                            if run.branch.states is not None], 3)
        return [(layer[0], layer[1]) for layer in states]

    def hidden(self, start: int) -> list[Tensor]:
        """Hidden states of the text's tokens from `start` on, as views of (tokens, width)."""
        return [run.branch.hidden[max(start - run.branch.start, 0) : run.count] for run in self.path()
                if run.branch.hidden is not None and run.depth > start]


class Tree:
    """Branches within a limit of bytes; of those that nothing leaves and nobody holds, what was not used for longest is
    dropped first. Belongs to one thread.

    Args:
        limit: bytes.
        forget: told of each branch that is dropped.
    """

    def __init__(self, limit: int, forget: Callable[[Branch], None] = lambda branch: None) -> None:
        self.limit = limit
        self.root = Branch(None, 0, 0)
        self.size = 0
        self._forget = forget
        # Those used last at the end, a branch always behind the ones that leave it.
        self._used: OrderedDict[Branch, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._used)

    def find(self, place: Place, tokens: Sequence[int]) -> Place:
        """Where the longest known beginning of some tokens ends, which follow a place."""
        rest = np.asarray(tokens, dtype=np.int64)
        while len(rest):
            branch, count = place
            own = branch.tokens[count : min(branch.count, count + len(rest))]
            same = _common(own, rest)
            place, rest = Place(branch, count + same), rest[same:]
            following = branch.children.get((place.count, int(rest[0]))) if len(rest) else None
            if following is None:
                break
            place = Place(following, 0)
        return place

    def add(self, place: Place, tokens: Sequence[int], states: Tensor, hidden: Tensor) -> Place:
        """Puts tokens after a place that `find` gave for them, with what was computed of them."""
        branch, count = place
        if branch is self.root or count < branch.count:
            branch = Branch(branch, count, place.depth)
            place.branch.children[count, int(tokens[0])] = branch
        before = branch.size
        branch.append(np.asarray(tokens, dtype=np.int64), states, hidden)
        self.size += branch.size - before
        return Place(branch, branch.count)

    def use(self, branch: Branch) -> None:
        """Notes that a branch, and so all before it, was used now."""
        while branch is not self.root:
            self._used[branch] = None
            self._used.move_to_end(branch)
            assert branch.parent is not None
            branch = branch.parent

    def shrink(self, keep: Container[Branch] = ()) -> None:
        """Drops what is over the limit, but for some."""
        while self.size > self.limit:
            over, found = self.size - self.limit, []
            for branch in self._used:
                if not (branch.children or branch.held or branch in keep):
                    found.append(branch)
                    over -= branch.size
                    if over <= 0:
                        break
            if not found:
                return
            # A branch that these leave may be next.
            for branch in found:
                self._drop(branch)

    def _drop(self, branch: Branch) -> None:
        assert branch.parent is not None
        self.size -= branch.size
        del self._used[branch]
        del branch.parent.children[branch.at, int(branch.tokens[0])]
        self._forget(branch)
        branch.parent = branch.states = branch.hidden = None


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Tokens that two runs begin with alike."""
    differ = one != other[: len(one)]
    return int(differ.argmax()) if differ.any() else len(one)


def _grown(old: torch.Tensor | None, like: Tensor, count: int, room: int, axis: int) -> Tensor:
    """A tensor as `like` with so much room on an axis, that begins with `count` of the old one's."""
    shape = list(like.shape)
    shape[axis] = room
    new = like.new_empty(shape)
    if old is not None and count:
        new.narrow(axis, 0, count).copy_(old.narrow(axis, 0, count))
    return new
