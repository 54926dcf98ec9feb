"""What a value of a setting may be: limits of numbers, texts, names of what is registered elsewhere. No section here.

pydantic checks types and limits where it is installed; `faults` adds what it has no words for.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_type_hints

from prm_core.errors import InputError

T = TypeVar("T")


class Bounds:
    """Limits of a type, in pydantic's words (gt, ge, pattern, …); pydantic calls the method where it is installed."""

    def __init__(self, **limits: float | str) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(source), **self.limits}


Share = Annotated[float, Bounds(ge=0, le=1)]
PositiveInt = Annotated[int, Bounds(gt=0)]
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]
NonNegativeFloat = Annotated[float, Bounds(ge=0)]
# A path, a name, a hub id: something other than blanks.
Text = Annotated[str, Bounds(pattern=r"\S")]
# How step scores become a chain's: the registry of the names.
AGGREGATIONS = "prm_core.search.aggregate:AGGREGATIONS"

# Of a field's metadata: where what it may name is registered, as "module:REGISTRY". The rest of it is pydantic's.
_REGISTRY = "registry"


def setting(
    description: str = "", *, default: Any = dataclasses.MISSING, registry: str | None = None, **limits: Any
) -> Any:
    """A key of a section.

    Args:
        description: what it means.
        registry: "module:NAME" of the registry that its text, the items of its list or the keys of its mapping must be
            in. It is imported when a value is checked: what is registered there takes settings itself.
        limits: in pydantic's words (gt, ge, lt, le, min_length, pattern).
    """
    own = {} if registry is None else {_REGISTRY: registry}
    return dataclasses.field(default=default, metadata={"description": description, **own, **limits})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def section(cls: type[T]) -> type[T]:
    """One block of `params.yaml`: a frozen dataclass whose unknown keys are errors, as are NaN and infinity."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def truth_for_a_number(kind: type, raw: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """(key, fault) of each true or false where a number is asked for, which pydantic takes for 1 and 0."""
    hints = get_type_hints(kind)
    for name, value in raw.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            yield from truth_for_a_number(hint, value, f"{where}{name}.")
        elif bool not in (types := _types(hint)) and types & {int, float}:
            inner = value.items() if isinstance(value, Mapping) else (("", one) for one in _flat(value))
            yield from ((f"{where}{name}.{key}".rstrip("."), f"expected a number, found {one!r}") for key, one in inner
                        if isinstance(one, bool))


def faults(values: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key, fault) of what pydantic lets pass in a section and those within: doubles in a list, names that are not
    registered."""
    for field in dataclasses.fields(values):
        value, key = getattr(values, field.name), f"{where}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from faults(value, f"{key}.")
            continue
        if isinstance(value, list) and (twice := sorted({str(one) for one in value if value.count(one) > 1})):
            yield key, f"{', '.join(twice)} is there twice"
        home = field.metadata.get(_REGISTRY)
        if home is not None and not isinstance(value, int | float):
            names = value if isinstance(value, Mapping) else _flat(value)
            yield from ((key, fault) for name in names if (fault := unknown(home, name)))


def unknown(home: str, name: str) -> str:
    """What a registry or mapping, given as "module:NAME", says of a name it does not have; empty where it has it."""
    module, _, attribute = home.partition(":")
    registry = getattr(importlib.import_module(module), attribute)
    try:
        registry[name]
    except InputError as error:
        return str(error)
    except KeyError:
        return f"unknown name {name!r}; known: {', '.join(registry)}"
    return ""


def _types(hint: Any) -> set[Any]:
    """The plain types in a hint: {float, dict, str} for Share | dict[str, Share]."""
    inner = get_args(hint)
    return {hint} if not inner else set().union(*(_types(one) for one in inner if not isinstance(one, str)))


def _flat(value: Any) -> Sequence[Any]:
    """A value, or those of a list."""
    return value if isinstance(value, list | tuple) else (value,)


def is_alias(text: str) -> bool:
    """Whether MLflow takes it for a model's alias: `latest` and version numbers stand for versions already."""
    return bool(re.fullmatch(r"[\w-]{1,255}", text)) and not re.fullmatch(r"latest|v\d+", text, re.IGNORECASE)
