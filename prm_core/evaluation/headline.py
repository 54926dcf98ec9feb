"""The dozen figures people ask for first, out of the hundreds of an evaluation.

They are what `dvc metrics show` lists and a model version is introduced with; the others stay in metrics.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Short name → key of metrics.json. {n} is how many chains are chosen from.
FIGURES = {
    "first_error_f1": "test/prm/first_error_f1",
    "random_f1": "test/random/first_error_f1",
    "auroc": "test/prm/auroc",
    "ece": "test/prm/ece",
    "prm_at_{n}": "test/prm_best_of_n/accuracy_at_{n}",
    "orm_at_{n}": "test/orm_best_of_n/accuracy_at_{n}",
    "majority_at_{n}": "test/majority/accuracy_at_{n}",
    "oracle_at_{n}": "test/oracle/accuracy_at_{n}",
    "pass_at_1": "test/policy_base/pass_at_1",
    "pass_at_1_trained": "test/policy_trained/pass_at_1",
    "consistency": "test/policy_base/process_consistency",
    "consistency_trained": "test/policy_trained/process_consistency",
}
# The usual size of a best-of-N comparison; where it was not measured, the largest one that was.
CHAINS = 8
DIGITS = 4


def headline_keys(table: Mapping[str, Any]) -> dict[str, str]:
    """Short name → key, of the headline figures that were measured.

    Args:
        table: metrics.json of the evaluate stage.
    """
    sizes = {int(match[1]) for key in table if (match := re.fullmatch(r"test/majority/accuracy_at_(\d+)", key))}
    n = CHAINS if CHAINS in sizes or not sizes else max(sizes)
    named = {name.format(n=n): key.format(n=n) for name, key in FIGURES.items()}
    return {name: key for name, key in named.items() if isinstance(table.get(key), int | float)}


def headline(table: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures that were measured, rounded to DIGITS decimals."""
    return {name: round(float(table[key]), DIGITS) for name, key in headline_keys(table).items()}
