"""Combining strategies: from one label per step and strategy to one merged label per step."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prm_core.config import LabelConfig
from prm_core.labeling.merging import first_error
from prm_core.labeling.merging.first_error import ABSTAINS, AT, BEFORE, RIGHT, WRONG
from prm_core.registry import Registry
from prm_core.types import StepLabel, Trajectory

MERGED = "merged"
VERSION = 2
# Strategies that read the same evidence err together: counted as two annotators they would be believed twice. Both of
# these ask whether the policy still gets to the answer.
SAME_EVIDENCE = {"rollout": "policy rollouts", "mcts": "policy rollouts"}
DAWID_SKENE_ROUNDS = 200
AFTER_ERROR = "an earlier step is wrong"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is to merge.

    Attributes:
        trajectories: id → labelled chain.
        labels: trajectory id → step index → strategy → its label.
    """

    trajectories: Mapping[str, Trajectory]
    labels: Mapping[str, Mapping[int, Mapping[str, StepLabel]]]


@dataclass(frozen=True, slots=True)
class Merged:
    """Merged labels, one for every step, and how reliable the merge takes each annotator to be.

    Attributes:
        labels: in the order of the trajectories.
        reliability: annotator → {"right": P(says right | right), "wrong": P(says wrong | first error)}; empty where
            the merge does not estimate it.
    """

    labels: list[StepLabel]
    reliability: dict[str, dict[str, float]] = field(default_factory=dict)


Merge = Callable[[Evidence, LabelConfig], Merged]
MERGES: Registry[Merge] = Registry("way to merge labels")


def probability_right(label: StepLabel) -> float | None:
    """The label's probability that its step is right.

    The confidence, turned round where the verdict is "wrong"; where there is no verdict the value, None without one.
    """
    if label.is_correct is None:
        return label.value
    return label.confidence if label.is_correct else 1.0 - label.confidence


def collect(trajectories: Sequence[Trajectory], labels: Sequence[StepLabel]) -> Evidence:
    """Joins labels and trajectories on (trajectory, step), never by position in a list."""
    by_id = {trajectory.id: trajectory for trajectory in trajectories}
    table: dict[str, dict[int, dict[str, StepLabel]]] = {
        trajectory.id: {index: {} for index in range(len(trajectory.steps))} for trajectory in trajectories
    }
    for label in labels:
        table[label.trajectory_id][label.step_index][label.strategy] = label
    return Evidence(by_id, table)


def find_merge(config: LabelConfig) -> Merge:
    """What `config.merge` names: a rule, or one of the strategies. Raises InputError when it is neither."""
    return take_one if config.merge in config.strategies else MERGES[config.merge]


def merge_labels(
    trajectories: Sequence[Trajectory], labels: Sequence[StepLabel], config: LabelConfig
) -> Merged:
    """One merged label for every step of the trajectories.

    Args:
        labels: of all strategies.
        config: `merge` names the rule, or one strategy whose labels are taken as they are; `consensus` keeps only the
            chains on whose first error two unlike strategies agree.
    """
    evidence = collect(trajectories, labels)
    merged = find_merge(config)(evidence, config)
    rows = keep_consensus(evidence, merged.labels, config.strategies) if config.consensus else merged.labels
    # Nothing is drawn, hence the seed 0.
    made_by = json.dumps({"strategy": f"{MERGED}@{VERSION}", "model": "", "seed": 0, "parameters": {
        "merge": config.merge, "consensus": config.consensus, "strategies": config.strategies,
        "lone_vote_factor": config.lone_vote_factor,
    }}, sort_keys=True)
    return Merged([dataclasses.replace(row, lineage=made_by) for row in rows], merged.reliability)


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
    """Dawid-Skene over the position of each chain's first error, with its outcome as evidence (see `first_error`).

    Strategies that read the same evidence are one annotator: on each step the one named first that speaks.
    """
    ids = list(evidence.labels)
    lengths = np.array([len(evidence.labels[trajectory_id]) for trajectory_id in ids])
    outcomes = np.array([
        np.nan if (outcome := evidence.trajectories[trajectory_id].outcome) is None else float(outcome)
        for trajectory_id in ids
    ])
    names = sorted({SAME_EVIDENCE.get(name, name) for name in config.strategies})
    verdicts = {name: np.full((len(ids), lengths.max()), ABSTAINS, dtype=np.int8) for name in names}
    for row, trajectory_id in enumerate(ids):
        for name, said in _annotations(evidence.labels[trajectory_id], config.strategies).items():
            for index, verdict in said.items():
                verdicts[name][row, index] = int(verdict)
    spoken = {name: said for name, said in verdicts.items() if (said != ABSTAINS).any()}
    model = first_error.fit(spoken, lengths, outcomes)
    rows = []
    for row, trajectory_id in enumerate(ids):
        steps = evidence.labels[trajectory_id]
        heard = any((said[row] != ABSTAINS).any() for said in spoken.values())
        values = [float(model.right[row, index]) if heard else None for index in steps]
        rows += _from_values(trajectory_id, steps, values)
    reliability = {
        name: {"right": float(rates[BEFORE, RIGHT]), "wrong": float(rates[AT, WRONG])}
        for name, rates in model.emissions.items()
    }
    return Merged(rows, reliability)


def _annotations(
    steps: Mapping[int, Mapping[str, StepLabel]], strategies: Sequence[str]
) -> dict[str, dict[int, bool]]:
    """Annotator → step → verdict. Strategies of the same evidence are one: the first of `strategies` that speaks."""
    found: dict[str, dict[int, bool]] = {}
    for index, given in steps.items():
        for strategy in strategies:
            label = given.get(strategy)
            if label is not None and label.is_correct is not None:
                found.setdefault(SAME_EVIDENCE.get(strategy, strategy), {}).setdefault(index, label.is_correct)
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
            wrong = [index for index, verdict in said.items() if not verdict]
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
