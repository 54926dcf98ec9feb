"""Calibration: how well probabilities match outcomes, and maps that make them match.

Pure functions over NumPy arrays, no files. Applying a fitted `Calibrator` needs NumPy alone: it is a handful of numbers
kept as JSON, never a pickled estimator.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

log = logging.getLogger(__name__)

METHODS = ("identity", "isotonic", "platt", "temperature")
# Platt reads the logit, which is infinite at 0 and 1; probabilities arrive from counts, where both are common.
_LOGIT_EDGE = 1e-6
# Temperatures from 1/50 to 50.
_LOG_SLOPES = (-np.log(50), np.log(50))
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One occupied bin of a reliability curve.

    Attributes:
        low, high: edges; a probability p belongs where low <= p < high, and 1 belongs to the last bin.
        mean_probability: mean predicted probability in the bin.
        observed_share: share of the bin's outcomes that were true.
        count: predictions in the bin, at least 1.
        weight: their summed weight, the count where all weigh 1.
    """

    low: float
    high: float
    mean_probability: float
    observed_share: float
    count: int
    weight: float


def _checked(
    probabilities: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Floats, Floats, Floats]:
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape:
        raise ValueError(f"probabilities {p.shape} and outcomes {y.shape} must be two lists of one length")
    if p.size == 0:
        raise ValueError("no predictions: calibration is not defined on an empty list")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("probabilities must lie in [0, 1]; NaN is not one")
    if not np.all((y == 0) | (y == 1)):
        raise ValueError("outcomes must be true or false")
    w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != p.shape or not np.all((w > 0) & np.isfinite(w)):
        raise ValueError("weights must be positive, one for each prediction")
    return p, y, w


def reliability_curve(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int, weights: ArrayLike | None = None
) -> list[ReliabilityBin]:
    """The occupied ones of `bins` equal-width bins over [0, 1], in order.

    Args:
        probabilities: (n,), each in [0, 1].
        outcomes: (n,), true or false.
        weights: (n,), positive; how many predictions each stands for (one over the chance that it was picked). 1 if
            left out.

    Raises ValueError on empty, unequal or out-of-range input.
    """
    p, y, w = _checked(probabilities, outcomes, weights)
    index = np.minimum((p * bins).astype(int), bins - 1)
    curve = []
    for b in np.unique(index):
        inside = index == b
        mean, share = (float(np.average(values[inside], weights=w[inside])) for values in (p, y))
        curve.append(ReliabilityBin(int(b) / bins, (int(b) + 1) / bins, mean, share, int(inside.sum()),
                                    float(w[inside].sum())))
    return curve


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int, weights: ArrayLike | None = None
) -> float:
    """Mean over predictions of |mean probability - observed share| of their bin: bins weigh by count (by weight).

    Source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning". Arguments and errors
    as for `reliability_curve`.
    """
    curve = reliability_curve(probabilities, outcomes, bins, weights)
    gaps = sum(b.weight * abs(b.mean_probability - b.observed_share) for b in curve)
    return gaps / sum(b.weight for b in curve)


def brier_score(probabilities: ArrayLike, outcomes: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared difference between probability and outcome. Source: Brier 1950. Raises ValueError on bad input."""
    p, y, w = _checked(probabilities, outcomes, weights)
    return float(np.average((p - y) ** 2, weights=w))


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A monotone map from raw to calibrated probability.

    Attributes:
        method: identity, isotonic, platt or temperature.
        labels: outcomes it was fitted on, or had at hand when the identity was chosen.
        reason: why it is the identity, empty otherwise.
        knots: isotonic: (raw, calibrated) pairs, raw increasing from 0 to 1, joined by straight lines.
        slope, intercept: platt and temperature: sigmoid(slope · logit(p) + intercept), slope >= 0; the temperature is
            1 / slope, its intercept 0.
    """

    method: str
    labels: int
    reason: str = ""
    knots: tuple[tuple[float, float], ...] = ()
    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown calibration method {self.method!r}; known: {', '.join(METHODS)}")
        if self.method == "isotonic":
            raw, calibrated = np.array(self.knots, dtype=np.float64).reshape(-1, 2).T
            if not (raw.size >= 2 and raw[0] == 0 and raw[-1] == 1 and np.all(np.diff(raw) > 0)):
                raise ValueError("the raw values of an isotonic calibrator's knots must rise from 0 to 1")
            if not (np.all(np.diff(calibrated) >= 0) and calibrated[0] >= 0 and calibrated[-1] <= 1):
                raise ValueError("the calibrated values of an isotonic calibrator's knots must lie in [0, 1] and not "
                                 "fall")
        if not (np.isfinite(self.slope) and np.isfinite(self.intercept) and self.slope >= 0):
            raise ValueError(f"slope {self.slope} and intercept {self.intercept} are no calibration; the slope must be "
                             "a number from 0 on and the intercept a number")
        if self.method == "temperature" and not (self.slope > 0 and self.intercept == 0):
            raise ValueError(f"a temperature is one over a slope above 0 (it is {self.slope}), without an intercept")

    def apply(self, probabilities: ArrayLike) -> Floats:
        """Calibrated probabilities, same shape, in [0, 1]. Raises ValueError where an input is not a probability."""
        p = np.asarray(probabilities, dtype=np.float64)
        if not np.all((p >= 0) & (p <= 1)):
            raise ValueError("probabilities must lie in [0, 1]; NaN is not one")
        if self.method == "identity":
            return p.copy()
        if self.method == "isotonic":
            raw, calibrated = np.array(self.knots).T
            return np.interp(p, raw, calibrated)
        return _sigmoid(self.slope * _logit(p) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` restores exactly this calibrator."""
        return {**asdict(self), "knots": [list(knot) for knot in self.knots]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Calibrator:
        """The calibrator `to_dict` wrote. Raises TypeError on unknown keys and types, ValueError on what is no monotone
        map into [0, 1]."""
        if not (isinstance(values["method"], str) and type(values["labels"]) is int and values["labels"] >= 0):
            raise TypeError("`method` must be a text and `labels` a whole number from 0 on")
        numbers = (values["slope"], values["intercept"], *(value for knot in values["knots"] for value in knot))
        if not all(type(value) in (int, float) for value in numbers):
            raise TypeError("`slope`, `intercept` and the values of `knots` must be numbers")
        return Calibrator(**{**values, "knots": tuple((float(x), float(y)) for x, y in values["knots"])})


def _logit(p: Floats) -> Floats:
    p = np.clip(p, _LOGIT_EDGE, 1 - _LOGIT_EDGE)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: Floats) -> Floats:
    # tanh form: no overflow for large |x|.
    return 0.5 * (1 + np.tanh(0.5 * x))


def _fit_isotonic(p: Floats, y: Floats, w: Floats) -> Calibrator:
    """Isotonic regression, with the raw probability counted as one more label at every point.

    Plain isotonic regression is flat inside each pooled block and exactly 0 or 1 at its ends: steps that the raw
    score tells apart become ties (best-of-N then picks among them blindly), and a few right answers in a row are
    reported as certainty. (n · isotonic + raw) / (n + 1) is strictly increasing, reaches 0 or 1 only where the raw
    value does, and moves no value by more than 1 / (n + 1).
    """
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0, y_max=1, increasing=True, out_of_bounds="clip").fit(p, y, w)
    raw = np.unique(np.concatenate([[0.0], fitted.X_thresholds_, [1.0]]))
    calibrated = (p.size * fitted.predict(raw) + raw) / (p.size + 1)
    knots = tuple((float(x), float(c)) for x, c in zip(raw, calibrated, strict=True))
    return Calibrator("isotonic", labels=p.size, knots=knots)


def _smoothed(y: Floats) -> Floats:
    """What to fit towards instead of 0 and 1, so that labels which the score separates give no certainty.

    Source: Platt 1999, "Probabilistic Outputs for Support Vector Machines", the targets t+ and t-.
    """
    positive = int(y.sum())
    return np.where(y == 1, (positive + 1) / (positive + 2), 1 / (y.size - positive + 2))


def _fit_platt(p: Floats, y: Floats, w: Floats) -> Calibrator:
    """Logistic regression on the logit, towards smoothed targets. Source: Platt 1999, as for `_smoothed`."""
    from sklearn.linear_model import LogisticRegression

    targets = _smoothed(y)
    # A soft target is two weighted hard ones; C is large enough for the penalty not to show.
    logits = np.tile(_logit(p), 2)[:, None]
    model = LogisticRegression(C=1e8, max_iter=1000)
    weights = np.tile(w / w.mean(), 2) * np.concatenate([targets, 1 - targets])
    model.fit(logits, np.repeat([1, 0], p.size), sample_weight=weights)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope < 0 or np.ptp(logits) == 0:
        # A calibrator must not turn the order round; the best map that may not is the constant. Of one probability
        # alone any slope fits, and what it says of others is made up.
        log.warning("the probabilities are all the same or fall as the outcomes rise: Platt's slope is set to 0")
        slope, intercept = 0.0, float(_logit(np.average(targets, weights=w)))
    return Calibrator("platt", labels=p.size, slope=slope, intercept=intercept)


def _fit_temperature(p: Floats, y: Floats, w: Floats) -> Calibrator:
    """The temperature with the least cross-entropy to smoothed targets.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    from scipy.optimize import minimize_scalar

    logits, targets = _logit(p), _smoothed(y)

    def cross_entropy(log_slope: float) -> float:
        x = np.exp(log_slope) * logits
        return float(np.average(targets * np.logaddexp(0, -x) + (1 - targets) * np.logaddexp(0, x), weights=w))

    found = minimize_scalar(cross_entropy, bounds=_LOG_SLOPES, method="bounded")
    return Calibrator("temperature", labels=p.size, slope=float(np.exp(found.x)))


_FITS = {"isotonic": _fit_isotonic, "platt": _fit_platt, "temperature": _fit_temperature}


def _hard(probabilities: ArrayLike, true: Floats, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """The same outcomes as true and false ones alone: one that may be either as two, which share its weight."""
    if not np.all((true >= 0) & (true <= 1)):
        raise ValueError("outcomes must be true, false or the probability of true; NaN is not one")
    likelier = np.round(true)
    p, y, w = _checked(probabilities, likelier, weights)
    other = np.abs(true - likelier)
    split = other > 0
    return (np.concatenate([p, p[split]]), np.concatenate([y, 1 - y[split]]),
            np.concatenate([w * (1 - other), (w * other)[split]]))


def fit_calibrator(
    probabilities: ArrayLike, outcomes: ArrayLike, method: str, min_labels: int, weights: ArrayLike | None = None
) -> Calibrator:
    """The calibrator that maps `probabilities` to the observed share of true `outcomes`.

    Args:
        probabilities: (n,), each in [0, 1]; n may be 0.
        outcomes: (n,), true or false, or the probability of true: such a one counts as true by it and as false by the
            rest.
        method: identity, isotonic, platt or temperature.
        weights: (n,), as for `reliability_curve`.
        min_labels: with fewer outcomes, or outcomes of one class, the identity is returned, with a logged warning
            and `reason` set.

    Raises ValueError on unequal or out-of-range input and on an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown calibration method {method!r}; known: {', '.join(METHODS)}")
    true = np.asarray(outcomes, dtype=np.float64)
    count = len(true)
    if count < min_labels or count == 0:
        reason = f"{count} labels, fewer than the {max(min_labels, 1)} needed"
    elif np.all(true == 0) or np.all(true == 1):
        reason = f"all {count} labels are of one class"
    elif method == "identity":
        return Calibrator("identity", labels=count, reason="asked for")
    else:
        return replace(_FITS[method](*_hard(probabilities, true, weights)), labels=count)
    log.warning("no calibration: %s; probabilities stay as they are", reason)
    return Calibrator("identity", labels=count, reason=reason)


def folds_of_groups(groups: Sequence[str], folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(rows to fit on, rows held out) of each fold; rows of a group stay together.

    Args:
        groups: (n,), e.g. trajectory ids: the steps of a chain are not independent.
        folds: at most this many; never more than there are groups.

    Raises ValueError when there are fewer than two groups.
    """
    from sklearn.model_selection import GroupKFold

    distinct = len(set(groups))
    if distinct < 2:
        raise ValueError("held-out calibration needs rows of at least two groups")
    splitter = GroupKFold(min(folds, distinct), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(groups)), groups=list(groups)))
