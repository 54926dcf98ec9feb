"""A record with something else in each of its places, one at a time: what a reader must refuse in words, or take."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

JUNK = (None, -1, 1.5, True, "x", [], {}, [1], [{}])


def with_junk(record: Any) -> Iterator[Any]:
    """The record with each of JUNK in place of each value in it."""
    for place in _places(record):
        for junk in JUNK if place else ():
            changed = copy.deepcopy(record)
            at = changed
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = junk
            yield changed


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*place, key))
