"""Promotion: may the challenger become the champion, and moving the alias when it may."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.config import DriftConfig, PromoteConfig
from prm_core.errors import GateError, InputError
from prm_core.evaluation.probe.bounds import bounds
from prm_core.platform import store, tracking
from prm_core.serving import model_registry
from prm_core.serving.drift import trust
from prm_core.serving.model_registry import ECE, F1, LEFT_OUT, OUTCOME_AUROC, VIOLATIONS

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

ATTEMPTS = 5
# Area under the curve of scores that know nothing.
GUESS = 0.5
# Tag of a version whose promotion was undone (`prm adapt undo`), and why.
UNDONE = "promotion_undone"
DRIFT = DriftConfig()
# Tag: the version that a challenger was compared with on the same chains; its difference has the tags FIGURE_gain, with
# _low and _high.
COMPARED = "compared_with"
# Standard deviations on either side of the mean that hold 95 % of a normal distribution, as the intervals do.
Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Attributes: passed: whether the challenger may be promoted; reason: why, with the figures."""

    passed: bool
    reason: str


def figure(tags: Mapping[str, str], key: str) -> float | None:
    """The number in a tag; None where there is no such tag, or no finite number in it."""
    try:
        number = float(tags[key])
    except (KeyError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _unmeasured(challenger: Mapping[str, str], key: str) -> str:
    """Why a figure of the gate is missing: the evaluation could not measure it, or there was none."""
    reason = challenger.get(f"{key}{LEFT_OUT}")
    if reason is None:
        return f"the challenger has no {key}; run the evaluate and register stages"
    return (f"{key} could not be measured on the test chains ({reason}); it takes chains with a wrong step and chains "
            "without one: more test problems (data.test), more samples, or a policy that gets some of them right")


def _floor(f1: float, low: float, spread: float | None) -> tuple[float, str]:
    """The lowest F1 that passes against a champion, as `decide` has it, and what it is made of, in words."""
    if spread is None or spread < 0:
        return low, (f"the low end of the champion's 95 % interval over problems, which alone decides: it has no "
                     f"{F1}_spread")
    over_problems, over_trainings = f1 - low, Z_95 * math.sqrt(2) * spread
    # Products and a root are rounded correctly, which powers and `hypot` need not be: more spread never raises it.
    floor = min(low, f1 - math.sqrt(over_problems * over_problems + over_trainings * over_trainings))
    return floor, (f"the champion's {f1:.4f} less {f1 - floor:.4f} for chance (its 95 % interval over problems begins "
                   f"at {low:.4f}; the standard deviation between its committee members is {spread:.4f})")


def _probe_fault(challenger: Mapping[str, str], config: PromoteConfig) -> str | None:
    """Why what the probe found refuses the challenger, or that it found nothing; None where a probe is not required or
    stayed within its bounds."""
    for bound in bounds(config):
        value = figure(challenger, bound.figure)
        if value is None:
            reason = challenger.get(f"{bound.figure}{LEFT_OUT}")
            why = f" ({reason})" if reason else ""
            return (f"it has no {bound.figure}{why}, which promote.require_probe demands; run the stages probe, "
                    "evaluate and register with probe.enabled, probe.suffix_chains and probe.updates set")
        if value > bound.most:
            return f"its {bound.figure} {value:.4f} is above the limit {bound.setting} {bound.most:.4f}"
    return None


def decide(
    challenger: Mapping[str, str], champion: Mapping[str, str] | None, config: PromoteConfig, *, paired: bool = False
) -> GateDecision:
    """The gate, from the metrics in version tags.

    The challenger passes when its ECE is at most `max_ece`, what its probe found is within the bounds where
    `require_probe` demands one, the policy that it taught breaks rules in at most `max_violations` of its runs where
    that is below 1, and its first-error F1 is not below the champion's by more than chance accounts for, which is

        sqrt((F1 - low)^2 + (1.96 sqrt(2) spread)^2)

    where F1, the low end of its 95 % interval over problems and its spread, the standard deviation between committee
    members that were fitted on resampled training problems, are the champion's. It takes the two errors for
    independent and normal, and the spread for what another seed of the same training would change: an equally good
    training then fails about once in forty times. (The mean of a committee is steadier than its members, but what the
    members share varies with the seed as well; no member shows either.)

    The spread counts for both models, hence sqrt(2): each was trained once, so that the difference of two equally good
    trainings has twice the variance of either. The error over problems counts once: both models are measured on the
    same problems, so that part of it cancels; where the two errors correlate by one half, the difference has the
    variance of one. The challenger's own spread is no part of it, or a less steady training would have the lower bar.

    A champion without a spread (registered before there was one, or trained without a committee) is judged by the low
    end alone, and the reason says so. Without a champion, the challenger's ECE and the presence of an F1 decide. Any
    other figure that is missing or no number refuses.

    Where the two were compared on the same chains (`paired`) the interval of the difference decides in place of all
    that: it takes nothing for independent or normal, which a few errors in hundreds of chains are not.

    Where nobody judges steps (`by: outcomes`) see `_by_outcomes`.

    Args:
        challenger: tags of the version to promote.
        champion: tags of the version in production, None where there is none.
        config: the gate's limits.
        paired: it is this champion that the challenger's tags of a difference are to.
    """
    if config.by == "outcomes":
        return _by_outcomes(challenger, champion, config, paired)
    f1, ece = figure(challenger, F1), figure(challenger, ECE)
    for key, value in ((F1, f1), (ECE, ece)):
        if value is None:
            return GateDecision(False, _unmeasured(challenger, key))
    if ece > config.max_ece:
        return GateDecision(False, f"its {ECE} {ece:.4f} is above the limit promote.max_ece {config.max_ece:.4f}")
    if fault := _probe_fault(challenger, config) or _violation_fault(challenger, config):
        return GateDecision(False, fault)
    calibrated = f"{ECE} {ece:.4f} is within {config.max_ece:.4f}"
    if champion is None:
        return GateDecision(True, f"there is no champion yet; {calibrated}; {F1} {f1:.4f}")
    if paired and (compared := _compared(challenger, F1)):
        return GateDecision(compared.passed, f"{compared.reason}; {calibrated}")
    known = {key: figure(champion, key) for key in (F1, f"{F1}_low")}
    for key, value in known.items():
        if value is None:
            return GateDecision(False, f"the champion has no {key} to compare with; evaluate and register it again, or "
                                       "move the alias by hand")
    floor, because = _floor(*known.values(), figure(champion, f"{F1}_spread"))
    note = ""
    if challenger.get("data_hash") != champion.get("data_hash"):
        note = "; the two were measured on different data"
    if f1 < floor:
        return GateDecision(False, f"its {F1} {f1:.4f} is below {floor:.4f}, {because}{note}")
    return GateDecision(True, f"{F1} {f1:.4f} is not below {floor:.4f}, {because}; {calibrated}{note}")


def _compared(challenger: Mapping[str, str], key: str) -> GateDecision | None:
    """Whether a figure's difference to the champion's may be none or better, by its 95 % interval; None without it."""
    value, low, high = (figure(challenger, f"{key}_gain{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return None
    what = "is lower than" if high < 0 else "is not lower than"
    return GateDecision(high >= 0, f"its {key} {what} the champion's on the same chains: {value:+.4f} "
                                   f"({low:+.4f} to {high:+.4f})")


def _by_outcomes(
    challenger: Mapping[str, str], champion: Mapping[str, str] | None, config: PromoteConfig, paired: bool
) -> GateDecision:
    """The gate where nobody judges steps: the challenger passes when its chain scores tell right answers from wrong
    ones better than a guess, beyond their 95 % interval, and not worse than the champion's do, beyond that one's; and
    as `require_probe` and `max_violations` say. Nothing is said of steps."""
    value, low = (figure(challenger, f"{OUTCOME_AUROC}{end}") for end in ("", "_low"))
    if value is None or low is None:
        why = challenger.get(f"{OUTCOME_AUROC}{LEFT_OUT}",
                             "run the stages evaluate and register with promote.by outcomes")
        return GateDecision(False, f"{OUTCOME_AUROC} was not measured ({why}); it takes right and wrong answers to "
                                   "test problems")
    if low <= GUESS:
        return GateDecision(False, f"its {OUTCOME_AUROC} {value:.4f} may be a guess, which has {GUESS}: its 95 % "
                                   f"interval over problems begins at {low:.4f}")
    if fault := _probe_fault(challenger, config) or _violation_fault(challenger, config):
        return GateDecision(False, fault)
    if champion is None:
        return GateDecision(True, f"there is no champion yet; {OUTCOME_AUROC} {value:.4f} is no guess, from {low:.4f}; "
                                  "nobody judged its steps")
    if paired and (compared := _compared(challenger, OUTCOME_AUROC)):
        return GateDecision(compared.passed, f"{compared.reason}; nobody judged its steps")
    floor = figure(champion, f"{OUTCOME_AUROC}_low")
    if floor is None:
        return GateDecision(False, f"the champion has no {OUTCOME_AUROC}_low to compare with; evaluate and register it "
                                   "again with promote.by outcomes, or move the alias by hand")
    note = ("" if challenger.get("data_hash") == champion.get("data_hash")
            else "; the two were measured on different data")
    what = "is below" if value < floor else "is not below"
    return GateDecision(value >= floor, f"its {OUTCOME_AUROC} {value:.4f} {what} {floor:.4f}, the low end of the "
                                        f"champion's 95 % interval over problems; nobody judged its steps{note}")


def _violation_fault(challenger: Mapping[str, str], config: PromoteConfig) -> str | None:
    """Why the rules refuse the challenger: the policy that it taught breaks too many, or nobody counted; None where no
    figure is asked for or it is within the limit."""
    if config.max_violations >= 1:
        return None
    value = figure(challenger, VIOLATIONS)
    if value is None:
        return (f"it has no {VIOLATIONS}, which promote.max_violations demands; run the stages train_policy, evaluate "
                "and register with rules.file set")
    if value > config.max_violations:
        return (f"its {VIOLATIONS} {value:.4f}, the share of runs that break a rule, is above the limit "
                f"promote.max_violations {config.max_violations:.4f}")
    return None


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


def check_calibration(version: ModelVersion, max_age_days: float, now: float) -> None:
    """Raises InputError where a version's calibration is stale: `prm drift` found that its traffic has drifted, or it
    was registered too long ago.

    Args:
        now: seconds since 1970.
    """
    old = trust.too_old(version.creation_timestamp / 1000, now, max_age_days)
    reason = version.tags.get(trust.TAG) or (old and old.reason)
    if reason:
        raise InputError(
            f"{version.name} version {version.version} is not promoted, its calibration is stale: {reason}; have "
            "people judge what is served now (`prm drift` draws it, with drift.texts) and register it anew with `prm "
            "drift --recalibrate`, or train on new problems (`prm run`)")


def _challenger(workspace: Path, client: MlflowClient, model: str | None) -> ModelVersion:
    if model is not None:
        named = re.fullmatch(r"models:/([^/@]+)/(\d+)", model)
        found = named and model_registry.known_version(client, *named.groups())
        if not found:
            raise InputError(f"--model {model}: {tracking.tracking_uri(workspace)} has no such version; give "
                             "models:/NAME/VERSION")
        return found
    path = workspace / "artifacts" / "register" / "model_version.json"
    record = store.read_json(path)
    found = model_registry.known_version(client, record["name"], record["version"])
    if found is None or found.run_id != record["run_id"]:
        raise InputError(
            f"{path}: version {record['version']} of model {record['name']!r} (run {record['run_id']}) is not in "
            f"{tracking.tracking_uri(workspace)}; point MLFLOW_TRACKING_URI at the store it was registered in, or run "
            "the register stage again (`dvc repro --force --single-item register`)"
        )
    return found


def promote(
    workspace: Path, config: PromoteConfig, drift: DriftConfig = DRIFT, model: str | None = None
) -> Promotion:
    """Moves the champion alias to the version this workspace registered last, if the gate holds.

    Args:
        drift: when a calibration is stale.
        model: `models:/NAME/VERSION` to move it to instead.

    Raises:
        InputError: nothing was registered here, this tracking store does not know the version, or its calibration is
            stale.
        GateError: the gate refuses; the champion is as it was.
    """
    client = tracking.connect(workspace)
    challenger = _challenger(workspace, client, model)
    # The database answers versions as numbers, a tracking server as texts.
    version = str(challenger.version)
    for _ in range(ATTEMPTS):
        done = _compare_and_move(client, challenger, version, config, drift)
        if done is not None:
            return done
    raise GateError(f"{challenger.name} version {version} is not promoted: {config.alias} was moved by someone else "
                    f"each of {ATTEMPTS} times it was compared; try again")


def _compare_and_move(
    client: MlflowClient, challenger: ModelVersion, version: str, config: PromoteConfig, drift: DriftConfig
) -> Promotion | None:
    """The gate, and what follows from it; None where the champion it was about is no longer the champion.

    From the look at the champion to the move of the alias nobody else promotes: of two at once, the later one is
    measured against what the first one left.
    """
    name = challenger.name
    with model_registry.promotion_lock(client, name) as still_held:
        champion = model_registry.version_by_alias(client, name, config.alias)
        previous = str(champion.version) if champion else None
        if previous == version:
            return Promotion(name, version, False, previous, "it is the champion already")
        if UNDONE in challenger.tags:
            raise GateError(f"{name} version {version} is not promoted: its promotion was {challenger.tags[UNDONE]}; "
                            f"take the tag {UNDONE} away where that no longer counts")
        check_calibration(challenger, drift.max_age_days, time.time())
        decision = decide(challenger.tags, champion.tags if champion else None, config,
                          paired=challenger.tags.get(COMPARED) == f"models:/{name}/{previous}")
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
