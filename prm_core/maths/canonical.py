r"""The canonical form of an answer: what it says, however it is written.

| kind | read as |
|---|---|
| numbers, expressions | by value (`expressions.py`): `1/2`, `0.5`, `50 %`; `3 1/2`, `10\,000`, `2(3)`, `1e5` |
| quantities | a number with its unit's name (`units.py`), nothing converted: 7 cm is not 7 m, `€12` is `12 euros` |
| numbers of a base | digits and base: `1011_2` is neither `1011_3` nor 1011; base 10 is a plain number |
| clocks, ratios | `7:30` is no fraction; `2:4` is `1:2` |
| lists, sets, unions | any order, joined by commas, semicolons, "and", "or", `\cup` |
| tuples, intervals, vectors | in their order, ends open or closed; `1 < x \le 3` is `(1, 3]` |
| equations, inequalities | up to a factor: `2x + 4y = 3` is `4x + 8y - 6 = 0`; `x = 5` is 5 called x |
| choices | the letter: `(C)`, `C) 12 km`, `\textbf{(C)}` |
| words | without regard to case, in `\text{}`, dollars, quotes or Markdown |

A capital is another symbol in mathematics and the same word in a text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from prm_core.maths.expressions import MAX_LENGTH, Expression, Unreadable, read_expression, relation_key
from prm_core.maths.notation import clean
from prm_core.maths.number_words import spelled_out, with_magnitudes
from prm_core.maths.units import CURRENCIES, LETTERS, SHORT, canonical_unit

MAX_NESTING = 12


class Answer(NamedTuple):
    """What an answer says.

    Attributes:
        value: the value without unit and name.
        unit: the unit or base, empty where none is given; a tuple where there are several.
        name: what the value is called (`x` of `x = 5`), empty where it is not named.
        relation: the equation as a whole, empty where there is none; two equations are compared by it.
    """

    value: Hashable
    unit: Hashable = ""
    name: Hashable = ""
    relation: Hashable = ""

    def agrees(self, other: Answer) -> bool:
        """Whether both say the same; a unit or a name that one of them leaves out is no difference."""
        if self.relation and other.relation:
            return self.relation == other.relation and _compatible(self.unit, other.unit)
        return (self.value == other.value and _compatible(self.unit, other.unit)
                and _compatible(self.name, other.name))

    @property
    def said(self) -> int:
        """How much it says beside the value."""
        return sum(bool(part) for part in (self.unit, self.name, self.relation))


def _compatible(left: Hashable, right: Hashable) -> bool:
    return left == right or not left or not right


_HEDGE = re.compile(
    r"(?:≈|~|(?:about|approximately|approx\.?|roughly|around|exactly|only|just"
    r"|a total of|a ratio of|both|either|is)(?=\s))\s*",
    re.IGNORECASE)
# "(twelve)", but not "(wrong)".
_REMARK = re.compile(
    r"(?<=\S)\s+\((?![^)]*(?:\d|wrong|false|incorrect|not\b|n't))(?=[^)]*[A-Za-z]{3})(?!base\b)[^()]*\)$")
_CHOICE = re.compile(r"[(\[]?\s?([A-Z]|[a-e])\s?[)\]]?[.:]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-Za-e])\)|([A-Za-e])[):.])\s+(?![-+*/^=<>≤≥≠])\S.*", re.DOTALL)
_RELATION = re.compile(r"[=<>≤≥≠≈∈]")
_TURNED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}
_IN_WORDS = (
    (re.compile(r"(?:at least|no less than|a minimum of)\s", re.IGNORECASE), "≥ "),
    (re.compile(r"(?:at most|no more than|up to|a maximum of)\s", re.IGNORECASE), "≤ "),
    (re.compile(r"(?:more|greater|larger) than\s(?!or\b)", re.IGNORECASE), "> "),
    (re.compile(r"(?:less|fewer|smaller) than\s(?!or\b)", re.IGNORECASE), "< "),
)
_CONJUNCTION = re.compile(r"[\s,](?:and|or)\s|^(?:and|or)\s|\s(?:and|or)$|\s&\s", re.IGNORECASE)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,000")
_DECIMAL_COMMA = re.compile(r"\d+,\d{1,2}")
_MATRIX = re.compile(
    r"\\begin\s?\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\{[lcr|\s]*\})?(.*)\\end\s?\{[A-Za-z]+\}", re.DOTALL)
_CURRENCY_NAMES = {"$": "dollars?|USD", "€": "euros?|EUR", "£": "pounds?|GBP"}
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?\\.?" for name in (
    "January February March April May June July August September October November December").split())
_DATE = re.compile(
    rf"(?:(?P<month>{_MONTH})\s(?:the\s)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?"
    rf"|(?:the\s)?(?P<day_before>\d{{1,2}})(?:st|nd|rd|th)?\s(?:of\s)?(?P<month_after>{_MONTH}))(?:,?\s(?P<year>\d{{4}}))?",
    re.IGNORECASE)
_MONEY = re.compile(
    rf"([-+]?)\s*([{CURRENCIES}]|(?:US|AU|CA|[AC])\$|USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|CAD|AUD|Rs\.?)\s*(?=[-+\d.\\(])")
_SHORT_MAGNITUDES = {"k": 1000, "m": 10**6, "b": 10**9}
_SHORT_MILLIONS = re.compile(r"^(\d[\d.,]*)\s?([kKmMB])$")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s*([ap]\.?\s?m\.?))?", re.IGNORECASE)
_RATIO = re.compile(r"\d{1,12}(?:\s?:\s?\d{1,12})+|\d{1,12}(?:\sto\s\d{1,12})+")
_REMAINDER = re.compile(
    r"(-?\d{1,30})\s*,?\s*(?:(?:with\s)?(?:an?\s)?rem(?:ainder|\.)?(?:\sof)?|[rR])\s*\.?\s*(\d{1,30})",
    re.IGNORECASE)
_BASE = re.compile(
    r"(-?[0-9A-Za-z]{1,60})\s*(?:_\s*\{?\s*(?P<a>\d{1,2}|[a-z]{3,9})\s*\}?|,?\s*\(?(?:in\s)?base[\s-](?P<b>\d{1,2}|[a-z]{3,9})\)?)")
_RADIX = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}
_PREFIXED = re.compile(r"0([bBoOxX])([0-9A-Fa-f]{1,60})")
_IN_RADIX = re.compile(rf"([0-9A-F]{{1,60}})\s\(?(?:in\s)?({'|'.join(_RADIX)})\)?", re.IGNORECASE)
_BASES = {name: number for number, name in enumerate((
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen").split(), 2)}
_TAIL = re.compile(
    r"(?P<head>.*?[\d)}\]%!°π]|.*?\\pi)(?P<gap>\s*)"
    r"(?P<unit>[A-Za-z°¢$€£¥₹\u3400-\u9fff](?:[A-Za-z.'°/·*\s\u3400-\u9fff-]|\^\{?[23]\}?|(?<=/)\s*s\^2)*)", re.DOTALL)
# "5 squared", "5 less than x", "5 over x", "3 halves" say another number.
_NO_UNIT = re.compile(
    r"(?:squared|cubed|over|than|times\s+\S|not|minus|plus|below|divided|choose|mod|factorial|score|power|point|under"
    r"|halves|thirds|quarters|fourths|fifths|(?:less|fewer|more|greater)\sthan|zero)\b",
    re.IGNORECASE)
_OF_THEM = re.compile(r"of\s(?:an?|the|them|his|her|their|its|all)\b(?:\s[A-Za-z]{2,}){0,4}", re.IGNORECASE)
_HOLDS_FUNCTION = re.compile(r"(?:sin|cos|tan|cot|sec|csc)")
_QUANTITIES = re.compile(r"(?:(?<![\w.])[-+]?\d[\d,.]*(?:\s\d+/\d+)?\s?[A-Za-z][A-Za-z.]*,?\s*){2,}")
_QUANTITY = re.compile(r"([-+]?\d[\d,.]*(?:\s\d+/\d+)?)\s?([A-Za-z][A-Za-z.]*)")
_WORDS = re.compile(r"[^\d\\=+*/^<>≤≥≠≈∈_{}|°%$€£¥₹\[\]]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS = frozenset((
    "sin cos tan cot sec csc log exp sqrt arcsin arccos arctan sinh cosh tanh lim max min").split())
_SHORT_WORDS = frozenset((
    "no up so it he we me us on in at by if or an as is").split())
_SAME_TEXTS = {
    "all real numbers": r"\REALS", "all reals": r"\REALS", "real numbers": r"\REALS", "reals": r"\REALS",
    "the empty set": r"\{\}", "empty set": r"\{\}", "no solutions": "no solution",
    "no real solutions": "no real solution",
}
_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,30}")


@lru_cache(maxsize=65536)
def canonical(text: str) -> Answer:
    """Reads an answer. Never fails: what is no mathematics is a text."""
    if _PLAIN_NUMBER.fullmatch(text):
        return Answer(("number", int(text), 1))
    if len(text) > MAX_LENGTH:
        return Answer(("text", _folded(text)))
    return _read(clean(text), 0)


def _read(text: str, depth: int) -> Answer:
    if depth > MAX_NESTING:
        return Answer(("text", text))
    text = _REMARK.sub("", text)
    hedge = _HEDGE.match(text)
    if hedge and hedge.end() < len(text):
        text = text[hedge.end() :]
    text = _SAME_TEXTS.get(text.lower(), text).strip()
    if text == r"\REALS":
        return Answer(_span("(", _INFINITE[0], _INFINITE[1], ")"))
    choice = _CHOICE.fullmatch(text)
    if choice:
        return Answer(("choice", choice.group(1).upper())) if not _is_symbol(choice) else _quantity(text)
    with_text = _CHOICE_WITH_TEXT.fullmatch(text)
    if with_text:
        return Answer(("choice", (with_text.group(1) or with_text.group(2)).upper()))
    for pattern, sign in _IN_WORDS:
        text = pattern.sub(sign, text, count=1) if pattern.match(text) else text
    text = spelled_out(text)
    text = with_magnitudes(text)
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        return _matrix(matrix.group(1), depth)
    remainder = _REMAINDER.fullmatch(text)
    if remainder:
        return Answer(("remainder", int(remainder.group(1)), int(remainder.group(2))))
    inner = _bracketed(text)
    if inner is not None:
        return _brackets(text, inner, depth)
    items = [text] if _DATE.fullmatch(text) else _items(text)
    if len(items) > 1:
        return (_both(items, depth) if _AND.search(text) else None) or _list(items, depth)
    parts = [part.strip() for part in _at_top(text, _RELATION)]
    if len(parts) > 1:
        return _relation(parts, [text[i] for i in _tops(text, _RELATION)], depth)
    if _QUANTITIES.fullmatch(text):
        return _list([" ".join(pair) for pair in _QUANTITY.findall(text)], depth)
    return _quantity(text)


def _is_symbol(choice: re.Match[str]) -> bool:
    """Whether a single letter is a variable: small and none of the letters that options have."""
    return choice.group(1).islower() and choice.group(1) not in "abcde"


def _tops(text: str, pattern: re.Pattern[str]) -> list[int]:
    """Where a one-character pattern stands outside all brackets."""
    depth, found = 0, []
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0 and pattern.match(character):
            found.append(index)
    return found


def _at_top(text: str, pattern: re.Pattern[str]) -> list[str]:
    pieces, start = [], 0
    for index in _tops(text, pattern):
        pieces.append(text[start:index])
        start = index + 1
    return [*pieces, text[start:]]


def _bracketed(text: str) -> str | None:
    r"""What a tuple, an interval, or a set in `\{…\}` or `{…}` holds; None where the brackets are no such thing."""
    for opening, closing in ((r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]"), ("]", "["), ("{", "}")):
        inner = text[len(opening) : -len(closing)]
        if not (text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)):
            continue
        depth = 0
        for character in inner:
            depth += (character in "([{") - (character in ")]}")
            if depth < 0:
                return None
        if depth == 0 and (opening == r"\{" or _tops(inner, _SEPARATOR)):
            return inner
    return None


_SEPARATOR = re.compile(r"[,;]")
_INFINITE = (("infinite", -1), ("infinite", 1))


def _brackets(text: str, inner: str, depth: int) -> Answer:
    if text[0] in "\\{":
        items = [item for piece in _at_top(inner, _SEPARATOR) if (item := piece.strip())]
        return _list(items, depth) if items else Answer(("list",))
    items = [_read(piece.strip(), depth + 1) for piece in _at_top(inner, _SEPARATOR)]
    units = tuple(item.unit for item in items)
    unit: Hashable = units if any(units) else ""
    values = tuple(item.value for item in items)
    if len(items) == 2:
        return Answer(_span(text[0], *values, text[-1]), unit)
    return Answer(("tuple", *values), unit)


def _span(opening: str, low: Hashable, high: Hashable, closing: str) -> Hashable:
    """An interval, or a pair: they are written alike."""
    return ("pair", opening == "[", low, high, closing == "]")


def _matrix(body: str, depth: int) -> Answer:
    rows = [[_read(cell.strip(), depth + 1).value for cell in row.split("&")]
            for row in re.split(r"\\\\", body) if row.strip()]
    if all(len(row) == 1 for row in rows):
        values = [row[0] for row in rows]
        return Answer(_span("(", *values, ")") if len(values) == 2 else ("tuple", *values))
    return Answer(("matrix", *(tuple(row) for row in rows)))


def _items(text: str) -> list[str]:
    """What commas, semicolons, "and", "or" and unions separate."""
    starts = [0]
    ends: list[int] = []

    def cut(begin: int, end: int) -> None:
        ends.append(begin)
        starts.append(end)

    depth = index = 0
    while index < len(text):
        character = text[index]
        depth += (character in "([{") - (character in ")]}")
        word = _CONJUNCTION.match(text, index) if depth == 0 and character in " ,aAoO" else None
        if word and (index == 0 or character in " ,"):
            cut(index, word.end())
            index = word.end()
            # The blank that ends one conjunction may begin the next.
            index -= text[index - 1] == " "
            starts[-1] = index
            continue
        if depth == 0 and (character in ";∪" or (character == "," and not _is_in_number(text, index))):
            cut(index, index + 1)
        index += 1
    ends.append(len(text))
    return [item for begin, end in zip(starts, ends, strict=True) if (item := text[begin:end].strip())]


def _is_in_number(text: str, comma: int) -> bool:
    """Whether a comma marks thousands, or decimals: `€3,50`, `3,5 km`."""
    start, end = comma, comma
    while start and (text[start - 1].isdigit() or text[start - 1] == ","):
        start -= 1
    while end < len(text) and (text[end].isdigit() or text[end] == ","):
        end += 1
    run = text[start:end]
    if _THOUSANDS.fullmatch(run):
        return True
    # 1.234,5 has a dot for its thousands.
    if start and text[start - 1] == "." and re.search(r"(?<!\d)\d{1,3}(?:\.\d{3})+,\d{1,2}$", text[:end]):
        return True
    money = text[:start].strip().lstrip("-") in tuple(CURRENCIES) if start else False
    tail = re.match(r"\s?(?:[€£]|[A-Za-z]{2,}\b)", text[end:])
    return bool(_DECIMAL_COMMA.fullmatch(run)) and (money or (tail is not None and not _CONJUNCTION.match(text, end)))


def _list(items: Sequence[str], depth: int) -> Answer:
    answers = [_read(item, depth + 1) for item in items]
    name = _common(answer.name for answer in answers)
    # "n = 2, 3, 4" names its first alone, "x = 1 or x = 7" both.
    named = name is not None and (answers[0].name or not any(answer.name for answer in answers))
    flat: list[tuple[Hashable, Hashable]] = []
    for answer in answers:
        value: Hashable = answer.value if named else (answer.relation or (answer.value, answer.name))
        if named and isinstance(answer.value, tuple) and answer.value[:1] == ("list",):
            flat += [(part, answer.unit) for part in answer.value[1:]]
        else:
            flat.append((value, answer.unit))
    flat.sort(key=repr)
    unit = _common(unit for _, unit in flat)
    values = [value for value, _ in flat]
    if len(values) == 1:
        return Answer(values[0], flat[0][1], name or "" if named else "")
    units = tuple(unit for _, unit in flat) if unit is None else unit
    return Answer(("list", *values), units, (name or "") if named else "")


_AND = re.compile(r"[\s,]and\s|\\(?:land|wedge)(?![A-Za-z])", re.IGNORECASE)


def _both(items: Sequence[str], depth: int) -> Answer | None:
    """What "x > 1 and x < 2" leaves: an interval; None where nothing is left, which people write for "or"."""
    if len(items) != 2 or not all(_RELATION.search(item) for item in items):
        return None
    sides = [_read(item, depth + 1) for item in items]
    spans = [side.value for side in sides]
    if sides[0].name != sides[1].name or not all(isinstance(span, tuple) and span[0] == "pair" for span in spans):
        return None
    low, high = sorted(spans, key=lambda span: span[2] == _INFINITE[0])
    if high[2] != _INFINITE[0] or low[3] != _INFINITE[1] or low[2][0] != "number" or high[3][0] != "number":
        return None
    if low[2][1] * high[3][2] >= high[3][1] * low[2][2]:
        return None
    return Answer(("pair", low[1], low[2], high[3], high[4]), name=sides[0].name)


def _common(parts: Iterable[Hashable]) -> Hashable | None:
    """The one thing that all say that say anything; empty where none does, None where they differ."""
    said = {part for part in parts if part}
    return None if len(said) > 1 else next(iter(said), "")


def _expression(text: str) -> Expression | None:
    try:
        return read_expression(text)
    except Unreadable:
        return None


def _relation(parts: list[str], signs: list[str], depth: int) -> Answer:
    text = " ".join(piece for pair in zip(parts, [*signs, ""], strict=True) for piece in pair).strip()
    if "≈" in signs:
        # 2/3 ≈ 0.67: the exact one is meant.
        first = signs.index("≈")
        kept = (parts[: first + 1], signs[:first]) if parts[first] else (parts[first + 1 :], signs[first + 1 :])
        return _relation(*kept, depth) if kept[1] else _read(kept[0][0], depth + 1)
    if not all(parts[1:]) or (not parts[0] and (len(parts) > 2 or signs[0] not in "<>≤≥=")):
        return _text(text)
    if signs == ["∈"]:
        return _read(parts[1], depth + 1)._replace(name=_name(parts[0]))
    if set(signs) == {"="}:
        return _equation(parts, text, depth)
    if len(parts) == 2 and not parts[0]:
        return Answer(_half_line(signs[0], _read(parts[1], depth + 1).value))
    if len(parts) == 3 and set(signs) in ({"<"}, {"≤"}, {"<", "≤"}, {">"}, {"≥"}, {">", "≥"}):
        return _between(parts, signs, depth)
    return _inequality(parts, signs, text, depth) if len(parts) == 2 else _text(text)


def _between(parts: list[str], signs: list[str], depth: int) -> Answer:
    if signs[0] in ">≥":
        parts, signs = parts[::-1], [_TURNED[sign] for sign in signs[::-1]]
    low, high = (_read(part, depth + 1) for part in (parts[0], parts[2]))
    opening, closing = "([" [signs[0] == "≤"], ")]"[signs[1] == "≤"]
    return Answer(_span(opening, low.value, high.value, closing), low.unit or high.unit, _name(parts[1]))


def _half_line(sign: str, bound: Hashable) -> Hashable:
    if sign in "<≤":
        return _span("(", _INFINITE[0], bound, "]" if sign == "≤" else ")")
    if sign in ">≥":
        return _span("[" if sign == "≥" else "(", bound, _INFINITE[1], ")")
    return bound


def _inequality(parts: list[str], signs: list[str], text: str, depth: int) -> Answer:
    left, right, sign = parts[0], parts[1], signs[0]
    sides = _expression(left), _expression(right)
    if sides[0] and not sides[0].symbols:
        left, right, sign, sides = right, left, _TURNED[sign], sides[::-1]
    if sign != "≠" and sides[1] and not sides[1].symbols and _is_name(left):
        return Answer(_half_line(sign, _read(right, depth + 1).value), "", _name(left))
    if not (sides[0] and sides[1]):
        return _text(text)
    if sign in ">≥":
        sides, sign = sides[::-1], _TURNED[sign]
    key = _whole(sides[0], sides[1], {"<": "<", "≤": "<=", "≠": "!="}[sign])
    return Answer(key, relation=key) if key else _text(text)


def _whole(left: Expression, right: Expression, kind: str) -> Hashable:
    try:
        return ("relation", *relation_key(left, right, kind))
    except Unreadable:
        return ""


def _equation(parts: list[str], text: str, depth: int) -> Answer:
    if not parts[0]:
        return _read(parts[1], depth + 1) if len(parts) == 2 else _equation(parts[1:], text, depth)
    sides = [_expression(_without_unit(part)) for part in parts]
    constant = [side is not None and not side.symbols for side in sides]
    if all(constant):
        # 7 + 5 = 12 says 12; 7 + 5 = 13 says nothing.
        answers = [_read(part, depth + 1) for part in parts]
        same = all(answers[0].agrees(other) for other in answers[1:])
        return answers[-1] if same else Answer(("text", text))
    numbers = [_read(part, depth + 1) for part, known in zip(parts, constant, strict=True) if known]
    if not all(numbers[0].agrees(other) for other in numbers[1:]):
        # x = 5 = 6
        return Answer(("text", text))
    if len(parts) == 2 and constant[0] and _is_name(parts[1]):
        parts, sides = parts[::-1], sides[::-1]
    value = _read(parts[1], depth + 1)
    first, second = sides[0], sides[1]
    whole = _whole(first, second, "=") if first and second and len(parts) == 2 else ""
    if _is_name(parts[0]) or first is None or (_is_sum_of_names(parts[0]) and value.value != ("number", 0, 1)):
        return Answer(value.value, value.unit, _name(parts[0]), whole)
    return Answer(whole, relation=whole) if whole else _text(text)


_NAME = re.compile(r"(?:\\?[A-Za-z]+|[A-Z]{1,4})'?(?:_\{?[\w+-]{1,6}\}?)?(?:\s?\([\w\s,+-]{1,12}\))?")
_SUM_OF_NAMES = re.compile(r"[A-Za-z](?:\s?[+*]?\s?[A-Za-z])+")


def _is_name(text: str) -> bool:
    r"""`x`, `a_n`, `f(x)`, `AB`, `\theta`, a word."""
    return _NAME.fullmatch(text) is not None


def _is_sum_of_names(text: str) -> bool:
    return _SUM_OF_NAMES.fullmatch(text) is not None


def _name(text: str) -> Hashable:
    expression = _expression(text)
    return expression.keys if expression else ("text", _folded(text))


def _without_unit(text: str) -> str:
    tail = _unit_tail(text)
    return tail[0] if tail else text.lstrip(CURRENCIES + " ")


def _quantity(text: str) -> Answer:
    infinite = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}.get(text.replace(" ", ""))
    if infinite:
        return Answer(_INFINITE[infinite > 0])
    date = _DATE.fullmatch(text)
    if date:
        month, day = (date["month"] or date["month_after"])[:3].lower(), int(date["day"] or date["day_before"])
        return Answer(("date", month, day, int(date["year"] or 0)))
    clock, ratio, base = _CLOCK.fullmatch(text), _RATIO.fullmatch(text), _BASE.fullmatch(text)
    if clock and int(clock.group(1)) <= 24 and int(clock.group(2)) < 60:
        parts = tuple(int(part) for part in clock.groups()[:3] if part)
        return Answer(("clock", *parts), canonical_unit(clock.group(4) or ""))
    if ratio:
        numbers = [int(number) for number in re.findall(r"\d+", text)]
        shared = math.gcd(*numbers) or 1
        return Answer(("ratio", *(number // shared for number in numbers)))
    prefixed, radix = _PREFIXED.fullmatch(text), _IN_RADIX.fullmatch(text)
    if prefixed:
        base = _BASE.fullmatch(f"{prefixed.group(2)}_{ {'b': 2, 'o': 8, 'x': 16}[prefixed.group(1).lower()]}".upper())
    elif radix:
        base = _BASE.fullmatch(f"{radix.group(1).upper()}_{_RADIX[radix.group(2).lower()]}")
    if base and (number := _based(base)):
        return number
    if _is_words(text):
        return _text(text)
    unit = ""
    money = _MONEY.match(text)
    if money:
        unit, text = canonical_unit(money.group(2)), money.group(1) + text[money.end() :]
        short = _SHORT_MILLIONS.match(text)
        text = f"{short.group(1)} * {_SHORT_MAGNITUDES[short.group(2).lower()]}" if short else text
        # "$5 dollars"
        text = re.sub(rf"\s*(?:{_CURRENCY_NAMES.get(unit, unit)})$", "", text, flags=re.IGNORECASE)
    tail = _unit_tail(text)
    if tail and not (money and len(tail[1].split()) == 0):
        head = _value(_decimal(tail[0]))
        if head is not None:
            own = canonical_unit(tail[1])
            return Answer(head, f"{unit} {own}".strip() if unit else own)
    value = _value(_decimal(text) if unit else text)
    return _text(text) if value is None else Answer(value, unit)


def _decimal(text: str) -> str:
    """A decimal comma as a point, where money or a unit shows that it is one."""
    return text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text.strip().lstrip("+-")) else text


def _value(text: str) -> Hashable | None:
    expression = _expression(text)
    if expression is None:
        return None
    return expression.keys[0] if len(expression.keys) == 1 else ("list", *sorted(expression.keys, key=repr))


def _unit_tail(text: str) -> tuple[str, str] | None:
    """The number and the unit behind it (`12 eggs`, `5 km/h`), None where there is none (`2t`, `3 x`)."""
    match = _TAIL.fullmatch(text)
    if match is None:
        return None
    head, unit, spaced = match["head"].strip(), match["unit"].strip(), bool(match["gap"])
    first = re.match(r"[A-Za-z]*", unit)
    word = first.group() if first else ""
    if _NO_UNIT.match(unit) or (unit[0] == "°" and _HOLDS_FUNCTION.search(head)):
        return None
    if _OF_THEM.fullmatch(unit):
        return head, ""
    lone = _LONE.fullmatch(head) is not None
    known = word in SHORT or word.lower() in SHORT
    if (word.lower() in _FUNCTION_WORDS and not known) or word.lower() in ("pi", "theta", "alpha", "beta"):
        return None
    # "2xyz" is a product and "12eggs" no symbols.
    accepted = (not word or (spaced and len(word) > 2) or known or len(word) > 3
                or (spaced and lone and word in LETTERS) or (spaced and unit[len(word) : len(word) + 1] == "."))
    return (head, unit) if accepted and not re.search(r"\s[A-Za-z]\s[A-Za-z](?:\s|$)", f" {unit}") else None


_LONE = re.compile(r"[-+]?[\d.,\s/]+(?:(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*(?:\{\s*-?\d+\s*\}|\d+))?")


def _based(match: re.Match[str]) -> Answer | None:
    digits, name = match.group(1).upper(), (match["a"] or match["b"]).lower()
    base = _BASES.get(name) or (int(name) if name.isdigit() else 0)
    # `a_2` and `x_{12}` are symbols with an index.
    if not 2 <= base <= 36 or match.group(1)[0].islower() or (base < 16 and not any(map(str.isdigit, digits))):
        return None
    if base == 10:
        return _quantity(digits)
    # The base is no unit that may be left out: 10 and 10_2 are two numbers.
    return Answer(("based", digits.lstrip("0") or "0", base))


def _is_words(text: str) -> bool:
    """Whether a text is words and no product of letters: one of them has three letters and is no function's name."""
    runs = _LETTERS.findall(text)
    return _WORDS.fullmatch(text) is not None and any(
        (len(run) > 2 and run.lower() not in _FUNCTION_WORDS) or run.lower() in _SHORT_WORDS for run in runs)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _text(text: str) -> Answer:
    """A text as it stands; letters alone without regard to case."""
    if _is_words(text):
        words = _folded(re.sub(r"[\"'`.,;:!?()]", "", text))
        return Answer(("text", words.removeprefix("the ").removeprefix("a ").removeprefix("an ") or words))
    return Answer(("text", re.sub(r"\s+|[{}]|(?<=\\)[dt](?=frac)", "", text)))
