"""Finds the equations written in a step: `7 + 5 = 12`, `$5*3=15`, `<<3*4=12>>`, `\\frac{1}{2} + \\frac{1}{3} = …`.

Nothing is calculated here. What stands around an equation decides whether it is one: `2x + 3 = 7` holds no `3 = 7`, and
`2 groups of 4 + 1 = 9` no `4 + 1 = 9`. What might mean something else than it says is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Longer texts are no step; longer sides no arithmetic that a person writes.
MAX_TEXT = 20_000
MAX_SIDE_TOKENS = 200

_CHARACTERS = str.maketrans({
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "＝": "=", "²": "^2", "³": "^3", "—": "\n",
    "≡": "≠", "&": " ", "`": " ", '"': " ", "“": " ", "”": " ", "#": " ", "\u00a0": " ", "\u202f": " ", "~": "≈",
})
_LATEX = (
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|operatorname)\s{0,3}\{([^{}]{0,200})\}"), r" \1 "),
    (re.compile(r"\\[dt]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac\s{0,3}(\d)\s{0,3}(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\(?:implies|Rightarrow|rightarrow|to|therefore|iff|newline)(?![A-Za-z])|=>|->|→|⇒"), "\n"),
    (re.compile(r"\\(?:ne|neq|le|leq|ge|geq|equiv|lt|gt)(?![A-Za-z])|<=|>=|!=|:="), "≠"),
    (re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])"), " "),
    (re.compile(r"\\\\|\\[()\[\]]|\$\$"), "\n"),
    (re.compile(r"\\[,;:! ]"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"√\s{0,3}(\d{1,30})"), r"\\sqrt{\1}"),
    (re.compile(r"=="), "="),
    (re.compile(r"\.{2,}|…|\\[lc]?dots(?![A-Za-z])"), "≈"),
)
# Inline mathematics, by Pandoc's rule that tells it from amounts of money: `$3 + 4 = 7$`, but `$5 * 3 = $15`.
_INLINE = re.compile(r"\$(?=\S)([^$\n]{0,300}?)(?<=\S)\$(?!\d)")
_ANNOTATION = re.compile(r"<<([^<>]{0,300})>>")
_BOLD = re.compile(r"(?:(?<=\s)|(?<=^))\*\*(?=\S)|(?<=\S)\*\*(?=\s|$|[.,;:!?])", re.MULTILINE)
_LIST_MARK = re.compile(r"^\s{0,20}(?:[*•]|\d{1,3}[.)])\s+", re.MULTILINE)
# A dash that may be a bullet or a minus.
_LEADING_DASH = re.compile(r"^\s{0,20}-\s", re.MULTILINE)
_TIMES_X = re.compile(r"(?<=\d)(\s{0,3})[xX](?=\s{0,3}[$€£]?\d)")
# cm^2 is a unit, not a power.
_SQUARE_UNIT = re.compile(r"(?<=[^\W\d_]{2})\s{0,3}\^\s{0,3}(?:[23]|[({][23][)}])")

_SENTENCE = re.compile(r"\n|;|\?|(?<![-+*/=]\s)\.(?!\d)|!(?!\s{0,3}[-+*/^=)])")
# "14, 400" is a number badly written, not two clauses.
_CLAUSE = re.compile(r",(?!\d|(?<=\d,)\s\d{3}(?!\d))|(?<!\d):|:(?!\d)")
_RELATION = re.compile(r"([=≈≠≤≥<>])")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<fraction>\\frac(?![A-Za-z]))"
    r"|(?P<function>\\(?:sqrt|binom|pi|ln)(?![A-Za-z])|π)"
    r"|(?P<word>/?[^\W\d_]+(?:['’/-][^\W\d_]+)*)"
    r"|(?P<currency>[$€£])"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<operator>\*\*|[-+*/^])"
    r"|(?P<percent>%)|(?P<factorial>!)"
    r"|(?P<other>.)", re.DOTALL)



def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that calculate or count: an expression beside one of them goes on in words.
_OPERATOR_WORDS = _words(
    "of times plus minus mod modulo divided multiplied added subtracted by than over squared cubed remainder power "
    "dozen hundred thousand million billion trillion half third quarter twice double triple thrice percent point root "
    "sum product difference quotient ratio one two three four five six seven eight nine ten eleven twelve twenty "
    "thirty forty fifty sixty seventy eighty ninety sqrt log ln sin cos tan each every")
# Words right after which an expression begins, whatever the sentence said before.
_ANNOUNCERS = _words(
    "so is are was were be equals has have had makes make gives give gets get then thus therefore hence total leaves "
    "becomes calculate compute earns earned spends spent pays paid needs")
# Words after a number that name no unit.
_NO_UNITS = _words(
    "in and so for total altogether which because since left more is are as to on with at or then that thus but if "
    "remaining overall now")
_SHORT_UNITS = _words("cm mm km kg mg ml lb ft oz hr am pm")
_HEDGE = re.compile(
    r"≈|n['\u2019]t\b|\b(?:about|approx\w*|roughly|around|nearly|almost|round\w*|estimat\w*|not|never|cannot|incorrect\w*|"
    r"wrong\w*|false|mistake\w*|if|suppose|assum\w*|mod|modulo|base|binary|hex\w*|contradict\w*)\b", re.IGNORECASE)
_EXPRESSION = frozenset({"number", "fraction", "function", "currency", "open", "close", "operator", "percent",
                         "factorial", "unit"})


class Token(NamedTuple):
    """A piece of an expression; `spaced` when white space stands before it."""

    kind: str
    text: str
    spaced: bool


@dataclass(frozen=True, slots=True)
class Equation:
    """Two sides that a step says are equal.

    Attributes:
        left, right: their tokens.
        doubtful: what stands around may change its meaning (about, if, not …): only good for confirming.
    """

    left: tuple[Token, ...]
    right: tuple[Token, ...]
    doubtful: bool

    def __str__(self) -> str:
        return " = ".join("".join(" " * t.spaced + t.text for t in side).strip() for side in (self.left, self.right))


def find_equations(text: str) -> list[Equation]:
    """The equations a step states, in order. Empty for a text longer than `MAX_TEXT`. Takes linear time."""
    if "=" not in text.translate(_CHARACTERS) or len(text) > MAX_TEXT:
        return []
    annotated = [inner for inner in _ANNOTATION.findall(text) if "=" in inner]
    # GSM8K: "48/2 = <<48/2=24>>24 clips" states its equation twice.
    texts = [*annotated, _ANNOTATION.sub(" ", text)]
    return [equation for part in texts for sentence in _SENTENCE.split(_normalise(part)) if "=" in sentence
            for equation in _in_sentence(sentence)]


def _normalise(text: str) -> str:
    text = _LIST_MARK.sub("", _BOLD.sub("", text.translate(_CHARACTERS)))
    for pattern, replacement in _LATEX if "\\" in text or "√" in text or "=" in text else ():
        text = pattern.sub(replacement, text)
    if "$" in text:
        text = _INLINE.sub(r" \1 ", text)
    text = _LEADING_DASH.sub("¿", text)
    return _SQUARE_UNIT.sub("", _TIMES_X.sub(r"\1*", text))


def _in_sentence(sentence: str) -> list[Equation]:
    hedged = _HEDGE.search(sentence) is not None
    found = []
    for clause in _CLAUSE.split(sentence):
        parts = _RELATION.split(clause)
        segments = [_tokens(part) for part in parts[::2]]
        for index, relation in enumerate(parts[1::2]):
            if relation != "=":
                continue
            left = _ending(segments[index], first=index == 0)
            right = _beginning(segments[index + 1], last=index + 2 == len(segments))
            # "Step 3 = 4 + 5" is no equation and "4 hours = 4 * 60" a conversion; "12 = 3 * 4" is one.
            named = len(segments[index]) > 1 == sum(token.kind not in ("unit", "currency") for token in left)
            if left and right:
                found.append(Equation(tuple(left), tuple(right[0]), hedged or named or right[1]))
    return found


def _tokens(text: str) -> list[Token]:
    """Tokens of a side, with units told from words and "of" between factors made a product."""
    tokens: list[Token] = []
    spaced = True
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(Token(kind, match.group(), spaced))
        spaced = kind == "space"
    for index, token in enumerate(tokens):
        if token.text == "of" and _multiplies(tokens, index):
            tokens[index] = Token("operator", "*", True)
    _mark_units(tokens)
    return tokens


def _multiplies(tokens: Sequence[Token], index: int) -> bool:
    """Whether the "of" there is a product: `50% of 80`, `3/4 of 12`, a LaTeX fraction of 12, but not `3 of 4`."""
    before = tokens[max(0, index - 2) : index]
    follows = index + 1 < len(tokens) and tokens[index + 1].kind in ("number", "open", "currency", "fraction")
    if not before or not follows:
        return False
    quotient = len(before) == 2 and before[0].text == "/" and before[1].kind == "number"
    return before[-1].kind == "percent" or before[-1].text == "}" or quotient


def _mark_units(tokens: list[Token]) -> None:
    """Makes up to three words after a number units where an operator, a bracket or nothing follows them."""
    start = 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and tokens[end].kind == "word":
            end += 1
        ends = end == len(tokens) or tokens[end].kind in ("operator", "close")
        counted = start > 0 and tokens[start - 1].kind in ("number", "close")
        if counted and ends and 0 < end - start <= 3 and all(map(_is_unit, tokens[start:end])):
            tokens[start:end] = [token._replace(kind="unit") for token in tokens[start:end]]
        start = max(end, start + 1)


def _is_plain(token: Token) -> bool:
    """A word that is neither a variable (`x`, `AB`, `2xy`) nor part of a calculation in words."""
    word = token.text.lstrip("/")
    if token.kind not in ("word", "unit") or len(word) == 1 or word.lower() in _OPERATOR_WORDS:
        return False
    variable = (len(word) <= 3 and word.isupper()) or (len(word) == 2 and not token.spaced and word not in _SHORT_UNITS)
    return not variable or "/" in token.text


def _is_unit(token: Token) -> bool:
    return _is_plain(token) and token.text.lower() not in _NO_UNITS


def _ending(tokens: list[Token], first: bool) -> list[Token]:
    """The expression a segment ends with, empty where what stands before it may belong to it."""
    start, depth = len(tokens), 0
    while start and tokens[start - 1].kind in _EXPRESSION:
        kind = tokens[start - 1].kind
        if kind == "open" and depth == 0:
            break
        depth += (kind == "close") - (kind == "open")
        start -= 1
    run = tokens[start:]
    if not run or depth or len(run) > MAX_SIDE_TOKENS or run[0].text in ("+", "*", "/", "^", "**"):
        return []
    if start == 0 or tokens[start - 1].kind == "open":
        return run
    before = tokens[start - 1]
    if not _is_plain(before) or not run[0].spaced or run[0].kind == "operator":
        return []
    if before.text.lower() in _ANNOUNCERS:
        return run
    # In a chain the other side of the equation before stands first: "… = 7 and 2 + 2 = 4".
    said = tokens[0 if first else len(_prefix(tokens)) : start]
    return run if all(map(_is_plain, said)) else []


def _prefix(tokens: list[Token]) -> list[Token]:
    """The longest run of expression tokens at the front; a bracket that closes nothing ends it."""
    end = depth = 0
    while end < len(tokens) and tokens[end].kind in _EXPRESSION:
        depth += (tokens[end].kind == "open") - (tokens[end].kind == "close")
        if depth < 0:
            break
        end += 1
    return tokens[:end]


def _beginning(tokens: list[Token], last: bool) -> tuple[list[Token], bool] | None:
    """The expression a segment begins with, and whether what follows makes it doubtful."""
    run = _prefix(tokens)
    opened: list[int] = []
    for index, token in enumerate(run):
        if token.kind == "open":
            opened.append(index)
        elif token.kind == "close":
            opened.pop()
    if opened:
        # "= 12 (3 boxes)": a remark, but "= 2(3 + x)" is a product.
        cut = opened[0]
        if not run[cut].spaced or any(token.kind == "operator" for token in run[cut:]):
            return None
        run = run[:cut]
    if not run or len(run) > MAX_SIDE_TOKENS or run[0].text in ("+", "*", "/", "^", "**"):
        return None
    after = tokens[len(run) :]
    if not after or after[0].kind in ("close", "open"):
        return run, False
    if not _is_plain(after[0]):
        return None
    # "= 3 and 1/2", "= 3 to 4"
    doubtful = last and len(after) > 1 and after[1].kind in ("number", "currency", "fraction")
    if after[0].text.lower() not in _NO_UNITS:
        run = [*run, after[0]._replace(kind="unit")]
    return run, doubtful
