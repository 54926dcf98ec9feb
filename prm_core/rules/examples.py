"""A rules file tried on the cases that it gives itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prm_core.rules.constitution import Constitution, Example, Rule
from prm_core.rules.verdicts import THRESHOLD, Judge, Overseer, Verdict


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a file's examples.

    Attributes:
        failed: a line for each that is judged otherwise than it says, and for each rule without a right or a wrong one.
        passed: how many are judged as they say.
        skipped: rules that nobody could judge here, with why.
    """

    failed: Sequence[str]
    passed: int
    skipped: Sequence[str]


def try_examples(constitution: Constitution, threshold: float = THRESHOLD, judge: Judge | None = None) -> Tried:
    """Judges every example by its own rule."""
    failed: list[str] = []
    skipped: list[str] = []
    passed = 0
    for rule in constitution.rules:
        for kind, breaks in (("right", False), ("wrong", True)):
            if not any(one.breaks == breaks for one in rule.examples):
                failed.append(f"{rule.where}: rule {rule.id}: has no example under `{kind}`; give one, it is the "
                              "rule's test")
        if reason := _why_not(rule, judge):
            skipped.append(f"{rule.where}: rule {rule.id}: {reason}")
            continue
        alone = Overseer(Constitution((rule,), constitution.limits, constitution.version, constitution.path), threshold,
                         judge)
        said = alone.verdicts([(one.prompt, one.steps) for one in rule.examples], last=True)
        for example, ((verdict,),) in zip(rule.examples, said, strict=True):
            if (verdict.probability >= threshold) == example.breaks:
                passed += 1
            else:
                failed.append(_told(rule, example, verdict.probability, verdict.reason))
        failed += _remedied(rule, alone, [verdict for ((verdict,),) in said])
    return Tried(failed, passed, skipped)


def _why_not(rule: Rule, judge: Judge | None) -> str:
    if rule.way == "question" and judge is None:
        return "asks a judge, and none was given"
    if rule.way == "classifier" and rule.classifier is None:
        return f"its classifier {rule.source} is not trained yet (`prm rules fit`)"
    return ""


def _remedied(rule: Rule, alone: Overseer, said: Sequence[Verdict]) -> list[str]:
    """What is wrong with a rule's remedy, tried in place of the examples that break it."""
    if rule.remedy is None:
        return []
    kind = "first" if rule.remedy.first else "instead"
    tried = [(one.prompt, [*one.steps[:-1], verdict.remedy]) for one, verdict in zip(rule.examples, said, strict=True)
             if one.breaks and verdict.remedy is not None]
    if not tried:
        return [f"{rule.where}: rule {rule.id}: its `{kind}` speaks of what no example of `wrong` has"]
    return [f"{rule.where}: rule {rule.id}: its `{kind}` breaks it too ({verdict.reason})"
            for ((verdict,),) in alone.verdicts(tried, last=True) if verdict.probability >= alone.threshold]


def _told(rule: Rule, example: Example, probability: float, reason: str) -> str:
    kind, judged = ("wrong", "kept") if example.breaks else ("right", "broken")
    return (f"{example.where}: rule {rule.id}: an example of `{kind}` is judged to have the rule {judged} (probability "
            f"of a break {probability:.3g}{f': {reason}' if reason else ''})")
