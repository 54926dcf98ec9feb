"""Traces of MLflow as served traffic: those that `prm judge` has scored become samples, and what somebody has noted of
how they ended, as feedback of one name, becomes an outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import store, tracking
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import Outcome, tell
from prm_core.serving.drift.samples import PREFIX, STAMP, SUFFIX, Sample, sample
from prm_core.serving.drift.watch import SAMPLES
from prm_core.serving.drift.withdrawn import read_withdrawn, without
from prm_core.serving.trace_judge import NAME, SCORED, STEP, VERSION, read

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Trace

# Of the feedback that says whether a trace's task has succeeded, in `drift.folder` what was collected.
SUCCESS, FILE = "task_success", "traces.json"
PAGE = 200


def collect(workspace: Path, config: Config, experiments: Sequence[str], since: int, chance: float) -> Counter[str]:
    """Takes the judged traces of experiments in, with their outcomes; counts `traces`, `outcomes`, what was left out.

    A trace that is in already is not taken again; its outcome is told anew.

    Args:
        since: Unix time in ms.
        chance: that a run was traced, above 0.

    Raises InputError for an experiment that is not there.
    """
    folder = workspace / config.drift.folder
    known = store.read_json(folder / FILE) if (folder / FILE).exists() else {}
    gone, counts, noted = read_withdrawn(folder), Counter[str](), Counter[str]()
    rows: dict[str, Sample] = {}
    ends: list[Outcome] = []
    for trace in _traces(workspace, experiments, since):
        try:
            request = read(trace, noted)
        except InputError:
            request = None
        found = _scores(trace) if request else {}
        if request is None or set(found) != set(range(len(request.steps))):
            counts["without all their scores"] += 1
            continue
        made = sample(request.prompt, request.steps, [found[step][0] for step in range(len(found))],
                      time=trace.info.request_time / 1000, threshold=config.serve.threshold, renderer=found[0][2],
                      source="mlflow", version=found[0][1], chance=chance, texts=True)
        if not without([made], gone):
            continue
        name = PREFIX + made.prefixes[-1]
        if trace.info.trace_id not in known:
            rows[trace.info.trace_id] = made
        ends += [Outcome(name, one.value, one.source.source_id or one.source.source_type, 1.0,
                         one.last_update_time_ms / 1000) for one in _told(trace)]
        known[trace.info.trace_id] = name
    if rows:
        begins = datetime.fromtimestamp(min(one.time for one in rows.values()), UTC)
        # Named after what is in it: a call that is killed and done again writes the same file.
        files.write(folder / SAMPLES / f"{begins:{STAMP}}-{files.digest(sorted(rows))}{SUFFIX}", rows.values())
    tell(folder, ends)
    store.write_json(folder / FILE, known)
    return counts + Counter(traces=len(rows), outcomes=len(ends))


def _traces(workspace: Path, experiments: Sequence[str], since: int) -> Iterator[Trace]:
    client = tracking.connect(workspace)
    tracking.use_store(workspace)
    places = []
    for name in experiments:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise InputError(f"--experiment {name}: {tracking.tracking_uri(workspace)} has no such one")
        places.append(found.experiment_id)
    token = None
    while True:
        page = client.search_traces(locations=places, filter_string=f"attributes.timestamp_ms >= {since}",
                                    max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _scores(trace: Trace) -> dict[int, tuple[float, str, int]]:
    """Step → its score, the version that gave it and how that reads turns."""
    mine = [one for one in trace.info.assessments if one.name == NAME and {STEP, SCORED, VERSION} <= set(
        one.metadata or {})]
    return {int(one.metadata[STEP]): (float(one.value), one.metadata[VERSION], int(one.metadata.get("renderer", 1)))
            for one in mine}


def _told(trace: Trace) -> list[Assessment]:
    overridden = {one.overrides for one in trace.info.assessments if getattr(one, "overrides", None)}
    return [one for one in trace.info.assessments
            if one.name == SUCCESS and isinstance(one.value, bool) and one.assessment_id not in overridden]


def drop_traces(workspace: Path, folder: Path, names: set[str]) -> int:
    """Deletes the traces of trajectories from MLflow's store; returns how many.

    Args:
        folder: `drift.folder` in the workspace.
        names: ids of trajectories.
    """
    known = store.read_json(folder / FILE) if (folder / FILE).exists() else {}
    mine = [trace for trace, name in known.items() if name in names]
    if mine:
        client = tracking.connect(workspace)
        for trace in mine:
            place = client.get_trace(trace, display=False).info.experiment_id
            client.delete_traces(place, trace_ids=[trace])
        store.write_json(folder / FILE, {trace: name for trace, name in known.items() if name not in names})
    return len(mine)
