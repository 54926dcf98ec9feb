"""What is demanded of labels: the expectations on rows and on dataset-level figures, and how those figures are made.
Checking them is validation.py's.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

    from prm_core.config import Config, ValidateConfig
    from prm_core.labeling.validation.drift import Drift

log = logging.getLogger(__name__)

# Name → what it demands. The names are what `validate.critical` and the gate speak of.
EXPECTATIONS = {
    "schema": "a table has exactly the columns of a step label, each of its type",
    "not_null": "columns that every label must fill are filled",
    "values_in_range": "values and confidences lie in [0, 1], step indices and token counts are not negative",
    "known_step": "the trajectory exists and has a step of that index",
    "known_strategy": "the strategy is one that the configuration names",
    "lineage": "a row says what made it: strategy@version, model, parameters, seed",
    "unique_keys": "trajectory, step and strategy occur together once",
    "completeness": "every step of a chain that the strategy took up has its row; merged rows: of every chain",
    "coverage": "share of steps with a merged verdict, of those up to their chain's first wrong one",
    "label_balance": "share of merged verdicts that say right",
    "confidence_distribution": "mean confidence of the merged verdicts",
    "agreement": "share of steps, up to their chain's first wrong one, on which two strategies give the same verdict, "
                 "where both give one",
    "abstention": "share of a strategy's rows without a verdict, of those up to its first wrong step of a chain",
    "drift": "verdicts, values and confidence are distributed as in the previous run",
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
    "lineage": "str",
}
# What a lineage holds, with the type of each.
LINEAGE = {"strategy": str, "model": str, "parameters": dict, "seed": int}
TABLES = ("labels", "merged")
KEY = ["trajectory_id", "step_index"]
SUMMARY = "summary"
# Columns added to a table for its checks: the row's number, how many steps its trajectory has (0: there is none), and
# what is wrong with its lineage (null: nothing).
ROW, STEPS, LINEAGE_FAULT = "row", "trajectory_steps", "lineage_fault"
ADDED = (ROW, STEPS, LINEAGE_FAULT)


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

    A wrong step ends what can be asked of a chain (METHODS 2): steps after the first one whose merged verdict is
    wrong count neither for coverage nor for agreement, and a strategy that says nothing after its own first wrong
    step does not abstain there.

    Args:
        labels, merged: tables with the columns of a StepLabel, keys unique and known.
        step_counts: trajectory id → number of steps, over all trajectories.
        strategies: the configured ones.

    Returns:
        steps, trajectories; asked_steps (up to the first wrong one), coverage (share of these with a merged verdict),
        correct_share, confidence_mean, confidence_p10 … p90 (over merged verdicts, None without any);
        completeness/merged (share of all steps with a row), completeness/NAME (share of the steps of the chains it
        took up, 0 without any), reach/NAME (share of all steps with a row: a costly strategy may take up a sample),
        coverage/NAME (share of asked steps with its verdict), abstention/NAME (share of its rows without one),
        correct_share/NAME; agreement/A/B and agreement_steps/A/B (steps on which both give a verdict; agreement None
        when there are none).
    """
    steps = sum(step_counts.values())
    decided = merged[merged["is_correct"].notna()]
    asked = _asked(merged, step_counts)
    asked_steps = sum(asked.values()) + len(asked)
    asked_labels = _up_to(labels, asked)
    verdicts = asked_labels.set_index([*KEY, "strategy"])["is_correct"].unstack("strategy").reindex(columns=strategies)
    figures: dict[str, float | None] = {
        "trajectories": len(step_counts),
        "steps": steps,
        "asked_steps": asked_steps,
        "completeness/merged": len(merged) / steps,
        "coverage": len(_up_to(decided, asked)) / asked_steps,
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
        verdict, own = rows["is_correct"].dropna(), _up_to(rows, _asked(rows, step_counts))
        figures[f"coverage/{name}"] = len(_up_to(rows.loc[verdict.index], asked)) / asked_steps
        figures[f"abstention/{name}"] = float(own["is_correct"].isna().mean()) if len(rows) else None
        figures[f"correct_share/{name}"] = float(verdict.astype(bool).mean()) if len(verdict) else None
    for a, b in itertools.combinations(strategies, 2):
        both = verdicts[[a, b]].dropna()
        figures[f"agreement_steps/{a}/{b}"] = len(both)
        figures[f"agreement/{a}/{b}"] = float((both[a] == both[b]).mean()) if len(both) else None
    return figures


def _asked(rows: pd.DataFrame, step_counts: Mapping[str, int]) -> dict[str, int]:
    """Trajectory id → index of its last step that one strategy's rows leave to be asked about: the first that they
    call wrong, else the chain's last."""
    wrong = rows[rows["is_correct"].eq(False)].groupby("trajectory_id")["step_index"].min()
    return {trajectory_id: count - 1 for trajectory_id, count in step_counts.items()} | wrong.to_dict()


def _up_to(rows: pd.DataFrame, last: Mapping[str, int]) -> pd.DataFrame:
    # Without rows the map has no numbers to tell its type from.
    return rows[rows["step_index"] <= rows["trajectory_id"].map(last).astype("float64")]


def row_expectations(table: str, strategies: Sequence[str]) -> list[Expectation]:
    """The expectations on one table's rows; `meta` carries the stable name, the column and the bound in words."""
    import great_expectations.expectations as gxe

    names = strategies if table == "labels" else ["merged"]
    columns = [*COLUMN_TYPES, *ADDED]

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
            column_A=STEPS, column_B="step_index",
            meta=meta("known_step", "step_index", "below the number of steps of its trajectory")),
        gxe.ExpectColumnValuesToBeInSet(
            column="strategy", value_set=list(names),
            meta=meta("known_strategy", "strategy", f"one of {', '.join(names)}")),
        gxe.ExpectColumnValuesToBeNull(
            column=LINEAGE_FAULT, meta=meta("lineage", "lineage", f"JSON of {', '.join(LINEAGE)}, of the row's own "
                                             "strategy")),
        gxe.ExpectCompoundColumnsToBeUnique(
            column_list=[*KEY, "strategy"],
            meta=meta("unique_keys", ", ".join([*KEY, "strategy"]), "unique together")),
    ]


def lineage_fault(lineage: Any, strategy: Any) -> str | None:
    """What is wrong with a row's lineage, None when nothing is."""
    if not isinstance(lineage, str) or not lineage:
        return "empty"
    try:
        made_by = json.loads(lineage)
    except ValueError:
        return "not JSON"
    if not isinstance(made_by, dict):
        return "not a JSON object"
    missing = [key for key in LINEAGE if key not in made_by]
    if missing:
        return f"lacks {', '.join(missing)}"
    wrong = [key for key, kind in LINEAGE.items() if type(made_by[key]) is not kind]
    if wrong:
        return f"{', '.join(wrong)} not of type {', '.join(LINEAGE[key].__name__ for key in wrong)}"
    if not made_by["strategy"].startswith(f"{strategy}@"):
        return f"of {made_by['strategy']}, the row is of {strategy}"
    return None


def figure_expectations(
    figures: Mapping[str, float | None], config: Config, drift: Drift | None = None
) -> list[Expectation]:
    """The expectations on the dataset-level figures, one column of the one-row summary table each; the table has a
    column for each shift of `drift` as well.

    Agreement of two strategies that never judge the same step, and abstention of a strategy without rows, are
    undefined: they are logged and not demanded (the missing rows fail `completeness`).
    """
    import great_expectations.expectations as gxe

    bounds: ValidateConfig = config.validate
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
                     "abstention": (0.0, bounds.abstention_of(figure.split("/")[1]))}[kind]
        demands.append((kind, figure, low, high))
    against = ""
    if drift is not None and drift.previous is not None:
        against = f" against run {drift.previous.run_id} of {drift.previous.date}"
        most = bounds.max_drift
        demands += [("drift", s.figure, -most if s.of == "confidence" else 0.0, most) for s in drift.shifts]
    return [
        gxe.ExpectColumnMinToBeBetween(
            column=figure, min_value=low, max_value=high,
            meta={"name": name, "column": figure,
                  "bound": f"between {low:g} and {high:g}{against if name == 'drift' else ''}"})
        for name, figure, low, high in demands
    ]
