"""May these labels pass: the expectations on label rows and on their dataset-level figures, checked by Great
Expectations, and the rows that fail them. Reading and writing files is the validate stage's.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.expectations import Expectation

    from prm_core.config import Config, ValidateConfig

log = logging.getLogger(__name__)

# Name → what it demands. The names are what `validate.critical` and the gate speak of.
EXPECTATIONS = {
    "schema": "a table has exactly the columns of a step label, each of its type",
    "not_null": "columns that every label must fill are filled",
    "values_in_range": "values and confidences lie in [0, 1], step indices and token counts are not negative",
    "known_step": "the trajectory exists and has a step of that index",
    "known_strategy": "the strategy is one that the configuration names",
    "unique_keys": "trajectory, step and strategy occur together once",
    "completeness": "every step of a chain that the strategy took up has its row; merged rows: of every chain",
    "coverage": "share of steps with a merged verdict",
    "label_balance": "share of merged verdicts that say right",
    "confidence_distribution": "mean confidence of the merged verdicts",
    "agreement": "share of steps on which two strategies give the same verdict, where both give one",
    "abstention": "share of a strategy's rows without a verdict",
}
# Column → type name as pandas reads it from our Parquet schema; nulls aside for is_correct.
COLUMN_TYPES = {
    "trajectory_id": "str",
    "step_index": "int32",
    "strategy": "str",
    "value": "float64",
    "is_correct": "bool",
    "confidence": "float64",
    "tokens": "int64",
    "reasoning": "str",
}
TABLES = ("labels", "merged")
KEY = ["trajectory_id", "step_index"]
SUMMARY = "summary"
# Columns added to a table for its checks: the row's number, and how many steps its trajectory has (0: there is none).
_ROW, _STEPS = "row", "trajectory_steps"


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation's outcome.

    Attributes:
        name: a key of EXPECTATIONS.
        table: labels, merged or summary (dataset-level figures).
        column: column of the table, or columns joined by commas; for summary the figure.
        critical: whether its failure stops the chain.
        success: whether it held.
        observed: the figure, or for row-level expectations how many rows failed of how many, in words.
        bound: what was demanded, in words.
        failing_rows: rows of the table that failed it.
    """

    name: str
    table: str
    column: str
    critical: bool
    success: bool
    observed: float | str | None
    bound: str
    failing_rows: int


@dataclass(slots=True)
class Report:
    """What validation found.

    Attributes:
        checks: every expectation's outcome.
        figures: flat dataset-level figures over the passing rows; None where undefined.
        reasons: table → row number → why that row fails ("name on column").
        pages: table → Great Expectations' HTML page.
    """

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)


def check_names(critical: Sequence[str]) -> None:
    """Raises InputError when `validate.critical` names an expectation that does not exist."""
    unknown = [name for name in critical if name not in EXPECTATIONS]
    if unknown:
        raise InputError(
            f"validate.critical names unknown expectation {', '.join(unknown)}; known: {', '.join(EXPECTATIONS)}"
        )


def dataset_figures(
    labels: pd.DataFrame, merged: pd.DataFrame, step_counts: Mapping[str, int], strategies: Sequence[str]
) -> dict[str, float | None]:
    """Dataset-level figures over rows that passed their own checks.

    Args:
        labels, merged: tables with the columns of a StepLabel, keys unique and known.
        step_counts: trajectory id → number of steps, over all trajectories.
        strategies: the configured ones.

    Returns:
        steps, trajectories; coverage (share of steps with a merged verdict), correct_share, confidence_mean,
        confidence_p10 … p90 (over merged verdicts, None without any); completeness/merged (share of all steps with a
        row), completeness/NAME (share of the steps of the chains it took up, 0 without any), reach/NAME (share of
        all steps with a row: a costly strategy may take up a sample), abstention/NAME; agreement/A/B and
        agreement_steps/A/B (steps on which both give a verdict; agreement None when there are none).
    """
    steps = sum(step_counts.values())
    decided = merged[merged["is_correct"].notna()]
    verdicts = labels.set_index([*KEY, "strategy"])["is_correct"].unstack("strategy").reindex(columns=strategies)
    figures: dict[str, float | None] = {
        "trajectories": len(step_counts),
        "steps": steps,
        "completeness/merged": len(merged) / steps,
        "coverage": len(decided) / steps,
        "correct_share": float(decided["is_correct"].astype(bool).mean()) if len(decided) else None,
        "confidence_mean": float(decided["confidence"].mean()) if len(decided) else None,
    }
    for percent in (10, 50, 90):
        value = float(decided["confidence"].quantile(percent / 100)) if len(decided) else None
        figures[f"confidence_p{percent}"] = value
    for name in strategies:
        rows = labels[labels["strategy"] == name]
        expected = sum(step_counts[trajectory_id] for trajectory_id in rows["trajectory_id"].unique())
        figures[f"completeness/{name}"] = len(rows) / expected if expected else 0.0
        figures[f"reach/{name}"] = len(rows) / steps
        figures[f"abstention/{name}"] = float(rows["is_correct"].isna().mean()) if len(rows) else None
    for a, b in itertools.combinations(strategies, 2):
        both = verdicts[[a, b]].dropna()
        figures[f"agreement_steps/{a}/{b}"] = len(both)
        figures[f"agreement/{a}/{b}"] = float((both[a] == both[b]).mean()) if len(both) else None
    return figures


def row_expectations(table: str, strategies: Sequence[str]) -> list[Expectation]:
    """The expectations on one table's rows; `meta` carries the stable name, the column and the bound in words."""
    import great_expectations.expectations as gxe

    names = strategies if table == "labels" else ["merged"]
    columns = [*COLUMN_TYPES, _ROW, _STEPS]

    def meta(name: str, column: str, bound: str) -> dict[str, str]:
        return {"name": name, "column": column, "bound": bound}

    found: list[Expectation] = [
        gxe.ExpectTableColumnsToMatchSet(
            column_set=columns, exact_match=True, meta=meta("schema", "*", f"columns {', '.join(COLUMN_TYPES)}")
        )
    ]
    for column, kind in COLUMN_TYPES.items():
        found.append(gxe.ExpectColumnValuesToBeOfType(
            column=column, type_=kind, meta=meta("schema", column, f"type {kind}")))
    for column in ("trajectory_id", "strategy", "confidence", "reasoning"):
        found.append(gxe.ExpectColumnValuesToNotBeNull(column=column, meta=meta("not_null", column, "filled")))
    for column in ("value", "confidence"):
        found.append(gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=0, max_value=1, meta=meta("values_in_range", column, "between 0 and 1")))
    for column in ("step_index", "tokens"):
        found.append(gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=0, meta=meta("values_in_range", column, "at least 0")))
    return [
        *found,
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A=_STEPS, column_B="step_index",
            meta=meta("known_step", "step_index", "below the number of steps of its trajectory")),
        gxe.ExpectColumnValuesToBeInSet(
            column="strategy", value_set=list(names),
            meta=meta("known_strategy", "strategy", f"one of {', '.join(names)}")),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=[*KEY, "strategy"],
            meta=meta("unique_keys", ", ".join([*KEY, "strategy"]), "unique together")),
    ]


def figure_expectations(figures: Mapping[str, float | None], config: Config) -> list[Expectation]:
    """The expectations on the dataset-level figures, one column of the one-row summary table each.

    Agreement of two strategies that never judge the same step, and abstention of a strategy without rows, are
    undefined: they are logged and not demanded (the missing rows fail `completeness`).
    """
    import great_expectations.expectations as gxe

    bounds: ValidateConfig = config.validate_
    # Chains a strategy failed on, or cut to the context, lack rows; the label stage tolerates that share of chains.
    rows = 1 - config.label.max_failed_share
    demands: list[tuple[str, str, float, float]] = [
        ("coverage", "coverage", bounds.min_coverage, 1.0),
        ("label_balance", "correct_share", *bounds.correct_share),
        ("confidence_distribution", "confidence_mean", *bounds.mean_confidence),
    ]
    for figure, value in figures.items():
        kind = figure.split("/")[0]
        if kind not in ("completeness", "agreement", "abstention"):
            continue
        if value is None:
            log.warning("%s is undefined: no rows to compute it on", figure)
            continue
        low, high = {"completeness": (rows, 1.0), "agreement": (bounds.min_agreement, 1.0),
                     "abstention": (0.0, bounds.max_abstention)}[kind]
        demands.append((kind, figure, low, high))
    return [
        gxe.ExpectColumnMinToBeBetween(
            column=figure, min_value=low, max_value=high,
            meta={"name": name, "column": figure, "bound": f"between {low:g} and {high:g}"})
        for name, figure, low, high in demands
    ]


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
        keyed = {"unexpected_index_column_names": [_ROW]} if _ROW in frame else {}
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
        failing = {entry[_ROW] for entry in single.result.get("unexpected_index_list") or []}
        observed = single.result.get("observed_value")
        if _raised(single.exception_info):
            if schema_holds:
                raise RuntimeError(f"expectation {name} on {table}.{on} could not be computed, which is a fault "
                                   f"of the code, not of the data: {single.exception_info}")
            observed = "not computed, since the schema does not hold"
        elif "unexpected_count" in single.result and observed is None:
            observed = f"{single.result['unexpected_count']} of {rows} rows fail"
        elif isinstance(observed, list):
            observed = ", ".join(column for column in observed if column not in (_ROW, _STEPS))
        for row in failing:
            reasons[row].append(f"{name} on {on}")
        # Without the schema nothing else means anything, so that it stops the chain is not the user's to switch off.
        is_critical = name in critical or name == "schema"
        checks.append(Check(name, table, on, is_critical, bool(single.success), observed, meta["bound"], len(failing)))
    return sorted(checks, key=lambda c: (list(EXPECTATIONS).index(c.name), c.column)), dict(reasons)


def _raised(exception_info: Mapping[str, Any]) -> bool:
    # Either one record, or one record per metric that failed.
    records = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    return any(record["raised_exception"] for record in records)


def _prepared(frame: pd.DataFrame, step_counts: Mapping[str, int]) -> pd.DataFrame:
    prepared = frame.reset_index(drop=True)
    prepared[_ROW] = range(len(prepared))
    prepared[_STEPS] = prepared["trajectory_id"].map(step_counts).fillna(0).astype("int64")
    return prepared


def validate_labels(
    labels: pd.DataFrame, merged: pd.DataFrame, step_counts: Mapping[str, int], config: Config
) -> Report:
    """Checks every label row and the dataset as a whole.

    A merged row whose step has a failing strategy row fails with it, because it was made from that row. The
    dataset-level figures are computed over what passes, and only where both schemas hold.

    Args:
        labels: one row per step and strategy, columns of a StepLabel as pandas reads them from Parquet.
        merged: one row per step.
        step_counts: trajectory id → number of steps.

    Raises InputError on an unknown name in `validate.critical`; RuntimeError when an expectation cannot be computed.
    """
    critical, strategies = config.validate_.critical, list(config.label.strategies)
    check_names(critical)
    from prm_core.labeling.validation_docs import render

    validator, report = _Validator(), Report()
    frames = {name: _prepared(frame, step_counts) for name, frame in zip(TABLES, (labels, merged), strict=True)}
    for table, frame in frames.items():
        result = validator.validate(table, frame, row_expectations(table, strategies))
        checks, report.reasons[table] = _checks(table, result, critical, len(frame))
        report.checks += checks
        report.pages[table] = render(result)
    if any(check.name == "schema" and not check.success for check in report.checks):
        return report
    _fail_with_strategy_rows(frames, report.reasons)
    good = [frame[~frame[_ROW].isin(report.reasons[table].keys())] for table, frame in frames.items()]
    report.figures = dataset_figures(*good, step_counts, strategies)
    import pandas as pd

    summary = pd.DataFrame([report.figures]).astype("float64")
    result = validator.validate(SUMMARY, summary, figure_expectations(report.figures, config))
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
    for row, trajectory_id, step_index in zip(merged[_ROW], merged[KEY[0]], merged[KEY[1]], strict=True):
        for strategy in sources.get((trajectory_id, step_index), ()):
            reasons["merged"].setdefault(row, []).append(f"made from a failing row of {strategy}")
