"""May these labels pass: Great Expectations on label rows and on their dataset-level figures, and the rows that fail.
What is demanded is in expectations.py, how distributions are compared in drift.py; files are the validate stage's.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prm_core.labeling.validation.docs import render
from prm_core.labeling.validation.drift import Drift, Previous, compare, distributions
from prm_core.labeling.validation.expectations import (
    ADDED,
    EXPECTATIONS,
    KEY,
    LINEAGE_FAULT,
    ROW,
    STEPS,
    SUMMARY,
    TABLES,
    check_names,
    dataset_figures,
    figure_expectations,
    lineage_fault,
    row_expectations,
)
from prm_core.labeling.validation.report import Check, Report

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations import Expectation

    from prm_core.config import Config


class _Validator:
    """Great Expectations with an ephemeral context: tables in, results out, nothing left on disk."""

    def __init__(self) -> None:
        import great_expectations as gx

        logging.getLogger("great_expectations").setLevel(logging.WARNING)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        self._source = context.data_sources.add_pandas("workspace")

    def validate(
        self, table: str, frame: pd.DataFrame, expectations: Sequence[Expectation]
    ) -> ExpectationSuiteValidationResult:
        """Validates a table; unexpected rows come with their number where it has one."""
        import great_expectations as gx

        asset = self._source.add_dataframe_asset(table)
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        suite = gx.ExpectationSuite(table, expectations=list(expectations))
        keyed = {"unexpected_index_column_names": [ROW]} if ROW in frame else {}
        result = batch.validate(suite, result_format={"result_format": "COMPLETE", **keyed})
        for single in result.results:
            # Great Expectations' own page renderer refuses NumPy's scalars.
            observed = single.result.get("observed_value")
            if hasattr(observed, "item"):
                single.result["observed_value"] = observed.item()
        return result


def _checks(
    table: str, result: ExpectationSuiteValidationResult, critical: Sequence[str], rows: int
) -> tuple[list[Check], dict[int, list[str]]]:
    """Outcomes in our words, and why each failing row fails.

    Raises RuntimeError when an expectation could not be computed although the schema holds: a fault of the code.
    """
    schema_holds = all(r.success for r in result.results if r.expectation_config.meta["name"] == "schema")
    checks, reasons = [], defaultdict(list)
    for single in result.results:
        meta = single.expectation_config.meta
        name, on = meta["name"], meta["column"]
        failing = {entry[ROW]: entry for entry in single.result.get("unexpected_index_list") or []}
        observed = single.result.get("observed_value")
        if _raised(single.exception_info):
            if schema_holds:
                raise RuntimeError(f"expectation {name} on {table}.{on} could not be computed, which is a fault "
                                   f"of the code, not of the data: {single.exception_info}")
            observed = "not computed, since the schema does not hold"
        elif "unexpected_count" in single.result and observed is None:
            observed = f"{single.result['unexpected_count']} of {rows} rows fail"
        elif isinstance(observed, list):
            observed = ", ".join(column for column in observed if column not in ADDED)
        for row, entry in failing.items():
            fault = f": {entry[LINEAGE_FAULT]}" if LINEAGE_FAULT in entry else ""
            reasons[row].append(f"{name} on {on}{fault}")
        # Without the schema nothing else means anything, so that it stops the chain is not the user's to switch off.
        is_critical = name in critical or name == "schema"
        checks.append(Check(name, table, on, is_critical, bool(single.success), observed, meta["bound"], len(failing)))
    return sorted(checks, key=lambda c: (list(EXPECTATIONS).index(c.name), c.column)), dict(reasons)


def _raised(exception_info: Mapping[str, Any]) -> bool:
    # Either one record, or one record per metric that failed.
    records = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    return any(record["raised_exception"] for record in records)


def _prepared(frame: pd.DataFrame, step_counts: Mapping[str, int]) -> pd.DataFrame:
    import pandas as pd

    prepared = frame.reset_index(drop=True)
    prepared[ROW] = range(len(prepared))
    prepared[STEPS] = prepared["trajectory_id"].map(step_counts).fillna(0).astype("int64")
    # A lineage is the same over a whole shard; it is parsed once. Where the schema does not hold, it may be anything.
    texts = [value if isinstance(value, str) else None for value in prepared["lineage"]]
    pairs = list(zip(texts, prepared["strategy"].astype(str), strict=True))
    faults = {pair: lineage_fault(*pair) for pair in set(pairs)}
    prepared[LINEAGE_FAULT] = pd.Series([faults[pair] for pair in pairs], dtype="object")
    return prepared


def validate_labels(
    labels: pd.DataFrame, merged: pd.DataFrame, step_counts: Mapping[str, int], config: Config,
    previous: Previous | str,
) -> Report:
    """Checks every label row and the dataset as a whole.

    A merged row whose step has a failing strategy row fails with it, because it was made from that row. The
    dataset-level figures are computed over what passes, and only where both schemas hold.

    Args:
        labels: one row per step and strategy, columns of a StepLabel as pandas reads them from Parquet.
        merged: one row per step.
        step_counts: trajectory id → number of steps.
        previous: the run to compare distributions with, or why there is none.

    Raises InputError on an unknown name in `validate.critical`; RuntimeError when an expectation cannot be computed.
    """
    critical, strategies = config.validate.critical, list(config.label.strategies)
    check_names(critical)
    validator, report = _Validator(), Report(drift=Drift(reason="the schema does not hold"))
    frames = {name: _prepared(frame, step_counts) for name, frame in zip(TABLES, (labels, merged), strict=True)}
    for table, frame in frames.items():
        result = validator.validate(table, frame, row_expectations(table, strategies))
        checks, report.reasons[table] = _checks(table, result, critical, len(frame))
        report.checks += checks
        report.pages[table] = render(result)
    if any(check.name == "schema" and not check.success for check in report.checks):
        return report
    _fail_with_strategy_rows(frames, report.reasons)
    good = [frame[~frame[ROW].isin(report.reasons[table].keys())] for table, frame in frames.items()]
    report.figures = dataset_figures(*good, step_counts, strategies)
    report.strategies = distributions(*good, strategies)
    report.drift = compare(report.strategies, previous) if isinstance(previous, Previous) else Drift(reason=previous)
    import pandas as pd

    shifts = {shift.figure: shift.amount for shift in report.drift.shifts}
    summary = pd.DataFrame([{**report.figures, **shifts}]).astype("float64")
    result = validator.validate(SUMMARY, summary, figure_expectations(report.figures, config, report.drift))
    checks, _ = _checks(SUMMARY, result, critical, len(summary))
    report.checks += checks
    report.pages[SUMMARY] = render(result)
    return report


def _fail_with_strategy_rows(
    frames: Mapping[str, pd.DataFrame], reasons: Mapping[str, dict[int, list[str]]]
) -> None:
    labels, merged = frames["labels"], frames["merged"]
    bad = labels.loc[sorted(reasons["labels"])]
    sources: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for trajectory_id, step_index, strategy in zip(bad[KEY[0]], bad[KEY[1]], bad["strategy"], strict=True):
        if strategy not in sources[trajectory_id, step_index]:
            sources[trajectory_id, step_index].append(strategy)
    for row, trajectory_id, step_index in zip(merged[ROW], merged[KEY[0]], merged[KEY[1]], strict=True):
        for strategy in sources.get((trajectory_id, step_index), ()):
            reasons["merged"].setdefault(row, []).append(f"made from a failing row of {strategy}")
