"""Which steps break which rules, with what probability and why: the verdicts that everything else goes by.

A step is judged as it was written, before anything of it is carried out; whether it is right is another question, and
whether it leads to success a third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prm_core.config import RulesConfig
from prm_core.errors import InputError
from prm_core.rules import language
from prm_core.rules.constitution import SHIPPED, Constitution, Rule, find, load, names
from prm_core.rules.reading import answered, calls_of, earlier_calls
from prm_core.sampling.episodes import Ruled
from prm_core.turns import record
from prm_core.types import Step

Chain = tuple[str, Sequence[Step]]
# From (question, chain) pairs, of whose last steps is asked, to the probability that it breaks the rule, and why.
Ask = Callable[[Sequence[tuple[str, Chain]]], Sequence[tuple[float, str]]]


@dataclass(frozen=True, slots=True)
class Judge:
    """Who answers rules that are questions. Attributes: name: of the model, as calibrations name it; ask: asks it."""

    name: str
    ask: Ask


# A broken rule is told from this probability on.
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of a step by one rule.

    Attributes:
        rule: which.
        probability: that the step breaks it; of a predicate 0 or 1.
        reason: why, for people; empty where nothing speaks for it.
        remedy: what the rule says to do, before the step or in its place; None where it says nothing, or of a predicate
            that the step does not meet.
    """

    rule: Rule
    probability: float
    reason: str
    remedy: Step | None = None

    def told(self) -> dict[str, Any]:
        """What keeps the rule, by how it does: `first` or `instead` with the step; nothing where that is not known."""
        if self.rule.remedy is None or self.remedy is None:
            return {}
        return {"first" if self.rule.remedy.first else "instead": record(self.remedy)}


@dataclass(frozen=True, slots=True)
class _Scene:
    """A step to be judged, the last of `steps`: its calls, and those before it, as rules see them."""

    prompt: str
    steps: Sequence[Step]
    calls: list[dict[str, Any]]
    earlier: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Overseer:
    """Rules, and how surely one must be broken to be told.

    Attributes:
        constitution: the rules.
        threshold: probability from which on a rule is taken for broken.
        judge: for rules that are questions.
    """

    constitution: Constitution
    threshold: float = THRESHOLD
    judge: Judge | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a rule that nobody here can judge, or that was calibrated for another judge."""
        asked = [rule for rule in self.constitution.rules if rule.way == "question"]
        if asked and self.judge is None:
            raise InputError(f"{asked[0].where}: {names(asked)} ask a judge, and none is there where these rules are "
                             "used; give a predicate or a classifier instead")
        for rule in asked:
            if self.judge is not None and rule.calibration is not None and rule.calibration.judge != self.judge.name:
                raise InputError(f"{rule.where}: rule {rule.id} was calibrated for the judge {rule.calibration.judge}, "
                                 f"and {self.judge.name} is asked; run `prm rules fit` with this one, or leave "
                                 "`calibration` out")

    def verdicts(self, chains: Sequence[Chain], *, last: bool = False) -> list[list[list[Verdict]]]:
        """Of each chain, of each step (or of the last alone), the verdict of each rule."""
        found = []
        questions: list[tuple[str, Chain]] = []
        for prompt, steps in chains:
            begin = len(steps) - 1 if last else 0
            # Read once: runs may be long.
            earlier = earlier_calls(steps[:begin])
            of_steps = []
            for place in range(begin, len(steps)):
                calls = calls_of(steps[place])
                scene = _Scene(prompt, steps[: place + 1], calls, earlier)
                of_steps.append([self._verdict(rule, scene, questions) for rule in self.constitution.rules])
                earlier += answered(steps[place], calls)
            found.append(of_steps)
        if not questions:
            return found
        assert self.judge is not None
        answers = iter(self.judge.ask(questions))
        return [[[_answered(one, *next(answers)) if one.rule.way == "question" else one for one in step]
                 for step in chain] for chain in found]

    def _verdict(self, rule: Rule, scene: _Scene, questions: list[tuple[str, Chain]]) -> Verdict:
        if rule.predicate is not None:
            return _by_predicate(rule, rule.predicate, self.constitution, scene)
        remedy = rule.remedy and rule.remedy.fill(_scopes(self.constitution, scene)[0])
        if rule.classifier is not None:
            probability, sign = rule.classifier.judge(scene.prompt, scene.steps)
            return Verdict(rule, probability, sign and f"a step like those that break it: {sign}", remedy)
        questions.append((rule.source, (scene.prompt, scene.steps)))
        return Verdict(rule, 0.0, "", remedy)

    def broken(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Those of a step whose rules it breaks, the worst first."""
        return sorted((one for one in verdicts if one.probability >= self.threshold), key=lambda one: -one.rule.rank)

    def breaks(self, chains: Sequence[Chain], *, last: bool = False) -> list[list[list[Verdict]]]:
        """As `verdicts`, of each step only those whose rules it breaks."""
        return [[self.broken(step) for step in chain] for chain in self.verdicts(chains, last=last)]

    def counts(self, chains: Sequence[Chain]) -> list[int]:
        """How many steps of each chain break a rule."""
        return [sum(bool(step) for step in chain) for chain in self.breaks(chains)]

    def last_steps(self, chains: Sequence[Chain]) -> list[Ruled]:
        """What rules say of the last step of each chain, to whoever chooses it. Where a rule that it breaks has no
        remedy, those of others are none."""
        firsts = [rule.remedy for rule in self.constitution.rules if rule.remedy is not None and rule.remedy.first]
        found = []
        for (_, steps), (broken,) in zip(chains, self.breaks(chains, last=True), strict=True):
            remedies = tuple(one.remedy for one in broken if one.remedy is not None)
            if len(remedies) < len(broken):
                remedies = ()
            later = bool(remedies) and all(one.rule.remedy is not None and one.rule.remedy.first for one in broken)
            found.append(Ruled(len(broken), remedies, later, any(one.may_be(steps[-1]) for one in firsts)))
        return found


def _answered(asked: Verdict, probability: float, reason: str) -> Verdict:
    """What the judge says, with the probability that its confidence is worth where that was measured."""
    known = asked.rule.calibration
    return replace(asked, probability=probability if known is None else known.apply(probability), reason=reason)


def load_overseer(
    config: RulesConfig, workspace: Path, judge: Callable[[], Judge] | None = None
) -> Overseer | None:
    """The rules that a configuration names; None where it names none.

    Args:
        workspace: from which a file's path goes.
        judge: makes the judge, where a rule asks one.

    Raises InputError for a file that is none, or one of the workspace that is not of the version that is named.
    """
    if not config.file:
        return None
    found = load(find(config.file, workspace))
    if found.path.parent != SHIPPED and found.version != config.version:
        raise InputError(f"{found.path} is of version {found.version}, and rules.version is {config.version!r}; set "
                         "that to it, so that what depends on the rules is made anew")
    asks = any(rule.way == "question" for rule in found.rules)
    return Overseer(found, config.threshold, judge() if asks and judge is not None else None)


def _scopes(constitution: Constitution, scene: _Scene) -> list[dict[str, Any]]:
    """What expressions may speak of, for each call of the last step, or for the step itself where it calls nothing."""
    step = scene.steps[-1]
    around = {"text": step.text, "reasoning": step.reasoning, "agent": step.agent, "prompt": scene.prompt,
              "earlier": scene.earlier, "limits": constitution.limits}
    return [{**around, **call} for call in scene.calls or [{}]]


def _by_predicate(
    rule: Rule, predicate: language.Expression, constitution: Constitution, scene: _Scene
) -> Verdict:
    """Whether any call of the last step meets the predicate, or the step itself where it calls nothing."""
    step = scene.steps[-1]
    for scope, written in zip(_scopes(constitution, scene), step.calls or (None,), strict=True):
        what = f"{written.name}({written.arguments})" if written is not None else step.text
        why = ""
        try:
            if not predicate(scope):
                continue
        except RecursionError:
            why = " cannot be decided, since its arguments are nested too deep:"
        except language.Undecided as error:
            why = f" cannot be decided, since {error}:"
        return Verdict(rule, 1.0, f"{_cut(what)}:{why} {rule.text}", rule.remedy and rule.remedy.fill(scope))
    return Verdict(rule, 0.0, "")


def _cut(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
