"""From labels to training examples: targets by key, soft and hard, and the split by problem."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.training.examples import Example, build_examples, split_by_problem
from prm_core.types import Problem, Step, StepLabel, Trajectory

PROBLEMS = {name: Problem(name, "general", f"Question {name}?", "1") for name in ("p", "q")}


def chain(name: str, problem: str, steps: int, outcome: bool | None = True) -> Trajectory:
    texts = tuple(Step(f"{name} {i}") for i in range(steps))
    return Trajectory(name, problem, "policy", texts, None, outcome, 0)


def label(trajectory: str, step: int, value: float | None, right: bool | None) -> StepLabel:
    return StepLabel(trajectory, step, "merged", value, right, 0.9, 5, "")


CHAINS = [chain("a", "p", 3), chain("b", "q", 2, False), chain("c", "p", 1), chain("d", "q", 2, None)]
# Out of order, with holes: step 1 of a has no row, step 0 of d no verdict.
LABELS = [label("b", 1, 0.0, False), label("a", 2, 0.9, True), label("a", 0, 1.0, True), label("b", 0, 0.25, True),
          label("d", 0, None, None), label("d", 1, 0.6, True)]


def targets(kind: str, soft: bool) -> dict[str, list[float | str]]:
    examples = build_examples(kind, PROBLEMS, CHAINS, LABELS, soft=soft)
    return {e.steps[0].text[0]: ["none" if math.isnan(t) else t for t in e.targets] for e in examples}


def test_hard_targets_are_the_verdicts_of_the_same_step() -> None:
    assert targets("process", soft=False) == {"a": [1.0, "none", 1.0], "b": [1.0, 0.0], "d": ["none", 1.0]}


def test_soft_targets_stay_what_they_are() -> None:
    assert targets("process", soft=True) == {"a": [1.0, "none", 0.9], "b": [0.25, 0.0], "d": ["none", 0.6]}


def test_outcome_targets_are_of_the_same_chains() -> None:
    assert targets("outcome", soft=False) == {"a": [1.0], "b": [0.0], "d": ["none"]}


def test_an_example_carries_its_problem() -> None:
    example = build_examples("process", PROBLEMS, CHAINS, LABELS, soft=False)[1]
    assert (example.problem_id, example.prompt, example.steps) == ("q", "Question q?", CHAINS[1].steps)


def test_labels_of_chains_that_are_not_there_are_an_error() -> None:
    with pytest.raises(InputError, match=r"1 labelled trajectories are not among the generated ones \(gone\)"):
        build_examples("process", PROBLEMS, CHAINS, [*LABELS, label("gone", 0, 1.0, True)], soft=False)


def test_a_chain_of_an_unknown_problem_is_an_error() -> None:
    with pytest.raises(InputError, match="trajectory a is of problem p, which is not among"):
        build_examples("process", {"q": PROBLEMS["q"]}, CHAINS, LABELS, soft=False)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60).filter(lambda ids: len(set(ids)) > 1),
       st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_problem_is_on_both_sides(ids: list[int], share: float, seed: int) -> None:
    examples = [Example(f"p{i}", "", (Step(str(n)),), (1.0,)) for n, i in enumerate(ids)]
    train, dev = split_by_problem(examples, share, seed)
    left, right = ({e.problem_id for e in side} for side in (train, dev))
    assert left
    assert right
    assert not left & right
    assert sorted((*train, *dev), key=lambda e: int(e.steps[0].text)) == examples
    assert len(right) == min(max(1, round(share * len(set(ids)))), len(set(ids)) - 1)
    assert (train, dev) == split_by_problem(examples, share, seed)


def test_the_seed_chooses_the_split() -> None:
    examples = [Example(f"p{i}", "", (Step("x"),), (1.0,)) for i in range(40)]
    held = [{e.problem_id for e in split_by_problem(examples, 0.25, seed)[1]} for seed in (0, 1)]
    assert [len(side) for side in held] == [10, 10]
    assert held[0] != held[1]
