"""Combining strategies: from one label per step and strategy to one merged label per step."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prm_core.config import LabelConfig
from prm_core.labeling.merging import first_error
from prm_core.labeling.merging.error_estimate import LabelError, doubt, estimate_error
from prm_core.labeling.merging.first_error import ABSTAINS, RIGHT, WRONG, FirstErrorModel
from prm_core.labeling.outcomes import fit_outcomes, tells
from prm_core.registry import Registry
from prm_core.types import StepLabel, Trajectory

MERGED = "merged"
VERSION = 3
# Strategies that read the same evidence err together: counted as two annotators they would be believed twice. Both of
# these ask whether the policy still gets to the answer.
POLICY = "policy rollouts"
SAME_EVIDENCE = {"rollout": POLICY, "mcts": POLICY}
# Grades that an annotator's probabilities are sorted into, on each side of one half, about as many in each.
GRADES = 4
# Stated probabilities beyond these are taken as these.
EDGE = 1e-4
DAWID_SKENE_ROUNDS = 200
AFTER_ERROR = "an earlier step is wrong"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to merge.

    Attributes:
        trajectories: id → labelled chain.
        labels: trajectory id → step index → strategy → its label.
        own: ids of the chains whose labels matter, sampled from the policy: annotators are weighed by what they say
            of these. Chains of another population (worked solutions somebody corrupted) are merged by the same
            weights.
    """

    trajectories: Mapping[str, Trajectory]
    labels: Mapping[str, Mapping[int, Mapping[str, StepLabel]]]
    own: Collection[str]


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged labels, one for every step, and how reliable the merge takes each annotator to be.

    Attributes:
        labels: in the order of the trajectories.
        reliability: annotator → {"right": P(says right | right), "wrong": P(says wrong | first error)}; empty where
            the merge does not estimate it.
        error: how many of the policy's own chains are labelled wrong by the merge's own estimate, None where it makes
            none.
    """

    labels: list[StepLabel]
    reliability: dict[str, dict[str, float]] = field(default_factory=dict)
    error: LabelError | None = None


Merge = Callable[[Evidence, LabelConfig], Merged]
MERGES: Registry[Merge] = Registry("way to merge labels")


def probability_right(label: StepLabel) -> float | None:
    """The label's probability that its step is right.

    The confidence, turned round where the verdict is "wrong"; where there is no verdict the value, None without one.
    """
    if label.is_correct is None:
        return label.value
    return label.confidence if label.is_correct else 1.0 - label.confidence


def collect(
    trajectories: Sequence[Trajectory], labels: Sequence[StepLabel], own: Collection[str] | None = None
) -> Evidence:
    """Joins labels and trajectories on (trajectory, step), never by position in a list. `own` None is all of them."""
    by_id = {trajectory.id: trajectory for trajectory in trajectories}
    table: dict[str, dict[int, dict[str, StepLabel]]] = {
        trajectory.id: {index: {} for index in range(len(trajectory.steps))} for trajectory in trajectories
    }
    for label in labels:
        table[label.trajectory_id][label.step_index][label.strategy] = label
    return Evidence(by_id, table, frozenset(by_id if own is None else own))


def find_merge(config: LabelConfig) -> Merge:
    """What `config.merge` names: a rule, or one of the strategies. Raises InputError when it is neither."""
    return take_one if config.merge in config.strategies else MERGES[config.merge]


def merge_labels(
    trajectories: Sequence[Trajectory], labels: Sequence[StepLabel], config: LabelConfig,
    own: Collection[str] | None = None,
) -> Merged:
    """One merged label for every step of the trajectories.

    Args:
        labels: of all strategies.
        own: ids of the chains that the policy wrote, None for all; see `Evidence`.
        config: `merge` names the rule, or one strategy whose labels are taken as they are; `consensus` keeps only the
            chains on whose first error two unlike strategies agree.
    """
    evidence = collect(trajectories, labels, own)
    merged = find_merge(config)(evidence, config)
    rows = keep_consensus(evidence, merged.labels, config.strategies) if config.consensus else merged.labels
    # Nothing is drawn, hence the seed 0.
    made_by = json.dumps({"strategy": f"{MERGED}@{VERSION}", "model": "", "seed": 0, "parameters": {
        "merge": config.merge, "consensus": config.consensus, "strategies": config.strategies,
        "lone_vote_factor": config.lone_vote_factor,
    }}, sort_keys=True)
    return dataclasses.replace(merged, labels=[dataclasses.replace(row, lineage=made_by) for row in rows])


def undecided(trajectory_id: str, step_index: int, tokens: int, reasoning: str) -> StepLabel:
    """The merged label of a step that nothing is known of."""
    return StepLabel(trajectory_id, step_index, MERGED, None, None, 0.0, tokens, reasoning)


def take_one(evidence: Evidence, config: LabelConfig) -> Merged:
    """The labels of the one strategy that `config.merge` names, as they are."""
    rows = []
    for trajectory_id, steps in evidence.labels.items():
        for index, given in steps.items():
            label = given.get(config.merge)
            rows.append(
                undecided(trajectory_id, index, 0, f"{config.merge} did not label it") if label is None
                else dataclasses.replace(label, strategy=MERGED, reasoning=f"{label.strategy}: {label.reasoning}")
            )
    return Merged(rows)


@MERGES.register("vote")
def vote(evidence: Evidence, config: LabelConfig) -> Merged:
    """The guide's vote: two or more verdicts → the majority, one alone → its confidence times `lone_vote_factor`.

    A tie goes to the side with the larger summed confidence, and is undecided when these are equal too. The merged
    confidence is the mean probability that the votes give the merged verdict.
    """
    return Merged([
        _vote_on_step(trajectory_id, index, list(given.values()), config.lone_vote_factor)
        for trajectory_id, steps in evidence.labels.items() for index, given in steps.items()
    ])


def _vote_on_step(trajectory_id: str, index: int, given: Sequence[StepLabel], lone_vote_factor: float) -> StepLabel:
    votes = [label for label in given if label.is_correct is not None]
    tokens, reasoning = _tokens(given), _reasoning(given)
    if not votes:
        return undecided(trajectory_id, index, tokens, reasoning)
    right = [label for label in votes if label.is_correct]
    wrong = [label for label in votes if not label.is_correct]
    margin = len(right) - len(wrong) or sum(v.confidence for v in right) - sum(v.confidence for v in wrong)
    value = sum(probability_right(label) for label in votes) / len(votes)
    if margin == 0:
        return StepLabel(trajectory_id, index, MERGED, value, None, 0.0, tokens, reasoning)
    confidence = value if margin > 0 else 1.0 - value
    if len(votes) == 1:
        confidence *= lone_vote_factor
    return StepLabel(trajectory_id, index, MERGED, value, margin > 0, confidence, tokens, reasoning)


@MERGES.register("dawid_skene")
def dawid_skene(evidence: Evidence, config: LabelConfig) -> Merged:
    """Dawid & Skene (1979) by crowd-kit, every step an item of its own.

    A strategy's verdicts after its own first "wrong" are left out: what they mean differs from strategy to strategy.
    """
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    verdicts = [
        (f"{trajectory_id}\n{index}", name, int(verdict))
        for trajectory_id, steps in evidence.labels.items()
        for name, said in _verdicts_up_to_error(steps).items() for index, verdict in said.items()
    ]
    probabilities: dict[str, float] = {}
    reliability = {}
    if verdicts:
        model = DawidSkene(n_iter=DAWID_SKENE_ROUNDS)
        with warnings.catch_warnings():
            # crowd-kit calls pandas in ways that pandas 4 will drop.
            warnings.simplefilter("ignore")
            model.fit(pd.DataFrame(verdicts, columns=["task", "worker", "label"]))
        probabilities = model.probas_.reindex(columns=[WRONG, RIGHT], fill_value=0.0)[RIGHT].to_dict()
        errors = model.errors_.reindex(columns=[WRONG, RIGHT], fill_value=0.0)
        for name in errors.index.get_level_values("worker").unique():
            rates = errors.loc[name].reindex([WRONG, RIGHT], fill_value=0.0)
            reliability[name] = {"right": float(rates.loc[RIGHT, RIGHT]), "wrong": float(rates.loc[WRONG, WRONG])}
    rows = []
    for trajectory_id, steps in evidence.labels.items():
        values = [probabilities.get(f"{trajectory_id}\n{index}") for index in steps]
        rows += _from_values(trajectory_id, steps, values)
    return Merged(rows, reliability)


@MERGES.register("first_error")
def first_error_merge(evidence: Evidence, config: LabelConfig) -> Merged:
    """The position of each chain's first error, from all annotators and the chain's outcome.

    Annotators that judge a step by itself are weighed by what their statements say of the outcomes of the policy's own
    chains (`labeling/outcomes.py`), where outcomes differ; the policy's evidence, rollouts and outcomes, is then heard
    with that as what is known before (`first_error.py`). Where there are no outcomes to learn from, all annotators'
    reliabilities are estimated from their agreement. Strategies that read the same evidence are one annotator: on each
    step the one named first that speaks.
    """
    table = _tabulate(evidence, config.strategies)
    model = _fit(table)
    rows = []
    for row, trajectory_id in enumerate(table.ids):
        steps = evidence.labels[trajectory_id]
        heard = any(not np.isnan(stated[row]).all() for stated in table.stated.values())
        rows += _from_values(trajectory_id, steps, [float(model.right[row, index]) if heard else None
                                                    for index in steps])
    error = estimate_error(doubt(model)[table.own]) if table.own.any() else None
    return Merged(rows, _reliability(table, model), error)


@dataclass(frozen=True, slots=True)
class _Table:
    """Evidence as arrays, a row a chain.

    Attributes:
        ids: of the chains.
        lengths, outcomes: of the chains; an unknown outcome is NaN.
        own: whether a chain is the policy's own.
        stated: annotator → P(step right) (chains, longest), NaN where it abstains; annotators that never speak are not
            there.
    """

    ids: list[str]
    lengths: NDArray[np.int64]
    outcomes: NDArray[np.float64]
    own: NDArray[np.bool_]
    stated: Mapping[str, NDArray[np.float64]]


def _tabulate(evidence: Evidence, strategies: Sequence[str]) -> _Table:
    ids = list(evidence.labels)
    lengths = np.array([len(evidence.labels[trajectory_id]) for trajectory_id in ids])
    outcomes = np.array([
        np.nan if (outcome := evidence.trajectories[trajectory_id].outcome) is None else float(outcome)
        for trajectory_id in ids
    ])
    stated = {name: np.full((len(ids), lengths.max()), np.nan)
              for name in sorted({SAME_EVIDENCE.get(name, name) for name in strategies})}
    for row, trajectory_id in enumerate(ids):
        for name, said in _annotations(evidence.labels[trajectory_id], strategies).items():
            for index, label in said.items():
                stated[name][row, index] = probability_right(label)
    own = np.array([trajectory_id in evidence.own for trajectory_id in ids])
    return _Table(ids, lengths, outcomes, own, {name: said for name, said in stated.items()
                                               if not np.isnan(said).all()})


def _fit(table: _Table) -> FirstErrorModel:
    """The model of all chains, estimated on the policy's own (on all where none is its own)."""
    own = table.own if table.own.any() else np.ones(len(table.ids), dtype=bool)
    exists = np.arange(int(table.lengths.max())) < table.lengths[:, None]
    names = [name for name in table.stated if name != POLICY]
    right = None
    if names and tells(table.outcomes[own]):
        right = _by_outcomes([_logit(table.stated[name]) for name in names], exists, table.outcomes, own)
        names = []
    graded = {name: _grade(table.stated[name]) for name in (*names, POLICY) if name in table.stated}
    return first_error.fit({name: one[0] for name, one in graded.items()}, table.lengths, table.outcomes,
                           policy=(POLICY,), right=right, counted=own,
                           sides={name: one[1] for name, one in graded.items()})


def _by_outcomes(
    scores: Sequence[NDArray[np.float64]], exists: NDArray[np.bool_], outcomes: NDArray[np.float64],
    own: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """P(step right) by annotators that err independently, each weighed by outcomes alone: (chains, longest).

    One model of all of them would take luck for the same whatever the error is. It is not: what only one annotator can
    see, a wrong word beside right numbers, costs the answer less often, and that one would seem to see ghosts.
    """
    def logits(columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return _logit(fit_outcomes(columns[own], exists[own], outcomes[own]).right(columns))

    base = logits(np.empty((*exists.shape, 0)))
    total = base + sum(logits(one[:, :, None]) - base for one in scores)
    return 1 / (1 + np.exp(-total))


def _logit(stated: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(stated, EDGE, 1 - EDGE)
    return np.log(p) - np.log1p(-p)


def _grade(stated: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Stated probabilities sorted into grades (chains, longest), and for each grade whether it is WRONG or RIGHT."""
    spoken = stated[~np.isnan(stated)]
    edges = [0.5]
    for side in (spoken[spoken <= 0.5], spoken[spoken > 0.5]):
        if len(side):
            # An edge lies between two values, and equal values are in one grade.
            values = np.unique(side)
            cuts = np.unique(np.searchsorted(values, np.quantile(side, np.arange(1, GRADES) / GRADES)))
            edges += [(values[cut - 1] + values[cut]) / 2 for cut in cuts if 0 < cut < len(values)]
    edges = np.unique(edges)
    grades = np.where(np.isnan(stated), ABSTAINS, np.searchsorted(edges, stated)).astype(np.int8)
    below = int(np.searchsorted(edges, 0.5)) + 1
    return grades, np.array([WRONG] * below + [RIGHT] * (len(edges) + 1 - below), dtype=np.int8)


def _reliability(table: _Table, model: FirstErrorModel) -> dict[str, dict[str, float]]:
    """By the merge's own posterior over the policy's chains; one observation of each kind is counted in advance."""
    found = {}
    exists = np.arange(int(table.lengths.max())) < table.lengths[:, None]
    before = (model.reached - model.at) * exists
    for name, stated in table.stated.items():
        spoken = ~np.isnan(stated) & table.own[:, None]
        passed = spoken & (stated > 0.5)
        found[name] = {
            "right": float(((before * passed).sum() + 1) / ((before * spoken).sum() + 2)),
            "wrong": float(((model.at * (spoken & ~passed)).sum() + 1) / ((model.at * spoken).sum() + 2)),
        }
    return found


def _annotations(
    steps: Mapping[int, Mapping[str, StepLabel]], strategies: Sequence[str]
) -> dict[str, dict[int, StepLabel]]:
    """Annotator → step → its label. Strategies of the same evidence are one: the first of `strategies` that speaks."""
    found: dict[str, dict[int, StepLabel]] = {}
    for index, given in steps.items():
        for strategy in strategies:
            label = given.get(strategy)
            if label is not None and label.is_correct is not None:
                found.setdefault(SAME_EVIDENCE.get(strategy, strategy), {}).setdefault(index, label)
    return found


def _verdicts_up_to_error(steps: Mapping[int, Mapping[str, StepLabel]]) -> dict[str, dict[int, bool]]:
    """Strategy → step → verdict, up to and with the strategy's own first "wrong"."""
    found: dict[str, dict[int, bool]] = {}
    for index in sorted(steps):
        for name, label in steps[index].items():
            said = found.setdefault(name, {})
            if label.is_correct is not None and False not in said.values():
                said[index] = label.is_correct
    return found


def _from_values(
    trajectory_id: str, steps: Mapping[int, Mapping[str, StepLabel]], values: Sequence[float | None]
) -> list[StepLabel]:
    """Labels from P(step right | the steps before are), up to the first step that is more likely wrong."""
    rows, over = [], False
    for (index, given), value in zip(steps.items(), values, strict=True):
        labels = list(given.values())
        if over or value is None:
            reason = AFTER_ERROR if over else _reasoning(labels)
            rows.append(undecided(trajectory_id, index, _tokens(labels), reason))
            continue
        over = value < 0.5
        rows.append(StepLabel(trajectory_id, index, MERGED, value, not over, max(value, 1 - value), _tokens(labels),
                              _reasoning(labels)))
    return rows


def keep_consensus(
    evidence: Evidence, merged: Sequence[StepLabel], strategies: Sequence[str]
) -> list[StepLabel]:
    """Merged labels of chains on whose first error (or its absence) two unlike strategies agree; others undecided.

    Source: Zhang et al. 2025, "The Lessons of Developing Process Reward Models", consensus filtering.
    """
    agreed = set()
    for trajectory_id, steps in evidence.labels.items():
        places: dict[str, int] = {}
        for name, said in _annotations(steps, strategies).items():
            wrong = [index for index, label in said.items() if not label.is_correct]
            # Without a "wrong", only who has judged every step says that there is none.
            if wrong or len(said) == len(steps):
                places[name] = min(wrong, default=len(steps))
        if len(set(places.values())) < len(places):
            agreed.add(trajectory_id)
    return [
        row if row.trajectory_id in agreed
        else undecided(row.trajectory_id, row.step_index, row.tokens, f"no consensus: {row.reasoning}")
        for row in merged
    ]


def _tokens(given: Sequence[StepLabel]) -> int:
    return sum(label.tokens for label in given)


def _reasoning(given: Sequence[StepLabel]) -> str:
    said = {True: "says right", False: "says wrong", None: "abstains"}
    spoken = [label for label in given if label.is_correct is not None] or given
    return "; ".join(f"{v.strategy} {said[v.is_correct]}: {v.reasoning}" for v in spoken) or "no strategy labelled it"
