"""What is measured on the chains of a split: the table of metrics, the best-of-N curves, the alarms.

The formulas are in `metrics.py` and `search/selection.py`; how the chains came about is in `sampling.py`.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.evaluation import blame, metrics
from prm_core.evaluation.judged_chains import Chain, compared, counts, first_per_problem
from prm_core.evaluation.metrics import Bootstrap, Estimate, JudgedSteps, Statistic
from prm_core.scoring.calibration import ReliabilityBin, reliability_curve
from prm_core.search import selection
from prm_core.types import Problem

log = logging.getLogger(__name__)

# Step-level figures use the first four chains of each problem: every problem weighs the same, and step verdicts of
# more chains of one problem add little.
STEP_CHAINS = 4
METHODS = ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n", "oracle")
# More of them than in Math-Shepherd (Zhang et al. 2025) and the PRM is an ORM in all but name.
MAX_LOWEST_IS_LAST = 0.445
# Chains of the policy it was trained on that a PRM may be unable to judge; a hundredth or so always is.
MAX_OUT_OF_DOMAIN = 0.05
# PRM score a step more may cost a chain with a wrong answer before it is worth an alarm.
MAX_LENGTH_COST = 0.02


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy of a way to choose among n chains."""

    method: str
    n: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Chains of one length: how many, their mean PRM score, and the share with a right answer."""

    steps: int
    chains: int
    mean_score: float
    share_right: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result on one split.

    Attributes:
        figures: `<model>/<metric>` → estimate, those undefined left out.
        numbers: `<model>/<metric>` → plain number (counts, threshold).
        reasons: `<model>/<metric>` → why it was left out.
        curve: best-of-N accuracies.
        steps: the judged steps behind the step-level figures, None without an oracle.
        reliability: their reliability curve.
        lengths: mean score against chain length.
        alarms: name → what looks wrong.
    """

    figures: Mapping[str, Estimate]
    numbers: Mapping[str, float]
    reasons: Mapping[str, str]
    curve: Sequence[CurvePoint]
    steps: JudgedSteps | None
    reliability: Sequence[ReliabilityBin]
    lengths: Sequence[LengthRow]
    alarms: Mapping[str, str]

    def flat(self, split: str) -> dict[str, float | str]:
        """The flat keys of metrics.json: `<split>/<model>/<metric>`, with `_low` and `_high` for estimates."""
        table: dict[str, float | str] = {}
        for name, estimate in self.figures.items():
            table |= {f"{split}/{name}": estimate.value, f"{split}/{name}_low": estimate.low,
                      f"{split}/{name}_high": estimate.high}
        table |= {f"{split}/{name}": number for name, number in self.numbers.items()}
        table |= {f"{split}/{name}_left_out": reason for name, reason in self.reasons.items()}
        return table


@dataclass(frozen=True, slots=True)
class StepTable:
    """Judged, scored chains as the columns the step-level formulas take.

    Attributes:
        scores: of each chain's steps.
        compared: the same as a threshold is held against them: a chain out of the model's domain as if it were in it.
    """

    scores: list[tuple[float, ...]]
    compared: list[tuple[float, ...]]
    steps: list[int]
    gold: list[int]
    answer_right: list[bool]
    problem: list[int]


def step_table(chains: Sequence[Chain]) -> StepTable:
    """The columns of the chains that have both gold verdicts and step scores."""
    kept = [chain for chain in chains if chain.gold is not None and chain.step_scores]
    return StepTable([chain.step_scores or () for chain in kept],
                     [compared(chain, chain.step_scores or ()) for chain in kept],
                     [len(chain.trajectory.steps) for chain in kept],
                     [chain.gold_error for chain in kept], [chain.right for chain in kept],
                     [chain.problem for chain in kept])


def choose_threshold(dev: Sequence[Chain], default: float) -> tuple[float, str | None]:
    """The first-error threshold with the best F1 on the dev chains; `default` and the reason when there is none."""
    table = step_table(dev)
    if not table.gold:
        return default, "no dev chain has gold verdicts: the served threshold is used"
    try:
        return metrics.choose_threshold(table.compared, table.gold)[0], None
    except ValueError as error:
        return default, f"{error}: the served threshold is used"


def f1_spread(chains: Sequence[Chain], problems: int, threshold: float) -> float | None:
    """Standard deviation of the first-error F1 between the members of the PRM's committee, at the same threshold; None
    without a committee or where it is not defined.

    Args:
        chains: judged and scored, as many a problem as step-level figures use.
        problems: in the split.
    """
    kept = [chain for chain in chains if chain.gold is not None and chain.members]
    if not kept:
        return None
    columns = ([chain.gold_error for chain in kept], [chain.problem for chain in kept], problems)
    found = []
    for member in range(len(kept[0].members[0])):
        scores = [compared(chain, [step[member] for step in chain.members]) for chain in kept]
        found.append(float(metrics.prm_tally(scores, *columns, threshold).f1(np.ones((1, problems)))[0]))
    spread = float(np.std(found, ddof=1)) if len(found) > 1 else float("nan")
    return None if np.isnan(spread) else spread


def check_best_of(best_of: Sequence[int], samples: int) -> None:
    """Raises InputError when a best-of-N asks for more chains than are sampled."""
    if not best_of or min(best_of) < 1 or max(best_of) > samples:
        raise InputError(f"evaluate.best_of is {list(best_of)} with evaluate.samples {samples}; every N must lie "
                         "between 1 and the samples per problem: lower N or raise evaluate.samples")


def _by_problem(chains: Sequence[Chain], problems: int) -> list[list[Chain]]:
    groups: list[list[Chain]] = [[] for _ in range(problems)]
    for chain in chains:
        groups[chain.problem].append(chain)
    return groups


def selection_accuracies(
    chains: Sequence[Chain], problems: Sequence[Problem], best_of: Sequence[int], seed: int,
    hits: Sequence[bool] | None = None,
) -> dict[tuple[str, int], np.ndarray]:
    """(method, N) → expected accuracy of each problem, (problems,), over N-subsets of its chains.

    Args:
        hits: of each chain, what is counted in place of a right answer, such as whether it breaks a rule. A vote then
            chooses any chain with the answer that wins, and any chain at all where none states one.
    """
    table = {(method, n): np.zeros(len(problems)) for method in METHODS for n in best_of}
    counted: list[list[bool]] = [[] for _ in problems]
    for chain, hit in zip(chains, [chain.right for chain in chains] if hits is None else hits, strict=True):
        counted[chain.problem].append(hit)
    for index, (group, right) in enumerate(zip(_by_problem(chains, len(problems)), counted, strict=True)):
        prm = [chain.prm_score for chain in group]
        orm = [chain.orm_score for chain in group]
        combined = [chain.combined_score for chain in group]
        answers = selection.group_answers([chain.trajectory.answer for chain in group],
                                          DOMAINS[problems[index].domain].answer_classes)
        silent = [hit for hit, answer in zip(right, answers, strict=True) if answer < 0 and hits is not None]
        for n in best_of:
            unsaid = (1 - selection.oracle_at_n(answers >= 0, n)) * np.mean(silent) if silent else 0.0
            table["majority", n][index] = unsaid + selection.majority_of_n(answers, right, n, seed=seed)
            table["weighted_majority", n][index] = unsaid + selection.majority_of_n(answers, right, n, weights=prm,
                                                                                   seed=seed)
            table["orm_best_of_n", n][index] = selection.best_of_n(orm, right, n)
            table["prm_best_of_n", n][index] = selection.best_of_n(prm, right, n)
            table["combined_best_of_n", n][index] = selection.best_of_n(combined, right, n)
            table["oracle", n][index] = selection.oracle_at_n(right, n)
    return table


def _policy_statistics(chains: Sequence[Chain], problems: int) -> dict[str, Statistic]:
    """pass@1, and where chains have gold verdicts, the share that is right with every step right, and how many of the
    right answers that are."""
    owner = [chain.problem for chain in chains]
    found = {
        "pass_at_1": metrics.share([chain.right for chain in chains], owner, problems),
        "mean_steps": metrics.share([len(chain.trajectory.steps) for chain in chains], owner, problems),
    }
    called = [(right, chain.problem) for chain in chains for step, right in zip(
        chain.trajectory.steps, chain.gold or (), strict=False) if step.calls]
    if called:
        found["tool_call_accuracy"] = metrics.share([right for right, _ in called], [problem for _, problem in called],
                                                    problems)
    judged = [chain for chain in chains if chain.gold is not None]
    solved = [chain for chain in judged if chain.right]
    if judged:
        found["sound_accuracy"] = metrics.share([chain.right and chain.gold_error < 0 for chain in judged],
                                                [chain.problem for chain in judged], problems)
        clean, owner = np.array([chain.gold_error < 0 for chain in solved]), [chain.problem for chain in solved]
        found["process_consistency"] = metrics.share(clean, owner, problems)
        found["wrong_step_right_answer"] = metrics.share(1.0 - clean, owner, problems)
    scored = [chain for chain in first_per_problem(chains, STEP_CHAINS) if chain.prm_score is not None]
    if scored:
        found["prm_score"] = metrics.share([chain.prm_score for chain in scored],
                                           [chain.problem for chain in scored], problems)
    return found


def _step_statistics(table: StepTable, problems: int, threshold: float) -> dict[str, Statistic]:
    columns = (table.gold, table.problem, problems)
    tallies = {
        "prm": metrics.prm_tally(table.compared, *columns, threshold),
        "random": metrics.random_tally(table.steps, *columns),
        "middle": metrics.middle_tally(table.steps, table.answer_right, *columns),
    }
    steps = metrics.judged_steps(table.scores, *columns)
    found: dict[str, Statistic] = {}
    for name, tally in tallies.items():
        found |= {f"{name}/first_error_f1": tally.f1, f"{name}/acc_err": tally.acc_err, f"{name}/acc_ok": tally.acc_ok}
    found["prm_minus_random/first_error_f1"] = metrics.difference(tallies["prm"].f1, tallies["random"].f1)
    compared = metrics.judged_steps(table.compared, *columns)
    found["prm/step_accuracy"] = metrics.step_accuracy(compared, threshold)
    found["prm/auroc"] = metrics.auroc(steps.scores, steps.right, steps.problem)
    found["prm/brier"] = metrics.brier(steps)
    return found


def _chain_statistics(chains: Sequence[Chain], problems: int) -> dict[str, Statistic]:
    """How the two reward models' chain scores go with the answers, and the diagnostics of METHODS 3 and 8."""
    owner, right = [chain.problem for chain in chains], np.array([chain.right for chain in chains])
    prm = np.array([chain.prm_score for chain in chains], dtype=np.float64)
    orm = np.array([chain.orm_score for chain in chains], dtype=np.float64)
    wrong = [chain for chain in chains if not chain.right]
    slope = metrics.length_slope([chain.prm_score for chain in wrong],
                                 [len(chain.trajectory.steps) for chain in wrong],
                                 [chain.problem for chain in wrong], problems)
    known = [chain for chain in chains if chain.out_of_domain is not None]
    strange = metrics.share([bool(chain.out_of_domain) for chain in known], [chain.problem for chain in known],
                            problems)
    return {
        **({"prm/out_of_domain": strange} if known else {}),
        "prm/outcome_auroc": metrics.auroc(prm, right, owner),
        "orm/outcome_auroc": metrics.auroc(orm, right, owner),
        "prm/lowest_is_last": metrics.lowest_is_last([chain.step_scores or () for chain in chains], owner, problems),
        "prm/length_slope": slope,
    }


def _lengths(chains: Sequence[Chain]) -> list[LengthRow]:
    rows = []
    for length in sorted({len(chain.trajectory.steps) for chain in chains}):
        same = [chain for chain in chains if len(chain.trajectory.steps) == length]
        rows.append(LengthRow(length, len(same), float(np.mean([chain.prm_score for chain in same])),
                              float(np.mean([chain.right for chain in same]))))
    return rows


def find_alarms(figures: Mapping[str, Estimate], best_of: Sequence[int]) -> dict[str, str]:
    """Name → message for every sanity check of METHODS 8 that fails; empty when all hold."""
    alarms: dict[str, str] = {}
    ns = sorted(best_of)
    accuracy = {n: figures[f"combined_best_of_n/accuracy_at_{n}"].value for n in ns}
    base = figures["policy_base/pass_at_1"].value
    # Exact expectations: a fall is a fall, but the last digits are floating-point noise.
    below = [n for n in ns if accuracy[n] < base - 1e-9]
    if below:
        alarms["best_of_n_below_pass_at_1"] = (
            f"best-of-{below[0]} is right on {accuracy[below[0]]:.1%}, one chain alone on {base:.1%}: choosing by "
            "the PRM does harm")
    falls = [(a, b) for a, b in pairwise(ns) if accuracy[b] < accuracy[a] - 1e-9]
    if falls:
        a, b = falls[0]
        alarms["best_of_n_falls"] = (f"best-of-N falls from {accuracy[a]:.1%} at N = {a} to {accuracy[b]:.1%} at "
                                     f"N = {b}: more chains find more that fool it")
    gap = figures.get("prm_minus_random/first_error_f1")
    if gap is not None and gap.low <= 0:
        alarms["first_error_near_random"] = (f"first-error F1 is {gap.value:+.1%} from a random guess, interval "
                                             f"{gap.low:+.1%} to {gap.high:+.1%}")
    slope = figures.get("prm/length_slope")
    if slope is not None and slope.high < 0 and slope.value < -MAX_LENGTH_COST:
        alarms["short_chains_preferred"] = (f"among chains with a wrong answer, a step more costs {-slope.value:.3f} "
                                            "of PRM score: stopping early pays")
    drift = figures.get("prm/lowest_is_last")
    if drift is not None and drift.value > MAX_LOWEST_IS_LAST:
        alarms["orm_drift"] = (f"the lowest score is the last step's in {drift.value:.1%} of chains (limit "
                               f"{MAX_LOWEST_IS_LAST:.1%}): the PRM judges answers, not steps")
    strange = figures.get("prm/out_of_domain")
    if strange is not None and strange.value > MAX_OUT_OF_DOMAIN:
        alarms["out_of_domain"] = (f"{strange.value:.1%} of the test chains are unlike what the PRM was trained on "
                                   f"(limit {MAX_OUT_OF_DOMAIN:.1%}): its scores of them mean nothing")
    return alarms


ALARMS = ("best_of_n_below_pass_at_1", "best_of_n_falls", "first_error_near_random", "short_chains_preferred",
          "orm_drift", "out_of_domain")


def _comparisons(
    base: Sequence[Chain], trained: Sequence[Chain], problems: Sequence[Problem], best_of: Sequence[int], seed: int
) -> dict[str, Statistic]:
    """Both policies, every way to choose among N chains, and the paired differences that the bars are about."""
    found: dict[str, Statistic] = {}
    for name, chains in (("policy_base", base), ("policy_trained", trained)):
        found |= {f"{name}/{key}": value for key, value in _policy_statistics(chains, len(problems)).items()}
    for key in ("pass_at_1", "process_consistency"):
        if f"policy_base/{key}" in found and f"policy_trained/{key}" in found:
            found[f"trained_minus_base/{key}"] = metrics.difference(found[f"policy_trained/{key}"],
                                                                    found[f"policy_base/{key}"])
    for (method, n), values in selection_accuracies(base, problems, best_of, seed).items():
        found[f"{method}/accuracy_at_{n}"] = metrics.mean(values)
    for n in best_of:
        for mine, rival in itertools.product(("prm", "combined"), ("majority", "orm_best_of_n")):
            found[f"{mine}_minus_{rival.removesuffix('_best_of_n')}/accuracy_at_{n}"] = metrics.difference(
                found[f"{mine}_best_of_n/accuracy_at_{n}"], found[f"{rival}/accuracy_at_{n}"])
    return found


def measure(
    base: Sequence[Chain], trained: Sequence[Chain], problems: Sequence[Problem], *, threshold: float,
    best_of: Sequence[int], bins: int, resamples: int, seed: int, split: str = "test",
) -> Evaluation:
    """Everything measured on one split.

    Args:
        base: the base policy's chains, equally many a problem, scored by both reward models.
        trained: the trained policy's.
        problems: the split.
        threshold: for first errors, chosen on other problems.
        best_of: the N.
        bins: of the reliability curve and the ECE.
        resamples, seed: of the bootstrap.
        split: its name, for the log.
    """
    count = len(problems)
    bootstrap = Bootstrap(count, resamples, seed)
    step_chains = first_per_problem(base, STEP_CHAINS)
    statistics = _comparisons(base, trained, problems, best_of, seed) | _chain_statistics(step_chains, count)
    statistics |= blame.agent_statistics(step_chains, count)
    statistics |= blame.naming_statistics(blame.failed_runs(step_chains), count, threshold)
    table, steps, reasons = step_table(step_chains), None, {}
    if table.gold:
        statistics |= _step_statistics(table, count, threshold)
        steps = metrics.judged_steps(table.scores, table.gold, table.problem, count)
    else:
        domains = ", ".join(sorted({problem.domain for problem in problems}))
        # Those that the promotion gate asks for by their names too.
        reasons |= dict.fromkeys(("prm/step_metrics", "prm/first_error_f1", "prm/ece"),
                                 f"no oracle judges the steps of domain {domains}")
    figures = {name: bootstrap.estimate(statistic) for name, statistic in statistics.items()}
    if steps is not None:
        figures["prm/ece"] = bootstrap.estimate(metrics.ece(steps, bins), centred=True)
    undefined = [name for name, estimate in figures.items() if not estimate.defined]
    reasons |= dict.fromkeys(undefined, "undefined: no chain of the kind it counts")
    figures = {name: estimate for name, estimate in figures.items() if estimate.defined}
    alarms = find_alarms(figures, best_of)
    for line in (*(f"{name} left out: {reason}" for name, reason in reasons.items()),
                 *(f"sanity alarm: {message}" for message in alarms.values())):
        log.warning("%s: %s", split, line)
    numbers = {
        "n_problems": count, "seed": seed, "bootstrap": resamples, "prm/threshold": threshold,
        "n_step_chains": len(step_chains), "n_judged_chains": len(table.gold),
        **{f"policy_base/{name}": number for name, number in counts(base).items()},
        **{f"policy_trained/{name}": number for name, number in counts(trained).items()},
        **{f"alarm/{name}": int(name in alarms) for name in ALARMS},
    }
    curve = [CurvePoint(method, n, figures[f"{method}/accuracy_at_{n}"]) for method in METHODS for n in best_of]
    reliability = reliability_curve(steps.scores, steps.right, bins) if steps is not None else []
    return Evaluation(figures, numbers, reasons, curve, steps, reliability, _lengths(step_chains), alarms)
