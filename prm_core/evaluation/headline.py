"""The figures people ask for first, out of the hundreds of an evaluation.

They are what `dvc metrics show` lists and a model version is introduced with; the others stay in metrics.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Short name → key of metrics.json and what it says. {n} is how many chains are chosen from.
FIGURES = {
    "first_error_f1": ("test/prm/first_error_f1", "F1 of finding the first wrong step"),
    "first_error_f1_spread": ("test/prm/first_error_f1_spread", "standard deviation of that F1 between the PRM's "
                              "committee members"),
    "random_f1": ("test/random/first_error_f1", "the same of random scores"),
    "auroc": ("test/prm/auroc", "AUROC of single steps"),
    "ece": ("test/prm/ece", "expected calibration error of single steps"),
    "prm_at_{n}": ("test/prm_best_of_n/accuracy_at_{n}", "right answers, best of {n} by the PRM"),
    "orm_at_{n}": ("test/orm_best_of_n/accuracy_at_{n}", "right answers, best of {n} by an outcome model"),
    "majority_at_{n}": ("test/majority/accuracy_at_{n}", "right answers, majority of {n}"),
    "oracle_at_{n}": ("test/oracle/accuracy_at_{n}", "any of {n} right"),
    "pass_at_1": ("test/policy_base/pass_at_1", "right answers, one chain of the base policy"),
    "pass_at_1_trained": ("test/policy_trained/pass_at_1", "right answers, one chain of the trained policy"),
    "sound": ("test/policy_base/sound_accuracy", "right, and every step right, base policy"),
    "sound_trained": ("test/policy_trained/sound_accuracy", "right, and every step right, trained policy"),
    "consistency": ("test/policy_base/process_consistency", "its right answers without a wrong step, base policy"),
    "consistency_trained": ("test/policy_trained/process_consistency", "the same, trained policy"),
    "shifted_first_error_f1": ("shifted/prm/first_error_f1", "F1 of the first wrong step, shifted problems"),
    "shifted_ece": ("shifted/prm/ece", "calibration error of single steps, shifted problems"),
    "shifted_prm_at_{n}": ("shifted/prm_best_of_n/accuracy_at_{n}", "right, best of {n} by the PRM, shifted problems"),
    "shifted_pass_at_1": ("shifted/policy_base/pass_at_1", "right answers of the base policy, shifted problems"),
}
# The usual size of a best-of-N comparison; where it was not measured, the largest one that was.
CHAINS = 8
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Figure:
    """A headline figure.

    Attributes:
        name: short.
        key: in metrics.json.
        says: what it is, in words.
        value: None where it could not be measured.
        low, high: its 95 % interval, None where it has none.
        reason: why it could not be measured.
    """

    name: str
    key: str
    says: str
    value: float | None
    low: float | None
    high: float | None
    reason: str


def headline_figures(table: Mapping[str, Any]) -> list[Figure]:
    """The headline figures that were measured, and those that could not be, with the reason.

    Args:
        table: metrics.json of the evaluate stage.
    """
    sizes = {int(match[1]) for key in table if (match := re.fullmatch(r"test/majority/accuracy_at_(\d+)", key))}
    n = CHAINS if CHAINS in sizes or not sizes else max(sizes)
    found = []
    for name, (pattern, says) in FIGURES.items():
        key = pattern.format(n=n)
        figure = Figure(name.format(n=n), key, says.format(n=n), table.get(key), table.get(f"{key}_low"),
                        table.get(f"{key}_high"), table.get(f"{key}_left_out", ""))
        if figure.value is not None or figure.reason:
            found.append(figure)
    return found


def headline(table: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures that were measured, by short name, rounded to DIGITS decimals."""
    return {figure.name: round(float(figure.value), DIGITS) for figure in headline_figures(table)
            if figure.value is not None}


def figure_table(table: Mapping[str, Any]) -> str:
    """The headline figures as a Markdown table, empty where there are none."""
    lines = ["| on held-out problems | | 95 % interval |", "|---|---|---|"]
    for figure in headline_figures(table):
        shown = f"not measured: {figure.reason}" if figure.value is None else f"**{figure.value:.{DIGITS}f}**"
        known = figure.low is not None and figure.high is not None
        interval = f"{figure.low:.{DIGITS}f} to {figure.high:.{DIGITS}f}" if known else ""
        lines.append(f"| {figure.says} | {shown} | {interval} |")
    return "\n".join(lines) if lines[2:] else ""
