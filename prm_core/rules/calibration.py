"""What a judge's confidence in its verdicts on a rule is worth: fitted on steps that people marked.

Two numbers, kept as JSON beside the rules file. They are of one question and judge: another model is as sure in its own
way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core.errors import InputError
from prm_core.rules.classifier import LEAST
from prm_core.scoring.calibration import Calibrator, fit_calibrator


@dataclass(frozen=True, slots=True)
class JudgeCalibration:
    """Attributes:
        question: that was asked.
        judge: whose probabilities it maps.
        calibrator: from the probability that the judge tells to the one that is told.
    """

    question: str
    judge: str
    calibrator: Calibrator

    def apply(self, probability: float) -> float:
        """The probability that the step breaks the rule."""
        return float(self.calibrator.apply([probability])[0])

    def to_json(self) -> str:
        """As text that `load` reads."""
        return json.dumps({"question": self.question, "judge": self.judge, "calibrator": self.calibrator.to_dict()},
                          sort_keys=True)

    @classmethod
    def load(cls, path: Path) -> JudgeCalibration:
        """One that was written. Raises InputError where it is not there or is none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(raw["question"]), str(raw["judge"]), Calibrator.from_dict(raw["calibrator"]))
        except FileNotFoundError:
            raise InputError(f"its calibration {path} is not there; `prm rules fit` writes it") from None
        except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"its calibration {path} is none ({error}); name another file or take it away, and "
                             "`prm rules fit` writes one") from None


def check_enough(broken: Sequence[bool]) -> None:
    """Raises InputError where too few marked steps break a rule, or too few do not, to calibrate a judge on."""
    for kind, count in (("break", sum(broken)), ("keep", len(broken) - sum(broken))):
        if count < LEAST:
            raise InputError(f"{count} marked steps {kind} the rule, and calibrating a judge on it takes {LEAST}; have "
                             "more steps marked")


def fit(said: Sequence[float], broken: Sequence[bool], question: str, judge: str) -> JudgeCalibration:
    """Of a judge's probabilities that marked steps break a rule, by Platt's method.

    Raises InputError as `check_enough` does, and where the judge does not tell steps that break it from others.
    """
    check_enough(broken)
    found = fit_calibrator(said, broken, "platt", LEAST)
    if found.slope == 0:
        raise InputError(f"the judge {judge} is no surer of a broken rule on the steps that break it than on the "
                         f"others, so that its verdicts are worth nothing; ask it otherwise than {question!r}, or ask "
                         "another judge (label.judge)")
    return JudgeCalibration(question, judge, found)
