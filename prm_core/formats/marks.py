"""Formats that write question and steps as one text with a verdict behind each step: Math-Shepherd, OpenRLHF, RLHFlow.

Nothing parts the question from the first step. It begins at "Step 1:"; where there is none, behind the last question
mark of the first piece; else behind the first verdict, as TRL's conversion of Math-Shepherd has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import LabelledChain, RowFormat, get, label_between, register, rest, shown
from prm_core.types import Step

MARK = "ки"
SIGNS = {"+": 1.0, "-": 0.0}
# A text and the label behind it; None where the next piece goes on without one.
Piece = tuple[str, float | None]


def _first_step(segments: Sequence[Piece], noted: Counter[str]) -> tuple[int, int]:
    """(segment, offset in it) where the first step begins; (number of segments, 0) where there is none."""
    for index, (text, _) in enumerate(segments):
        found = list(re.finditer(r"[Ss]tep 1\s*:", text))
        if found:
            return index, found[-1].start()
    behind = segments[0][0].rfind("?") + 1
    if behind and segments[0][0][behind:].strip():
        noted["questions parted from their first step at the last question mark"] += 1
        return 0, behind
    return 1, 0


def _chain(segments: Sequence[Piece], where: str, noted: Counter[str], name: str, meta: dict[str, Any],
           search: int | None = None) -> LabelledChain | None:
    """The chain of segments, each with its label; None where no step is left behind the question.

    Args:
        search: how many segments may hold the end of the question; all of them when None.
    """
    first, offset = _first_step(segments[:search], noted)
    if first == len(segments):
        return None
    if first:
        # A few records of Math-Shepherd have marks inside the question.
        noted["marks inside a question taken off"] += first
    head = [*segments[:first], (segments[first][0][:offset], None)]
    pieces = [(segments[first][0][offset:], segments[first][1]), *segments[first + 1:]]
    blank = sum(not text.strip() for text, _ in pieces)
    if blank:
        raise InputError(f"{where}: {blank} steps are blank; remove them with their marks")
    gaps = [[text[:len(text) - len(text.lstrip())], text[len(text.rstrip()):]] for text, _ in pieces]
    return LabelledChain("".join(text for text, _ in head).strip(), tuple(Step(text.strip()) for text, _ in pieces),
                         tuple(label for _, label in pieces), source=name, meta={"head": head, "gaps": gaps, **meta})


class _Marked(RowFormat):
    """What these formats share. Steps keep their "Step 1:"; chains from elsewhere are numbered so."""

    def pieces(self, chain: LabelledChain, lead: str, tail: str) -> Iterator[Piece]:
        """The whole text of a chain; blanks around steps of other formats are `lead` (but for the first) and `tail`."""
        own = self.own(chain)
        texts = [step.text for step in chain.steps]
        if not own:
            texts = [text if text.startswith(f"Step {index}:") else f"Step {index}: {text}"
                     for index, text in enumerate(texts, 1)]
        gaps = own.get("gaps", [["", tail], *[[lead, tail]] * (len(texts) - 1)])
        yield from own.get("head", [(chain.prompt + " ", None)])
        for (before, behind), text, label in zip(gaps, texts, chain.labels, strict=True):
            yield before + text + behind, label


def _holds_mark(chain: LabelledChain) -> str | None:
    if any(MARK in text for text in (chain.prompt, *(step.text for step in chain.steps))):
        return f"ends steps with {MARK!r}, and this chain's text holds that"
    return None


def _split(text: str, where: str) -> tuple[list[str], str]:
    """The texts before each mark, and the one behind the last, which must be blank."""
    *marked, end = text.split(MARK)
    if not marked:
        raise InputError(f"{where}: there is no mark {MARK!r}, which ends each step")
    if end.strip():
        raise InputError(f"{where}: the text after the last {MARK!r} has no label; end the step with the mark, or "
                         "remove it")
    return marked, end


def _no_step(where: str) -> InputError:
    return InputError(f"{where}: no step found; the first begins with `Step 1:`")


@register
class MathShepherd(_Marked):
    """Math-Shepherd (Wang et al. 2024): `input` with `ки` after each step, `label` with + or - in its place, `task`.

    Records in OpenRLHF's and RLHFlow's form, in which the same chains are published too, are read as those.
    """

    name = "math_shepherd"

    def refusal(self, chain: LabelledChain) -> str | None:
        return _holds_mark(chain)

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        if "conversations" in row:
            return RlhFlow().parse_row(where, row, neutral, noted)
        if any(isinstance(row.get(name), list) for name in OpenRlhf.labels):
            return OpenRlhf().parse_row(where, row, neutral, noted)
        text, label = get(row, "input", str, where), get(row, "label", str, where)
        marked, end = _split(text, where)
        segments: list[Piece] = []
        position = 0
        for index, part in enumerate(marked):
            verdict = label[position + len(part): position + len(part) + 1]
            if label[position: position + len(part)] != part or verdict not in SIGNS:
                raise InputError(f"{where}: input and label part at mark {index}; they agree but for {MARK!r} in input "
                                 "against + or - in label")
            segments.append((part, SIGNS[verdict]))
            position += len(part) + 1
        if label[position:] != end:
            raise InputError(f"{where}: input and label part after the last mark; they agree but for {MARK!r} in input "
                             "against + or - in label")
        chain = _chain(segments, where, noted, self.name, {"rest": rest(row, "input", "label"), "end": end})
        if chain is None:
            raise _no_step(where)
        return chain

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        marks = {None: ("", ""), 1.0: (MARK, "+"), 0.0: (MARK, "-")}
        pieces = list(self.pieces(chain, "\n", " "))
        written, judged = ("".join(text + marks[label][side] for text, label in pieces) + own.get("end", "")
                           for side in (0, 1))
        return {"input": written, "label": judged, **own.get("rest", {"task": "unknown"})}


@register
class OpenRlhf(_Marked):
    """OpenRLHF: `input` or `text` with `ки` after each step, `value` with a label for each mark: + and -, or numbers.

    The names of both fields are options of its trainer; `values`, `label` and `labels` are read as well as `value`.
    """

    name = "openrlhf"
    soft = True
    texts, labels = ("input", "text"), ("value", "values", "label", "labels")

    def refusal(self, chain: LabelledChain) -> str | None:
        return _holds_mark(chain)

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        text_field = next((name for name in self.texts if name in row), self.texts[0])
        field = next((name for name in self.labels if isinstance(row.get(name), list)), self.labels[0])
        marked, end = _split(get(row, text_field, str, where), where)
        given = get(row, field, list, where)
        if len(given) != len(marked):
            raise InputError(f"{where}: {len(given)} labels in {field} for {len(marked)} marks {MARK!r}; give each "
                             "mark one")
        signs = any(isinstance(value, str) for value in given)
        segments: list[Piece] = []
        for index, (part, value) in enumerate(zip(marked, given, strict=True)):
            at = f"{where}: {field} {index}"
            if signs and value not in ("+", "-"):
                raise InputError(f"{at} is {shown(value)}, expected + or -, or numbers for all of them")
            segments.append((part, SIGNS[value] if signs else label_between(value, at)))
        chain = _chain(segments, where, noted, self.name, {"rest": rest(row, text_field, field), "end": end,
                                                           "fields": [text_field, field], "signs": signs})
        if chain is None:
            raise _no_step(where)
        return chain

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        pieces = list(self.pieces(chain, "\n", " "))
        labels = [label for _, label in pieces if label is not None]
        text_field, field = own.get("fields", ("input", "value"))
        # Signs where they were read; else numbers, for a column cannot hold both, and soft labels may come.
        signs = own.get("signs", False) and set(labels) <= {0.0, 1.0}
        return {**own.get("rest", {}),
                text_field: "".join(text + MARK * (label is not None) for text, label in pieces) + own.get("end", ""),
                field: ["+" if label else "-" for label in labels] if signs else labels}


@register
class RlhFlow(_Marked):
    """RLHFlow: `conversations`, in which the user says a step (the first with the question before it), the assistant +
    or -.
    """

    name = "rlhflow"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        turns = get(row, "conversations", list, where)
        if not turns or len(turns) % 2:
            raise InputError(f"{where}: conversations has {len(turns)} messages, expected pairs of a user's step and "
                             "an assistant's + or -")
        said = []
        for index, turn in enumerate(turns):
            role = "assistant" if index % 2 else "user"
            if not isinstance(turn, dict) or turn.get("role") != role or not isinstance(turn.get("content"), str):
                raise InputError(f"{where}: conversations {index} is {shown(turn)}, expected a text by the {role}")
            if role == "assistant" and turn["content"].strip() not in SIGNS:
                raise InputError(f"{where}: conversations {index} is {shown(turn)}, expected + or -")
            said.append(turn["content"])
        segments = [(text, SIGNS[sign.strip()]) for text, sign in zip(said[::2], said[1::2], strict=True)]
        chain = _chain(segments, where, noted, self.name, {"rest": rest(row, "conversations")}, search=1)
        if chain is None:
            noted["chains whose only step nothing parts from the question left out"] += 1
        return chain

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        turns = [{"role": role, "content": content} for text, label in _joined(self.pieces(chain, "", ""))
                 for role, content in (("user", text), ("assistant", "+" if label else "-"))]
        return {**self.own(chain).get("rest", {}), "conversations": turns}


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces with a label, each with those without one before it."""
    before = ""
    for text, label in pieces:
        before += text
        if label is not None:
            yield before, label
            before = ""
