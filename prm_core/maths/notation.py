r"""How an answer is written: LaTeX and Unicode in one spelling, without Markdown, quotes, dollars and boxes.

What it says is read in `canonical.py`.
"""

from __future__ import annotations

import re

_UNICODE = str.maketrans({
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "÷": r"\div ", "−": "-", "–": "-", "—": "-",
    "≤": r"\le ",
    "≥": r"\ge ", "≠": r"\ne ", "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ",
    "Δ": r"\Delta ", "δ": r"\delta ", "√": r"\sqrt ", "±": r"\pm ", "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "＝": "=", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}", "⅕": r"\frac{1}{5}", "⅙": r"\frac{1}{6}", "⁄": "/", "\u00a0": " ", "\u202f": " ",
    "\u2009": " ",
    "“": '"', "”": '"', "‘": "'", "’": "'", "«": '"', "»": '"', "。": ".", "，": ", ", "：": ":", "％": "%", "∼": "~",
})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT = re.compile(r"[₀-₉]+")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_BLANKS = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~(?!\s*\d)|\s+")
_REWRITTEN = (
    (re.compile(r"\\!|\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)(?![A-Za-z])\.?"), ""),
    (re.compile(r"\\mathbb\s?\{?R\}?|\\(?:Reals|R)(?![A-Za-z])"), r" \\REALS "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\(?:leq|leqslant|le|lte)(?![A-Za-z])|<=|=<"), r" ≤ "),
    (re.compile(r"\\(?:geq|geqslant|ge|gte)(?![A-Za-z])|>="), r" ≥ "),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])|!=|\\not\s?="), r" ≠ "),
    (re.compile(r"\\lt(?![A-Za-z])"), " < "),
    (re.compile(r"\\gt(?![A-Za-z])"), " > "),
    (re.compile(r"\\(?:approx|simeq|sim|thickapprox)(?![A-Za-z])"), " ≈ "),
    (re.compile(r"\\in(?![A-Za-z])"), " ∈ "),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r":=|\\equiv(?![A-Za-z])"), "="),
    (re.compile(r"\\(?:cup|lor|vee)(?![A-Za-z])|(?<=[)\]])\s?U\s?(?=[(\[])"), " ∪ "),
    (re.compile(r"\^\s?\{?\s?\\(?:circ|degree)(?![A-Za-z])\s?\}?|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:emptyset|varnothing)(?![A-Za-z])"), r"\\{\\}"),
    (re.compile(r"(?<![A-Za-z\\])infinity\b|(?<![A-Za-z\\])(?:inf|oo)\b", re.IGNORECASE), r"\\infty"),
    (re.compile(r"(?<=\d)\s+over\s+(?=\d)"), "/"),
    (re.compile(r"(?<=[\d\s}])(?:per\s?cent|percentage|pct)\b\.?", re.IGNORECASE), "%"),
)
_INLINE = re.compile(r"(?<!\\)\$((?!\d[\d.,]*\s[A-Za-z])[^$]{1,200}?)(?<![\s\\])\$(?![\d.])")
_HALF_INLINE = re.compile(r"\$[A-Za-z][^$]*$")
_TEXT_MACRO = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|textsf|texttt|mbox|hbox|mathrm|mathit|mathbf|mathsf|emph|bf|rm|fbox|boxed"
    r"|operatorname)\s{0,3}\{([^{}]*)\}")
_WRAPPERS = ("**", "__", "$$", "```", "*", "_", "`", "$", '"', "'", "´")
_PAIRED = ((r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), (r"\fbox{", "}"), ("<answer>", "</answer>"))


def clean(text: str) -> str:
    """The answer without its wrapping, LaTeX and Unicode in one spelling."""
    text = _SUPERSCRIPT.sub(lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text.strip()).translate(_UNICODE)
    text = _SUBSCRIPT.sub(lambda m: "_{" + m.group().translate(_SUBSCRIPTS) + "}", text)
    text = _unwrap(text)
    if "$" in text:
        # "$x = 5$, $x = 7$", but "$5 and $6" is money.
        text = _INLINE.sub(r" \1 ", text)
        text = text[1:] if _HALF_INLINE.match(text) else text
    if "\\" in text:
        for _ in range(4):
            text, changed = _TEXT_MACRO.subn(_macro_content, text)
            if not changed:
                break
    text = _BLANKS.sub(" ", text)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return _unwrap(" ".join(text.split()))


def _macro_content(match: re.Match[str]) -> str:
    r"""`\text{ cm}` as a word that stands apart, `\mathbf{2340}` as what it holds."""
    content = match.group(1)
    return f" {content} " if re.search(r"[A-Za-z]", content) else content


def _unwrap(text: str) -> str:
    """Without Markdown, quotes, dollars, boxes and the full stop around the whole."""
    before = None
    while before != text:
        before = text
        text = text.strip().rstrip(",;:").rstrip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1].rstrip()
        for mark in _WRAPPERS:
            inner = text[len(mark) : -len(mark)]
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in inner:
                text = inner
        for opening, closing in _PAIRED:
            if text.startswith(opening) and text.endswith(closing) and _spans_all(text, opening, closing):
                text = text[len(opening) : -len(closing)]
        if text.startswith("{") and text.endswith("}") and "," not in text and _spans_all(text, "{", "}"):
            text = text[1:-1]
    return text


def _spans_all(text: str, opening: str, closing: str) -> bool:
    """Whether the bracket that opens the text is closed by its end."""
    if closing != "}":
        return closing not in text[: -len(closing)]
    depth = 0
    for index, character in enumerate(text):
        escaped = index > 0 and text[index - 1] == "\\"
        depth += ((character == "{") - (character == "}")) * (not escaped)
        if depth == 0 and index >= len(opening) - 1:
            return index == len(text) - 1
    return False
