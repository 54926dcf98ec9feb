"""What promotion demands of a probe: the figures that have a bound, and the settings that hold it."""

from __future__ import annotations

from dataclasses import dataclass

from prm_core.config import PromoteConfig

SUFFIX_PASSES = "probe/suffix/passed"
OUTCOME_FALL = "probe/policy/outcome_fall"


@dataclass(frozen=True, slots=True)
class Bound:
    """Attributes: figure: its key; most: the largest that passes; setting: the key that holds it."""

    figure: str
    most: float
    setting: str


def bounds(promote: PromoteConfig) -> list[Bound]:
    """The bounds of a probe; none where promotion does not require one."""
    if not promote.require_probe:
        return []
    return [
        Bound(SUFFIX_PASSES, promote.max_suffix_passes, "promote.max_suffix_passes"),
        Bound(OUTCOME_FALL, promote.max_outcome_fall, "promote.max_outcome_fall"),
    ]
