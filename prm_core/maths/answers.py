"""Reading the answer a step states, and comparing answers by value."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from prm_core.maths.canonical import canonical

# What stands between "answer" and what it is: "answer to the problem is", "**Answer:**", "answer (in cm) would be".
_ANNOUNCED = re.compile(
    r"\b(?:answers?\b(?!\s{1,3}key\b)|(?:correct|right|best)\s(?:option|choice)\b|ans\b\.?(?=\s{0,3}[:=\d(]))[*_`\"”’)]{0,4}"
    r"(?:\s{1,3}(?:to|for|of|in|that|we|you)(?:['’][a-z]{1,3})?\s(?:[^\s.:=]{1,20}\s{1,3}){0,7}?|\s{0,3}\([^()\n]{1,40}\)"
    r"|,\s[^,.:=\n]{1,50},)?"
    r"\s{0,9}(?:(?:is|are|was|equals|(?:would|should|must|will)\s(?:therefore\s|thus\s|then\s|also\s)?be|has\sto\sbe"
    r"|comes\s(?:out\s)?to|turns\sout\sto\sbe|becomes)\b(?!n['’]t|\s{1,3}not\b)|[:：=→—]|(?<=\s)[-–](?=\s))"
    r"[*_`\"”’)\s]{0,9}:?[*_]{0,3}", re.IGNORECASE)
_HEADING = re.compile(r"^[ \t]{0,3}(?:#{1,6}[ \t]{0,3}|\*\*)?(?:final[ \t])?answer[ \t]{0,3}[:.]?(?:\*\*)?[ \t]{0,3}$",
                      re.IGNORECASE | re.MULTILINE)
# "So 5 is the answer."
_NAMED_AFTER = re.compile(
    r"(?:^|[.,\n]|\b(?:so|thus|therefore|hence))\s{1,3}([^.,\s][^.\n]{0,60}?)\s{1,3}is\s(?:the|our|my)\s"
    r"(?:final\s|correct\s)?answer\b(?!\s{0,3}(?:to|:))", re.IGNORECASE)
_CHINESE = re.compile(r"(?:答案\s{0,3}(?:是|为|：|:)|故选)\s{0,3}[：:]?")
_TAGGED = re.compile(r"<answer>(.{0,2000}?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_BOXES = (r"\boxed", r"\fbox")
_MARK = "####"
# Where the answer ends and talk begins.
_REASON = re.compile(
    r"\s*(?:,|;|—|–|-)?\s+(?:because|since|which|as(?!\s(?:much|many|well)\b)|so\s|where|hence|therefore|thus|i\.e\.|meaning"
    r"|given\sthat|that\sis|rounded|when|if|for\sa\stotal|as\srequired|by\sthe|from\sthe"
    r"|and\s(?:we|i|so|that|this|thus|it|therefore|not)\b)\b.*"
    r"|\s*,\s+(?:namely|not|but|no|right|correct|it|he|she|they|this|there)\b.*|\s+[—–]\s+(?!sin|cos|tan|log)[a-z]{2,}.*"
    r"|\s+-\s+(?:that|this|it|he|she|they|we|so|done)\b.*|(?<=\d)\s[:;]-?\).*"
    r"|\s+\((?:since|because|not|i\.e\.|as|which|that|see)\b.*", re.IGNORECASE | re.DOTALL)
_OPENING = re.compile(
    r"(?:(?:(?:therefore|thus|hence|clearly|simply|indeed|then|just|now|also|equal\sto|given\sby|found\sto\sbe|as\sfollows"
    r"|the\snumber|option|choice|answer)\b|[,→:]|\.{3})[,:]?\s+)+", re.IGNORECASE)
# "The value of x is 42", "She has 42 apples".
_SUBJECT = re.compile(
    r"(?:the|it|he|she|this|that|there|they)\b[A-Za-z\s'’]{0,60}?\s(?:is|are|has|have|equals|costs?)\s(?=[-+$\\\d])",
    re.IGNORECASE)
_YES_OR_NO = re.compile(r"(yes|no|true|false)\s*[,;—–].*", re.IGNORECASE | re.DOTALL)
# Tags, the marks with which models end a text, GSM8K's calculator.
_HTML = re.compile(
    r"</?(?:b|i|u|p|s|em|strong|span|code|br|div|answer|h[1-6])(?:\s[^<>]{0,100})?/?>|<\|[^<>|\s]{1,40}\|>|<<[^<>\n]{0,100}>>",
    re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"(?<![A-Z])(?<!\bsq)(?<!\b[ap]\.m)(?<!\b[ap])(?<!\bcu)[.!?][\"”*`)]{0,3}\s+(?=[A-Z\\$*(\"“#])|[。！？]")
# "x**2" is a power, "**12** apples" bold.
_MARKDOWN = re.compile(r"(?<![\w)\]}])(?:\*\*|__)|(?:\*\*|__)(?![\w(\[{\\])|`")
_REPEATING = re.compile(r"\d\.\d+\.{3,4}$")
# "The answer is 12." as most steps say it, at the end of the text.
_ORDINARY = re.compile(r"(?:^|[\s,])[Tt]he answer is (-?\d{1,15})\.?\s{0,3}$")
_STATING = re.compile(r"answer|option|choice|\bans\b", re.IGNORECASE)
_DISPLAY = ((r"\[", r"\]"), ("$$", "$$"), ("```", "```"), (r"\(", r"\)"), ("$", "$"))


def read_stated_answer(step: str) -> str | None:
    r"""The answer a step states: in `\boxed{…}`, after `####`, after "the answer is", "**Answer:**" and their kin.

    None where it states none. Where it states several, the last one counts. Wrapping, the full stop, a reason or a
    remark behind it are left out. Takes linear time.
    """
    ordinary = _ORDINARY.search(step, max(0, len(step) - 40))
    if ordinary:
        return ordinary.group(1)
    found: list[tuple[int, str]] = [*_boxed(step)]
    if _MARK in step:
        found.append((step.rindex(_MARK), _first_line(step.rpartition(_MARK)[2].lstrip("#"))))
    if _STATING.search(step):
        for pattern in (_ANNOUNCED, _HEADING):
            found += [(match.start(), _statement(step, match.end())) for match in _last(pattern, step)]
        found += [(match.start(1), _trimmed(match.group(1))) for match in _last(_TAGGED, step)]
        found += [(match.start(1), _talkless(match.group(1))) for match in _last(_NAMED_AFTER, step)]
    if "答案" in step or "故选" in step:
        found += [(match.start(), _statement(step, match.end())) for match in _last(_CHINESE, step)]
    stated = [(position, text) for position, text in found if text]
    return max(stated)[1] if stated else None


def _last(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The last matches: where the last one announces nothing, the one before it counts."""
    return list(pattern.finditer(text))[-8:]


def _boxed(text: str) -> list[tuple[int, str]]:
    r"""What the last `\boxed{…}` and `\fbox{…}` hold, braces matched; nothing where they are not closed."""
    found = []
    for box in _BOXES:
        start = text.rfind(box + "{")
        if start < 0:
            start = text.rfind(box + " ")
            simple = re.match(r"\s{1,3}(\S{1,60}?)[$.\s]", text[start + len(box) :] + " ") if start >= 0 else None
            found += [(start, simple.group(1))] if simple else []
            continue
        depth = 0
        for end in range(start + len(box), len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                before = _BOX_BEFORE.search(text, max(0, start - 300), start)
                inner = text[start + len(box) + 1 : end].strip()
                found.append((start, f"{before.group(1)}, {inner}" if before else inner))
                break
    return found


# "\boxed{5} and \boxed{7}" is one answer of two parts.
_BOX_BEFORE = re.compile(r"\\boxed\{([^{}]{1,100})\}\$?\s{0,3}(?:,\s{0,3}(?:and|or)?|and|or)\s{0,3}\$?$")


def _first_line(text: str) -> str:
    """The first line that is not empty, without a closing full stop."""
    return _trimmed(text.strip().partition("\n")[0])


def _statement(step: str, start: int) -> str:
    """What is stated from there on: the first line or display, without the talk behind it."""
    text = step[start : start + 2000].strip() if start + 2000 < len(step) else step[start:].strip()
    for opening, closing in _DISPLAY:
        if text.startswith(opening):
            inner, closed, behind = _until(text[len(opening) :], closing)
            if not closed or ("\n" in inner.strip() and opening == "$"):
                continue
            rest = behind.partition("\n")[0]
            # "$\boxed{73}$ apples", "$5$ and $6$": the sentence goes on; "$1,250 and $3" is money.
            if opening == "$" and re.match(r"\s*\d[\d,.]*(?:\s|$)", inner) and not inner.endswith(tuple("0123456789")):
                break
            if re.match(r"\s*(?:,|and|or|\\)", rest):
                break
            return _trimmed(inner.strip() + _unit_behind(rest))
    return _talkless(text)


def _until(text: str, closing: str) -> tuple[str, str, str]:
    r"""Like `str.partition`, but `\$` closes nothing."""
    found = re.search(rf"(?<!\\){re.escape(closing)}", text)
    return (text[: found.start()], closing, text[found.end() :]) if found else (text, "", "")


def _unit_behind(rest: str) -> str:
    words = re.match(r"\s{0,3}([A-Za-z%°][A-Za-z/%°]*(?:\s[a-z]+)?)\s*[.!]?$", rest)
    return f" {words.group(1)}" if words and not _REASON.match(" " + words.group(1)) else ""


def _talkless(text: str) -> str:
    line = _SENTENCE_END.split(text.partition("\n")[0].strip(), maxsplit=1)[0]
    opening = _OPENING.match(line)
    line = line[opening.end() :] if opening else line
    subject = _SUBJECT.match(line)
    line = line[subject.end() :] if subject else line
    return _trimmed(_YES_OR_NO.sub(r"\1", _REASON.sub("", line, count=1)))


def _trimmed(text: str) -> str:
    text = _HTML.sub("", _MARKDOWN.sub("", text)).strip()
    while text and unicodedata.category(text[-1]) in ("So", "Sk", "Mn", "Cf"):
        text = text[:-1].rstrip()
    for opening, closing in (*_DISPLAY, ('"', '"'), ("“", "”"), ("'", "'"), ("‘", "’")):
        if text.startswith(opening) and closing in text[len(opening) :]:
            inner, _, behind = text[len(opening) :].rpartition(closing)
            if closing not in inner and not behind.strip(" .,!;:"):
                text = inner.strip()
    text = re.sub(r"(?<=[^\s!?])\s*(?:!+|\?+)$", "", text)
    if _REPEATING.search(text):
        return text
    text = text.removesuffix(".").rstrip(" ,;:。").removesuffix(".").strip()
    # A lone star or underscore is half of an emphasis whose other half stood before.
    return text.strip("*_ ") if text[:1] in "*_" or text[-1:] in "*_" else text


@lru_cache(maxsize=65536)
def same_value(left: str, right: str) -> bool:
    """Whether two answers say the same: 1/2 = 0.5 = 50 %, but 11 is not 1, 7 cm not 7 m, `x < 4` not `x > 4`.

    `canonical.py` tells what an answer is read as. A unit or a name that one side leaves out is no difference (12 eggs
    = 12, x = 5 is 5), so 7 cm and 7 m both agree with 7; among several answers use `answer_classes`.
    """
    return left == right or canonical(left).agrees(canonical(right))


def answer_classes(answers: Sequence[str]) -> list[int]:
    """Which of several answers are one and the same, whatever their order: a class number for each.

    An answer without a unit or a name joins the class that has one where exactly one fits: 7, 7 cm, 7 cm are one class;
    of 7, 7 cm, 7 m each is its own.

    Returns:
        (answers,) numbers from 0 in order of first appearance.
    """
    read = [canonical(text) for text in answers]
    classes: list[list[int]] = []
    distinct = sorted(set(read), key=lambda answer: (-answer.said, repr(answer)))
    members: dict[object, int] = {}
    for answer in distinct:
        fitting = [number for number, group in enumerate(classes)
                   if all(answer.agrees(distinct[other]) for other in group[:1])]
        if len(fitting) == 1:
            members[answer] = fitting[0]
        else:
            members[answer] = len(classes)
            classes.append([distinct.index(answer)])
    order: dict[int, int] = {}
    return [order.setdefault(members[answer], len(order)) for answer in read]
