"""How good the step labels are that a reward model was trained on: agreement, cost, and accuracy where gold verdicts
exist. It only measures; labelling never sees what it finds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

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
        first_error_f1: of the chains whose first wrong step is known, as ProcessBench has it: the strategy's own is the
            first step that it calls wrong; a step that it abstains on or never saw is not one.
        chain_error: share of these chains of which it states another first error, or one where none is, or none.
    """

    name: str
    reach: float
    tokens_per_step: float
    judged: int
    accuracy: float | None
    wrong: int
    wrong_found: float | None
    right_passed: float | None
    first_error_f1: float | None
    chain_error: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """Attributes: a, b: strategies; share: of the steps both judge on which they say the same; steps: how many."""

    a: str
    b: str
    share: float | None
    steps: int


@dataclass(frozen=True, slots=True)
class Population:
    """The labels of chains of one origin.

    Attributes:
        chains, steps: labelled.
        gold: who says what is right: `oracle`, `people`, both, or empty.
        gold_steps: steps with a gold verdict, up to each chain's first wrong one.
        gold_right: share of them that are right: what calling every step right would score.
        strategies: as configured, then the merged labels.
    """

    chains: int
    steps: int
    gold: str
    gold_steps: int
    gold_right: float | None
    strategies: Sequence[StrategyQuality]


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """The labels of a workspace.

    Attributes:
        generated: on the policy's own chains, which reward models learn from.
        human: on the chains of `data/human`, which may be of another origin: what is true of these need not be of the
            policy's. None where there are none.
        agreement: of every two strategies, on the policy's chains up to their first wrong step by the merged labels.
        claimed: what the chain itself says of its labels, without gold: the figures of stage `calibrate`.
    """

    generated: Population
    human: Population | None
    agreement: Sequence[Agreement]
    claimed: Mapping[str, Any]

    def flat(self) -> dict[str, float]:
        """`labels/<strategy>/<figure>` and `labels/<strategy>/human_chains/<figure>` of what is defined."""
        figures = [field.name for field in fields(StrategyQuality) if field.name not in ("name", "wrong")]
        return {f"labels/{one.name}/{part}{figure}": value
                for part, population in (("", self.generated), ("human_chains/", self.human)) if population
                for one in population.strategies for figure in figures if (value := getattr(one, figure)) is not None}


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


def first_errors(trajectories: Iterable[Trajectory], gold: Mapping[StepKey, bool]) -> dict[str, int]:
    """Chain → index of its first wrong step, -1 where none is; chains of which gold does not tell are left out.

    Args:
        gold: as `gold_verdicts` gives it.
    """
    found = {}
    for trajectory in trajectories:
        verdicts = [gold.get((trajectory.id, index)) for index in range(len(trajectory.steps))]
        if False in verdicts:
            found[trajectory.id] = verdicts.index(False)
        elif None not in verdicts:
            found[trajectory.id] = -1
    return found


def measure_labels(
    labels: Sequence[StepLabel], merged: Sequence[StepLabel], generated: Sequence[Trajectory],
    human: Sequence[Trajectory], problems: Mapping[str, Problem], people: Mapping[StepKey, bool],
    claimed: Mapping[str, Any],
) -> LabelQuality:
    """The quality of a workspace's labels.

    Args:
        labels: of all strategies.
        merged: one for each step.
        generated: the policy's chains that they are of.
        human: those of `data/human` that the policy did not write.
        problems: of both, by id.
        people: reviewers' verdicts, as `human_verdicts` gives them.
        claimed: as in `LabelQuality`.
    """
    groups: dict[str, list[StepLabel]] = {}
    for label in (*labels, *merged):
        groups.setdefault(label.strategy, []).append(label)
    # Last, whatever it is called before.
    groups[MERGED] = groups.pop(MERGED, [])
    own = {trajectory.id for trajectory in generated}
    return LabelQuality(_population(groups, generated, problems, people),
                        _population(groups, human, problems, people) if human else None, _agreements(groups, own),
                        claimed)


def _population(
    groups: Mapping[str, Sequence[StepLabel]], trajectories: Sequence[Trajectory], problems: Mapping[str, Problem],
    people: Mapping[StepKey, bool],
) -> Population:
    gold, source = gold_verdicts(trajectories, problems, people)
    known, steps = first_errors(trajectories, gold), sum(len(trajectory.steps) for trajectory in trajectories)
    ids = {trajectory.id for trajectory in trajectories}
    mine = {name: [label for label in group if label.trajectory_id in ids] for name, group in groups.items()}
    rows = [_strategy(name, group, gold, known, steps) for name, group in mine.items()]
    # Merging costs what the strategies do.
    rows[-1] = replace(rows[-1], tokens_per_step=sum(row.tokens_per_step for row in rows[:-1]))
    right = sum(gold.values())
    return Population(len(trajectories), steps, source, len(gold), right / len(gold) if gold else None, rows)


def _strategy(
    name: str, labels: Sequence[StepLabel], gold: Mapping[StepKey, bool], known: Mapping[str, int], steps: int
) -> StrategyQuality:
    pairs = [(label.is_correct, gold[key]) for label in labels
             if label.is_correct is not None and (key := (label.trajectory_id, label.step_index)) in gold]

    def share(hits: Iterable[bool]) -> float | None:
        hits = list(hits)
        return sum(hits) / len(hits) if hits else None

    said = _first_wrong(labels)
    found, passed = (share(said.get(chain, -1) == error for chain, error in known.items() if (error < 0) == sound)
                     for sound in (False, True))
    f1 = None if found is None or passed is None else 2 * found * passed / (found + passed or 1)
    return StrategyQuality(
        name, len(labels) / steps, sum(label.tokens for label in labels) / steps, len(pairs),
        share(verdict == right for verdict, right in pairs), sum(not right for _, right in pairs),
        share(not verdict for verdict, right in pairs if not right),
        share(bool(verdict) for verdict, right in pairs if right), f1,
        share(said.get(chain, -1) != error for chain, error in known.items()))


def _first_wrong(labels: Iterable[StepLabel]) -> dict[str, int]:
    """Chain → the first step called wrong, of the chains that have one."""
    found: dict[str, int] = {}
    for label in labels:
        if label.is_correct is False:
            found[label.trajectory_id] = min(found.get(label.trajectory_id, label.step_index), label.step_index)
    return found


def _agreements(groups: Mapping[str, Sequence[StepLabel]], chains: Collection[str]) -> list[Agreement]:
    end = _first_wrong(groups[MERGED])
    said = {name: {(label.trajectory_id, label.step_index): label.is_correct for label in group
                   if label.is_correct is not None and label.trajectory_id in chains
                   and label.step_index <= end.get(label.trajectory_id, label.step_index)}
            for name, group in groups.items() if name != MERGED}
    found = []
    for a, b in combinations(said, 2):
        both = said[a].keys() & said[b].keys()
        same = sum(said[a][key] == said[b][key] for key in both)
        found.append(Agreement(a, b, same / len(both) if both else None, len(both)))
    return found
