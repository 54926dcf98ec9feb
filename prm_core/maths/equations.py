"""Finds the equations written in a step: `7 + 5 = 12`, `$5*3=15`, `<<3*4=12>>`, `\\frac{1}{2} + \\frac{1}{3} = …`.

Nothing is calculated here. What stands around an equation decides whether it is one: `2x + 3 = 7` holds no `3 = 7`, and
`2 groups of 4 + 1 = 9` no `4 + 1 = 9`. What might mean something else than it says is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

# Longer texts are no step; longer sides no arithmetic that a person writes.
MAX_TEXT = 20_000
MAX_SIDE_TOKENS = 200

_CHARACTERS = str.maketrans({
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-", "–": "-", "＝": "=", "—": "\n",
    "≡": "≠", "&": " ", "`": " ", '"': " ", "“": " ", "”": " ", "#": " ", "\u00a0": " ", "\u202f": " ", "~": "≈",
    **{power: f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{sign: rf"\frac{{{above}}}{{{below}}}" for sign, above, below in (
        ("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅛", 1, 8))},
})
_LATEX = (
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boxed|operatorname)\s{0,3}\{([^{}]{0,200})\}"), r" \1 "),
    (re.compile(r"\\[dtc](frac|binom)(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\frac\s{0,3}(\d)\s{0,3}(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\(?:implies|Rightarrow|rightarrow|to|therefore|iff|newline)(?![A-Za-z])|=>|->|→|⇒"), "\n"),
    (re.compile(r"\\(?:ne|neq|le|leq|ge|geq|equiv|lt|gt)(?![A-Za-z])|<=|>=|!=|:="), "≠"),
    (re.compile(r"\\(?:left|right)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:displaystyle|quad|qquad)(?![A-Za-z])"), " "),
    (re.compile(r"\\\\|\\[()\[\]]"), "\n"),
    (re.compile(r"\\[,;:! ]"), " "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"√\s{0,3}(\d{1,30})"), r"\\sqrt{\1}"),
    (re.compile(r"√\s{0,3}(?=\()|(?<![A-Za-z\\])sqrt\s?(?=[({])"), r"\\sqrt"),
    (re.compile(r"\bper\s?cent\b|\bpercent\b", re.IGNORECASE), "%"),
    (re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split)\*?\}"), "\n"),
    (re.compile(r"=="), "="),
    (re.compile(r"\.{2,}|…|\\[lc]?dots(?![A-Za-z])"), "≈"),
)
# Inline mathematics, by Pandoc's rule that tells it from amounts of money: `$3 + 4 = 7$`, but `$5 * 3 = $15`.
_INLINE = re.compile(r"(?<!\\)\$(?=\S)((?:[^$\n\\]|\\.){0,300}?)(?<=[^\s\\])\$(?!\d)")
_ANNOTATION = re.compile(r"<<([^<>]{0,300})>>")
_BOLD = re.compile(r"(?:(?<=\s)|(?<=^))\*\*(?=\S)|(?<=\S)\*\*(?=\s|$|[.,;:!?])", re.MULTILINE)
_LIST_MARK = re.compile(r"^\s{0,20}(?:[*•]|\d{1,3}[.)])\s+", re.MULTILINE)
# A dash that may be a bullet or a minus.
_LEADING_DASH = re.compile(r"^\s{0,20}-\s", re.MULTILINE)
_TIMES_X = re.compile(r"(?<=\d)(?<!\b0)(\s{0,3})[xX](?=\s{0,3}[$€£]?\d)")
# cm^2 is a unit, not a power.
_SQUARE_UNIT = re.compile(r"(?<=[^\W\d_]{2})\s{0,3}\^\s{0,3}(?:[23]|[({][23][)}])")

# Not ended: 0.\overline{3}, 0.(3), 5!19!, 7! - 3. A closing "!" stays, for 10! may be meant.
_SENTENCE = re.compile(
    r"\n|;|(?<=\?)|(?<![-+*/=]\s)\.(?![\d\\(])|(?<![\d)\]}\s])!|(?<=[\d)\]}]!)(?=\s{0,3}(?:[^\W\d_]|$))")
# "14, 400" is a number badly written, not two clauses.
_CLAUSE = re.compile(r"(,)(?!\d|(?<=\d,)\s\d{3}(?!\d))|(?<!\d)(?<!\d\s):|:(?!\s?\d)|(?<!\s):(?=\s)")
_LIST_END = re.compile(r"\s{0,3}(?:and|or|plus)\s{1,3}[$€£\d(\\]", re.IGNORECASE)
_RELATION = re.compile(r"([=≈≠≤≥<>])")
_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"|(?P<fraction>\\frac(?![A-Za-z]))"
    r"|(?P<function>\\(?:sqrt|binom|pi|ln)(?![A-Za-z])|π)"
    r"|(?P<macro>\\[A-Za-z]+)"
    r"|(?P<word>/?[^\W\d_]+(?:['’/][^\W\d_]+|-[^\W\d_]{3,})*)"
    r"|(?P<currency>[$€£])"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])"
    r"|(?P<operator>\*\*|//|[-+*/^])"
    r"|(?P<percent>%)|(?P<factorial>!)"
    r"|(?P<other>.)", re.DOTALL)



def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that calculate or count: an expression beside one of them goes on in words.
_OPERATOR_WORDS = _words(
    "of times plus minus mod modulo divided multiplied added subtracted by than over squared cubed remainder power "
    "dozen hundred thousand million billion trillion half third quarter twice double triple thrice percent point root "
    "sum product difference quotient ratio one two three four five six seven eight nine ten eleven twelve twenty "
    "thirty forty fifty sixty seventy eighty ninety sqrt log ln sin cos tan each every dozens hundreds thousands "
    "millions billions tens halves thirds quarters fourths fifths sixths sevenths eighths ninths tenths hundredths "
    "thousandths pair pairs couple couples score gross double doubled tripled halved roots floor ceil ceiling round "
    "gcd lcm hcf gcf max min abs exp det choose factorial fold remainders rem modulus bits bit binary")
# Words that do something to the number after them.
_APPLIED = _words("square cube negative absolute reciprocal inverse opposite average mean median mode subtract less")
# Words whose "of" begins an expression: a total of 3 + 4.
_AMOUNTS = _words("total cost amount profit")
# Words right after which an expression begins, whatever the sentence said before.
_ANNOUNCERS = _words(
    "so is are was were be equals has have had makes make gives give gets get then thus therefore hence total leaves "
    "becomes calculate compute earns earned spends spent pays paid needs obtain obtains obtained find yields")
# Words after a number that name no unit.
_NO_UNITS = _words(
    "in and so for total altogether which because since left more is are as to on with at or then that thus but if "
    "remaining overall now")
_SHORT_UNITS = _words("cm mm km kg mg ml lb ft oz hr am pm")
# Two letters that are a word; others are variables.
_SHORT_WORDS = _words("so is we he it in to at by of on or as an be do go if me my no up us")
_HEDGE = re.compile(
    r"≈|\?|n['\u2019]t\b|\b(?:about|approx\w*|roughly|around|nearly|almost|round\w*|estimat\w*|not|never|cannot|"
    r"incorrect\w*|wrong\w*|false|untrue|mistake\w*|if|whether|suppose|assum\w*|base|binary|hex\w*|"
    r"contradict\w*|impossible|repeating|recurring)\b", re.IGNORECASE)
# Words that change what every number in the step means, or take back what it says.
_STEP_HEDGE = re.compile(
    r"\b(?:base[- ]?(?:\d+|two|three|eight|ten|sixteen)|binary|octal|hexadecimal|defin\w*|operation|oops|wait|sorry|"
    r"correction|mistake\w*|incorrect\w*|wrong\w*)\b", re.IGNORECASE)
_MODULAR = re.compile(r"[≡≠]\s|\\equiv|[bp]mod\b|\b(?:modul[oi]|mod|congruen\w*|residue\w*)\b", re.IGNORECASE)
_MODULUS = re.compile(r"(?:mod|modulo)[\s${(]{1,5}(\d{1,9})", re.IGNORECASE)
# What lets another reading stand beside the plain one, see `readings.py`.
_CUES = {
    "rest": re.compile(r"\b(?:remain\w*|left\w*|over|extra|spare|rest)\b", re.IGNORECASE),
    "whole": re.compile(
        r"\b(?:remain\w*|left\w*|over|whole|full\w*|complete\w*|entire\w*|extra|spare|round\w*|integers?|floor|"
        r"ceil\w*|quotient|divi\w*|at least|at most|fits?|fill\w*|enough|rest|people|trips?|r\.?\s?\d+)\b"
        r"|[<>≤≥]|\\[lg]eq?\b", re.IGNORECASE),
    "clock": re.compile(r"\b(?:[ap]\.?m\b|clock|o['\u2019]clock|noon|midnight|hours?|minutes?|time)\b", re.IGNORECASE),
    "percent": re.compile(r"%|\bper\s?cent", re.IGNORECASE),
    "thousands": re.compile(r"\b(?:hundred|thousand|million|billion)s?\b", re.IGNORECASE),
}
_EXPRESSION = frozenset({"number", "fraction", "function", "currency", "open", "close", "operator", "of", "percent",
                         "factorial", "unit"})
# Words before a number that may add it to the one before.
_JOINING = _words("of and with plus to or remainder times by less minus")
_NO_BEGINNING = ("+", "*", "/", "//", "^", "**")


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
        cues: kinds of other readings that the step's words allow: `whole` numbers, a `rest`, `clock`, `thousands`.
        moduli: that the step names.
        head: the first side of the chain that it goes on, empty where it begins one.
    """

    left: tuple[Token, ...]
    right: tuple[Token, ...]
    doubtful: bool
    cues: frozenset[str] = frozenset()
    moduli: frozenset[int] = frozenset()
    head: tuple[Token, ...] = ()

    def __str__(self) -> str:
        return " = ".join("".join(" " * t.spaced + t.text for t in side).strip() for side in (self.left, self.right))


def find_equations(text: str) -> list[Equation]:
    """The equations a step states, in order. Empty for a text longer than `MAX_TEXT`. Takes linear time."""
    if "=" not in text.translate(_CHARACTERS) or len(text) > MAX_TEXT:
        return []
    annotated = [inner for inner in _ANNOTATION.findall(text) if "=" in inner]
    # GSM8K: "48/2 = <<48/2=24>>24 clips" states its equation twice.
    texts = [*annotated, _ANNOTATION.sub(" ", text)]
    moduli = frozenset(map(int, _MODULUS.findall(text))) - {0}
    context = _Context(
        doubtful=_STEP_HEDGE.search(text) is not None or (not moduli and _MODULAR.search(text) is not None),
        cues=frozenset(cue for cue, pattern in _CUES.items() if pattern.search(text.replace(r"\left", ""))),
        moduli=moduli)
    return [equation for part in texts for sentence in _SENTENCE.split(_normalise(part)) if "=" in sentence
            for equation in _in_sentence(sentence, context)]


class _Context(NamedTuple):
    """What the step says about all its equations, see `Equation`."""

    doubtful: bool
    cues: frozenset[str]
    moduli: frozenset[int]


def _normalise(text: str) -> str:
    text = _LIST_MARK.sub("", _BOLD.sub("", text.translate(_CHARACTERS))).replace("$$", "\n")
    if "$" in text:
        text = _INLINE.sub(r" \1 ", text)
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    text = _LEADING_DASH.sub("¿", text)
    return _SQUARE_UNIT.sub("", _TIMES_X.sub(r"\1*", text))


def _in_sentence(sentence: str, context: _Context) -> list[Equation]:
    hedged = context.doubtful or _HEDGE.search(sentence) is not None
    found = []
    listed = False
    for comma, clause in _clauses(sentence):
        parts = _RELATION.split(clause)
        segments = [_tokens(part) for part in parts[::2]]
        # "3, 4, and 5 + 1 = 13": the end of a list.
        doubtful = hedged or (listed and comma and bool(_LIST_END.match(clause)))
        listed = len(parts) == 1 and bool(segments[0]) and segments[0][-1].kind == "number"
        head: tuple[Token, ...] = ()
        for index, relation in enumerate(parts[1::2]):
            if relation not in "=≈":
                head = ()
                continue
            left = _ending(segments[index], first=index == 0)
            right = _beginning(segments[index + 1], last=index + 2 == len(segments))
            # "Step 3 = 4 + 5" is no equation and "4 hours = 4 * 60" a conversion; "12 = 3 * 4" is one.
            named = len(segments[index]) > 1 == sum(token.kind not in ("unit", "currency") for token in left)
            if index and len(left) < len(segments[index]):
                head = ()
            if left and right and relation == "=":
                found.append(Equation(tuple(left), tuple(right[0]), doubtful or named or right[1],
                                      context.cues, context.moduli, head))
            head = head or tuple(left)
    return found


def _clauses(sentence: str) -> list[tuple[bool, str]]:
    """The clauses, and whether a comma stands before each."""
    parts = _CLAUSE.split(sentence)
    return [(index > 0 and parts[index - 1] == ",", parts[index]) for index in range(0, len(parts), 2)]


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
            tokens[index] = Token("of", "*", True)
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
        ends = end == len(tokens) or tokens[end].kind == "close" or tokens[end].text in ("+", "-", "*", "/")
        counted = start > 0 and tokens[start - 1].kind in ("number", "close")
        if counted and ends and 0 < end - start <= 3 and all(map(_is_unit, tokens[start:end])):
            tokens[start:end] = [token._replace(kind="unit") for token in tokens[start:end]]
        start = max(end, start + 1)


def _is_plain(token: Token) -> bool:
    """A word that is neither a variable (`x`, `AB`, `2xy`) nor part of a calculation in words."""
    word = token.text.lstrip("/")
    if token.kind not in ("word", "unit") or word.lower() in _OPERATOR_WORDS or max(map(len, word.split("/"))) == 1:
        return False
    if word in _SHORT_UNITS or (word.lower() in _SHORT_WORDS and token.spaced):
        return True
    if len(word) <= 3 and word.isupper():
        return False
    return len(word) > (2 if token.spaced or token.text != word else 3)


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
    if not run or depth or len(run) > MAX_SIDE_TOKENS or run[0].text in _NO_BEGINNING:
        return []
    if start == 0 or tokens[start - 1].kind == "open":
        return run
    before = tokens[start - 1]
    if before.text == "of" and start > 1 and tokens[start - 2].text in _AMOUNTS:
        return run
    if not _is_plain(before) or not run[0].spaced or before.text.lower() in _APPLIED:
        return []
    if run[0].kind == "operator" and (run[1].spaced or before.text.lower() not in _ANNOUNCERS):
        return []
    if before.text.lower() in _ANNOUNCERS:
        return run
    # In a chain the other side of the equation before stands first: "… = 7 and 2 + 2 = 4".
    said = tokens[0 if first else len(_prefix(tokens)) : start]
    words = pairwise([*said, run[0]])
    return run if all(_is_plain(word) or _is_article(word, following) for word, following in words) else []


def _is_article(token: Token, following: Token) -> bool:
    """Whether an `a` is the article, not a variable: a word that names something follows."""
    return token.text.lower() == "a" and token.spaced and _is_unit(following) and len(following.text) > 2


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
    if not run or len(run) > MAX_SIDE_TOKENS or run[0].text in _NO_BEGINNING:
        return None
    after = tokens[len(run) :]
    if not after or after[0].kind in ("close", "open"):
        return run, False
    if not _is_plain(after[0]):
        return None
    unit = after[0].text.lower() not in _NO_UNITS
    return [*run, after[0]._replace(kind="unit")] if unit else run, _goes_on(after, last)


def _goes_on(after: Sequence[Token], last: bool) -> bool:
    """Whether words may carry an expression on: `= 3 and 1/2`, `= 3 to 4`, `= 3 bags of 4`, `= 2 hours 20 minutes`."""
    for index, (token, following) in enumerate(pairwise(after[:3])):
        if following.kind not in ("number", "currency", "fraction", "function"):
            continue
        word = token.text.lower()
        # "… = 7 and 2 + 2 = 4" begins another equation, "= 3 apples and 4 pears" may go on.
        joins = word in _JOINING or token.kind != "word" or word in _OPERATOR_WORDS or index == 0
        if joins and (last or (index == 0 and word not in _NO_UNITS)):
            return True
    return False
