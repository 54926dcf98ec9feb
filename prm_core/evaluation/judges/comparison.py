"""Judges compared on the same trajectories: how right each is, how steady, how dear, how fast, and where one loses.

Every figure has a 95 % interval by a bootstrap over problems, with the same resamples for all judges, so that the
interval of a difference is of a paired comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prm_core.errors import InputError
from prm_core.evaluation import metrics
from prm_core.evaluation.judges.base import Case, Judge, Judgement, Verdicts, judge_all
from prm_core.evaluation.metrics import Bootstrap, Estimate, Floats, Statistic
from prm_core.turns import written

# Of each judge, and of its difference to the first.
FIGURES = ("step_accuracy", "balanced_accuracy", "first_error_accuracy", "first_error_f1")
# Of latencies, beside the median.
SLOW = 0.95
# Examples that are listed of the steps that the first judge loses.
WORST = 10
# Ends of the bands that steps are counted in: characters written, and position from 1.
LENGTHS = (50, 200, 800)
POSITIONS = (1, 2, 3, 6)
# What stands beside the judges.
ALWAYS_RIGHT, GUESS = "always right", "guess"


@dataclass(frozen=True, slots=True)
class Judged:
    """A judge and what it said.

    Attributes:
        judge: what it is.
        threshold: of its scores; of no use where it gives verdicts.
        rule: how that was chosen.
        runs: of each repeat, what it said of each case.
    """

    judge: Judge
    threshold: float
    rule: str
    runs: Sequence[Sequence[Judgement]]

    def verdicts(self, run: int = 0) -> list[Verdicts]:
        """On each case, in one of the repeats."""
        return [said.verdicts_at(self.threshold) for said in self.runs[run]]


def choose_threshold(cases: Sequence[Case], said: Sequence[Judgement]) -> tuple[float, float]:
    """The threshold with the best first-error F1 on cases other than are reported, and that F1.

    Raises InputError where they lack chains with an error, or without one.
    """
    known = [(tuple(np.inf if score is None else score for score in one.scores), case.first_error)
             for case, one in zip(cases, said, strict=True) if case.first_error is not None]
    try:
        return metrics.choose_threshold([scores for scores, _ in known], [error for _, error in known])
    except ValueError as error:
        raise InputError(f"the trajectories for the threshold: {error}") from None


def judge_cases(
    judges: Mapping[str, Judge], cases: Sequence[Case], dev: Sequence[Case], *, dev_name: str, threshold: float,
    repeats: int, seed: int,
) -> dict[str, Judged]:
    """What every judge says of the cases, `repeats` times over.

    Args:
        judges: name → judge.
        dev: other cases, on which the thresholds of scores are chosen; without any they are `threshold`.
        dev_name: what those are called.
        seed: of the first repeat; the others' follow.
    """
    found = {}
    for name, judge in judges.items():
        chosen, rule = threshold, "given"
        if judge.decides:
            rule = "its own verdicts"
        elif dev:
            chosen, f1 = choose_threshold(dev, judge_all(judge, f"{name}, for its threshold", dev, seed))
            rule = f"chosen on {dev_name} (first-error F1 {100 * f1:.1f} there)"
        found[name] = Judged(judge, chosen, rule, [judge_all(judge, name, cases, seed + repeat)
                                                   for repeat in range(repeats)])
    return found


# -------------------------------------------------------------------------------------------------------- figures


def owners(cases: Sequence[Case]) -> list[int]:
    """Index of each case's problem, from 0 in order of appearance."""
    known: dict[str, int] = {}
    return [known.setdefault(case.problem, len(known)) for case in cases]


def predicted_error(verdicts: Verdicts) -> int | None:
    """Index of the first step called wrong, -1 for none, None of a trajectory without any verdict."""
    if all(right is None for right in verdicts):
        return None
    return next((index for index, right in enumerate(verdicts) if right is False), -1)


def statistics(cases: Sequence[Case], verdicts: Sequence[Verdicts]) -> dict[str, Statistic]:
    """FIGURES and `judged`, the share of steps with a verdict. A step without one is a miss, and so is the first error
    of a trajectory without any.

    Balanced accuracy is the mean of the shares of right and of wrong steps that are called so.
    """
    problem = owners(cases)
    count = max(problem) + 1
    rows = [(right, said, owner) for case, row, owner in zip(cases, verdicts, problem, strict=True)
            for right, said in zip(case.gold, row, strict=True) if right is not None]
    owner = [row[2] for row in rows]
    hits = [right is said for right, said, _ in rows]

    def of(kind: bool) -> Statistic:
        return metrics.share([hit for hit, row in zip(hits, rows, strict=True) if row[0] is kind],
                             [row[2] for row in rows if row[0] is kind], count)

    right, wrong = of(True), of(False)
    known = [(case.first_error, predicted_error(row), owner) for case, row, owner in
             zip(cases, verdicts, problem, strict=True) if case.first_error is not None]
    found = {"step_accuracy": metrics.share(hits, owner, count),
             "balanced_accuracy": lambda weights: (right(weights) + wrong(weights)) / 2,
             "judged": metrics.share([said is not None for _, said, _ in rows], owner, count)}
    if known:
        tally = metrics.tally([error == said for error, said, _ in known], [error for error, _, _ in known],
                              [owner for *_, owner in known], count)
        found |= {"first_error_accuracy": tally.accuracy, "first_error_f1": tally.f1}
    return found


def guess(cases: Sequence[Case]) -> dict[str, Statistic]:
    """What a uniform guess reaches in expectation: of a step right or wrong, of a trajectory any step or none."""
    known = [(len(case.steps), case.first_error, owner)
             for case, owner in zip(cases, owners(cases), strict=True) if case.first_error is not None]
    found = {"step_accuracy": metrics.constant(0.5), "balanced_accuracy": metrics.constant(0.5)}
    if known:
        steps, errors, owner = zip(*known, strict=True)
        tally = metrics.random_tally(steps, errors, owner, max(owners(cases)) + 1)
        found |= {"first_error_accuracy": tally.accuracy, "first_error_f1": tally.f1}
    return found


def quantile(values: ArrayLike, problem: ArrayLike, level: float) -> Statistic:
    """The smallest value that at least the share `level` of all does not exceed, values weighing as their problems do.

    Args:
        values, problem: (values,) each.
    """
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    ranked, owner = values[order], np.asarray(problem, dtype=np.int64)[order]

    def statistic(weights: Floats) -> Floats:
        reached = np.cumsum(weights[:, owner], axis=1)
        at = (reached >= level * reached[:, -1:] - 1e-9).argmax(axis=1)
        return ranked[at]

    return statistic


# ------------------------------------------------------------------------------------------------------ agreement


def agreement(cases: Sequence[Case], runs: Sequence[Sequence[Verdicts]]) -> dict[str, float | None]:
    """How steady a judge is over repeats, on all steps.

    Returns:
        `kept`: share of steps whose verdict (or lack of one) is the same in all repeats; `alpha`: Krippendorff's alpha
        of nominal verdicts, repeats as the observers and no verdict as a missing value. 1 is no chance at all, 0 what
        chance gives; None with one repeat, and where one and the same verdict is given throughout.

    Source: Krippendorff 2004, "Content Analysis", chapter 11.
    """
    if len(runs) < 2:
        return {"kept": None, "alpha": None}
    units = [[run[row][index] for run in runs] for row, case in enumerate(cases) for index in range(len(case.steps))]
    return {"kept": sum(len(set(unit)) == 1 for unit in units) / len(units), "alpha": krippendorff(units)}


def krippendorff(units: Sequence[Sequence[bool | None]]) -> float | None:
    """Alpha of nominal values, None for a missing one; None where it is not defined."""
    together: Counter[tuple[bool, bool]] = Counter()
    for unit in units:
        values = Counter(value for value in unit if value is not None)
        pairs = sum(values.values()) - 1
        if pairs < 1:
            continue
        for one, other in ((a, b) for a in values for b in values):
            together[one, other] += values[one] * (values[other] - (one is other)) / pairs
    totals = {value: sum(count for (one, _), count in together.items() if one is value) for value in (True, False)}
    everything = sum(totals.values())
    expected = 2 * totals[True] * totals[False]
    if not expected:
        return None
    unlike = together[True, False] + together[False, True]
    return 1 - unlike * (everything - 1) / expected


# ------------------------------------------------------------------------------------------------- where one loses


def _band(value: int, edges: Sequence[int], unit: str) -> str:
    low = 0
    for edge in edges:
        if value <= edge:
            return f"{edge}{unit}" if edge - low == 1 else f"{low + 1} to {edge}{unit}"
        low = edge
    return f"more than {low}{unit}"


def kinds_of(case: Case, index: int) -> dict[str, str]:
    """What kind of step it is: tool called, position from 1, length of what was written, agent where it has a name."""
    step = case.steps[index]
    found = {"tool": " + ".join(call.name for call in step.calls) or "no call",
             "position": _band(index + 1, POSITIONS, ""),
             "length": _band(max(len(written(step)), 1), LENGTHS, " characters")}
    return found | ({"agent": step.agent} if step.agent else {})


def losses(cases: Sequence[Case], first: Judged, other: Judged) -> dict[str, Any]:
    """The steps that the other judge got right and the first wrong.

    Returns:
        `lost`, `won` (the other way round), `both_wrong`, `steps`; `by_kind`: kind → value → lost, won and steps, the
        most lost first; `worst`: the lost steps on which the first judge was surest.
    """
    mine, theirs = first.verdicts(), other.verdicts()
    totals: Counter[str] = Counter()
    by_kind: dict[str, dict[str, Counter[str]]] = {}
    lost = []
    for row, case in enumerate(cases):
        for index, right in enumerate(case.gold):
            if right is None:
                continue
            good = mine[row][index] is right, theirs[row][index] is right
            what = {(False, True): "lost", (True, False): "won", (False, False): "both_wrong"}.get(good, "both_right")
            totals[what] += 1
            for kind, value in kinds_of(case, index).items():
                counts = by_kind.setdefault(kind, {}).setdefault(value, Counter())
                counts.update([what, "steps"])
            if what == "lost":
                lost.append((row, index))
    said, said_by_other = first.runs[0], other.runs[0]

    def surest(place: tuple[int, int]) -> float:
        score = said[place[0]].scores[place[1]]
        return 0.0 if score is None else -abs(score - first.threshold)

    worst = [{"trajectory": cases[row].id, "step": index, "gold": cases[row].gold[index],
              "score": said[row].scores[index], "other_score": said_by_other[row].scores[index],
              "other_reason": said_by_other[row].reason(index), "text": _short(written(cases[row].steps[index]))}
             for row, index in sorted(lost, key=surest)[:WORST]]
    return {**{name: totals[name] for name in ("lost", "won", "both_wrong")}, "steps": sum(totals.values()),
            "by_kind": {kind: {value: {name: counts[name] for name in ("lost", "won", "steps")} for value, counts in
                               sorted(values.items(), key=lambda one: (-one[1]["lost"], one[0]))}
                        for kind, values in by_kind.items()},
            "worst": worst}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."


# --------------------------------------------------------------------------------------------------------- all of it


def compare(cases: Sequence[Case], judged: Mapping[str, Judged], resamples: int, seed: int) -> dict[str, Any]:
    """Every judge's figures, and each beside the first.

    Args:
        cases: at least one.
        judged: name → what it said of the cases; the first is the one that the others are held against.
        resamples, seed: of the bootstrap.

    Returns:
        as JSON; shares from 0 to 1, times in seconds, prices in the currency of the judges' prices.
    """
    problem = owners(cases)
    bootstrap = Bootstrap(max(problem) + 1, resamples, seed)
    names = list(judged)
    found = {name: statistics(cases, one.verdicts()) for name, one in judged.items()}
    floors = {ALWAYS_RIGHT: statistics(cases, [(True,) * len(case.steps) for case in cases]), GUESS: guess(cases)}
    table: dict[str, Any] = {}
    for name, one in judged.items():
        table[name] = {
            "about": one.judge.about, "version": one.judge.version,
            "threshold": None if one.judge.decides else one.threshold,
            "threshold_rule": one.rule,
            "figures": _estimates(bootstrap, found[name]),
            "agreement": agreement(cases, [one.verdicts(run) for run in range(len(one.runs))]),
            **_expense(one, problem, bootstrap),
        }
        if name != names[0]:
            table[name]["minus_first"] = _estimates(bootstrap, {
                key: metrics.difference(found[name][key], found[names[0]][key]) for key in FIGURES
                if key in found[name]})
            table[name]["first_loses"] = losses(cases, judged[names[0]], one)
    return {"trajectories": len(cases), "problems": bootstrap.problems,
            "judged_steps": sum(right is not None for case in cases for right in case.gold),
            "wrong_steps": sum(right is False for case in cases for right in case.gold),
            "first": names[0], "judges": table,
            "floors": {name: _estimates(bootstrap, one) for name, one in floors.items()}}


def _estimates(bootstrap: Bootstrap, found: Mapping[str, Statistic]) -> dict[str, dict[str, float]]:
    """Those that are defined."""
    estimates = {name: bootstrap.estimate(statistic) for name, statistic in found.items()}
    return {name: asdict(one) for name, one in estimates.items() if one.defined}


def _expense(one: Judged, problem: Sequence[int], bootstrap: Bootstrap) -> dict[str, Any]:
    """Tokens, price and time of a trajectory, over all repeats."""
    said = [judgement for run in one.runs for judgement in run]
    owner = [index for _ in one.runs for index in problem]
    read, wrote = one.judge.prices
    prices = [(each.tokens_read * read + each.tokens_written * wrote) / 1e6 for each in said]

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap.estimate(metrics.share(values, owner, bootstrap.problems))

    def at(level: float) -> Estimate:
        return bootstrap.estimate(quantile([each.seconds for each in said], owner, level))

    return {"cost": {name: asdict(mean(values)) for name, values in (
                ("tokens_read", [float(each.tokens_read) for each in said]),
                ("tokens_written", [float(each.tokens_written) for each in said]), ("price", prices))},
            "latency": {"median": asdict(at(0.5)), "p95": asdict(at(SLOW))}}
