"""Verifier: a step is wrong when one of the equations written in it does not hold, and right when all of them do."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from prm_core.labeling.strategies.base import STRATEGIES, Chain, LabelingTools, Strategy
from prm_core.maths.equations import MAX_TEXT, Equation, find_equations
from prm_core.maths.exact import Undecided, holds
from prm_core.maths.symbolic import SympyProcess, needs_sympy
from prm_core.types import StepLabel

log = logging.getLogger(__name__)
NAME = "verifier"
CACHED_STEPS = 65536


@dataclass(frozen=True, slots=True)
class Finding:
    """What the equations of a step say: whether they hold (None: nothing could be checked), and why."""

    is_correct: bool | None
    reason: str


class VerifierLabeler(Strategy):
    """Checks the equations in a step exactly, with rational numbers, and by sympy where those do not do.

    A step without an equation, with unknowns, or with anything that has two readings gets no verdict. How far a
    verdict can be trusted is estimated from outcomes alone (`prepare`): a false equation is nearly always a wrong
    step, but true ones say nothing about quantities taken from the wrong place.
    """

    version = 2

    def __init__(self, tools: LabelingTools) -> None:
        super().__init__(tools)
        self.settings = tools.config.label.verifier
        self.sympy = SympyProcess()
        self.findings: LRUCache[str, Finding] = LRUCache(CACHED_STEPS)
        # Laplace's rule before any outcome is known.
        self.confidence = {True: 0.5, False: 0.5}

    @property
    def model(self) -> str:
        return ""

    @property
    def parameters(self) -> dict[str, Any]:
        return dataclasses.asdict(self.settings)

    def prepare(self, chains: Sequence[Chain], seed: int) -> None:
        """Estimates how often each verdict is right, from how chains end, by Laplace's rule.

        "Wrong": the share of chains with a false equation that end wrong. "Right": a chain without one that ends wrong
        has its first error at one of its m passed steps, any of them alike, and goes on from a wrong value after it:
        (m + 1) / 2 of its verdicts are expected to be mistaken.
        """
        ended_wrong = false_chains = passed = 0
        mistaken = 0.0
        for chain in chains:
            if chain.trajectory.outcome is None:
                continue
            verdicts = [self.check(step.text).is_correct for step in chain.trajectory.steps]
            if False in verdicts:
                false_chains += 1
                ended_wrong += not chain.trajectory.outcome
            elif True in verdicts:
                passed += verdicts.count(True)
                mistaken += 0.0 if chain.trajectory.outcome else (verdicts.count(True) + 1) / 2
        self.confidence = {False: (ended_wrong + 1) / (false_chains + 2), True: 1 - (mistaken + 1) / (passed + 2)}
        log.info("%s: %d of %d chains with a false equation end wrong (confidence %.3f); of %d steps that passed in "
                 "the other chains %.0f are expected to be wrong (confidence %.3f)", NAME, ended_wrong, false_chains,
                 self.confidence[False], passed, mistaken, self.confidence[True])

    def label(self, chains: Sequence[Chain], seed: int) -> list[StepLabel]:
        """See `Strategy.label`. Only a step that runs into the time-out can differ from one run to the next."""
        return [self._label(chain.trajectory.id, index, self.check(step.text))
                for chain in chains for index, step in enumerate(chain.trajectory.steps)]

    def _label(self, trajectory_id: str, index: int, finding: Finding) -> StepLabel:
        if finding.is_correct is None:
            return StepLabel(trajectory_id, index, NAME, None, None, 0.0, 0, finding.reason)
        confidence = self.confidence[finding.is_correct]
        value = confidence if finding.is_correct else 1 - confidence
        return StepLabel(trajectory_id, index, NAME, value, finding.is_correct, confidence, 0, finding.reason)

    def check(self, text: str) -> Finding:
        """What the equations in a step's text say, within the configured time."""
        finding = self.findings.get(text)
        if finding is None:
            finding = self.findings[text] = self._check(text)
        return finding

    def _check(self, text: str) -> Finding:
        if len(text) > MAX_TEXT:
            return Finding(None, f"longer than {MAX_TEXT} characters, not checked")
        deadline = time.monotonic() + self.settings.timeout
        equations = find_equations(text)
        checked = 0
        for equation in equations:
            if time.monotonic() >= deadline:
                return Finding(None, f"not checked within {self.settings.timeout:g} s")
            verdict = self._holds(equation, deadline)
            if verdict is False:
                return Finding(False, f"{_short(equation)} does not hold")
            checked += verdict is True
        if checked:
            return Finding(True, f"{checked} of {len(equations)} equations checked, all hold")
        return Finding(None, "no equation that can be checked" if equations else "no equation")

    def _holds(self, equation: Equation, deadline: float) -> bool | None:
        try:
            return holds(equation)
        except Undecided:
            if not needs_sympy(equation):
                return None
        try:
            return self.sympy.holds(equation, deadline - time.monotonic())
        except Undecided:
            return None


def _short(equation: Equation) -> str:
    text = str(equation)
    return text if len(text) <= 120 else f"{text[:117]}..."


STRATEGIES.register(NAME)(VerifierLabeler)
