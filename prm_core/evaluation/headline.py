"""The dozen figures people ask for first, out of the hundreds of an evaluation.

They are what `dvc metrics show` lists and a model version is introduced with; the others stay in metrics.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Short name → key of metrics.json and what it says. {n} is how many chains are chosen from.
FIGURES = {
    "first_error_f1": ("test/prm/first_error_f1", "F1 of finding the first wrong step"),
    "random_f1": ("test/random/first_error_f1", "the same of random scores"),
    "auroc": ("test/prm/auroc", "AUROC of single steps"),
    "ece": ("test/prm/ece", "expected calibration error of single steps"),
    "prm_at_{n}": ("test/prm_best_of_n/accuracy_at_{n}", "right answers, best of {n} by the PRM"),
    "orm_at_{n}": ("test/orm_best_of_n/accuracy_at_{n}", "right answers, best of {n} by an outcome model"),
    "majority_at_{n}": ("test/majority/accuracy_at_{n}", "right answers, majority of {n}"),
    "oracle_at_{n}": ("test/oracle/accuracy_at_{n}", "any of {n} right"),
    "pass_at_1": ("test/policy_base/pass_at_1", "right answers, one chain of the base policy"),
    "pass_at_1_trained": ("test/policy_trained/pass_at_1", "right answers, one chain of the trained policy"),
    "consistency": ("test/policy_base/process_consistency", "its right answers without a wrong step, base policy"),
    "consistency_trained": ("test/policy_trained/process_consistency", "the same, trained policy"),
}
# The usual size of a best-of-N comparison; where it was not measured, the largest one that was.
CHAINS = 8
DIGITS = 4


def headline_rows(table: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(short name, key, what it says) of the headline figures that were measured.

    Args:
        table: metrics.json of the evaluate stage.
    """
    sizes = {int(match[1]) for key in table if (match := re.fullmatch(r"test/majority/accuracy_at_(\d+)", key))}
    n = CHAINS if CHAINS in sizes or not sizes else max(sizes)
    rows = [(name.format(n=n), key.format(n=n), says.format(n=n)) for name, (key, says) in FIGURES.items()]
    return [row for row in rows if isinstance(table.get(row[1]), int | float)]


def headline(table: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures that were measured, by short name, rounded to DIGITS decimals."""
    return {name: round(float(table[key]), DIGITS) for name, key, _ in headline_rows(table)}
