"""The evaluation report: one self-contained HTML page. It shows what was measured and measures nothing itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from prm_core.config import PromoteConfig
from prm_core.evaluation.conduct import RuleRow
from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.label_quality import LabelQuality
from prm_core.evaluation.metrics import Estimate, first_error
from prm_core.evaluation.protocol import METHODS, STEP_CHAINS, Evaluation
from prm_core.evaluation.report import charts, verdict
from prm_core.evaluation.report.charts import Curve, Series
from prm_core.evaluation.report.training import sections
from prm_core.evaluation.report.tree_drawing import TreeSection
from prm_core.evaluation.report.verdict import Gate
from prm_core.evaluation.search_costs import RIVAL, SearchRow, compared
from prm_core.turns import heard, written
from prm_core.types import Problem

TEMPLATES = Path(__file__).parent / "templates"
NAMES = {
    "majority": ("majority", "s-majority"),
    "weighted_majority": ("majority, PRM-weighted", "s-weighted"),
    "orm_best_of_n": ("best by ORM", "s-orm"),
    "prm_best_of_n": ("best by PRM", "s-prm"),
    "combined_best_of_n": ("best by steps and end", "s-combined"),
    "ruled_best_of_n": ("best by PRM, rules first", "s-ruled"),
    "oracle": ("any right (oracle)", "s-oracle"),
}
# In the order shown; the last four are for domains without an oracle.
KINDS = (
    "wrong, first error found", "wrong step, right answer", "every step right", "PRM mistake: error missed",
    "PRM mistake: another step named", "PRM mistake: false alarm", "right answer, no step doubted",
    "wrong answer, a step doubted", "right answer, a step doubted", "wrong answer, no step doubted",
)
POLICY_ROWS = (
    ("pass@1", "pass_at_1", "%.3f"), ("sound accuracy: right, and every step right", "sound_accuracy", "%.3f"),
    ("process consistency", "process_consistency", "%.3f"),
    ("right answers with a wrong step", "wrong_step_right_answer", "%.3f"), ("mean PRM score", "prm_score", "%.3f"),
    ("steps a chain", "mean_steps", "%.2f"),
)
# Of the usual and the shifted problems; {n} is how many chains are chosen from.
SPLIT_ROWS = (
    ("first-error F1", "prm/first_error_f1"), ("the same of a random guess", "random/first_error_f1"),
    ("AUROC of single steps", "prm/auroc"), ("calibration error (ECE)", "prm/ece"),
    ("best of {n} by the PRM", "prm_best_of_n/accuracy_at_{n}"),
    ("best of {n} by steps and end", "combined_best_of_n/accuracy_at_{n}"),
    ("best of {n} by the ORM", "orm_best_of_n/accuracy_at_{n}"), ("majority of {n}", "majority/accuracy_at_{n}"),
    ("any of {n} right", "oracle/accuracy_at_{n}"), ("pass@1, base policy", "policy_base/pass_at_1"),
    ("pass@1, trained policy", "policy_trained/pass_at_1"),
    ("process consistency, base policy", "policy_base/process_consistency"),
    ("process consistency, trained policy", "policy_trained/process_consistency"),
    ("chains unlike what the PRM was trained on", "prm/out_of_domain"),
)
PROBE_ROWS = (
    ("damaged chains that score no lower", "probe/edits/damaging/kept"),
    ("chains with harmless steps that score higher", "probe/edits/harmless/raised"),
    ("wrong chains that pass with a suffix", "probe/suffix/passed"),
    ("the same with a random suffix", "probe/random_suffix/passed"),
    ("rise of a chain's score by a suffix", "probe/suffix/chain_rise"),
    ("the same by a random suffix", "probe/random_suffix/chain_rise"),
    ("rise of the wrong step's score by a suffix", "probe/suffix/step_rise"),
    ("the same by a random suffix", "probe/random_suffix/step_rise"),
    ("right answers before a policy is paid by the scores alone", "probe/policy/outcome_before"),
    ("right answers after", "probe/policy/outcome_after"),
    ("mean step score before", "probe/policy/process_before"), ("mean step score after", "probe/policy/process_after"),
)
# What the default profile on the embedded domain must reach.
F1_BAR, GAIN_BAR = 0.88, 0.05


@dataclass(frozen=True, slots=True)
class Headline:
    """A headline figure.

    Attributes:
        name, figure, unit, interval: as shown.
        note: what to compare it with.
        bar: what it must reach, empty where no bar applies.
        holds: whether it does, None without a bar.
        gate: of promotion, where the figure is one.
    """

    name: str
    figure: str
    unit: str
    interval: str
    note: str
    bar: str = ""
    holds: bool | None = None
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class ReportData:
    """What the report shows.

    Attributes:
        title: of the page.
        facts: (name, value) lines about the run: commit and its date, data, profile, seed, model versions, counts.
        evaluation: the figures of the test split.
        shifted: those of problems unlike the ones that models were trained on, None where there are none.
        chains: those with step scores that may be shown, base policy first.
        trained: the same of the trained policy.
        problems: the split.
        threshold_note: where the threshold comes from.
        promises: what the alarm and the clean prefix promise, and how that was kept.
        training: stage → its curves.
        labels: quality of the labels behind the reward models.
        searches: every way to choose against weighted majority at equal total tokens, at each cost.
        shown: how many trajectories.
        bars: whether the bars of the default profile apply.
        promote: the promotion gate's limits.
        probe: figures `probe/…`; empty where the model was not probed.
        trees: search trees of the label stage, or why there are none.
        seed: of the draw of shown trajectories.
        rules: that runs are held to, with the share of each policy's that break them; empty without rules.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    evaluation: Evaluation
    shifted: Evaluation | None
    chains: Sequence[Chain]
    trained: Sequence[Chain]
    problems: Sequence[Problem]
    threshold_note: str
    promises: Sequence[str]
    training: Mapping[str, Sequence[Curve]]
    labels: LabelQuality
    searches: Sequence[SearchRow]
    shown: int
    bars: bool
    promote: PromoteConfig
    probe: Mapping[str, Any]
    trees: TreeSection
    seed: int
    rules: Sequence[RuleRow] = ()


def _kind(chain: Chain, threshold: float) -> str:
    """What a chain is an example of, one of KINDS."""
    claimed = first_error(chain.step_scores or (), threshold)
    if chain.gold is None:
        if chain.right:
            return "right answer, no step doubted" if claimed < 0 else "right answer, a step doubted"
        return "wrong answer, no step doubted" if claimed < 0 else "wrong answer, a step doubted"
    gold = chain.gold_error
    if chain.right and gold >= 0:
        return "wrong step, right answer"
    if gold < 0:
        return "every step right" if claimed < 0 else "PRM mistake: false alarm"
    if claimed == gold:
        return "wrong, first error found"
    return "PRM mistake: error missed" if claimed < 0 else "PRM mistake: another step named"


def choose_shown(chains: Sequence[Chain], threshold: float, count: int, seed: int) -> list[tuple[str, Chain]]:
    """(kind, chain) pairs: each kind in turn, drawn at random within it, a problem twice only when all are used up."""
    pool = [chain for chain in chains if chain.trajectory.steps and chain.step_scores is not None]
    random.Random(seed).shuffle(pool)
    kinds: dict[str, list[Chain]] = {}
    for chain in pool:
        kinds.setdefault(_kind(chain, threshold), []).append(chain)
    chosen: list[tuple[str, Chain]] = []
    used: set[int] = set()
    while len(chosen) < count and any(kinds.values()):
        for kind in KINDS:
            group = kinds.get(kind)
            if group and len(chosen) < count:
                fresh = next((i for i, chain in enumerate(group) if chain.problem not in used), 0)
                chain = group.pop(fresh)
                used.add(chain.problem)
                chosen.append((kind, chain))
    return sorted(chosen, key=lambda pair: KINDS.index(pair[0]))


def _card(kind: str, chain: Chain, policy: str, problem: Problem, threshold: float) -> dict[str, Any]:
    scores = chain.step_scores or ()
    claimed = first_error(scores, threshold)
    gold_error = chain.gold_error if chain.gold is not None else None
    steps = []
    for index, step in enumerate(chain.trajectory.steps):
        score = scores[index] if index < len(scores) else None
        judged = score is not None and gold_error is not None
        edge, background = charts.step_colours(score) if score is not None else ("var(--line)", "transparent")
        steps.append({
            "text": written(step), "observation": heard(step), "score": score, "edge": edge, "background": background,
            "gold": None if chain.gold is None else chain.gold[index],
            "after_error": gold_error is not None and 0 <= gold_error < index,
            "first_error": index == gold_error, "claimed": index == claimed,
            "missed": judged and index == gold_error and score >= threshold,
            "false_alarm": judged and index == claimed and (gold_error < 0 or index < gold_error),
        })
    return {
        "kind": kind, "policy": policy, "prompt": problem.prompt, "expected": problem.answer,
        "answer": chain.trajectory.answer, "right": chain.right, "prm": chain.prm_score, "orm": chain.orm_score,
        "steps": steps, "id": chain.trajectory.id, "out_of_domain": chain.out_of_domain,
    }


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason → the figures left out for it."""
    found: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        found.setdefault(reason, []).append(name)
    return found


def _range(estimate: Estimate, points: bool = False) -> str:
    style = "{:+.1f} to {:+.1f}" if points else "{:.1f} to {:.1f} %"
    return style.format(100 * estimate.low, 100 * estimate.high)


def headlines(data: ReportData) -> list[Headline]:
    """The figures the project's bars are about, and those that are gates of promotion."""
    figures, found = data.evaluation.figures, []
    n = verdict.best_of(figures, [point.n for point in data.evaluation.curve])
    gates = {gate.figure: gate for gate in verdict.judge(data.evaluation, data.promote, data.probe).gates}
    f1, ece = figures.get(verdict.F1), figures.get(verdict.ECE)
    if f1 is not None:
        found.append(Headline("First-error F1", f"{100 * f1.value:.1f}", "%", _range(f1),
                              f"random guess {charts.percent(figures['random/first_error_f1'].value)}",
                              f"at least {charts.percent(F1_BAR)}", f1.value >= F1_BAR, gates[verdict.F1]))
    else:
        found.append(_unmeasured("First-error F1", gates[verdict.F1]))
    for rival, name, bar, wanted in (("majority", "majority vote", GAIN_BAR,
                                      f"at least {verdict.points(GAIN_BAR)} points"),
                                     ("orm", "best by ORM", 0.0, "at least the ORM")):
        gain = figures[f"prm_minus_{rival}/accuracy_at_{n}"]
        other = figures[f"{'majority' if rival == 'majority' else 'orm_best_of_n'}/accuracy_at_{n}"]
        mine = figures[f"prm_best_of_n/accuracy_at_{n}"]
        found.append(Headline(f"PRM best-of-{n} over {name}", verdict.points(gain.value), "points", _range(gain, True),
                              f"{charts.percent(mine.value)} against {charts.percent(other.value)}", wanted,
                              gain.value >= bar))
    gain = figures["trained_minus_base/pass_at_1"]
    found.append(Headline(
        "Trained policy over base, pass@1", verdict.points(gain.value), "points", _range(gain, True),
        f"{charts.percent(figures['policy_trained/pass_at_1'].value)} against "
        f"{charts.percent(figures['policy_base/pass_at_1'].value)}",
        f"at least {verdict.points(GAIN_BAR)} points, interval above 0", gain.value >= GAIN_BAR and gain.low > 0))
    if ece is not None:
        found.append(Headline("Calibration error (ECE)", f"{ece.value:.3f}", "", f"{ece.low:.3f} to {ece.high:.3f}",
                              "score against share of right steps", gate=gates[verdict.ECE]))
    else:
        found.append(_unmeasured("Calibration error (ECE)", gates[verdict.ECE]))
    return found if data.bars else [replace(headline, bar="", holds=None) for headline in found]


def _unmeasured(name: str, gate: Gate) -> Headline:
    return Headline(name, "—", "", "", "could not be measured", gate=gate)


def _curve_series(evaluation: Evaluation) -> list[Series]:
    return [
        Series(*NAMES[method], [(p.n, p.estimate) for p in evaluation.curve if p.method == method])
        for method in METHODS
    ]


def _search_name(method: str) -> str:
    return NAMES[method][0] if method in NAMES else method.replace("_", " ")


def _costs(rows: Sequence[SearchRow]) -> Markup | None:
    """Accuracy against tokens, weighted majority first; None where nothing was compared."""
    series: dict[str, list[tuple[float, Estimate]]] = {RIVAL: []}
    for row in rows:
        series.setdefault(row.method, []).append((row.tokens, row.accuracy))
    lines = [Series(*NAMES[method], sorted(points, key=lambda point: point[0]))
             for method, points in series.items() if method in NAMES]
    return charts.cost_chart(lines, [Series(_search_name(method), "s-search", points)
                                     for method, points in series.items() if method not in NAMES]) if rows else None


def _rows(figures: Mapping[str, Estimate], wanted: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, Estimate]]:
    return [(label, style, figures[key]) for label, style, key in wanted if key in figures]


def split_rows(usual: Evaluation, shifted: Evaluation) -> list[tuple[str, Estimate | None, Estimate | None]]:
    """(name, on the usual problems, on the shifted ones) of each figure that one of the two has."""
    n = verdict.best_of(usual.figures, [point.n for point in usual.curve])
    rows = [(name.format(n=n), *(one.figures.get(key.format(n=n)) for one in (usual, shifted)))
            for name, key in SPLIT_ROWS]
    return [row for row in rows if row[1] is not None or row[2] is not None]


def _agents(evaluation: Evaluation) -> list[tuple[str, dict[str, Estimate], float | None, float | None]]:
    """(name, figures by name, cost, its standard error) of each agent that has a name."""
    found: dict[str, dict[str, Estimate]] = {}
    for key, estimate in evaluation.figures.items():
        if key.startswith("agent/"):
            name, figure = key.removeprefix("agent/").rsplit("/", 1)
            found.setdefault(name, {})[figure] = estimate
    numbers = evaluation.numbers
    return [(name, figures, numbers.get(f"agent/{name}/cost"), numbers.get(f"agent/{name}/cost_error"))
            for name, figures in found.items()]


def _shifted_section(usual: Evaluation, shifted: Evaluation | None) -> dict[str, Any] | None:
    if shifted is None:
        return None
    return {
        "rows": split_rows(usual, shifted), "problems": shifted.numbers["n_problems"],
        "alarms": shifted.alarms.values(), "reasons": _by_reason(shifted.reasons),
        "best_of_n": charts.best_of_n_chart(_curve_series(shifted), sorted({point.n for point in shifted.curve})),
        "reliability": charts.reliability_chart(shifted.reliability) if shifted.reliability else None,
    }


def _charts(evaluation: Evaluation) -> dict[str, Markup | None]:
    figures, steps = evaluation.figures, evaluation.steps
    ns = sorted({point.n for point in evaluation.curve})
    errors = _rows(figures, [
        ("PRM: F1", "s-prm", "prm/first_error_f1"), ("error found", "s-prm", "prm/acc_err"),
        ("sound chain passed", "s-prm", "prm/acc_ok"), ("random guess: F1", "s-majority", "random/first_error_f1"),
        ("middle step*: F1", "s-majority", "middle/first_error_f1"),
        ("step accuracy", "s-weighted", "prm/step_accuracy"), ("step AUROC", "s-weighted", "prm/auroc"),
    ])
    policies = _rows(figures, [
        ("base: pass@1", "s-orm", "policy_base/pass_at_1"), ("trained: pass@1", "s-prm", "policy_trained/pass_at_1"),
        ("base: consistency", "s-orm", "policy_base/process_consistency"),
        ("trained: consistency", "s-prm", "policy_trained/process_consistency"),
        ("base: PRM score", "s-orm", "policy_base/prm_score"),
        ("trained: PRM score", "s-prm", "policy_trained/prm_score"),
    ])
    return {
        "best_of_n": charts.best_of_n_chart(_curve_series(evaluation), ns),
        "first_error": charts.interval_chart(errors) if steps is not None else None,
        "reliability": charts.reliability_chart(evaluation.reliability) if evaluation.reliability else None,
        "scores": charts.score_chart(steps.scores, steps.right, evaluation.numbers["prm/threshold"])
        if steps is not None else None,
        "policies": charts.interval_chart(policies),
    }


def _claims(labels: LabelQuality, population: str) -> list[str]:
    """What the chain says of its labels of a population without gold, beside the truth where an oracle tells it."""
    claimed, merged = labels.claimed, labels.generated.strategies[-1]
    judged = claimed[f"{population}/human_labels"]
    by_oracle = "oracle" in labels.generated.gold
    found = []
    for name, source, of, truth in (
        ("label_error", "The merge's own estimate, from the strategies' agreement and the chains' outcomes",
         "of the chains have another first error than the merged labels say", merged.chain_error),
        ("label_error_human", f"{judged} human labels on these chains, each weighed by its step's chance to be asked",
         "of the merged verdicts up to the first error are wrong",
         None if merged.accuracy is None else 1 - merged.accuracy),
    ):
        if (key := f"{population}/{name}") in claimed:
            share, low, high = (charts.percent(claimed[key + end]) for end in ("", "_low", "_high"))
            known = f"; by the oracle {charts.percent(truth)}" if by_oracle and truth is not None else ""
            found.append(f"{source}: {share} {of} (95 % interval {low} to {high}){known}.")
    if f"{population}/ece_before" in claimed:
        before, after = (claimed[f"{population}/ece_{series}"] for series in ("before", "after"))
        found.append(f"Calibration error of the merged labels, by {judged} human labels on these chains: {before:.4f} "
                     f"as labelled, {after:.4f} calibrated (held out).")
    else:
        found.append("Nobody has judged a step of these chains: the calibration of their labels is not measured.")
    if population == "policy" and claimed["identity_reason"]:
        found.append(f"The labels train as they were merged: {claimed['identity_reason']}.")
    return found


def render(data: ReportData) -> str:
    """The page as HTML. Every text of the data is escaped; nothing is fetched from anywhere."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    threshold = data.evaluation.numbers["prm/threshold"]
    extra = choose_shown(data.trained, threshold, max(2, data.shown // 6), data.seed)
    cards = [_card(kind, chain, "base policy", data.problems[chain.problem], threshold)
             for kind, chain in choose_shown(data.chains, threshold, data.shown, data.seed)]
    cards += [_card(kind, chain, "trained policy", data.problems[chain.problem], threshold) for kind, chain in extra]
    evaluation = data.evaluation
    contents = [("sanity", "Sanity"), ("choosing", "Choosing among chains"),
                *([("errors", "Finding wrong steps")] if evaluation.steps is not None else []),
                ("stopping", "Stopping a run"), ("policy", "The policy"),
                *([("probe", "The probe")] if data.probe else []),
                *([("rules", "The rules")] if data.rules else []),
                *([("agents", "The agents")] if _agents(evaluation) else []),
                *([("shifted", "Shifted problems")] if data.shifted is not None else []),
                ("labels", "Labels"), *([("training", "Training")] if data.training else []),
                ("trees", "Search trees"), ("trajectories", "Trajectories")]
    return environment.get_template("report.html.j2").render(
        contents=contents, bars=data.bars,
        title=data.title, facts=data.facts, headlines=headlines(data),
        verdict=verdict.judge(evaluation, data.promote, data.probe), titles=verdict.titles(evaluation),
        alarms=[(message, verdict.REMEDIES[name]) for name, message in evaluation.alarms.items()],
        searches=[(_search_name(row.method), row) for row in compared(data.searches)],
        costs=_costs(data.searches),
        labels=data.labels, claims=[_claims(data.labels, population) for population in ("policy", "other")],
        agreement={(a, b): one for one in data.labels.agreement
                                       for a, b in ((one.a, one.b), (one.b, one.a))},
        charts=_charts(evaluation), ns=sorted({point.n for point in evaluation.curve}),
        series=_curve_series(evaluation), figures=evaluation.figures, numbers=evaluation.numbers,
        reasons=_by_reason(evaluation.reasons), lengths=evaluation.lengths, cards=cards, threshold=threshold,
        training=sections(data.training),
        threshold_note=data.threshold_note, promises=data.promises, step_chains=STEP_CHAINS, percent=charts.percent,
        rules=data.rules, most=max(point.n for point in evaluation.curve),
        agents=_agents(evaluation), policy_rows=POLICY_ROWS, shifted=_shifted_section(evaluation, data.shifted),
        trees=data.trees, probe=[(name, data.probe[key]) for name, key in PROBE_ROWS if key in data.probe],
        probe_alarm=data.probe.get("probe/policy/alarm"),
        scale=[(score / 10, charts.step_colours(score / 10)) for score in range(11)],
    )
