"""What validation found, as plain data: one expectation's outcome, and all of a run's.

Found in checks.py, shown in docs.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prm_core.labeling.validation.drift import Drift


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
        strategies: name → how its passing labels are distributed (drift.distributions).
        drift: the comparison with the previous run.
    """

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    strategies: dict[str, dict[str, Any]] = field(default_factory=dict)
    drift: Drift = field(default_factory=Drift)
