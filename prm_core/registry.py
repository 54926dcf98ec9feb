"""A registry by name: strategies, domains, aggregations and stages register next to their definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prm_core.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps names to implementations of one kind.

    Args:
        kind: what is registered, singular, for error messages ("labelling strategy").
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: `@registry.register("name")`. Raises ValueError when the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry. Raises InputError naming the known ones when there is none of that name."""
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"unknown {self._kind} {name!r}; known: {', '.join(sorted(self._entries))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries
