"""Training data with a label for each step: TRL's stepwise supervision and Math-Shepherd."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from prm_core.errors import InputError
from prm_core.formats.base import (
    LabelledChain,
    RowFormat,
    get,
    get_texts,
    register,
    rest,
    shown,
    with_blanks,
    without_blanks,
)
from prm_core.types import Step

IGNORED = -100
MARK = "ки"


def _trl_label(value: Any, where: str) -> float | None:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        # Before anything else: as a bool the ignore index would be True.
        if value == IGNORED:
            return None
        if 0 <= value <= 1:
            return float(value)
    raise InputError(f"{where} is {shown(value)}, expected true, false, a number from 0 to 1, or {IGNORED} (ignored)")


@register
class TrlStepwise(RowFormat):
    """TRL's stepwise supervision: `prompt`, `completions`, `labels` (bools, or numbers from 0 to 1; -100 is ignored).

    Labels are written as bools where they were read so. All others are floats, an ignored one -100.0: a column of two
    types breaks the loader of Hugging Face datasets, and what comes later in a stream is unknown.
    """

    name = "trl"
    soft = unlabelled = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        prompt, texts = get(row, "prompt", str, where), get_texts(row, "completions", where)
        given = get(row, "labels", list, where)
        if len(given) != len(texts):
            raise InputError(f"{where}: {len(given)} labels for {len(texts)} completions; give each step one, "
                             f"{IGNORED} to ignore it")
        labels = [_trl_label(value, f"{where}: label {index}") for index, value in enumerate(given)]
        steps, kept, blanks = without_blanks(texts, labels, where, noted)
        hard = any(isinstance(value, bool) for value in given)
        if hard and any(label not in (None, 0.0, 1.0) for label in labels):
            raise InputError(f"{where}: labels mix true and false with soft ones; write all of them as numbers")
        meta = {"rest": rest(row, "prompt", "completions", "labels"), "bools": hard, "blanks": blanks}
        return LabelledChain(prompt, steps, kept, None, None, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        texts, labels = with_blanks(chain, own.get("blanks", ()))
        # A chain read as bools may have been given soft labels since.
        hard = own.get("bools", False) and all(label in (None, 0.0, 1.0) for label in labels)
        values = [(IGNORED if hard else float(IGNORED)) if label is None else bool(label) if hard else label
                  for label in labels]
        return {**own.get("rest", {}), "prompt": chain.prompt, "completions": texts, "labels": values}


def _segments(row: dict[str, Any], where: str) -> tuple[list[tuple[str, float]], str]:
    """(text before a mark, its label) for each mark of a Math-Shepherd record, and the text after the last."""
    *marked, end = get(row, "input", str, where).split(MARK)
    label = get(row, "label", str, where)
    if not marked:
        raise InputError(f"{where}: field input holds no mark {MARK!r}, which ends each step")
    segments, position = [], 0
    for index, text in enumerate(marked):
        verdict = label[position + len(text): position + len(text) + 1]
        if label[position: position + len(text)] != text or verdict not in ("+", "-"):
            raise InputError(f"{where}: input and label part at mark {index}; they agree but for {MARK!r} in input "
                             "against + or - in label")
        segments.append((text, 1.0 if verdict == "+" else 0.0))
        position += len(text) + 1
    if label[position:] != end:
        raise InputError(f"{where}: input and label part after the last mark; they agree but for {MARK!r} in input "
                         "against + or - in label")
    return segments, end


def _first_step(segments: list[tuple[str, float]]) -> tuple[int, int]:
    """(segment, offset in it) where the first step begins.

    At "Step 1:"; in records without it behind the question mark, else behind the first mark, as TRL's conversion of the
    published file has it. A few published records have a mark inside the question.
    """
    for index, (text, _) in enumerate(segments):
        found = list(re.finditer(r"[Ss]tep 1\s*:", text))
        if found:
            return index, found[-1].start()
    behind = segments[0][0].rfind("?") + 1
    if behind and segments[0][0][behind:].strip():
        return 0, behind
    return 1, 0


@register
class MathShepherd(RowFormat):
    """Math-Shepherd (Wang et al. 2024): `input` with `ки` after each step, `label` with + or - in its place, `task`.

    Steps keep their "Step 1:". Chains from elsewhere are numbered so.
    """

    name = "math_shepherd"

    def refusal(self, chain: LabelledChain) -> str | None:
        if any(MARK in text for text in (chain.prompt, *(step.text for step in chain.steps))):
            return f"ends steps with {MARK!r}, and this chain's text holds that"
        return None

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        segments, end = _segments(row, where)
        if end.strip():
            raise InputError(f"{where}: the text after the last {MARK!r} has no label; end the step with the mark, or "
                             "remove it")
        first, offset = _first_step(segments)
        if first == len(segments):
            raise InputError(f"{where}: no step found; the first begins with `Step 1:`")
        if first:
            noted["marks inside a question"] += first
        head = [*segments[:first], (segments[first][0][:offset], None)]
        pieces = [(segments[first][0][offset:], segments[first][1]), *segments[first + 1:]]
        blank = sum(not text.strip() for text, _ in pieces)
        if blank:
            raise InputError(f"{where}: {blank} steps are blank; remove their marks from input and label")
        prompt = "".join(text for text, _ in head)
        gaps = [[text[:len(text) - len(text.lstrip())], text[len(text.rstrip()):]] for text, _ in pieces]
        meta = {"rest": rest(row, "input", "label"), "head": head, "gaps": gaps, "end": end}
        return LabelledChain(prompt.strip(), tuple(Step(text.strip()) for text, _ in pieces),
                             tuple(label for _, label in pieces), None, None, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        texts = [step.text for step in chain.steps]
        if not own:
            texts = [text if text.startswith(f"Step {index}:") else f"Step {index}: {text}"
                     for index, text in enumerate(texts, 1)]
        gaps = own.get("gaps", [["", " "], *[["\n", " "]] * (len(texts) - 1)])
        pieces = [*own.get("head", [(chain.prompt + " ", None)]),
                  *((lead + text + tail, label)
                    for (lead, tail), text, label in zip(gaps, texts, chain.labels, strict=True))]
        marks = {None: ("", ""), 1.0: (MARK, "+"), 0.0: (MARK, "-")}
        written, judged = ("".join(text + marks[label][side] for text, label in pieces) + own.get("end", "")
                           for side in (0, 1))
        return {"input": written, "label": judged, **own.get("rest", {"task": "unknown"})}
