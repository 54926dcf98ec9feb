"""A request's body as JSON, checked before anything is made of it: its size and type, how deep it is nested, how long
its numbers are, which fields it has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any, TypeVar

from pydantic import BaseModel, FailFast, ValidationError

from prm_core.errors import InputError
from prm_core.serving.service import SHOWN, unknown

T = TypeVar("T", bound=BaseModel)

# Of a JSON number: a float has at most 17 that matter.
MOST_DIGITS = 100
# Of an object: each that a request does not have would be a fault of its own.
MOST_FIELDS = 1000
# A half of a surrogate pair as JSON spells it, alone or not.
HALF = re.compile(r"\\u[dD][89a-fA-F]")


class FirstFault(FailFast):
    """Of a list: what is checked ends at the first item at fault, however many there are."""

    def __hash__(self) -> int:
        # Unions of types want one, and pydantic's own has none.
        return hash(FirstFault)


class UnsupportedMediaType(InputError):
    """A body that is not sent as JSON: 415."""


class TooLarge(InputError):
    """A body of too many bytes, or more in it than is taken at once: 413."""


def parse(content_type: str | None, body: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object in a body.

    Raises UnsupportedMediaType for what is not sent as UTF-8 JSON, InputError as `load` does and for any other value.
    """
    check_type(content_type)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InputError("the request is not UTF-8 text") from None
    values = load(text, max_depth)
    if not isinstance(values, dict):
        raise InputError("the request must be an object")
    return values


def load(text: str, max_depth: int) -> Any:
    """The JSON value that a text is.

    Raises InputError for what is none, is nested deeper than `max_depth`, holds a number of more than MOST_DIGITS
    digits, an object of more than MOST_FIELDS fields or that names one twice, or half a surrogate pair.
    """
    try:
        values = json.loads(text, object_pairs_hook=_object, parse_int=_integer,
                            parse_float=_float)
    except RecursionError:
        raise InputError(f"the request is nested too deep; at most {max_depth} levels are read") from None
    except json.JSONDecodeError as error:
        raise InputError(f"the request is not valid JSON ({error.msg}, character {error.pos})") from None
    _check_depth(values, max_depth)
    if HALF.search(text):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            # JSON can spell it; no answer could repeat it, and no tokenizer takes it.
            raise InputError("the request holds text that is no valid Unicode (half a surrogate pair); correct "
                             "it") from None
    return values


def check_type(content_type: str | None) -> None:
    """Raises UnsupportedMediaType for a header that does not say JSON in UTF-8."""
    header = Message()
    header["content-type"] = (content_type or "").replace("\r", " ").replace("\n", " ")
    # A header that is missing or broken reads as text/plain.
    if header.get_content_type() != "application/json" or header.get_content_charset("utf-8") not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("the request must be sent with the header Content-Type: application/json, in UTF-8")


def checked(model: type[T], values: Mapping[str, Any]) -> T:
    """The request that JSON values are. Raises InputError naming the field at fault, and of a misspelt one the name
    that is nearest; none of the request's text is in it."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
    # A name that is unknown explains one that is missing.
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    *above, name = fault["loc"] or ("request",)
    if fault["type"] == "extra_forbidden":
        known = _fields(model, above)
        raise InputError(unknown("field", str(name), known) + (f" (in {_path(above)})" if above else ""))
    raise InputError(f"`{_path(fault['loc'])}`: {fault['msg'][:200]}")


def _fields(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """The fields of the model that a path of field names and indices leads to."""
    for part in path:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None:
            continue
        inner = [one for one in _models(field.annotation) if one is not model]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models(part)]


def _path(parts: Sequence[Any]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{str(part)[:SHOWN]}" for part in parts)
    return text.removeprefix(".") or "request"


def _integer(digits: str) -> int:
    return int(_short(digits))


def _float(digits: str) -> float:
    return float(_short(digits))


def _short(digits: str) -> str:
    if len(digits) > MOST_DIGITS:
        raise InputError(f"the request holds a number of {len(digits)} digits; at most {MOST_DIGITS} are read")
    return digits


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_FIELDS:
        raise InputError(f"the request holds an object of {len(pairs)} fields; at most {MOST_FIELDS} are read")
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise InputError(f"the request names {twice[:SHOWN]!r} twice in one object")
    return result


def _check_depth(values: Any, most: int) -> None:
    level, depth = [values], 0
    while level:
        depth += 1
        level = [inner for one in level if isinstance(one, dict | list)
                 for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)]
        if depth > most:
            raise InputError(f"the request is nested too deep; at most {most} levels are read")
