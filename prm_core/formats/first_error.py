"""Benchmarks of errors in chains: ProcessBench, BIG-Bench-Mistake, MR-GSM8K (the first wrong step), PRMBench (all)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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


def _labels(first: int, steps: int) -> list[float | None]:
    """Right before the first error (-1: none), wrong at it, unknown after it."""
    return [1.0] * steps if first < 0 else [1.0] * first + [0.0] + [None] * (steps - first - 1)


class _FirstError(RowFormat):
    """What ProcessBench, BIG-Bench-Mistake and MR-GSM8K share: one index says all about the steps."""

    unlabelled = True

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.first_error is None:
            return ("needs the first wrong step, which is unknown where a step before it has no label; drop such "
                    "chains first")
        return None

    def steps_until(self, texts: Sequence[str], first: int, where: str, noted: Counter[str]) -> Any:
        """Steps, labels and blanks, None when the first wrong step is a blank one: nothing is left to find."""
        if first >= 0 and not texts[first].strip():
            noted["chains whose first wrong step is blank left out"] += 1
            return None
        return without_blanks(texts, _labels(first, len(texts)), where, noted)

    def texts_and_first(self, chain: LabelledChain, noted: Counter[str]) -> tuple[list[str], int]:
        """Step texts with the blank ones, and the first error among them."""
        texts, labels = with_blanks(chain, self.own(chain).get("blanks", ()))
        if 0.0 not in labels:
            return texts, -1
        first = labels.index(0.0)
        later = sum(label is not None for label in labels[first + 1:])
        if later:
            noted["labels after a first wrong step left out"] += later
        return texts, first


@register
class ProcessBench(_FirstError):
    """ProcessBench (Zheng et al. 2024): `problem`, `steps`, `label` (first wrong step from 0, or -1)."""

    name = "processbench"

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        prompt, texts, label = get(row, "problem", str, where), get_texts(row, "steps", where), get(
            row, "label", int, where)
        if not -1 <= label < len(texts):
            raise InputError(f"{where}: label {label} of {len(texts)} steps; it is the 0-based index of the first "
                             "wrong step, or -1")
        outcome = get({"final_answer_correct": None, **row}, "final_answer_correct", (bool, type(None)), where)
        parts = self.steps_until(texts, label, where, noted)
        if parts is None:
            return None
        meta = {"rest": rest(row, "problem", "steps", "label", "final_answer_correct"), "blanks": parts[2]}
        return LabelledChain(prompt, *parts[:2], None, outcome, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        texts, first = self.texts_and_first(chain, noted)
        other = self.own(chain).get("rest", {"id": f"{chain.source}-{number}", "generator": "unknown"})
        return {**other, "problem": chain.prompt, "steps": texts, "final_answer_correct": chain.outcome,
                "label": first}


@register
class BigBenchMistake(_FirstError):
    """BIG-Bench-Mistake (Tyen et al. 2024): `input`, `steps`, `target`, `answer`, `mistake_index` from 0 or null."""

    name = "bigbench_mistake"

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.answer is None:
            return "needs the reference answer (`target`), which this chain lacks"
        return super().refusal(chain)

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        prompt, texts = get(row, "input", str, where), get_texts(row, "steps", where)
        if "mistake_index" not in row:
            raise InputError(f"{where}: field mistake_index is missing, expected int or null")
        index = get(row, "mistake_index", (int, type(None)), where)
        if index is not None and not 0 <= index < len(texts):
            raise InputError(f"{where}: mistake_index {index} of {len(texts)} steps; it is the 0-based index of the "
                             "first wrong step, or null")
        target, answer = (get({name: None, **row}, name, (str, type(None)), where) for name in ("target", "answer"))
        parts = self.steps_until(texts, -1 if index is None else index, where, noted)
        if parts is None:
            return None
        outcome = None if target is None or answer is None else answer.strip() == target.strip()
        meta = {"rest": rest(row, "input", "steps", "target", "mistake_index"), "blanks": parts[2]}
        return LabelledChain(prompt, *parts[:2], target, outcome, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        texts, first = self.texts_and_first(chain, noted)
        other = self.own(chain).get("rest", {"answer": chain.answer if chain.outcome else None})
        return {**other, "input": chain.prompt, "steps": texts, "target": chain.answer,
                "mistake_index": None if first < 0 else first}


@register
class MrGsm8k(_FirstError):
    """MR-GSM8K (Zeng et al. 2023): `question`, `model_output_steps` (a list, or a text with a step a line),
    `model_output_solution_correctness` and `model_output_solution_first_error_step` (from 1, or "N/A").

    A solution called wrong without a first wrong step has no labels.
    """

    name = "mr_gsm8k"
    verdict, step, answered = (f"model_output_{name}" for name in (
        "solution_correctness", "solution_first_error_step", "answer_correctness"))

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]) -> LabelledChain | None:
        prompt, answer = get(row, "question", str, where), row.get("ground_truth_answer")
        given = get(row, "model_output_steps", (str, list), where)
        texts = get_texts({"model_output_steps": given.splitlines() if isinstance(given, str) else given},
                          "model_output_steps", where)
        right, first = self._right(row, self.verdict, where), self._first(row, len(texts), where)
        if right and first is not None:
            raise InputError(f"{where}: {self.verdict} is correct, and {self.step} names a wrong step; correct one")
        if first is None and not right:
            noted["solutions without a first wrong step, which are not called correct: unlabelled"] += 1
            labelled = without_blanks(texts, [None] * len(texts), where, noted)
        else:
            labelled = self.steps_until(texts, -1 if first is None else first, where, noted)
        if labelled is None:
            return None
        meta = {"rest": rest(row, "question", "model_output_steps"), "blanks": labelled[2], "first": first,
                "lines": given if isinstance(given, str) else None}
        return LabelledChain(prompt, *labelled[:2], None if answer is None else str(answer),
                             self._right(row, self.answered, where), self.name, meta)

    @staticmethod
    def _right(row: dict[str, Any], name: str, where: str) -> bool | None:
        said = str(row.get(name) or "").strip().lower()
        if said not in ("", "n/a", "correct", "wrong", "incorrect"):
            raise InputError(f"{where}: {name} is {shown(row[name])}, expected correct or wrong")
        return None if said in ("", "n/a") else said == "correct"

    def _first(self, row: dict[str, Any], steps: int, where: str) -> int | None:
        said = row.get(self.step)
        text = "" if said is None else str(said).strip().lower()
        if text in ("", "n/a"):
            return None
        number = re.fullmatch(r"(?:step )?(\d+)(?:\.0)?", text)
        if not number or not 1 <= int(number[1]) <= steps:
            raise InputError(f"{where}: {self.step} is {shown(said)}, expected the number of one of {steps} steps, "
                             "from 1, or N/A")
        return int(number[1]) - 1

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        own = self.own(chain)
        texts, first = self.texts_and_first(chain, noted)
        called = {None: "N/A", True: "correct", False: "wrong"}[chain.outcome]
        said = own.get("rest") or {"uuid": f"{chain.source}-{number}", "ground_truth_answer": chain.answer,
                                   self.answered: called}
        found = None if first < 0 else first
        if not own or found != own["first"]:
            said = {**said, self.verdict: "correct" if first < 0 else "wrong",
                    self.step: "N/A" if first < 0 else first + 1}
        return {**said, "question": chain.prompt, "model_output_steps": own.get("lines") or texts}


@register
class PrmBench(RowFormat):
    """PRMBench (Song et al. 2025): `modified_process` is judged, `error_steps` names its wrong steps from 1.

    The question is `modified_question`, as in the published file, or `question`. What the chain was before its
    modification stays in meta["rest"]["original_process"], the kind of error in meta["rest"]["classification"].
    """

    name = "prmbench"

    def refusal(self, chain: LabelledChain) -> str | None:
        if chain.source != self.name:
            return ("needs `original_process` (the solution before its modification) and `classification` (the kind of "
                    "error), which only its own chains have")
        return None

    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        question = "modified_question" if "modified_question" in row else "question"
        prompt, texts = get(row, question, str, where), get_texts(row, "modified_process", where)
        errors = get(row, "error_steps", list, where)
        for number in errors:
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InputError(f"{where}: error_steps holds {number!r}; steps count from 1")
        wrong = {number for number in errors if number <= len(texts)}
        # A hundred published records name some; the benchmark's own script never gets to them.
        if beyond := len(set(errors) - wrong):
            noted["error steps beyond the last step left out"] += beyond
        labels = [0.0 if number in wrong else 1.0 for number in range(1, len(texts) + 1)]
        steps, labels_kept, blanks = without_blanks(texts, labels, where, noted)
        meta = {"rest": rest(row, question, "modified_process", "error_steps"), "question": question,
                "errors": errors, "blanks": blanks}
        return LabelledChain(prompt, steps, labels_kept, None, None, self.name, meta)

    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        texts, labels = with_blanks(chain, chain.meta["blanks"])
        errors = [number for number, label in enumerate(labels, 1) if label == 0]
        # Its own order, where that still says the same.
        if set(errors) == {number for number in chain.meta["errors"] if number <= len(texts)}:
            errors = chain.meta["errors"]
        return {**chain.meta["rest"], chain.meta["question"]: chain.prompt, "modified_process": texts,
                "error_steps": errors}
