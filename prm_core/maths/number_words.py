"""Numbers written in words: "twenty-five", "two thirds", "one hundred and five", "3 million"."""

from __future__ import annotations

import re
from collections.abc import Sequence

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen  "
    "seventeen eighteen nineteen").split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBER_WORDS = {name: number for number, name in enumerate(_UNITS)} | {
    name: 10 * number for number, name in enumerate(_TENS, 2)}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4,
          "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10}
_MAGNITUDES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_MAGNITUDE = re.compile(rf"(?<=[\d ])({'|'.join(_MAGNITUDES)})s?\b(?!\s(?:and\s)?\w*\d)", re.IGNORECASE)
_SCALES = "|".join(_MAGNITUDES)
_ONE_WORD = "|".join(sorted(_NUMBER_WORDS, key=len, reverse=True))
_PART = "|".join(sorted(_PARTS, key=len, reverse=True))
_MINUS = re.compile(r"(?:minus|negative)\s+", re.IGNORECASE)
# "half", "a quarter", "two thirds", "twenty-five", "a dozen", "one hundred and five"; not "half of 10", "one or two".
_NUMBER_IN_WORDS = re.compile(
    rf"(?P<number>(?:(?:{_ONE_WORD})|an?(?=\s(?:{_SCALES}|{_PART})\b))\b"
    rf"(?:(?:[\s-]|(?:(?<=hundred)|(?<=thousand)|(?<=million))\sand\s)(?:(?:{_SCALES})s?|{_ONE_WORD})\b){{0,12}}|(?=half\b))"
    rf"(?:[\s-]?(?P<part>{_PART})\b)?(?=$|\s(?!of\s(?!an?\b|the\b)|or\b|point\b|over\b)|[.,;])", re.IGNORECASE)
_AND_A_PART = re.compile(r"(\d{1,9})\sand\s(?:an?|one)[\s-](half|third|quarter|fourth|fifth|sixth|eighth|tenth)\b",
                         re.IGNORECASE)
_AND_A_FRACTION = re.compile(r"(\d{1,9})\sand\s(\d{1,4})/(\d{1,4})(?![\d/])(?=$|\s[A-Za-z])")


def with_magnitudes(text: str) -> str:
    """`3 million` and `2 dozen` as products."""
    return _MAGNITUDE.sub(lambda match: f"* {_MAGNITUDES[match.group(1).lower()]}", text)


def spelled_out(text: str) -> str:
    """A number in words, at the beginning, in digits: "two hundred and fifty eggs", "minus three quarters"."""
    minus = _MINUS.match(text)
    sign, rest = ("-", text[minus.end() :]) if minus else ("", text)
    match = _NUMBER_IN_WORDS.match(rest)
    if match is None:
        half = _AND_A_PART.match(rest)
        if half:
            return f"{sign}{half.group(1)} 1/{_PARTS[half.group(2).lower()]}{rest[half.end():]}"
        mixed = _AND_A_FRACTION.match(rest)
        if mixed and int(mixed.group(2)) < int(mixed.group(3)):
            return f"{sign}{mixed.group(1)} {mixed.group(2)}/{mixed.group(3)}{rest[mixed.end():]}"
        return sign + rest if re.match(r"[\d.$\\]", rest) else text
    words = [word for word in re.split(r"[\s-]+", match["number"].lower()) if word and word != "and"]
    number, rest = _counted(words or ["one"]), rest[match.end() :]
    if number is None:
        return text
    if match["part"]:
        return f"{sign}{number}/{_PARTS[match['part'].lower()]}{rest}"
    half = _AND_A_PART.match(f"{number}{rest}")
    return f"{sign}{number} 1/{_PARTS[half.group(2).lower()]}{rest[half.end() - len(str(number)):]}" if half else (
        f"{sign}{number}{rest}")


def _counted(words: Sequence[str]) -> int | None:
    """The number that words name; None where they are several ("one two")."""
    total = group = 0
    largest = 10**15
    for place, word in enumerate(words):
        size = _MAGNITUDES.get(word) or _MAGNITUDES.get(word.removesuffix("s"))
        if size is None:
            value = 1 if word in ("a", "an") else _NUMBER_WORDS[word]
            if place and (value == 0 or group % (10 if value < 10 else 100) or group % 100 == 10):
                return None
            group += value
        elif size <= 100:
            if not 0 < group < 100:
                return None
            group *= size
        else:
            if group == 0 or size >= largest:
                return None
            total, group, largest = total + group * size, 0, size
    return total + group
