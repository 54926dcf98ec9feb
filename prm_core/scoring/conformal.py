"""When to stop a run, and how far a run is clean: thresholds on step scores that keep a promise about new runs.

Applying a fitted threshold needs no library at all; the numbers are kept as JSON beside a model. The promises hold for
any step scores, good or bad: a poor reward model costs alarms and length, never the promise. They hold for runs like
those that were fitted on (of the same policy, the same kind of problems): a run that the reward model calls out of its
domain is to be given neither an alarm nor a clean prefix, which breaks neither promise.

Each threshold is that order statistic of the calibration runs' lowest scores of which `_spared` says how far from the
end it lies. Two guarantees follow, without any assumption about the scores:

- over the draw of calibration runs and a new run, all exchangeable, the promise is broken with probability at most
  alpha: split conformal prediction, with its n + 1 (Vovk, Gammerman, Shafer 2005, "Algorithmic Learning in a Random
  World"; as the control of a monotone 0-1 loss: Angelopoulos et al. 2024, "Conformal Risk Control");
- of runs drawn independently, with probability `confidence` over the draw of the calibration runs, the promise is
  broken in at most the share alpha of all new runs (Vovk 2012, "Conditional validity of inductive conformal
  predictors", proposition 2a). One fitted threshold is used for long, so its own error rate is what counts.

Why no estimated likelihood ratio with Ville's inequality (arXiv 2512.03109): that is a test martingale only where the
ratio is exact, so an estimated one guarantees nothing, and it stopped fewer failing runs than the lowest score does
(docs/benchmarks.md). Looking at every step costs nothing here either: the lowest score so far only falls, so its last
value is the whole run's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prm_core.errors import InputError
from prm_core.platform import store, sums

FILE = "promises.json"
# Of alpha (n + 1), which is to count as whole where it is so but for rounding.
ROUNDING = 1e-9


class TooFewRuns(InputError):
    """There are not enough calibration runs for any promise at the level asked for."""


@dataclass(frozen=True, slots=True)
class _Promise:
    """What a threshold was fitted for and on.

    Attributes:
        alpha: how often the promise may be broken, in (0, 1).
        confidence: probability, over the draw of the calibration runs, that it is broken no more often, in [0, 1); 0
            for the guarantee over that draw alone.
        runs: calibration runs.
    """

    alpha: float
    confidence: float
    runs: int

    def __post_init__(self) -> None:
        _check_levels(self.alpha, self.confidence)
        if self.runs < 1:
            raise ValueError(f"fitted on {self.runs} runs")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores exactly this."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Alarm(_Promise):
    """Stops a run that is failing, at the first step whose score is below `threshold`.

    Of runs that do not fail it stops at most the share alpha, at whatever step: the false-alarm rate of the whole run.

    Attributes:
        threshold: of step scores.
    """

    threshold: float

    def __post_init__(self) -> None:
        # Without arguments `super` does not find its class in one with slots.
        _Promise.__post_init__(self)
        _check_finite([self.threshold])

    def step(self, scores: Sequence[float]) -> int:
        """0-based index of the step after which the run is to stop, -1 where no score so far says so.

        Args:
            scores: of the steps so far, (steps,). More steps do not change an index that was given.

        Raises ValueError where a score is no number.
        """
        _check_finite(scores)
        return next((index for index, score in enumerate(scores) if score < self.threshold), -1)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Alarm:
        """The alarm `to_dict` wrote. Raises KeyError, TypeError or ValueError on what is none."""
        return Alarm(**_read(values), threshold=_number(values, "threshold"))


@dataclass(frozen=True, slots=True)
class CleanPrefix(_Promise):
    """Says how many steps from the first on are clean: those before the first score at or below `threshold`.

    For at most the share alpha of runs those steps hold an error. Runs that are promised nothing count among them.

    Attributes:
        threshold: of step scores; None where errors are so rare that every run may be called clean to its end.
    """

    threshold: float | None

    def __post_init__(self) -> None:
        _Promise.__post_init__(self)
        if self.threshold is not None:
            _check_finite([self.threshold])

    def length(self, scores: Sequence[float]) -> int:
        """How many steps from the first on are promised to be clean, 0 for none.

        Args:
            scores: of the steps so far, (steps,). More steps never take back what was promised.

        Raises ValueError where a score is no number.
        """
        _check_finite(scores)
        if self.threshold is None:
            return len(scores)
        threshold = self.threshold
        return next((index for index, score in enumerate(scores) if score <= threshold), len(scores))

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> CleanPrefix:
        """The prefix `to_dict` wrote. Raises KeyError, TypeError or ValueError on what is none."""
        threshold = None if values["threshold"] is None else _number(values, "threshold")
        return CleanPrefix(**_read(values), threshold=threshold)


@dataclass(frozen=True, slots=True)
class Promises:
    """What is promised of the runs that one reward model scores.

    Attributes:
        alarm, prefix: None where there were too few runs to fit it on.
    """

    alarm: Alarm | None = None
    prefix: CleanPrefix | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.alarm is not None or self.prefix is not None

    def save(self, folder: Path) -> None:
        """Writes the file beside a model's weights, and the folder's digests again. Raises InputError where its files
        are not as those record them."""
        sums.check_sums(folder, "copy the model's folder whole or make it again")
        self.write(folder / FILE)
        sums.write_sums(folder)

    def write(self, path: Path) -> None:
        """Writes one JSON file; `read` restores exactly this."""
        store.write_json(path, {name: made and made.to_dict() for name, made in (("alarm", self.alarm),
                                                                                ("prefix", self.prefix))})

    @staticmethod
    def read(path: Path) -> Promises:
        """What `write` wrote. Raises InputError where the file is none of it."""
        values = store.read_json(path)
        try:
            alarm, prefix = values["alarm"], values["prefix"]
            return Promises(None if alarm is None else Alarm.from_dict(alarm),
                            None if prefix is None else CleanPrefix.from_dict(prefix))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: holds no alarm and clean prefix ({error}); copy the model's folder whole, or "
                             "take the file away to go without") from error

    @staticmethod
    def load(folder: Path) -> Promises:
        """What `save` wrote, nothing for a model saved without. Raises InputError as `read` does."""
        path = Path(folder) / FILE
        return Promises.read(path) if path.exists() else NO_PROMISES


NO_PROMISES = Promises()


def fit_alarm(runs: Sequence[Sequence[float]], failing: ArrayLike, alpha: float, confidence: float = 0.9) -> Alarm:
    """The alarm that stops the most failing runs while it stops at most the share `alpha` of the others.

    Args:
        runs: step scores of finished runs, independent of each other: where several are of one problem, one of them
            that does not fail.
        failing: (runs,), whether a run fails, in the sense in which an alarm is false when it does not: it holds a
            wrong step, or its outcome is wrong. Only runs that do not fail decide the threshold.
        alpha: false-alarm rate, in (0, 1).
        confidence: probability, over the draw of these runs, that the share is kept; 0 for the guarantee over that draw
            alone, which needs fewer runs.

    Raises TooFewRuns where too few runs do not fail, ValueError on a level out of range, a score that is no number or
    a run without a step.
    """
    failed = _checked(runs, failing).astype(bool)
    lowest = np.sort([min(scores) for scores, fails in zip(runs, failed, strict=True) if not fails])
    spared = _spared(len(lowest), alpha, confidence, "that do not fail")
    return Alarm(alpha, confidence, len(lowest), float(lowest[spared]))


def fit_clean_prefix(
    runs: Sequence[Sequence[float]], first_errors: ArrayLike, alpha: float, confidence: float = 0.9
) -> CleanPrefix:
    """The clean prefix that promises the most steps while at most the share `alpha` of runs hold an error in theirs.

    Args:
        runs: step scores of finished runs, independent of each other: one a problem.
        first_errors: (runs,) 0-based index of each run's first wrong step, -1 where every step is right.
        alpha: share of runs whose promised steps may hold an error, in (0, 1).
        confidence: probability, over the draw of these runs, that the share is kept; 0 for the guarantee over that draw
            alone, which needs fewer runs.

    Raises TooFewRuns on too few runs, ValueError on a level out of range, a score that is no number, a run without a
    step or an error beyond a run's end.
    """
    errors = _checked(runs, first_errors)
    if any(not -1 <= error < len(scores) for scores, error in zip(runs, errors, strict=True)):
        raise ValueError("a first error must be the index of a step of its run, or -1")
    spared = _spared(len(runs), alpha, confidence, "")
    # The steps up to a run's error are promised where the lowest of their scores is above the threshold.
    lowest = sorted((min(scores[: error + 1]) for scores, error in zip(runs, errors, strict=True) if error >= 0),
                    reverse=True)
    return CleanPrefix(alpha, confidence, len(runs), float(lowest[spared]) if spared < len(lowest) else None)


def _spared(runs: int, alpha: float, confidence: float, which: str) -> int:
    """Of how many calibration runs the promise may be broken so that both guarantees hold: the largest r with
    r + 1 <= alpha (runs + 1) and P(Binomial(runs, alpha) <= r) <= 1 - confidence.

    A threshold at the (r + 1)-th lowest of n independent values leaves below it a share that is Beta(r + 1, n - r) or
    less, which is above alpha with just that probability.
    """
    from scipy.stats import binom

    _check_levels(alpha, confidence)
    most = math.floor(alpha * (runs + 1) + ROUNDING)
    allowed = int((binom.cdf(np.arange(most), runs, alpha) <= 1 - confidence + ROUNDING).sum())
    if not allowed:
        needed = max(math.ceil(1 / alpha - ROUNDING) - 1,
                     math.ceil(math.log(1 - confidence) / math.log1p(-alpha) - ROUNDING), 1)
        raise TooFewRuns(f"{runs} calibration runs {which}".rstrip() + f", and a rate of {alpha:g} with confidence "
                         f"{confidence:g} needs {needed}; give more runs, a higher rate or a lower confidence")
    return allowed - 1


def _checked(runs: Sequence[Sequence[float]], said: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(said)
    if values.shape != (len(runs),) or (values.dtype.kind not in "bi" and len(runs)):
        raise ValueError(f"{len(runs)} runs need one whole or true or false value each, not {values.dtype} "
                         f"{values.shape}")
    for scores in runs:
        if not len(scores):
            raise ValueError("a run without a step has nothing to be judged by")
        _check_finite(scores)
    return values.astype(np.int64)


def _check_levels(alpha: float, confidence: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; give a share above 0 and below 1")
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a probability from 0 to below 1")


def _check_finite(scores: Sequence[float]) -> None:
    if not all(math.isfinite(score) for score in scores):
        raise ValueError("a score is no finite number")


def _number(values: Mapping[str, Any], name: str) -> float:
    if type(values[name]) not in (int, float):
        raise TypeError(f"`{name}` must be a number")
    return float(values[name])


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every promise has. Raises TypeError on others."""
    if set(values) != {"alpha", "confidence", "runs", "threshold"} or type(values["runs"]) is not int:
        raise TypeError("a promise has `alpha`, `confidence`, `threshold` and a whole number of `runs`")
    return {"alpha": _number(values, "alpha"), "confidence": _number(values, "confidence"), "runs": values["runs"]}
