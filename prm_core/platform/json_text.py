"""The one parser of JSON from outside: what it cannot hold exactly, or no writer could write back, it refuses by field.

Which files hold JSON, and what the values mean, is the callers' business (`store.py`, `records.py`).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from prm_core.errors import InputError

# Far above what any format nests, far below where Python's own recursion ends.
MAX_DEPTH = 100
# Python turns no longer text into a number, or back.
MAX_DIGITS = sys.int_info.default_max_str_digits
CHUNK = 1 << 16

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
# A quote without its end matches alone.
_TOKEN = re.compile(_STRING + rb'|["\[\]{},]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
# What a backslash and a letter make in JSON and in Python's texts, where they begin a LaTeX command. After a bell, a
# backspace, a vertical tab or a form feed any letter will do: texts hold those for no other reason. Tabs and line ends
# are common, so that what follows must be the rest of a command and no word.
_LETTERS = {"\a": "a", "\b": "b", "\v": "v", "\f": "f", "\t": "t", "\n": "n", "\r": "r"}
_COMMANDS = re.compile(
    r"[\a\x08\v\f][A-Za-z]+"
    r"|\t(?:imes|heta|au|ilde|[fd]?frac|binom|herefore|hinspace|riangle[a-z]*|o(?=[\s\d\\{}()$+-]|$)"
    r"|an(?=\s*[\d\\^({]|\s[a-z]\b)|ext(?:bf|it|rm|tt|sf|normal)?(?=\s*\{))(?![a-z])"
    r"|\r(?:ight(?:left)?(?:arrow|harpoons)?|angle|floor|ceil|ho|brace|brack|vert)(?![a-z])"
    r"|\n(?:eq|abla|otin|ot(?=[\\=])|[lg]eq|cong|ewline)(?![a-z])"
    # "x \ne 3", not a line that begins with the number e.
    r"|(?<=[^.:;!?\s]) ?\n(?:e(?=\s*[\d\\({-]|\s[a-z]\b)|u(?=\s*[\^_}$]))")


class _Unkept(Exception):
    """A number that `check` refuses, met by a parser that does not know its field."""


@dataclass(frozen=True, slots=True)
class _LongNumber:
    digits: int


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Unkept
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Unkept
    return int(text)


def _marked(text: str) -> int | _LongNumber:
    digits = len(text.lstrip("-"))
    return int(text) if digits <= MAX_DIGITS else _LongNumber(digits)


def _missing(text: str) -> None:
    if text != "NaN":
        raise _Unkept


_STRICT = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_finite)
_NAN_IS_NULL = json.JSONDecoder(parse_float=_finite, parse_int=_whole, parse_constant=_missing)
_LENIENT = json.JSONDecoder(parse_int=_marked)


def parse(raw: bytes, where: str, hint: str = "", *, nan_is_null: bool = False) -> Any:
    """A JSON value from UTF-8 bytes, with or without a byte-order mark.

    Args:
        raw: the text.
        where: names it in errors.
        hint: what stands there, appended when it is no JSON.
        nan_is_null: read NaN, as pandas writes what is missing, as null.

    Raises InputError naming `where`, and the field where there is one: no UTF-8, no JSON, or a value as `check` names.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
    try:
        try:
            value = (_NAN_IS_NULL if nan_is_null else _STRICT).decode(text)
        except _Unkept:
            value = _LENIENT.decode(text)
            check(value, where)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({_reason(error)}){hint and '; '}{hint}") from None
    except RecursionError:
        raise InputError(_too_deep(where, _deep_field(raw))) from None
    # Most records cannot hold any of the rest, and are not walked through.
    if b"\\ud" in raw or b"\\uD" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        check(value, where)
    return value


def _reason(error: json.JSONDecodeError) -> str:
    if "escape" in error.msg:
        at = error.doc.rfind("\\", 0, error.pos + 1)
        found = error.doc[at : at + 12].split('"')[0].split()[0]
        return f"{error.msg} at {found}: JSON writes a backslash, as of LaTeX, as two"
    return error.msg


def _deep_field(raw: bytes) -> str:
    """The field of the outermost object in which the brackets go too deep."""
    depth, field, last = 0, "", b'""'
    for found in _TOKEN.finditer(raw):
        token = found[0]
        if token in b"[{":
            if depth == 1:
                field = json.loads(last)
            depth += 1
            if depth > MAX_DEPTH:
                break
        elif token in b"]}":
            depth -= 1
        elif token.startswith(b'"'):
            last = token
    return field


def _too_deep(where: str, field: str) -> str:
    return (f"{where}: field {field or '(the whole)'} is nested deeper than {MAX_DEPTH} levels; leave it out, or write "
            "it as a text")


def check(value: Any, where: str) -> None:
    """Raises InputError naming `where` and the field of a value that could not be kept or written back as it is.

    Those are: half of a surrogate pair, NaN and infinity, whole numbers beyond MAX_DIGITS, nesting beyond MAX_DEPTH.
    """
    left: list[tuple[Any, str, int]] = [(value, "", 0)]
    while left:
        item, field, depth = left.pop()
        if depth == MAX_DEPTH and isinstance(item, dict | list):
            raise InputError(_too_deep(where, re.split(r"[.\[]", field)[0]))
        # In the order of the file: the first fault is the one named.
        if isinstance(item, dict):
            for name in item:
                _check_text(name, where, f"{field}.(name)")
            left += [(part, f"{field}.{name}" if field else name, depth + 1)
                     for name, part in reversed(item.items())]
        elif isinstance(item, list):
            left += [(part, f"{field}[{index}]", depth + 1) for index, part in reversed(list(enumerate(item)))]
        elif isinstance(item, str):
            _check_text(item, where, field)
        elif isinstance(item, float) and not math.isfinite(item):
            shown = "NaN" if math.isnan(item) else "infinity, or too large for a number"
            raise InputError(f"{where}: field {field} is {shown}, which JSON does not have; leave the field out or "
                             "write null where a value may be missing, else give the value")
        elif isinstance(item, _LongNumber):
            raise InputError(f"{where}: field {field} is a number of {item.digits} digits, more than {MAX_DIGITS}; "
                             "write it as a text, or leave it out")


def _check_text(text: str, where: str, field: str) -> None:
    half = _SURROGATE.search(text)
    if half:
        raise InputError(f"{where}: field {field} holds half a character, \\u{ord(half[0]):04x}, as a text cut inside "
                         "an emoji does; write \\ufffd for it, or leave it out")


def broken_command(text: str) -> str | None:
    r"""The LaTeX command that a backslash too few has made a control character of, as "\\frac"; None without one.

    In JSON `"\\frac"` with one backslash is a form feed and "rac"; so are `\\binom`, `\\times`, `\\ne`, `\\right`.
    """
    found = _COMMANDS.search(text)
    return _command(found).lstrip(" ") if found else None


def restore_commands(text: str) -> str:
    """The text with the commands that `broken_command` names as they were meant."""
    return _COMMANDS.sub(_command, text)


def _command(found: re.Match[str]) -> str:
    command = found[0].lstrip(" ")
    return f"{found[0][: -len(command)]}\\{_LETTERS[command[0]]}{command[1:]}"


def array_items(file: BinaryIO, where: str) -> Iterator[tuple[str, bytes]]:
    """(where, bytes) of each item of the JSON array that a file holds, whatever they are; no item but one is held.

    Raises InputError naming `where` and the record where the array does not end as it should.
    """
    held, begin, scanned, depth, number = b"", 0, 0, 0, 0
    while chunk := file.read(CHUNK):
        held, begin, scanned = held[begin:] + chunk, 0, scanned - begin
        for found in _TOKEN.finditer(held, scanned):
            token, scanned = found[0], found.end()
            if token == b'"':
                # The text's end is in a later piece.
                scanned = found.start()
                break
            if token in b"[{":
                depth += 1
                begin = scanned if depth == 1 else begin
            elif token in b"]}":
                depth -= 1
            if depth == 0 or (depth == 1 and token == b","):
                item = held[begin : found.start()]
                if item.strip() or number or depth:
                    yield f"{where}: record {number}", item
                begin, number = scanned, number + 1
            if depth == 0:
                if (held[scanned:] + file.read(CHUNK)).strip():
                    raise InputError(f"{where}: record {number}: not valid JSON (more text after the array's end)")
                return
        else:
            scanned = len(held)
    raise InputError(f"{where}: record {number}: not valid JSON (the file ends inside it); the file is an array of "
                     "objects")
