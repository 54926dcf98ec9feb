"""What a gate demands of a probe: the figures that have a bound, and the settings that hold it."""

from __future__ import annotations

from dataclasses import dataclass

from prm_core.config import GuardConfig, PromoteConfig

SUFFIX_PASSES = "probe/suffix/passed"
OUTCOME_FALL = "probe/policy/outcome_fall"


@dataclass(frozen=True, slots=True)
class Bound:
    """Attributes: figure: its key; most: the largest that passes; setting: the key that holds it."""

    figure: str
    most: float
    setting: str


def bounds(gate: PromoteConfig | GuardConfig) -> list[Bound]:
    """The bounds of a probe; none where the gate does not require one."""
    if not gate.require_probe:
        return []
    section = "promote" if isinstance(gate, PromoteConfig) else "train_policy.guard"
    return [
        Bound(SUFFIX_PASSES, gate.max_suffix_passes, f"{section}.max_suffix_passes"),
        Bound(OUTCOME_FALL, gate.max_outcome_fall, f"{section}.max_outcome_fall"),
    ]
