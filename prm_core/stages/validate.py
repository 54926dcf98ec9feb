"""Stage `validate`: label rows and their dataset-level figures against the expectations.

Passing merged rows go on, failing rows to the quarantine with the reason. It succeeds whatever it finds, so that the
quarantine and the data docs survive; stopping the chain is `validate_gate`'s.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.labeling.human.labels import all_trajectories, read_human
from prm_core.labeling.validation import drift
from prm_core.labeling.validation.checks import Report, validate_labels
from prm_core.labeling.validation.docs import index_page
from prm_core.labeling.validation.drift import Previous
from prm_core.labeling.validation.expectations import TABLES, check_names
from prm_core.platform import store, tracking
from prm_core.stages.base import Stage, StageIO
from prm_core.types import StepLabel, Trajectory

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 100_000


def run(config: Config, io: StageIO) -> None:
    """Validates the labels of a workspace, and compares their distribution with the previous run's.

    DVC runs a stage only when something it depends on changed; the comparison is made then.

    Raises InputError on a missing column (the fault of whatever wrote the shard, not of the data in it) and on an
    unknown name in `validate.critical`.
    """
    check_names(config.validate.critical)
    generated = store.read_shards(Trajectory, io.inputs["trajectories"])
    trajectories = all_trajectories(generated, read_human(io.inputs["human"]).trajectories)
    step_counts = {t.id: len(t.steps) for t in trajectories}
    frames = [_frame(io.inputs[table]) for table in TABLES]
    digest = store.digest(*(io.inputs[table] for table in TABLES))
    previous, unreachable = _previous(config, io, digest)
    report = validate_labels(*frames, step_counts, config, previous)

    kept = _write_rows(report, frames, io)
    docs = io.outputs["docs"]
    store.write_text(docs / "index.html", index_page(report))
    for table, page in report.pages.items():
        store.write_text(docs / f"{table}.html", page)
    failing = {table: len(rows) for table, rows in report.reasons.items()}
    figures = {
        "labels_rows": len(frames[0]), "merged_rows": len(frames[1]), "passed_rows": kept,
        "quarantined_labels": failing.get("labels", 0), "quarantined_merged": failing.get("merged", 0),
        "failed_expectations": sum(not c.success for c in report.checks),
        "failed_critical_expectations": sum(c.critical and not c.success for c in report.checks),
        **report.figures,
    }
    for check in report.checks:
        if not check.success:
            log.warning("%s expectation %s fails on %s.%s: observed %s, demanded %s",
                        "critical" if check.critical else "advisory", check.name, check.table, check.column,
                        check.observed, check.bound)
    if not unreachable:
        passed = not figures["failed_critical_expectations"]
        _track(config, io, figures, report, drift.record(report.strategies, config, digest, passed))
    store.write_json(io.outputs["result"], {
        "success": all(check.success for check in report.checks),
        "figures": figures,
        "drift": report.drift.to_dict(),
        "expectations": [dataclasses.asdict(check) for check in report.checks],
        "quarantine": f"{STAGE.outputs['quarantine']}/rows.jsonl",
        "docs": f"{STAGE.outputs['docs']}/index.html",
    })
    log.info("%d of %d merged rows pass; %d rows in quarantine", kept, len(frames[1]), sum(failing.values()))


def _previous(config: Config, io: StageIO, digest: str) -> tuple[Previous | str, bool]:
    """The run to compare with or why there is none, and whether the tracking store could not be reached."""
    try:
        found = drift.find_previous(io.workspace, config, digest)
    except drift.StoreUnreachable as error:
        log.warning("the tracking store cannot be reached (%s): the labels are not compared with an earlier run's, and "
                    "this run is not recorded", error)
        return f"the tracking store cannot be reached: {error}", True
    log.info("drift: %s", found if isinstance(found, str) else f"compared with run {found.run_id} of {found.date}")
    return found, False


def _track(
    config: Config, io: StageIO, figures: Mapping[str, float | None], report: Report, record: Mapping[str, Any]
) -> None:
    """Records figures, docs and the distributions that the next run compares with."""
    shifts = {shift.figure: shift.amount for shift in report.drift.shifts}
    with tracking.stage_run(io.workspace, "validate", config, io.inputs) as tracked, TemporaryDirectory() as folder:
        tracked.log_metrics({name: value for name, value in {**figures, **shifts}.items() if value is not None})
        tracked.log_artifact(io.outputs["docs"])
        store.write_json(Path(folder) / drift.FILE, record)
        tracked.log_artifact(Path(folder) / drift.FILE)


def _frame(folder: Path) -> pd.DataFrame:
    """The shards of a folder as Parquet holds them, types unchanged, so that the schema expectation means something."""
    import pyarrow as pa

    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise InputError(f"{folder}: no shard (part-*.parquet) there; run the stage that writes it")
    tables = [store.read_table(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        missing = [name for name in store.schemas()[StepLabel].names if name not in table.column_names]
        if missing:
            raise InputError(f"{path}: missing column {', '.join(missing)} of the StepLabel schema; that is a fault "
                             "of what wrote the file, not of the labels: run `prm stage label` again")
        if table.schema != tables[0].schema:
            raise InputError(f"{path}: its columns or types differ from those of {paths[0].name}; run the stage that "
                             "writes them again")
    return _nan_made_visible(pa.concat_tables(tables).to_pandas(), pa.concat_tables(tables))


def _nan_made_visible(frame: pd.DataFrame, table: Any) -> pd.DataFrame:
    """NaN (a broken computation) as infinity, which no range holds: pandas reads it like null (abstained)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in ("value", "confidence"):
        if pa.types.is_floating(table.schema.field(column).type):
            broken = pc.fill_null(pc.is_nan(table[column]), False).to_numpy()
            frame.loc[broken, column] = math.inf
    return frame


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values, null where pandas has NaN."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _write_rows(report: Report, frames: list[pd.DataFrame], io: StageIO) -> int:
    """Writes the quarantine and the passing merged rows; returns how many passed (none unless the schemas hold)."""
    rows, counts = [], Counter()
    for table, frame in zip(TABLES, frames, strict=True):
        reasons = report.reasons.get(table, {})
        numbers = sorted(reasons)
        for number, record in zip(numbers, _records(frame.iloc[numbers]), strict=True):
            # JSON has no infinity; this is where NaN or infinity stood.
            shown = {k: "not finite" if isinstance(v, float) and math.isinf(v) else v for k, v in record.items()}
            rows.append({"table": table, "reasons": reasons[number], **shown})
            counts.update(f"{table}: {reason}" for reason in reasons[number])
    store.write_jsonl(io.outputs["quarantine"] / "rows.jsonl", rows)
    store.write_json(io.outputs["quarantine"] / "summary.json", {"rows": len(rows), "by_reason": dict(counts)})
    schema_holds = all(check.success for check in report.checks if check.name == "schema")
    merged = frames[TABLES.index("merged")]
    failing = report.reasons.get("merged", {}).keys()
    passing = merged[[number not in failing for number in range(len(merged))]] if schema_holds else merged.iloc[:0]
    labels = [StepLabel(**record) for record in _records(passing)]
    for index, start in enumerate(range(0, max(len(labels), 1), ROWS_PER_SHARD)):
        store.write_shard(io.outputs["passed"], index, StepLabel, labels[start : start + ROWS_PER_SHARD])
    return len(labels)


STAGE = Stage(
    inputs={
        "labels": "artifacts/label/labels",
        "merged": "artifacts/label/merged",
        "trajectories": "artifacts/generate/trajectories",
        "human": "data/human",
    },
    outputs={
        "passed": "artifacts/validate/passed",
        "quarantine": "artifacts/validate/quarantine",
        "docs": "artifacts/validate/docs",
        "result": "artifacts/validate/result.json",
    },
    params=("profile", "domain", "validate", "label"),
    run=run,
)
