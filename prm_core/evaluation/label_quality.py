"""How good the step labels are that a reward model was trained on: agreement, cost, and accuracy where gold verdicts
exist. It only measures; labelling never sees what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from prm_core.domains.oracle import ORACLES
from prm_core.evaluation.judged_chains import judge
from prm_core.types import Problem, StepLabel, Trajectory

StepKey = tuple[str, int]
MERGED = "merged"


@dataclass(frozen=True, slots=True)
class StrategyQuality:
    """A strategy's labels, or the merged ones. Shares are None where there is nothing to take one of.

    Attributes:
        name: of the strategy.
        reach: share of all steps with a row of it.
        tokens_per_step: generated for it, over all steps.
        judged: verdicts on steps with a gold verdict.
        accuracy: share of them that are the gold one.
        wrong: of them, those on steps that are wrong by the gold verdict.
        wrong_found: share of these that it calls wrong.
        right_passed: share of the others that it calls right.
    """

    name: str
    reach: float
    tokens_per_step: float
    judged: int
    accuracy: float | None
    wrong: int
    wrong_found: float | None
    right_passed: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Attributes: a, b: strategies; share: of the steps both judge on which they say the same; steps: how many."""

    a: str
    b: str
    share: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """The labels of a workspace.

    Attributes:
        chains, steps: labelled.
        gold: who says what is right: `oracle`, `people`, both, or empty.
        gold_steps: steps with a gold verdict, up to each chain's first wrong one.
        gold_right: share of them that are right: what calling every step right would score.
        strategies: as configured, then the merged labels.
        agreement: of every two strategies, on steps up to their chain's first wrong one by the merged labels.
    """

    chains: int
    steps: int
    gold: str
    gold_steps: int
    gold_right: float | None
    strategies: Sequence[StrategyQuality]
    agreement: Sequence[Agreement]

    def flat(self) -> dict[str, float]:
        """`labels/<strategy>/<figure>` of what is defined."""
        return {f"labels/{one.name}/{what}": value for one in self.strategies
                for what in ("reach", "tokens_per_step", "judged", "accuracy", "wrong_found", "right_passed")
                if (value := getattr(one, what)) is not None}


def gold_verdicts(
    trajectories: Iterable[Trajectory], problems: Mapping[str, Problem], people: Mapping[StepKey, bool]
) -> tuple[dict[StepKey, bool], str]:
    """Verdicts on the steps up to each chain's first wrong one, and who gave them.

    Args:
        trajectories: labelled chains.
        problems: theirs, by id.
        people: what reviewers say; it counts where the problem's domain has no oracle.
    """
    found: dict[StepKey, bool] = {}
    sources = set()
    for trajectory in trajectories:
        problem = problems[trajectory.problem_id]
        if problem.domain in ORACLES:
            verdicts = judge(problem, trajectory.steps) or ()
        else:
            known = [people.get((trajectory.id, index)) for index in range(len(trajectory.steps))]
            verdicts = known[: known.index(None)] if None in known else known
        for index, right in enumerate(verdicts):
            sources.add("oracle" if problem.domain in ORACLES else "people")
            found[trajectory.id, index] = right
            if not right:
                break
    return found, " and ".join(sorted(sources))


def measure_labels(
    labels: Sequence[StepLabel], merged: Sequence[StepLabel], trajectories: Sequence[Trajectory],
    problems: Mapping[str, Problem], people: Mapping[StepKey, bool],
) -> LabelQuality:
    """The quality of a workspace's labels.

    Args:
        labels: of all strategies.
        merged: one for each step.
        trajectories, problems: that they are of.
        people: reviewers' verdicts, as `human_verdicts` gives them.
    """
    gold, source = gold_verdicts(trajectories, problems, people)
    groups: dict[str, list[StepLabel]] = {}
    for label in (*labels, *merged):
        groups.setdefault(label.strategy, []).append(label)
    # Last, whatever it is called before.
    whole = groups.pop(MERGED, [])
    steps = sum(len(trajectory.steps) for trajectory in trajectories)
    rows = [_strategy(name, group, gold, steps) for name, group in groups.items()]
    total = sum(label.tokens for label in labels)
    rows.append(_strategy(MERGED, whole, gold, steps, tokens=total))
    right = sum(gold.values())
    return LabelQuality(len(trajectories), steps, source, len(gold), right / len(gold) if gold else None, rows,
                        _agreements(groups, whole))


def _strategy(
    name: str, labels: Sequence[StepLabel], gold: Mapping[StepKey, bool], steps: int, tokens: int | None = None
) -> StrategyQuality:
    pairs = [(label.is_correct, gold[key]) for label in labels
             if label.is_correct is not None and (key := (label.trajectory_id, label.step_index)) in gold]

    def share(hits: Iterable[bool]) -> float | None:
        hits = list(hits)
        return sum(hits) / len(hits) if hits else None

    spent = sum(label.tokens for label in labels) if tokens is None else tokens
    return StrategyQuality(
        name, len(labels) / steps, spent / steps, len(pairs), share(said == is_right for said, is_right in pairs),
        sum(not is_right for _, is_right in pairs), share(not said for said, is_right in pairs if not is_right),
        share(bool(said) for said, is_right in pairs if is_right))


def _agreements(groups: Mapping[str, Sequence[StepLabel]], merged: Sequence[StepLabel]) -> list[Agreement]:
    first_wrong: dict[str, int] = {}
    for label in merged:
        if label.is_correct is False:
            index = first_wrong.get(label.trajectory_id, label.step_index)
            first_wrong[label.trajectory_id] = min(index, label.step_index)
    said = {name: {(label.trajectory_id, label.step_index): label.is_correct for label in group
                   if label.is_correct is not None
                   and label.step_index <= first_wrong.get(label.trajectory_id, label.step_index)}
            for name, group in groups.items()}
    found = []
    for a, b in combinations(said, 2):
        both = said[a].keys() & said[b].keys()
        same = sum(said[a][key] == said[b][key] for key in both)
        found.append(Agreement(a, b, same / len(both) if both else None, len(both)))
    return found
