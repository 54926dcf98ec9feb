"""The record that every format maps to and from, the format interface and its registry, and checks formats share."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from prm_core.errors import InputError
from prm_core.formats import files
from prm_core.platform.records import Row, read_rows
from prm_core.registry import Registry
from prm_core.turns import heard, with_tools
from prm_core.types import Step

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

Labels = tuple[float | None, ...]
NEUTRAL = {"right": 1.0, "wrong": 0.0}


@dataclass(frozen=True, slots=True)
class LabelledChain:
    """A chain with what is known about its steps.

    Attributes:
        prompt: the question.
        steps: in order, none blank.
        labels: for each step the probability in [0, 1] that it is right (or its prefix can still succeed); 1 and 0 for
            hard labels, None where the step has none and trains nothing.
        answer: the reference answer, None where the data has none.
        outcome: whether the chain's final answer is right, None where the data does not say.
        source: name of the format it was read from.
        tools: the tools the agent was offered, as JSON of their definitions; empty for none.
        meta: what that format says beyond this; its own writer puts it back. Labels and scores may be replaced; who
            changes the steps clears `source` and `meta`, which describe those that were read.
        id: its name in the source (trace, run, sample), empty where that has none. A step's is its `ref`.
        scores: for each step the probability in [0, 1] that a model gives it of being right, None where it gives none;
            empty where no model has scored the chain.
        scorer: version of that model.
        parent: `id/ref` of the run and the step that started it or that it branches off, empty for none.
    """

    prompt: str
    steps: tuple[Step, ...]
    labels: Labels
    answer: str | None = None
    outcome: bool | None = None
    source: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    tools: str = ""
    id: str = ""
    scores: Labels = ()
    scorer: str = ""
    parent: str = ""

    @property
    def asked(self) -> str:
        """The question as a model reads it, with the tools."""
        return with_tools(self.prompt, self.tools)

    @property
    def first_error(self) -> int | None:
        """Index of the first step more likely wrong than right, -1 for none, None where a step before has no label."""
        for index, label in enumerate(self.labels):
            if label is None:
                return None
            if label < 0.5:
                return index
        return -1


class Format(ABC):
    """How one project writes step-labelled chains.

    Class attributes:
        name: in the registry.
        rated: whether its ratings know "neutral", which `read` then takes as right or as wrong.
        soft, unlabelled, observations, scored: whether it can hold labels between 0 and 1, steps without a label,
            replies of tools, and a model's scores beside the labels.
        schema: its Parquet columns, None where it is written as JSON only.
    """

    name: ClassVar[str]
    rated: ClassVar[bool] = False
    soft: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False
    observations: ClassVar[bool] = False
    scored: ClassVar[bool] = False

    @property
    def schema(self) -> pa.Schema | None:
        return None

    def read(self, path: str | Path, *, neutral: str | None = None, noted: Counter[str] | None = None
             ) -> Iterator[LabelledChain]:
        """The chains of a file, one by one; the file may be larger than memory.

        Args:
            path: JSON lines, a JSON array or Parquet.
            neutral: "right" (the default, as Qwen's PRMs do) or "wrong" (as TRL's does) for neutral ratings.
            noted: what is left out or repaired is counted here, by what was done. At the end of the file one line says
                that, and what was taken, in any case.

        Raises:
            InputError: an unknown `neutral`, or one for a format without such ratings; and from the iterator a missing
                file or a bad record, by file and line, with its field.
        """
        if neutral is not None and not self.rated:
            raise InputError(f"neutral {neutral!r}: {self.name} has no neutral ratings; leave the option out")
        if neutral not in (None, *NEUTRAL):
            raise InputError(f"neutral {neutral!r}: expected one of {', '.join(NEUTRAL)}")
        return self._read(Path(path), NEUTRAL[neutral or "right"], Counter() if noted is None else noted)

    def check(self, path: str | Path) -> Iterator[LabelledChain]:
        """What `read` gives, without a word of what is left out: for a first pass over a file."""
        return self.parse(read_rows(Path(path)), NEUTRAL["right"], Counter())

    def _read(self, path: Path, neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        before, taken = noted.copy(), Counter[str]()

        def rows() -> Iterator[Row]:
            for row in read_rows(path):
                taken["records"] += 1
                yield row

        for chain in self.parse(rows(), neutral, noted):
            labelled = sum(label is not None for label in chain.labels)
            taken["chains"] += 1
            taken["chains without any label"] += not labelled
            taken["labelled steps"] += labelled
            taken["steps without a label"] += len(chain.labels) - labelled
            yield chain
        always = ("records", "chains", "labelled steps")
        _report(path, ", ".join(f"{count:,} {what}" for what, count in taken.items() if count or what in always),
                noted - before)

    def write(self, path: str | Path, chains: Iterable[LabelledChain], *, noted: Counter[str] | None = None) -> int:
        """Writes chains as they come and returns the number of records; the file appears when all are written.

        Args:
            path: .json for a JSON array, .parquet where the format has a schema, else JSON lines.
            chains: in the order they were read: those that share a record of the source must follow each other.
            noted: labels the format has no place for, or that its readers take for others, are counted here, by what
                becomes of them, and logged.

        Raises InputError naming the chain and what the format cannot hold, or what it needs and the chain lacks.
        """
        counts: Counter[str] = Counter() if noted is None else noted
        before = counts.copy()
        written = files.write_rows(Path(path), self.compose(self._checked(chains, counts), counts), self.schema)
        if counts - before:
            _report(path, f"{written:,} records of {self.name}", counts - before)
        return written

    def _checked(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[LabelledChain]:
        for number, chain in enumerate(chains):
            reason = self._unfit(chain) or self.refusal(chain)
            if reason:
                raise InputError(f"chain {number} (prompt {chain.prompt[:40]!r}, from {chain.source or 'nowhere'}): "
                                 f"{self.name} {reason}")
            if chain.tools and not self.observations:
                noted["chains whose tools are left out"] += 1
            if not self.scored and any(score is not None for score in chain.scores):
                noted["chains whose scores by a model are left out"] += 1
            yield chain

    def _unfit(self, chain: LabelledChain) -> str | None:
        for index, (step, label) in enumerate(zip(chain.steps, chain.labels, strict=True)):
            if heard(step) and not self.observations:
                return (f"has no place for what a tool replied after step {index}; write agentprocessbench, or put the "
                        "replies into the steps first")
            if (step.calls or step.reasoning) and not self.observations:
                return (f"has no place for what step {index} calls or thinks; write agentprocessbench, or put it into "
                        "the step's text first")
            if label is None and not self.unlabelled:
                return f"needs a label for each step, and step {index} has none; write trl, or drop such chains first"
            if label not in (None, 0.0, 1.0) and not self.soft:
                return (f"holds steps that are right or wrong, and step {index} has the soft label {label:g}; write "
                        "trl or math_aps, or make the labels hard (--threshold 0.5)")
        return None

    def refusal(self, chain: LabelledChain) -> str | None:
        """Why this format cannot hold a chain, beyond what the class attributes say; None when it can."""
        return None

    @abstractmethod
    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        """Chains of the rows (where, object) of a file; `neutral` is the label of a neutral rating."""

    @abstractmethod
    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        """Rows of chains that the format can hold."""

    def own(self, chain: LabelledChain) -> Mapping[str, Any]:
        """The chain's meta where this format wrote it, else nothing: other formats' keys mean other things."""
        return chain.meta if chain.source == self.name else {}


class RowFormat(Format):
    """A format whose records are chains, one each."""

    @abstractmethod
    def parse_row(self, where: str, row: dict[str, Any], neutral: float, noted: Counter[str]
                  ) -> LabelledChain | None:
        """The chain of a record, None when it is left out (and counted)."""

    @abstractmethod
    def compose_row(self, chain: LabelledChain, number: int, noted: Counter[str]) -> dict[str, Any]:
        """The record of chain `number`."""

    def parse(self, rows: Iterable[Row], neutral: float, noted: Counter[str]) -> Iterator[LabelledChain]:
        for where, row in rows:
            chain = self.parse_row(where, row, neutral, noted)
            if chain is not None:
                yield chain

    def compose(self, chains: Iterable[LabelledChain], noted: Counter[str]) -> Iterator[dict[str, Any]]:
        for number, chain in enumerate(chains):
            yield self.compose_row(chain, number, noted)


FORMATS: Registry[Format] = Registry("format")
F = TypeVar("F", bound=Format)


def register(kind: type[F]) -> type[F]:
    """Class decorator: a format joins FORMATS by its name."""
    FORMATS.register(kind.name)(kind())
    return kind


def _report(path: Path | str, what: str, noted: Counter[str]) -> None:
    line = "; ".join([what, *(f"{reason}: {count:,}" for reason, count in noted.items())])
    log.log(logging.WARNING if noted else logging.INFO, "%s: %s", path, line)


def shown(value: Any) -> str:
    """A value for an error message, cut to a line."""
    return json.dumps(value, ensure_ascii=False, default=str)[:60]


def get(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of a record. Raises InputError when it is missing or not of this kind; true is no int."""
    value = row.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        given = f"is {shown(value)}" if name in row else "is missing"
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise InputError(f"{where}: field {name} {given}, expected {wanted}")
    return value


def get_list(row: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """A field that is a list, empty where it is missing or null."""
    return get({name: None, **row}, name, (list, type(None)), where) or []


def get_texts(row: Mapping[str, Any], name: str, where: str) -> list[str]:
    """A field that is a non-empty list of texts."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: `{name}` must be a non-empty list of texts")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise InputError(f"{where}: {name} {index} is {shown(text)}, expected a text")
    return value


def rest(row: Mapping[str, Any], *used: str) -> dict[str, Any]:
    """The fields of a record that a chain has no place for."""
    return {name: value for name, value in row.items() if name not in used}


def without_blanks(texts: Sequence[str], labels: Sequence[float | None], where: str, noted: Counter[str]
                   ) -> tuple[tuple[Step, ...], Labels, list[list[Any]]]:
    """Steps and labels less the blank steps, which no model can score; and those: [index, text, label].

    Raises InputError when every step is blank.
    """
    if not any(text.strip() for text in texts):
        raise InputError(f"{where}: every step is blank; remove the record")
    blanks = [[index, text, labels[index]] for index, text in enumerate(texts) if not text.strip()]
    if blanks:
        noted["blank steps left out"] += len(blanks)
    kept = [(Step(text), label) for text, label in zip(texts, labels, strict=True) if text.strip()]
    return tuple(step for step, _ in kept), tuple(label for _, label in kept), blanks


def with_blanks(chain: LabelledChain, blanks: Iterable[Sequence[Any]]) -> tuple[list[str], list[float | None]]:
    """Texts and labels with the blank steps back in their places."""
    texts, labels = [step.text for step in chain.steps], list(chain.labels)
    for index, text, label in blanks:
        texts.insert(index, text)
        labels.insert(index, label)
    return texts, labels


def label_of(rating: Any, neutral: float, where: str) -> float | None:
    """The label of a human rating: 1 right, 0 neutral, -1 wrong, null not rated."""
    if rating is None:
        return None
    if isinstance(rating, bool) or rating not in (-1, 0, 1):
        raise InputError(f"{where} is {shown(rating)}, expected 1 (right), 0 (neutral), -1 (wrong) or null")
    return {1: 1.0, 0: neutral, -1: 0.0}[rating]


def rating_or_label(value: Any, neutral: float, where: str) -> float | None:
    """The label in a place that takes both: a whole number or null is a rating, a fraction the label itself."""
    return label_of(value, neutral, where) if value is None or isinstance(value, int) else label_between(value, where)


def as_rating_or_label(label: float) -> float:
    """What `rating_or_label` reads as this label: a hard one is a rating, for 0 there is neutral."""
    return label if label not in (0.0, 1.0) else 1 if label else -1


def score_in(value: Any) -> float | None:
    """A score that a file gives, None where it is none: nobody's record is refused for what a model once said."""
    is_score = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if is_score else None


def label_between(value: Any, where: str) -> float:
    """A label given as a number. Raises InputError where it is none from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{where} is {shown(value)}, expected a number from 0 to 1")
    return float(value)


def hard_labels(chain: LabelledChain, threshold: float) -> LabelledChain:
    """The chain with each label below the threshold as 0 and every other as 1; steps without one keep none."""
    return replace(chain, labels=tuple(None if label is None else float(label >= threshold) for label in chain.labels))


def rating_of(label: float | None, rating: Any = None) -> int | float | None:
    """The rating of a hard label: the one it was read from, if it can still mean the label."""
    if label is None:
        return None
    if rating == 0 or (rating == 1 and label == 1) or (rating == -1 and label == 0):
        return rating
    return 1 if label == 1 else -1
