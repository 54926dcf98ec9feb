"""What an evaluation comes to: may the model be promoted, what it is good for, what its charts show. Sentences made of
figures; none is measured here, and what promotes is prm_core/serving/promotion.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prm_core.config import PromoteConfig
from prm_core.evaluation.metrics import Estimate
from prm_core.evaluation.probe.bounds import OUTCOME_FALL, SUFFIX_PASSES, Bound, bounds
from prm_core.evaluation.protocol import Evaluation
from prm_core.evaluation.report.charts import percent

F1, ECE = "prm/first_error_f1", "prm/ece"
# An F1 below it finds too few errors to be of use, even if it beats chance.
USEFUL_F1 = 0.5
# A score further off than this is no probability, whatever a profile lets pass its gate.
TRUSTED_ECE = 0.1
# Alarm → what to do about it.
REMEDIES = {
    "best_of_n_below_pass_at_1": "do not choose by this PRM; look at the labels below first, then at "
                                 "train_prm.learning_rate and epochs",
    "best_of_n_falls": "choose from fewer chains, or weigh a majority vote by the PRM; more training chains on which "
                       "it is fooled help (review them with `prm review export`)",
    "first_error_near_random": "check the labels' accuracy below, and that wrong steps are among them; more labelled "
                               "chains or another label.merge help",
    "short_chains_preferred": "try another evaluate.aggregate (`mean` favours no length), or label more long chains",
    "orm_drift": "look at how many wrong steps the labels below find: where they miss those before the last, add a "
                 "strategy that judges single steps, or more rollouts",
    "out_of_domain": "train the PRM on chains of this policy: run the stages from generate again, or name the policy "
                     "it was trained on in models.policy",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A demand of promotion.

    Attributes:
        figure: its key.
        measured, bar: as shown; nothing measured is empty.
        holds: None where it is decided when the model is promoted.
    """

    figure: str
    measured: str
    bar: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Attributes: sentence: good enough to promote?; good: nothing but a better champion is in its way; uses: what for,
    and what not for; gates: what decided."""

    sentence: str
    good: bool
    uses: Sequence[tuple[bool, str]]
    gates: Sequence[Gate]


def points(value: float) -> str:
    """0.101 → "+10.1"."""
    return f"{100 * value:+.1f}"


def best_of(figures: Mapping[str, Estimate], curve_ns: Sequence[int]) -> int:
    """The N that sentences speak of: 8, or the largest measured."""
    return 8 if "prm_best_of_n/accuracy_at_8" in figures else max(curve_ns)


def judge(evaluation: Evaluation, promote: PromoteConfig, probe: Mapping[str, Any]) -> Verdict:
    """The verdict on one evaluation.

    Args:
        evaluation: of the candidate.
        promote: the gate's limits.
        probe: figures `probe/…` of the candidate; empty where it was not probed.
    """
    figures = evaluation.figures
    gates = [_ece_gate(figures.get(ECE), promote.max_ece), _f1_gate(figures.get(F1)),
             *(_probe_gate(bound, probe) for bound in bounds(promote))]
    failing = [gate for gate in gates if gate.holds is False]
    alarms = len(evaluation.alarms)
    mind = f", with {alarms} alarm{'s' * (alarms > 1)} to look at first" if alarms else ""
    if failing:
        why = "; ".join(_shortfall(gate, evaluation.reasons) for gate in failing)
        return Verdict(f"Not good enough to promote: {why}.", False, _uses(evaluation, promote.max_ece), gates)
    sentence = (f"Good enough to promote{mind}, unless the champion is clearly better at finding first errors: "
                f"calibration error {gates[0].measured} ({gates[0].bar}), first-error F1 {gates[1].measured}.")
    return Verdict(sentence, True, _uses(evaluation, promote.max_ece), gates)


def _shortfall(gate: Gate, reasons: Mapping[str, str]) -> str:
    if gate.measured:
        return f"its {_NAMES[gate.figure]} is {gate.measured}, where {gate.bar} is demanded"
    if gate.figure not in (F1, ECE):
        return f"its {_NAMES[gate.figure]} was not measured (section probe of params.yaml)"
    why = reasons.get(gate.figure) or reasons.get("prm/step_metrics") or "no step was judged"
    return (f"its {_NAMES[gate.figure]} could not be measured ({why}); it takes test chains with and without a wrong "
            "step")


_NAMES = {F1: "first-error F1", ECE: "calibration error",
          SUFFIX_PASSES: "share of wrong chains that pass with a suffix",
          OUTCOME_FALL: "fall of right answers under the scores alone"}


def _probe_gate(bound: Bound, probe: Mapping[str, Any]) -> Gate:
    value, bar = probe.get(bound.figure), f"at most {percent(bound.most)}"
    return Gate(bound.figure, "", bar, False) if value is None else Gate(bound.figure, percent(value), bar,
                                                                         value <= bound.most)


def _ece_gate(ece: Estimate | None, limit: float) -> Gate:
    bar = f"at most {limit:.2f}"
    return Gate(ECE, "", bar, False) if ece is None else Gate(ECE, f"{ece.value:.3f}", bar, ece.value <= limit)


def _f1_gate(f1: Estimate | None) -> Gate:
    bar = "not below the champion's by more than chance"
    return Gate(F1, "", bar, False) if f1 is None else Gate(F1, percent(f1.value), bar, None)


def _uses(evaluation: Evaluation, max_ece: float) -> list[tuple[bool, str]]:
    """(good for it, sentence) for each use that was measured."""
    figures, found = evaluation.figures, []
    n = best_of(figures, [point.n for point in evaluation.curve])
    f1, beyond = figures.get(F1), figures.get("prm_minus_random/first_error_f1")
    if f1 is not None and beyond is not None:
        found.append((beyond.low > 0 and f1.value >= USEFUL_F1,
                      f"finding the first wrong step of a chain (F1 {percent(f1.value)}, a random guess "
                      f"{percent(f1.value - beyond.value)})"))
    for rival, name in (("majority", "a majority vote"), ("orm", "an outcome model")):
        gain = figures.get(f"prm_minus_{rival}/accuracy_at_{n}")
        if gain is not None:
            found.append((gain.low > 0, f"choosing among {n} chains instead of {name} ({points(gain.value)} points, "
                                        f"{points(gain.low)} to {points(gain.high)})"))
    ece = figures.get(ECE)
    if ece is not None:
        found.append((ece.value <= min(max_ece, TRUSTED_ECE),
                      f"reading its scores as probabilities (off by {ece.value:.3f} on average)"))
    gain, purer = figures.get("trained_minus_base/pass_at_1"), figures.get("trained_minus_base/process_consistency")
    if gain is not None:
        hacked = purer is not None and purer.high < 0
        found.append((gain.low > 0 and not hacked,
                      f"training a policy ({points(gain.value)} points of pass@1, {points(gain.low)} to "
                      f"{points(gain.high)}{'; its right answers have more wrong steps' if hacked else ''})"))
    return found


def titles(evaluation: Evaluation) -> dict[str, str]:
    """Chart → what a reader should see in it, of the charts there are."""
    figures, found = evaluation.figures, {}
    curve = [point for point in evaluation.curve if point.method == "prm_best_of_n"]
    first, last = curve[0], curve[-1]
    top = max(curve, key=lambda point: point.estimate.value)
    span = f"{percent(first.estimate.value)} right at N = {first.n}, {percent(top.estimate.value)} at N = {top.n}"
    if top.estimate.value <= first.estimate.value:
        found["best_of_n"] = f"Choosing by the PRM brings nothing: {percent(first.estimate.value)} right with one chain"
    elif top is last:
        found["best_of_n"] = f"The more chains the PRM chooses from, the better: {span}"
    else:
        found["best_of_n"] = f"Choosing by the PRM pays up to N = {top.n}, no further: {span}"
    if {"prm/acc_err", "prm/acc_ok"} <= figures.keys():
        found["first_error"] = (f"It names {percent(figures['prm/acc_err'].value)} of first errors exactly and passes "
                                f"{percent(figures['prm/acc_ok'].value)} of sound chains")
    if evaluation.steps is not None:
        scores, right = evaluation.steps.scores, evaluation.steps.right
        threshold = evaluation.numbers["prm/threshold"]
        if right.any() and not right.all():
            caught, blamed = ((scores[of] < threshold).mean() for of in (~right, right))
            found["scores"] = (f"The threshold catches {percent(caught)} of wrong steps and {percent(blamed)} of right "
                               "ones")
    if ECE in figures:
        found["reliability"] = f"A score is off by {figures[ECE].value:.3f} on average from the share of right steps"
    if "prm/length_slope" in figures:
        slope = figures["prm/length_slope"]
        way = "Longer wrong chains score higher" if slope.low > 0 else "Longer wrong chains score lower" if (
            slope.high < 0) else "A wrong chain's length hardly moves its score"
        found["lengths"] = f"{way}: {slope.value:+.3f} a step ({slope.low:+.3f} to {slope.high:+.3f})"
    if "trained_minus_base/pass_at_1" in figures:
        gain = figures["trained_minus_base/pass_at_1"]
        base, trained = (percent(figures[f"policy_{name}/pass_at_1"].value) for name in ("base", "trained"))
        word = "raised" if gain.low > 0 else "lowered" if gain.high < 0 else "did not clearly change"
        found["policies"] = f"Training {word} pass@1: {base} before, {trained} after"
    return found
