"""The figures people ask for first, out of the hundreds of an evaluation.

They are what `dvc metrics show` lists and a model version is introduced with; the others stay in metrics.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises

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
    "violations": ("test/policy_base/violations", "runs that break a rule, base policy"),
    "violations_trained": ("test/policy_trained/violations", "the same, trained policy"),
    "suffix_passes": ("probe/suffix/passed", "wrong chains that pass with a suffix searched for"),
    "outcome_fall": ("probe/policy/outcome_fall", "right answers lost by a policy that the scores alone pay"),
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


def promise_lines(promises: Promises, table: Mapping[str, Any]) -> list[str]:
    """What an alarm and a clean prefix promise and how that was kept on test problems, a sentence or two each.

    Args:
        table: metrics.json of the evaluate stage.
    """
    def share(name: str) -> str:
        value, low, high = (table.get(f"test/prm/{name}{part}") for part in ("", "_low", "_high"))
        if value is None:
            return "none can be measured"
        interval = "" if low is None or high is None else f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        return f"{100 * value:.1f} %{interval}"

    def held(promise: Alarm | CleanPrefix) -> str:
        return f"with confidence {100 * promise.confidence:g} %, fitted on {promise.runs} dev problems"

    alarm, prefix = promises.alarm, promises.prefix
    lines = [f"No {what} was fitted: {table.get(f'dev/prm/{name}_left_out', 'the evaluation does not say why')}."
             for name, what, made in (("alarm", "alarm", alarm), ("prefix", "clean prefix", prefix)) if made is None]
    if alarm is not None:
        lines.append(
            f"Alarm: a run is to stop after the first step that scores below {alarm.threshold:.4g}. Of runs without a "
            f"wrong step it stops at most {100 * alarm.alpha:g} %, {held(alarm)}; of those on test problems it stopped "
            f"{share('alarm_false')}, and of runs with a wrong step {share('alarm_stopped')}, before their last third "
            f"{share('alarm_stopped_early')}.")
    if prefix is not None:
        until = ("all steps" if prefix.threshold is None else
                 f"the steps before the first that scores {prefix.threshold:.4g} or less")
        lines.append(
            f"Clean prefix: {until} are promised to be right. At most {100 * prefix.alpha:g} % of runs have a wrong "
            f"one among them, {held(prefix)}; on test problems it was {share('prefix_broken')}. Of the steps before "
            f"first errors {share('prefix_steps_kept')} are promised.")
    return lines
