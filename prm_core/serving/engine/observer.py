"""What a service and its engine tell whoever watches them."""

from __future__ import annotations


class Observer:
    """Is told what happens, from many threads. This one minds nothing; a server's `Metrics` count."""

    def queued(self, running: int, waiting: int) -> None:
        """How many requests the model is at, and how many it has not begun."""

    def begun(self, seconds: float) -> None:
        """The model begins with a request that has waited so long."""

    def passed(self, tokens: int, seconds: float, usage: float) -> None:
        """A pass of the model: its tokens, how long it took, and what share of the bytes for prefixes is used then."""

    def scored(self, tokens: int, known: int) -> None:
        """A chain has its scores: its tokens, and how many of them were known."""

    def looked_up(self, asked: int, found: int) -> None:
        """Chains looked up among kept scores, and how many were there."""
