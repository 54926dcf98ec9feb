"""From labels to training examples: targets by key, soft, hard and values, tokens, and the split by problem."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.training.examples import (
    IGNORED,
    Example,
    Pair,
    build_examples,
    build_pairs,
    build_values,
    encode_examples,
    encode_pairs,
    split_by_problem,
)
from prm_core.types import Problem, Step, StepLabel, StepPreference, Trajectory
from tests.builders.training import CHAINS as TEXTS
from tests.builders.training import make_encoder

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


# Values and preferences


def estimate(trajectory: str, step: int, value: float | None, strategy: str = "rollout") -> StepLabel:
    return StepLabel(trajectory, step, strategy, value, None if value is None else value > 0, 0.9, 8, "")


VALUES = [estimate("a", 0, 0.75), estimate("a", 2, 0.25, "mcts"), estimate("b", 1, None), estimate("b", 0, 0.5),
          # What is no share of successful rollouts is no value.
          estimate("a", 1, 0.1, "judge"), estimate("c", 0, 0.3, "merged"), estimate("d", 0, 0.6)]


def test_a_prefix_is_worth_its_rollouts_or_else_its_chain_s_outcome_and_the_prompt_the_mean_outcome() -> None:
    examples = build_values(PROBLEMS, CHAINS, VALUES)
    # Of p, a and c are right; of q, b is wrong and of d the outcome is not known.
    assert [(e.problem_id, e.steps[0].text, e.targets) for e in examples] == [
        ("p", "a 0", (1.0, 0.75, 1.0, 0.25)), ("q", "b 0", (0.0, 0.5, 0.0)), ("p", "c 0", (1.0, 1.0))]
    wrong = [*CHAINS, chain("e", "p", 1, False)]
    assert {e.targets[0] for e in build_values(PROBLEMS, wrong, VALUES) if e.problem_id == "p"} == {2 / 3}


def test_values_of_a_chain_of_an_unknown_problem_are_an_error() -> None:
    with pytest.raises(InputError, match="trajectory a is of problem p, which is not among"):
        build_values({"q": PROBLEMS["q"]}, CHAINS, VALUES)


def test_preferences_of_these_problems_become_pairs() -> None:
    rows = [StepPreference(name, (Step("x"),), Step("good"), Step("bad"), 0.9, 0.1, 8, 8) for name in ("p", "gone")]
    assert build_pairs(PROBLEMS, rows) == [Pair("p", "Question p?", (Step("x"),), Step("good"), Step("bad"))]


# Tokens

ENCODER = make_encoder()
LONG = max(range(len(TEXTS)), key=lambda i: len(TEXTS[i][1]))
STEPS = len(TEXTS[LONG][1])


def example(number: int, targets: tuple[float, ...]) -> Example:
    return Example(f"p{number}", *TEXTS[number], targets)


def cut_encoder(number: int, steps: int) -> Encoder:
    """One whose context ends after so many steps of that chain."""
    return make_encoder(max_length=ENCODER.encode(*TEXTS[number]).step_ends[steps - 1] + 1)


def test_targets_stand_with_their_steps() -> None:
    (one, other), lost = encode_examples(ENCODER, [example(0, (1.0, 0.9, IGNORED)), example(1, (0.0,))], "process")
    assert [str(t) for t in one.targets] == ["1.0", "0.9", "nan"]
    assert (other.targets, other.chain) == ((0.0,), ENCODER.encode(*TEXTS[1]))
    assert lost == {"truncated_steps": 0, "truncated_labels": 0, "dropped_chains": 0}


def test_labels_cut_by_the_context_are_counted(caplog) -> None:
    targets = (1.0, 0.0, IGNORED, *[1.0] * (STEPS - 3))
    (found,), lost = encode_examples(cut_encoder(LONG, 2), [example(LONG, targets)], "process")
    assert (found.targets, len(found.chain.step_ends)) == ((1.0, 0.0), 2)
    assert lost == {"truncated_steps": STEPS - 2, "truncated_labels": STEPS - 3, "dropped_chains": 0}
    assert caplog.messages == [f"process model: {STEPS - 2} truncated_steps, {STEPS - 3} truncated_labels"]


def test_values_cut_by_the_context_leave_those_of_the_prompt_and_the_kept_steps() -> None:
    targets = tuple(k / 10 for k in range(STEPS + 1))
    (found,), lost = encode_examples(cut_encoder(LONG, 2), [example(LONG, targets)], "advantage")
    assert found.targets == (0.0, 0.1, 0.2)
    assert lost == {"truncated_steps": STEPS - 2, "truncated_labels": STEPS - 2, "dropped_chains": 0}


def test_chains_left_without_a_label_are_dropped_and_counted(caplog) -> None:
    rows = [example(0, (IGNORED,) * len(TEXTS[0][1])), example(1, (1.0,))]
    found, lost = encode_examples(ENCODER, rows, "process")
    assert (len(found), lost["dropped_chains"]) == (1, 1)
    assert caplog.messages == ["process model: 1 dropped_chains"]


@pytest.mark.parametrize("kind", ["outcome", "implicit"])
def test_an_outcome_needs_the_end_of_the_chain(kind: str) -> None:
    rows = [example(LONG, (1.0,)), Example("q", "?", (Step("a"),), (0.0,))]
    found, lost = encode_examples(cut_encoder(LONG, 2), rows, kind)
    assert [one.targets for one in found] == [(0.0,)]
    assert (lost["truncated_steps"], lost["dropped_chains"]) == (STEPS - 2, 1)


@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_a_prompt_too_long_for_any_step_is_dropped_and_counted(kind: str) -> None:
    """To a scorer the same prompt is an error; tests/scoring/test_scorer.py."""
    long = Example("q", "word " * 400, (Step("a"), Step("b")), (1.0,) * (1 + (kind != "outcome") + (kind[0] == "a")))
    short = example(1, (1.0,) * len(long.targets))
    found, lost = encode_examples(ENCODER, [long, short], kind)
    assert [one.chain for one in found] == [ENCODER.encode(*TEXTS[1])]
    assert (lost["truncated_steps"], lost["dropped_chains"]) == (2, 1)


@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_all_labels_lost_is_an_error_before_training(kind: str) -> None:
    with pytest.raises(InputError, match=f"no label is left to train the {kind} model on .1 chains"):
        encode_examples(ENCODER, [example(0, (IGNORED,))], kind)


def test_pairs_are_two_chains_that_differ_in_their_last_step() -> None:
    prompt, steps = TEXTS[0]
    pairs = [Pair("p", prompt, steps[:k], steps[k], Step("never")) for k in (0, 2)]
    found, lost = encode_pairs(ENCODER, pairs, 256)
    assert lost == 0
    for one, k in zip(found, (0, 2), strict=True):
        assert one.chosen == ENCODER.encode(prompt, steps[: k + 1])
        assert one.rejected == ENCODER.encode(prompt, (*steps[:k], Step("never")))


def test_pairs_that_do_not_fit_a_row_are_dropped_and_counted(caplog) -> None:
    prompt, steps = TEXTS[0]
    pair = Pair("p", prompt, steps[:1], steps[1], Step("never"))
    prefix, chosen, rejected = (len(ENCODER.encode(prompt, (*steps[:1], *more)).ids)
                                for more in ((), steps[1:2], (Step("never"),)))
    size = chosen + rejected - prefix
    assert encode_pairs(ENCODER, [pair], size)[1] == 0
    assert caplog.messages == []
    assert encode_pairs(ENCODER, [pair], size - 1) == ([], 1)
    assert caplog.messages == [f"1 of 1 preference pairs do not fit {size - 1} tokens"]
    # The context, too: neither step may be cut.
    assert encode_pairs(make_encoder(max_length=max(chosen, rejected) - 1), [pair], 256) == ([], 1)


# The split


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
