"""Promotion: may the challenger become the champion, and moving the alias when it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.config import PromoteConfig
from prm_core.errors import GateError, InputError
from prm_core.platform import store, tracking
from prm_core.serving import model_registry
from prm_core.serving.model_registry import ECE, F1, LEFT_OUT

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Attributes: passed: whether the challenger may be promoted; reason: why, with the figures."""

    passed: bool
    reason: str


def _figure(tags: Mapping[str, str], key: str) -> float | None:
    try:
        return float(tags[key])
    except (KeyError, ValueError):
        return None


def _unmeasured(challenger: Mapping[str, str], key: str) -> str:
    """Why a figure of the gate is missing: the evaluation could not measure it, or there was none."""
    reason = challenger.get(f"{key}{LEFT_OUT}")
    if reason is None:
        return f"the challenger has no {key}; run the evaluate and register stages"
    return (f"{key} could not be measured on the test chains ({reason}); it takes chains with a wrong step and chains "
            "without one: more test problems (data.test), more samples, or a policy that gets some of them right")


def decide(challenger: Mapping[str, str], champion: Mapping[str, str] | None, max_ece: float) -> GateDecision:
    """The gate, from the metrics in version tags.

    The challenger passes when its ECE is at most `max_ece` and its first-error F1 is at or above the lower end of the
    champion's 95 % interval: below that, it is worse by more than the champion's figure is uncertain. Without a
    champion, its ECE and the presence of an F1 decide. A figure that is missing or no number refuses.

    Args:
        challenger: tags of the version to promote.
        champion: tags of the version in production, None where there is none.
        max_ece: limit on the expected calibration error, a share.
    """
    f1, ece = _figure(challenger, F1), _figure(challenger, ECE)
    for key, value in ((F1, f1), (ECE, ece)):
        if value is None or value != value:
            return GateDecision(False, _unmeasured(challenger, key))
    if ece > max_ece:
        return GateDecision(False, f"its {ECE} {ece:.4f} is above the limit promote.max_ece {max_ece:.4f}")
    calibrated = f"{ECE} {ece:.4f} is within {max_ece:.4f}"
    if champion is None:
        return GateDecision(True, f"there is no champion yet; {calibrated}; {F1} {f1:.4f}")
    low = _figure(champion, f"{F1}_low")
    if low is None or low != low:
        return GateDecision(False, f"the champion has no {F1}_low to compare with; evaluate and register it again, or "
                                   "move the alias by hand")
    note = ""
    if challenger.get("data_hash") != champion.get("data_hash"):
        note = "; the two were measured on different data"
    if f1 < low:
        return GateDecision(False, f"its {F1} {f1:.4f} is below {low:.4f}, the low end of the champion's 95 % "
                                   f"interval{note}")
    return GateDecision(True, f"{F1} {f1:.4f} is not below the champion's low end {low:.4f}; {calibrated}{note}")


@dataclass(frozen=True, slots=True)
class Promotion:
    """What `promote` did.

    Attributes:
        name, version: the registered version the alias points to now.
        moved: False when it was the champion already.
        previous: the version that was champion before, None where there was none.
        reason: what the gate said.
    """

    name: str
    version: str
    moved: bool
    previous: str | None
    reason: str


def promote(workspace: Path, config: PromoteConfig) -> Promotion:
    """Moves the champion alias to the version this workspace registered last, if the gate holds.

    Raises:
        InputError: nothing was registered here, or this tracking store does not know the version.
        GateError: the gate refuses; the champion is as it was.
    """
    path = workspace / "artifacts" / "register" / "model_version.json"
    record = store.read_json(path)
    client = tracking.connect(workspace)
    challenger = model_registry.known_version(client, record["name"], record["version"])
    if challenger is None or challenger.run_id != record["run_id"]:
        raise InputError(
            f"{path}: version {record['version']} of model {record['name']!r} (run {record['run_id']}) is not in "
            f"{tracking.tracking_uri(workspace)}; point MLFLOW_TRACKING_URI at the store it was registered in, or run "
            "the register stage again (`dvc repro --force --single-item register`)"
        )
    # The database answers versions as numbers, a tracking server as texts.
    version = str(challenger.version)
    for _ in range(ATTEMPTS):
        done = _compare_and_move(client, challenger.name, version, challenger.tags, config)
        if done is not None:
            return done
    raise GateError(f"{challenger.name} version {version} is not promoted: {config.alias} was moved by someone else "
                    f"each of {ATTEMPTS} times it was compared; try again")


def _compare_and_move(
    client: MlflowClient, name: str, version: str, challenger: Mapping[str, str], config: PromoteConfig
) -> Promotion | None:
    """The gate, and what follows from it; None where the champion it was about is no longer the champion.

    From the look at the champion to the move of the alias nobody else promotes: of two at once, the later one is
    measured against what the first one left.
    """
    with model_registry.promotion_lock(client, name) as still_held:
        champion = model_registry.version_by_alias(client, name, config.alias)
        previous = str(champion.version) if champion else None
        if previous == version:
            return Promotion(name, version, False, previous, "it is the champion already")
        decision = decide(challenger, champion.tags if champion else None, config.max_ece)
        if not decision.passed:
            kept = f"version {previous} stays {config.alias}" if champion else f"there is still no {config.alias}"
            raise GateError(f"{name} version {version} is not promoted: {decision.reason}; {kept}")
        # Tags first: a version that carries the alias then always says who moved it and why.
        tags = {
            "promoted_by": tracking.user(),
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "promoted_because": decision.reason,
            "promoted_over": previous or "none",
        }
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        # An alias may also be moved by hand, which no lock keeps from happening.
        now = model_registry.version_by_alias(client, name, config.alias)
        if (str(now.version) if now else None) != previous or not still_held():
            return None
        client.set_registered_model_alias(name, config.alias, version)
    return Promotion(name, version, True, previous, decision.reason)
