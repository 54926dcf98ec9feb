"""Training data with a label for each step in a list of its own: TRL's stepwise supervision and PaddleNLP."""

from __future__ import annotations

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
from prm_core.formats.messages import text_of

IGNORED = -100


def _trl_label(value: Any, where: str) -> float | None:
    if isinstance(value, bool):
        return float(value)
    # Before anything else: as a bool the ignore index would be True.
    if isinstance(value, int | float) and (value == IGNORED or 0 <= value <= 1):
        return None if value == IGNORED else float(value)
    raise InputError(f"{where} is {shown(value)}, expected true, false, a number from 0 to 1, or {IGNORED} (ignored)")


@register
class TrlStepwise(RowFormat):
    """TRL's stepwise supervision: `prompt`, `completions`, `labels` (bools, or numbers from 0 to 1; -100 is ignored).

    Prompt and completions may be chat messages. Labels are written as bools where they were read so. All others are
    floats, an ignored one -100.0: a column of two types breaks the loader of Hugging Face datasets, and what comes
    later in a stream is unknown. TRL's own PRMTrainer (to 1.13, the last) takes int() of a label, so that a soft one
    trains as wrong.
    """

    name = "trl"
    soft = unlabelled = True

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        given = get(row, "labels", list, where)
        said = {name: get(row, name, kinds, where) for name, kinds in (("prompt", (str, list)), ("completions", list))}
        prompt = text_of(said["prompt"], f"{where}: prompt")
        texts = get_texts({"completions": [text_of(item, f"{where}: completions {index}") if item else item
                                           for index, item in enumerate(said["completions"])]}, "completions", where)
        if len(given) != len(texts):
            raise InputError(f"{where}: {len(given)} labels for {len(texts)} completions; give each step one, "
                             f"{IGNORED} to ignore it")
        labels = [_trl_label(value, f"{where}: label {index}") for index, value in enumerate(given)]
        steps, kept, blanks = without_blanks(texts, labels, where, noted)
        hard = any(isinstance(value, bool) for value in given)
        if hard and any(label not in (None, 0.0, 1.0) for label in labels):
            raise InputError(f"{where}: labels mix true and false with soft ones; write all of them as numbers")
        meta = {"rest": rest(row, "prompt", "completions", "labels"), "bools": hard, "blanks": blanks,
                "said": said if [prompt, texts] != list(said.values()) else {}}
        return LabelledChain(prompt, steps, kept, None, None, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        texts, labels = with_blanks(chain, own.get("blanks", ()))
        # A chain read as bools may have been given soft labels since.
        hard = own.get("bools", False) and all(label in (None, 0.0, 1.0) for label in labels)
        soft = sum(label not in (None, 0.0, 1.0) for label in labels)
        if soft:
            noted["soft labels, which TRL's trainer cuts to 0 (wrong); --threshold 0.5 writes hard ones"] += soft
        values = [(IGNORED if hard else float(IGNORED)) if label is None else bool(label) if hard else label
                  for label in labels]
        return {**own.get("rest", {}), "prompt": chain.prompt, "completions": texts, **own.get("said", {}),
                "labels": values}


SIGNS = {"+": 1.0, "-": 0.0}


@register
class Paddle(RowFormat):
    """PaddleNLP: `src` (what the user said: a text or the turns), `tgt` (replies before), `responses`, `labels` (+, -).

    The prompt is the turns in their order, in paragraphs.
    """

    name = "paddle"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        turns = {}
        for name in ("src", "tgt"):
            given = get({"tgt": [], **row}, name, (str, list), where)
            turns[name] = given if not given else get_texts({name: [given] if isinstance(given, str) else given}, name,
                                                            where)
        asked, replied = turns["src"], turns["tgt"]
        if len(asked) != len(replied) + 1:
            raise InputError(f"{where}: {len(asked)} texts in src and {len(replied)} in tgt; src has one more, which "
                             "the responses answer")
        prompt = "\n\n".join(asked[:1] + [text for pair in zip(replied, asked[1:], strict=True) for text in pair])
        texts, given = get_texts(row, "responses", where), get(row, "labels", list, where)
        if len(given) != len(texts):
            raise InputError(f"{where}: {len(given)} labels for {len(texts)} responses; give each one")
        for index, sign in enumerate(given):
            if sign not in ("+", "-"):
                raise InputError(f"{where}: label {index} is {shown(sign)}, expected + or -")
        steps, labels, blanks = without_blanks(texts, [SIGNS[sign] for sign in given], where, noted)
        meta = {"rest": rest(row, "responses", "labels"), "blanks": blanks}
        return LabelledChain(prompt, steps, labels, source=self.name, meta=meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        texts, labels = with_blanks(chain, own.get("blanks", ()))
        return {**own.get("rest", {"src": [chain.prompt], "tgt": []}), "responses": texts,
                "labels": ["+" if label else "-" for label in labels]}
