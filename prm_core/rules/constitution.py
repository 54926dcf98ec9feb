"""A rules file: YAML read with the line of everything in it, and checked whole.

    limits: {boxes: 3}
    rules:
      - id: confirm-orders
        text: No order of more than three boxes before the user has confirmed it.
        severity: high
        predicate: name == "order" and args.boxes > limits.boxes and not any(earlier, it.args.about == "yes")
        first: {calls: [{name: ask, arguments: {about: "yes"}}]}
        right: [{calls: [{name: order, arguments: {item: cups red 7, boxes: 2}}]}]
        wrong: [{calls: [{name: order, arguments: {item: cups red 7, boxes: 4}}]}]

In place of `predicate` a rule may have `classifier`, a file that `prm rules fit` wrote, or `question`, which a judge is
asked, with `calibration`, a file that `prm rules fit` wrote too. A rule may also say what keeps it: `first`, a step
after which what it forbids may be done, or `instead`, one in place of it (`remedy.py`). `right` and `wrong` are
examples: a step, or `{prompt, steps}`, of which the last step is judged.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform.steps import FIELDS, parse_steps
from prm_core.rules import language, remedy
from prm_core.rules.calibration import JudgeCalibration
from prm_core.rules.classifier import Classifier
from prm_core.rules.remedy import Remedy
from prm_core.types import Step

SHIPPED = Path(__file__).parent / "shipped"
SEVERITIES = ("low", "medium", "high", "critical")
# How a rule is judged; each has one of these.
WAYS = ("predicate", "classifier", "question")
# What keeps a rule; each has one of these or none.
REMEDIES = ("first", "instead")
_RULE_KEYS = ("id", "text", "severity", *WAYS, "calibration", *REMEDIES, "right", "wrong")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
LONGEST_ID = 60


@dataclass(frozen=True, slots=True)
class Example:
    """A case that a rules file gives.

    Attributes:
        where: file and line.
        breaks: whether the last step breaks the rule.
        prompt: the question, may be empty.
        steps: at least one.
    """

    where: str
    breaks: bool
    prompt: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule.

    Attributes:
        id: names it in verdicts, metrics and reports.
        text: what is not to be done, in plain language.
        severity: one of SEVERITIES.
        way: one of WAYS.
        source: the predicate, the classifier's file or the question, as written.
        where: file and line.
        predicate, classifier: as the way is; a classifier's file need not be there yet, then None.
        calibration_file, calibration: of a question, what a judge's confidence is worth, where that was measured; its
            file as written, else empty, and what is in it, None where there is none yet.
        examples: in order.
        remedy: what keeps it; None where the file says nothing.
    """

    id: str
    text: str
    severity: str
    way: str
    source: str
    where: str
    predicate: language.Expression | None = field(default=None, compare=False)
    classifier: Classifier | None = field(default=None, compare=False)
    calibration_file: str = ""
    calibration: JudgeCalibration | None = field(default=None, compare=False)
    examples: tuple[Example, ...] = ()
    remedy: Remedy | None = field(default=None, compare=False)

    @property
    def file(self) -> str:
        """What `prm rules fit` writes for it, as the rules file has it; empty for a rule that is not fitted."""
        return self.source if self.way == "classifier" else self.calibration_file

    @property
    def rank(self) -> int:
        """Higher for what is worse."""
        return SEVERITIES.index(self.severity)


@dataclass(frozen=True, slots=True)
class Constitution:
    """Rules that hold together.

    Attributes:
        rules: in the file's order.
        limits: what predicates call `limits`.
        version: digest of what decides a verdict: the file, its classifiers and calibrations.
        path: of the file.
    """

    rules: tuple[Rule, ...]
    limits: Mapping[str, Any]
    version: str
    path: Path


def find(name: str, folder: Path = Path(".")) -> Path:
    """The rules file of a name: one that ships with the project, or a path from a folder.

    Raises InputError naming the known ones.
    """
    if not name.endswith((".yaml", ".yml")):
        path = SHIPPED / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(one.stem for one in SHIPPED.glob("*.yaml")))
            raise InputError(f"unknown rules {name!r}; known: {known}, or give the path of a YAML file")
        return path
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: no such rules file; shipped ones have names without .yaml")
    return path


def load(path: Path, *, trained: bool = True) -> Constitution:
    """The rules of a file.

    Args:
        trained: whether the file of every classifier and calibration must be there.

    Raises InputError with a line for each fault, naming file, line and rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); give a YAML file of rules") from None
    reader = _Reader(path, trained)
    rules, limits = reader.read(text)
    if reader.faults:
        raise InputError("\n".join([*reader.faults, f"{path}: correct these; docs/rules.md shows what a rule has"]))
    sources = [text, *(one.to_json() for rule in rules for one in (rule.classifier, rule.calibration)
                       if one is not None)]
    return Constitution(rules, limits, hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16], path)


class _Reader:
    """Reads a file as far as it goes, and notes every fault with its line."""

    def __init__(self, path: Path, trained: bool) -> None:
        self.faults: list[str] = []
        self._path = path
        self._trained = trained
        # By the identity of each mapping and list that was read.
        self._lines: dict[int, int] = {}

    def read(self, text: str) -> tuple[tuple[Rule, ...], dict[str, Any]]:
        """Rules and limits; what is wrong is in `faults`."""
        import yaml

        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            raw = None if node is None else self._plain(node)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            self._fault(mark.line + 1 if mark else 1, f"not valid YAML ({getattr(error, 'problem', error)})")
            return (), {}
        if not isinstance(raw, dict) or not isinstance(raw.get("rules"), list) or not raw["rules"]:
            self._fault(1, "expected a mapping with a list `rules` of at least one rule")
            return (), {}
        for name in raw.keys() - {"rules", "limits"}:
            self._fault(self._lines[id(raw)], f"unknown key {name!r}; a file has `rules` and `limits`")
        limits = raw.get("limits") or {}
        if not isinstance(limits, dict):
            self._fault(self._lines[id(raw)], "`limits` must be a mapping of names to values")
            limits = {}
        rules: list[Rule] = []
        # Of the files that are fitted, whose each is.
        places: dict[str, str] = {}
        for number, item in enumerate(raw["rules"]):
            rule = self._rule(item, number)
            if rule is not None and rule.id in {one.id for one in rules}:
                self._fault(self._lines[id(item)], "is there twice", rule.id)
            if rule is not None and rule.file:
                place = os.path.abspath(self._path.parent / rule.file)
                if places.setdefault(place, rule.id) != rule.id:
                    self._fault(self._lines[id(item)], f"names the file {rule.file}, which is of rule {places[place]}; "
                                "`prm rules fit` would write the one over the other: give each its own", rule.id)
            rules += [] if rule is None else [rule]
        return tuple(rules), limits

    def _plain(self, node: Any) -> Any:
        """A node's value. A key that is there twice, of which YAML readers take the last, is a fault."""
        import yaml

        if isinstance(node, yaml.ScalarNode):
            return yaml.SafeLoader("").construct_object(node)
        found: Any
        if isinstance(node, yaml.SequenceNode):
            found = [self._plain(one) for one in node.value]
        else:
            found = {}
            for key, value in node.value:
                name = self._plain(key)
                if not isinstance(name, str):
                    self._fault(key.start_mark.line + 1, f"the key {name!r} is no text; put it in quotes")
                    continue
                if name in found:
                    self._fault(key.start_mark.line + 1, f"the key {name!r} is there twice")
                found[name] = self._plain(value)
        self._lines[id(found)] = node.start_mark.line + 1
        return found

    def _fault(self, line: int, what: str, rule: str = "") -> None:
        self.faults.append(f"{self._path}:{line}: {f'rule {rule}: ' if rule else ''}{what}")

    def _rule(self, item: Any, number: int) -> Rule | None:
        if not isinstance(item, dict):
            self._fault(1, f"rules[{number}] must be a mapping of {', '.join(_RULE_KEYS)}")
            return None
        line, before = self._lines[id(item)], len(self.faults)
        name = item.get("id")
        if not isinstance(name, str) or not _ID.fullmatch(name) or len(name) > LONGEST_ID:
            self._fault(line, f"rules[{number}]: `id` is {name!r}; give lower-case words joined by -, such as "
                              "confirm-orders")
            name = f"rules[{number}]"
        for key in item.keys() - set(_RULE_KEYS):
            self._fault(line, f"unknown key {key!r}; known: {', '.join(_RULE_KEYS)}", name)
        text = item.get("text")
        if not isinstance(text, str) or not text.strip():
            self._fault(line, "`text` is missing: say in a sentence what is not to be done", name)
        if item.get("severity") not in SEVERITIES:
            self._fault(line, f"`severity` is {item.get('severity')!r}; give one of {', '.join(SEVERITIES)}", name)
        ways = [way for way in WAYS if way in item]
        if len(ways) != 1 or not isinstance(item[ways[0]], str) or not item[ways[0]].strip():
            self._fault(line, f"must have one of {', '.join(WAYS)}, as a text", name)
            return None
        examples = [one for kind in ("right", "wrong") for one in self._examples(item, kind, name, line)]
        rule = Rule(name, str(text), str(item.get("severity")), ways[0], item[ways[0]].strip(),
                    f"{self._path}:{line}", *self._judged(ways[0], item[ways[0]].strip(), name, line),
                    *self._calibrated(item, ways[0], name, line), tuple(examples), self._remedy(item, name, line))
        return rule if len(self.faults) == before else None

    def _judged(
        self, way: str, source: str, name: str, line: int
    ) -> tuple[language.Expression | None, Classifier | None]:
        try:
            if way == "predicate":
                return language.parse(source), None
            if way == "classifier":
                path = self._path.parent / source
                return None, Classifier.load(path) if self._trained or os.path.exists(path) else None
        except language.Fault as error:
            self._fault(line, f"its predicate: {error}", name)
        except InputError as error:
            self._fault(line, str(error), name)
        return None, None

    def _calibrated(
        self, item: Mapping[str, Any], way: str, name: str, line: int
    ) -> tuple[str, JudgeCalibration | None]:
        source = item.get("calibration", "")
        if "calibration" in item and (way != "question" or not isinstance(source, str) or not source.strip()):
            self._fault(line, "`calibration` is the path of a file, as a text, and of a rule with a `question`", name)
            return "", None
        source = source.strip()
        try:
            path = self._path.parent / source
            found = JudgeCalibration.load(path) if source and (self._trained or os.path.exists(path)) else None
            if found is not None and found.question != item["question"].strip():
                if self._trained:
                    raise InputError(f"its calibration {path} is of another question, {found.question!r}; `prm rules "
                                     "fit` writes one for this")
                found = None
            return source, found
        except InputError as error:
            self._fault(line, str(error), name)
            return "", None

    def _remedy(self, item: Mapping[str, Any], name: str, line: int) -> Remedy | None:
        given = [kind for kind in REMEDIES if kind in item]
        if len(given) > 1:
            self._fault(line, f"has both {' and '.join(given)}: what it forbids may be done later or never", name)
        for kind in given[:1]:
            try:
                return remedy.read(*parse_steps([item[kind]], "the step"), first=kind == "first")
            except (InputError, language.Fault) as error:
                self._fault(self._lines.get(id(item[kind]), line), f"`{kind}`: {error}", name)
        return None

    def _examples(self, item: Mapping[str, Any], kind: str, name: str, line: int) -> list[Example]:
        given = item.get(kind, [])
        if not isinstance(given, list):
            self._fault(line, f"`{kind}` must be a list of steps, or of {{prompt, steps}}", name)
            return []
        found = []
        for one in given:
            at = self._lines.get(id(one), line)
            try:
                found.append(Example(f"{self._path}:{at}", kind == "wrong", *_case(one)))
            except InputError as error:
                self._fault(at, f"an example of `{kind}`: {error}", name)
        return found


def _case(item: Any) -> tuple[str, tuple[Step, ...]]:
    """Prompt and steps of an example. Raises InputError for anything else."""
    if isinstance(item, Mapping) and "steps" in item:
        if set(item) - {"prompt", "steps"} or not isinstance(item.get("prompt", ""), str):
            raise InputError("has other than a text `prompt` and `steps`")
        return item.get("prompt", ""), parse_steps(item["steps"], "its steps")
    if isinstance(item, str) or (isinstance(item, Mapping) and set(item) <= set(FIELDS)):
        return "", parse_steps([item], "the step")
    raise InputError(f"must be a step (a text, or an object of {', '.join(FIELDS)}), or {{prompt, steps}}")


def names(rules: Sequence[Rule]) -> str:
    """Their ids, for people."""
    return ", ".join(rule.id for rule in rules)
