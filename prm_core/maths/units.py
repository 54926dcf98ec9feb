"""Names of units and of counted things, in one spelling: `sq. cm`, `square centimeters` and `cm^2` are `cm^2`.

Nothing is converted: 1 hour and 60 minutes are two quantities. A word that is no known unit names itself (`eggs`).
"""

from __future__ import annotations

import re
from functools import lru_cache

_ALIASES = {
    "mm": "millimeter millimetre", "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre",
    "in": "inch", "ft": "foot feet", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram gramme gm",
    "kg": "kilogram kilogramme kilo kgs", "lb": "pound lbs", "oz": "ounce", "t": "tonne",
    "ml": "milliliter millilitre mL",
    "l": "liter litre L", "gal": "gallon", "s": "second sec", "min": "minute", "h": "hour hr", "d": "day", "wk": "week",
    "yr": "year", "°": "degree deg", "$": "dollar usd buck us$ 美元", "€": "euro eur", "£": "quid gbp",
    "¥": "yen jpy yuan rmb cny 元 円 圆",
    "₹": "rupee inr rs Rs", "AUD": "a$ au$", "CAD": "c$ ca$ cad", "CHF": "chf franc",
    "¢": "cent", "unit": "", "am": "a.m.", "pm": "p.m.", "%": "percent pct", "person": "people",
    "child": "children", "man": "men", "woman": "women",
}
# Two capitals of one letter are two units (mW, MW), so short names are looked up as they stand.
_CANONICAL = {name: unit for unit, names in _ALIASES.items() for name in (unit, *names.split())}
_PER_HOUR = {"mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h"}
# Before a number or after it.
CURRENCIES = "$€£¥₹"
# Units of one letter, and of two or more that are written right behind a number ("5km").
LETTERS = frozenset("mgshlLWVJN")
SHORT = frozenset({*(name for name in _CANONICAL if 2 <= len(name) <= 3 and name.isalpha()), *_PER_HOUR})
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cu": "^3", "cubed": "^3"}
_FILLING = frozenset(["a", "an", "the", "of", "in", "total", "altogether", "overall", "approximately", "about", "each"])
_TEMPERATURE = re.compile(r"(?:°|degrees?|deg)\s*(celsius|fahrenheit|[CF])\b", re.IGNORECASE)
_INCH = re.compile(r"\b(?:in|IN)\b\.?(?=$|\s*[/^²³*·])")
_PIECE = re.compile(r"\^\{?\d\}?|[²³]|/|[^\s/^²³*·]+")


@lru_cache(maxsize=4096)
def canonical_unit(text: str) -> str:
    """The one spelling of a unit's name, empty where the text holds none.

    `miles per hour`, `mi/hr` and `mph` are `mi/h`; `Eggs` is `egg`; `square feet` and `ft^2` are `ft^2`.
    """
    names: list[str] = []
    power = ""
    text = _TEMPERATURE.sub(lambda match: f"°{match.group(1)[0].upper()}", text)
    # "12 in total" is no length, "5 in" and "5 sq in" are.
    text = _INCH.sub("inch", text.replace("per ", "/ "))
    for piece in _PIECE.findall(text):
        if piece[0] in "^²³":
            if names:
                names[-1] += "^" + {"²": "2", "³": "3"}.get(piece, piece.strip("^{}"))
            continue
        word = piece.strip("().,;:!'\"")
        lowered = word.lower()
        if not word or lowered in _FILLING:
            continue
        if lowered in _POWERS and lowered.endswith("ed") and names:
            names[-1] += _POWERS[lowered]
        elif lowered in _POWERS:
            power = _POWERS[lowered]
        elif piece == "/":
            names.append("/")
        else:
            names.append(_name(word if piece not in ("a.m.", "p.m.") else piece) + power)
            power = ""
    # A power without its unit: "20 square".
    return " ".join(names).replace(" / ", "/") or power


def _name(word: str) -> str:
    lowered = word.lower()
    if lowered in _PER_HOUR:
        return _PER_HOUR[lowered]
    dotless = lowered.replace(".", "")
    undotted = dotless if "." in word or dotless in ("am", "pm") else word
    for spelling in (word, lowered if len(word) > 2 else word, undotted):
        for form in (spelling, *_singulars(spelling)):
            if form in _CANONICAL:
                return _CANONICAL[form]
    return word if len(word) <= 2 else next(iter(_singulars(lowered)), lowered)


def _singulars(word: str) -> tuple[str, ...]:
    """What the word may be the plural of, the likeliest first."""
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return ()
    if word.endswith("ies") and len(word) > 4:
        return (f"{word[:-3]}y", word[:-1])
    if word.endswith(("ches", "shes", "xes", "sses")):
        return (word[:-2],)
    return (word[:-1], word[:-2]) if word.endswith("es") else (word[:-1],)
