"""May a challenger that was trained on served traffic become the champion? Pure: from what was measured of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from prm_core.config import Config
from prm_core.evaluation.probe.bounds import SUFFIX_PASSES

Figures = Mapping[str, Any]


def faults(figures: Figures, config: Config, *, retrain: bool = False) -> list[str]:
    """Why a challenger is refused, each with its figures; empty where it is not.

    It must be better on the new traffic (by people's verdicts, or beyond the interval by outcomes; worse by neither),
    not worse on the old chains beyond the interval, calibrated on both, and not easier to talk out of a verdict.

    Args:
        figures: as `measure` has them.
        retrain: the challenger is there because data was withdrawn: it need not be better, only not worse.
    """
    return [*_new(figures, retrain), *_old(figures, config), *_calibration(figures, config),
            *_probe(figures, config)]


def compared(figures: Figures) -> str:
    """What was measured of the old chains: `steps` or `outcomes`, as `promote.by` has them."""
    return "steps" if "old/f1_gain" in figures else "outcomes"


def _new(figures: Figures, retrain: bool) -> Iterator[str]:
    steps, ends = figures["new/gain"], figures["new/outcome_gain"]
    if steps["value"] is None:
        yield "no step of held-out served trajectories was judged by people who are relied upon"
        return
    told = f"{_told(steps)} in squared error of {figures['new/labels']} judged steps"
    if steps["high"] < 0:
        yield f"it is worse on served traffic: {told}"
    if ends["value"] is not None:
        told += f", {_told(ends)} of {figures['new/outcomes']} outcomes"
        if ends["high"] < 0:
            yield f"it is worse at saying how served trajectories end: {told}"
    if not retrain and steps["value"] <= 0 and (ends["value"] is None or ends["low"] <= 0):
        yield f"it is not better on served traffic: {told}"


def _old(figures: Figures, config: Config) -> Iterator[str]:
    by_steps = compared(figures) == "steps"
    what = "first-error F1" if by_steps else "the AUROC of right answers"
    gain, most = figures["old/f1_gain" if by_steps else "old/outcome_auroc_gain"], config.adapt.max_old_fall
    if gain["value"] is None:
        yield f"{what} on the evaluation's chains is not defined"
    elif gain["high"] < 0 or gain["value"] < -most:
        yield (f"it is worse on the evaluation's chains: {_told(gain)} in {what}; the interval may lie below 0 "
               f"or the fall exceed adapt.max_old_fall {most:g} of none")
    # Each round may lose a little that chance could have taken; all of them together may not.
    best = figures.get("old/best")
    if best is not None:
        now = figures["old/evaluated_f1" if by_steps else "old/challenger/outcome_auroc"]["value"]
        if now is not None and now < best - most:
            yield (f"{what} on the evaluation's chains, {now:.4f}, is below {best:.4f}, the best of the versions that "
                   f"it goes back to, by more than adapt.max_old_fall {most:g}")


def _calibration(figures: Figures, config: Config) -> Iterator[str]:
    for where, key in (("the evaluation's chains", "old/challenger/ece"), ("served traffic", "new/challenger/ece")):
        # Nobody judged the steps of chains that are compared by how they end.
        error = figures.get(key, {"low": None})
        if error["low"] is not None and error["low"] > config.promote.max_ece:
            yield (f"it is not calibrated on {where}: calibration error {error['value']:.4f} (95 % interval from "
                   f"{error['low']:.4f}) above promote.max_ece {config.promote.max_ece:g}")


def _probe(figures: Figures, config: Config) -> Iterator[str]:
    before, now = (figures.get(f"{name}/{SUFFIX_PASSES}") for name in ("champion", "challenger"))
    if before is None or now is None:
        return
    # A round that an older version measured has no interval: as then, the difference alone decides.
    rise = figures.get("probe/suffix_rise")
    value, low = (rise["value"], rise["low"]) if rise else (now - before, math.inf)
    if value > config.adapt.max_suffix_rise and low > 0:
        yield (f"it is easier to hack: {now:.2f} of wrong chains pass with a suffix, {before:.2f} of the champion's"
               f"{f', {_told(rise)}' if rise else ''} (adapt.max_suffix_rise {config.adapt.max_suffix_rise:g})")


def _told(gain: Figures) -> str:
    return f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})"
