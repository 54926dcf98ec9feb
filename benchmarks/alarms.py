"""How many failing runs an alarm stops in time at a false-alarm rate that is kept, and how far clean prefixes go.

    python -m benchmarks.alarms WORKSPACE… --beside WORKSPACE… --out benchmarks/results/alarms.json

On the saved scores of finished runs, one a seed: nothing is sampled or scored. Fitted on the dev problems (one chain
each), measured on the chains of the test problems; a chain fails where the oracle finds an error. Bars are held to the
median and to the worst workspace; one `--beside` them (another level) is reported. Beside the alarm stand an e-process
of an estimated likelihood ratio, stopped by Ville's inequality and by the same order statistic as the alarm.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Bar, parsed, write
from prm_core.errors import InputError
from prm_core.evaluation import stopping
from prm_core.evaluation.judged_chains import Chain, load_chains
from prm_core.evaluation.stopping import (
    ALPHA,
    CONFIDENCE,
    PREFIX_ALPHA,
    Runs,
    judged_runs,
    measure_alarm,
    measure_prefix,
)
from prm_core.platform import store
from prm_core.scoring.conformal import Alarm, CleanPrefix, fit_alarm
from prm_core.types import Problem

STOPPED_EARLY = 60.0
EDGE = 1e-6
Figures = Mapping[str, Any]
Evidence = Callable[[Sequence[float]], list[float]]


def read(workspace: Path) -> dict[str, list[Chain]]:
    """The chains that a workspace's evaluation measured, by tag."""
    splits = {split: store.read_jsonl(Problem, workspace / f"data/{split}.jsonl")
              for split in ("dev", "test", "shifted")}
    folder = workspace / "artifacts/evaluate"
    return load_chains(folder / "trajectories", folder / "scores.jsonl",
                       {f"{split}-{policy}": problems for split, problems in splits.items()
                        for policy in ("base", "trained")})


def _features(scores: Sequence[float]) -> NDArray[np.float64]:
    """What the scores up to each step come to, (steps, 5): the position, and of the log-odds that the step is wrong the
    last, the largest and the sum; the log of all doubt."""
    p = np.clip(np.asarray(scores, dtype=np.float64), EDGE, 1 - EDGE)
    odds = np.log1p(-p) - np.log(p)
    return np.stack([np.arange(1, len(p) + 1), odds, np.maximum.accumulate(odds), odds.cumsum(),
                     np.log(-np.log(p).cumsum())], axis=1)


def likelihood_ratio(runs: Runs) -> Evidence:
    """Minus the log of an estimate of p(scores so far | fails) / p(scores so far | does not), after each step.

    By logistic regression and Bayes' rule, with the share of failing runs among those that get so far as the prior.
    Source: arXiv 2512.03109, section 3, with another classifier.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([_features(scores) for scores in runs.scores])
    fails = np.concatenate([np.full(len(scores), error >= 0)
                            for scores, error in zip(runs.scores, runs.first_errors, strict=True)])
    model = LogisticRegression(max_iter=2000).fit(rows, fails)
    longest = int(rows[:, 0].max())
    # One failing and one sound run more at each position: no log of nothing.
    failing, reached = (np.bincount(rows[chosen, 0].astype(int), minlength=longest + 1)
                        for chosen in (fails, np.full(len(fails), True)))
    prior = np.log(failing + 1) - np.log(reached - failing + 1)

    def evidence(scores: Sequence[float]) -> list[float]:
        features = _features(scores)
        return (prior[np.minimum(features[:, 0].astype(int), longest)] - model.decision_function(features)).tolist()

    return evidence


def _as(evidence: Evidence, runs: Runs) -> Runs:
    return Runs([evidence(scores) for scores in runs.scores], runs.first_errors, runs.problem)


def _some(runs: Runs, keep: Callable[[int, int], bool]) -> Runs:
    """The runs for whose first error and problem `keep` says so."""
    rows = [row for row in zip(runs.scores, runs.first_errors, runs.problem, strict=True) if keep(row[1], row[2])]
    return Runs([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def peers(dev: Runs, test: Runs) -> dict[str, Figures]:
    """What the estimated likelihood ratio does on the test runs, with each of two thresholds."""
    by_ville = Alarm(ALPHA, 0, len(dev.scores), float(np.log(ALPHA)))
    found = {"e_process_ville": (likelihood_ratio(dev), by_ville)}
    # The ratio and its threshold must not see the same problems; the lowest evidence is one value a problem.
    ratio = likelihood_ratio(_some(dev, lambda error, problem: problem % 2 == 1))
    sound = _as(ratio, _some(dev, lambda error, problem: problem % 2 == 0 and error < 0))
    first = dict(reversed(list(zip(sound.problem, sound.scores, strict=True))))
    found["e_process_conformal"] = ratio, fit_alarm(list(first.values()), [False] * len(first), ALPHA, 0)
    return {name: asdict(measure_alarm(alarm, _as(evidence, test))) for name, (evidence, alarm) in found.items()}


def measure(workspace: Path) -> dict[str, Any]:
    """The figures of a workspace, shares from 0 to 1."""
    chains = read(workspace)
    promises, weaker = (_fitted(workspace, chains["dev-base"], confidence) for confidence in (CONFIDENCE, 0))
    test = judged_runs(chains["test-base"])
    return {
        "workspace": workspace.name, "alarm": promises[0].to_dict(), "prefix": promises[1].to_dict(),
        "runs": len(test.scores),
        "failing": sum(error >= 0 for error in test.first_errors),
        "left_out": len(chains["test-base"]) - len(test.scores),
        "test": _figures(*promises, test),
        "without_confidence": _figures(*weaker, test),
        # Not what was fitted on: neither guarantee speaks of them.
        "trained_policy": _figures(*promises, judged_runs(chains["test-trained"])),
        "shifted": _figures(*promises, judged_runs(chains["shifted-base"])),
        **peers(judged_runs(chains["dev-base"]), test),
    }


def _fitted(workspace: Path, dev: Sequence[Chain], confidence: float) -> tuple[Alarm, CleanPrefix]:
    promises, reasons = stopping.fit(dev, confidence)
    if promises.alarm is None or promises.prefix is None:
        raise InputError(f"{workspace}: {next(iter(reasons.values()))}")
    return promises.alarm, promises.prefix


def _figures(alarm: Alarm, prefix: CleanPrefix, runs: Runs) -> dict[str, Any]:
    return {**asdict(measure_alarm(alarm, runs)), **asdict(measure_prefix(prefix, runs))}


def bars(found: Sequence[Figures]) -> list[Bar]:
    """Each bar twice: the median over workspaces with their range, and the worst with its own interval."""
    made = []
    for key, name, worst, asked, holds in (
        ("stopped_early", "failing runs stopped before their last third", min, f">= {STOPPED_EARLY:g}",
         lambda value, low: value >= STOPPED_EARLY),
        ("false_alarms", "false alarms", max, "<= 5 + its interval", lambda value, low: low <= 100 * ALPHA),
        ("broken_promises", "clean prefixes that hold an error", max, "<= 10 + its interval",
         lambda value, low: low <= 100 * PREFIX_ALPHA),
        ("broken", "runs whose clean prefix holds an error (empty ones do not)", max, "<= 10 + its interval",
         lambda value, low: low <= 100 * PREFIX_ALPHA),
    ):
        rows = [{part: 100 * share for part, share in one["test"][key].items()} for one in found]
        values = [row["value"] for row in rows]
        median = statistics.median(values)
        made.append(Bar(f"{name}, %, median of {len(rows)}", median, min(values), max(values), asked,
                        holds(median, median)))
        row = next(row for row in rows if row["value"] == worst(values))
        made.append(Bar(f"{name}, %, worst of {len(rows)}", row["value"], row["low"], row["high"], asked,
                        holds(row["value"], row["low"])))
    return made


def main() -> None:
    """Measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alarms")
    parser.add_argument("workspaces", type=Path, nargs="+", help="finished runs, one a seed")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="finished runs that are reported only")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    found, beside = ([_rounded(measure(workspace)) for workspace in group]
                     for group in (given.workspaces, given.beside))
    write(given, bars(found), workspaces=found, beside=beside)


def _rounded(figures: Any) -> Any:
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    if not isinstance(figures, float):
        return figures
    # JSON has no NaN for what no run tells.
    return round(figures, 4) if math.isfinite(figures) else None


if __name__ == "__main__":
    main()
