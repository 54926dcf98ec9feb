"""Progress of long work, on a terminal as a bar and in a log as a line every few seconds; long lists in few words."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
LOG_SECONDS = 10.0


def some(names: Sequence[str], count: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:count]) + (f" and {len(names) - count:,} more" if len(names) > count else "")


def track(items: Iterable[T], label: str, *, total: int | None = None, done: int = 0, unit: str = "it") -> Iterator[T]:
    """Yields `items`, showing how far it is.

    Args:
        label: what is being done.
        total: how many there are in all, where `items` has no length or resumes in the middle.
        done: how many were finished before.
        unit: what is counted.
    """
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    yield from tqdm(
        items, desc=label, total=total, initial=done, unit=unit, mininterval=0.2 if terminal else LOG_SECONDS,
        ascii=not terminal, dynamic_ncols=terminal,
    )
