"""A window of served traffic, checked: compared with what the model was calibrated on, its accuracy estimated, and what
that comes to noted where servers, promotion and people see it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prm_core.config import Config
from prm_core.evaluation.metrics import Estimate
from prm_core.models.loading import model_version
from prm_core.platform import store, tracking
from prm_core.platform.tracking import stage_run
from prm_core.serving import model_registry
from prm_core.serving.drift import report, trust
from prm_core.serving.drift.accuracy import estimate
from prm_core.serving.drift.compare import Comparison, change_in_stream, compare
from prm_core.serving.drift.reference import Reference
from prm_core.serving.drift.samples import Sample, Window, independent, read_window
from prm_core.serving.drift.watch import SAMPLES

log = logging.getLogger(__name__)

# Of a window; what more there is is left out at random. Small differences of so many are found.
LARGEST = 10_000
# Beyond the time of its last trajectory, for a file to be written.
LATE_SECONDS = 60.0
NAMED = 3


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found.

    Attributes:
        model: as it was named, an alias resolved; of a registered version `models:/NAME/VERSION`.
        version: digest of the model.
        window: the samples of all models in the time.
        questions: trajectories of this model's, one a question.
        comparison, estimates: None and empty where `unchecked` says why nothing was compared.
        change: index of the trajectory at which the stream of scores has changed, None where it has not.
        alarm: why the calibration is stale, None where it is not.
    """

    model: str
    version: str
    window: Window
    questions: Sequence[Sample]
    comparison: Comparison | None
    estimates: dict[str, Estimate]
    change: int | None
    alarm: str | None
    unchecked: str = ""

    def __str__(self) -> str:
        if self.unchecked:
            return f"{self.model}: not compared: {self.unchecked}"
        expected = self.estimates["step_accuracy"]
        return (f"{self.model}: {len(self.questions)} questions, "
                f"{'drift: ' + self.alarm if self.alarm else 'no drift'}; of its verdicts on steps "
                f"{expected.value:.1%} ({expected.low:.1%} to {expected.high:.1%}) are expected to be right, as far as "
                "the calibration holds")


def alarm_of(
    comparison: Comparison, change: int | None, window: Sequence[Sample], false_alarms: float
) -> str | None:
    """Why a window is no draw of the reference, None where it may be one: the test over all features at the level
    `false_alarms`, or the stream's."""
    far = [one for one in comparison.distances if one.p <= false_alarms]
    parts = [f"{one.feature} (PSI {one.psi:.2f}, p {one.p:.3f})" for one in far[:NAMED]]
    if len(far) > NAMED:
        parts.append(f"{len(far) - NAMED} more")
    if change is not None:
        parts.append(f"mean scores changed by {_moment(window[change].time)}")
    return ", ".join(parts) or None


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def look(workspace: Path, config: Config, model: str, since: float, until: float) -> tuple[Checked, Reference, Path]:
    """Reads and compares; nothing is noted.

    Args:
        model: as for `model_registry.reward_model_folder`.
        since, until: seconds since 1970.

    Returns what was found, the model's reference and its folder. Raises InputError for a model that is not there or has
    no reference.
    """
    settings, uri = config.drift, model_registry.pinned(model, workspace)
    folder = model_registry.reward_model_folder(uri, workspace)
    version, reference = model_version(str(folder)), Reference.load(folder)
    window = read_window(workspace / settings.folder / SAMPLES, since, until, settings.seconds + LATE_SECONDS)
    mine = [one for one in window.samples if one.version == version and one.renderer == reference.renderer]
    questions, known = independent(mine, config.seed), independent(reference.samples, config.seed)
    if len(questions) > LARGEST:
        kept = np.random.default_rng(config.seed).choice(len(questions), LARGEST, replace=False)
        questions = [questions[row] for row in np.sort(kept)]
    few = min(len(questions), len(known)) < settings.min_questions
    if few:
        why = (f"{len(questions)} questions in the window, {len(known)} in the reference, and drift.min_questions is "
               f"{settings.min_questions}")
        if not window.samples:
            why += f"; {workspace / settings.folder / SAMPLES} holds no sample of this time"
        return Checked(uri, version, window, questions, None, {}, None, None, why), reference, folder
    comparison = compare(known, questions, config.seed)
    change = change_in_stream(known, questions, config.seed)
    return Checked(uri, version, window, questions, comparison, estimate(questions, config.seed), change,
                   alarm_of(comparison, change, questions, settings.false_alarms)), reference, folder


def check(workspace: Path, config: Config, model: str, since: float, until: float) -> Checked:
    """Checks a window; what it finds becomes an MLflow run with figures and a page, and the alarm is noted, or taken
    back, for servers and promotion. A window that is too small changes nothing.

    Arguments and errors as for `look`.
    """
    found, reference, _ = look(workspace, config, model, since, until)
    if found.comparison is None:
        log.warning("%s", found)
        return found
    with stage_run(workspace, "drift", config) as run, TemporaryDirectory() as folder:
        run.tag("model", found.model)
        run.tag("model_version", found.version)
        run.log_metrics(figures(found))
        page, distances = Path(folder, "drift.html"), Path(folder, "drift.json")
        store.write_text(page, report.render(found.model, str(found), found.comparison, found.estimates,
                                             independent(reference.samples, config.seed), found.questions))
        store.write_json(distances, record(found, reference))
        for path in (page, distances):
            run.log_artifact(path)
    trust.note_alarm(workspace / config.drift.folder, found.version, found.alarm, until)
    _tag(workspace, found)
    if found.alarm:
        log.warning("%s: served traffic has drifted: %s", found.model, found.alarm)
    return found


def _tag(workspace: Path, found: Checked) -> None:
    """The alarm as a tag of the registered version, where there is one."""
    named = re.fullmatch(r"models:/([^/@]+)/(\d+)", found.model)
    if not named:
        return
    client = tracking.connect(workspace)
    known = client.get_model_version(*named.groups()).tags
    if found.alarm:
        client.set_model_version_tag(*named.groups(), trust.TAG, f"traffic has drifted: {found.alarm}")
    elif trust.TAG in known:
        client.delete_model_version_tag(*named.groups(), trust.TAG)


def figures(found: Checked) -> dict[str, float]:
    """What a run of MLflow shows: distances, the test, the stream, what is expected."""
    assert found.comparison is not None
    table = {"alarm": float(found.alarm is not None), "p": found.comparison.p, "questions": len(found.questions),
             "effective_questions": found.comparison.effective, "stream_changed": float(found.change is not None)}
    for one in found.comparison.distances:
        table |= {f"{one.feature}/{kind}": value for kind, value in (
            ("psi", one.psi), ("ks", one.ks), ("wasserstein", one.wasserstein), ("chi2", one.chi2), ("p", one.p))
            if value is not None}
    for name, value in found.estimates.items():
        table |= {f"expected/{name}": value.value, f"expected/{name}_low": value.low,
                  f"expected/{name}_high": value.high}
    return table


def record(found: Checked, reference: Reference) -> dict[str, Any]:
    """All of it as JSON."""
    assert found.comparison is not None
    return {"model": found.model, "model_version": found.version, "reference": reference.traffic,
            "renderer": reference.renderer, "since": _moment(found.window.since), "until": _moment(found.window.until),
            "broken_files": list(found.window.broken), "alarm": found.alarm, **asdict(found.comparison),
            "expected": {name: asdict(value) for name, value in found.estimates.items()}}
