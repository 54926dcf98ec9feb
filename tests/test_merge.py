"""Merging strategies: joined by key, the guide's vote, abstentions, and the figures of a labelling run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.merge import merge_labels, probability_right
from prm_core.labeling.summary import summarise
from prm_core.types import StepLabel
from tests.quality_builders import label, make_config

NAMES = ["rollout", "mc_dropout", "mcts"]


def settings(**changes):
    return make_config(label={"strategies": NAMES, "merge": "vote", "lone_vote_factor": 0.6, **changes}).label


def votes(*verdicts, trajectory="t", step=0):
    """Labels of one step, one for each (verdict, confidence), by the strategies in order."""
    return [label(trajectory, step, verdict, confidence, NAMES[i], value=0.5)
            for i, (verdict, confidence) in enumerate(verdicts)]


def merge_one(*verdicts, **changes):
    (merged,) = merge_labels({"t": 1}, votes(*verdicts), settings(**changes))
    return merged


@pytest.mark.parametrize(("verdicts", "is_correct", "confidence", "value"), [
    # Two or more agree: the majority, with the mean probability that the votes give it.
    ([(True, 0.9), (True, 0.7)], True, 0.8, 0.8),
    ([(False, 0.9), (False, 0.7)], False, 0.8, 0.2),
    ([(True, 0.9), (True, 0.6), (False, 0.9)], True, (0.9 + 0.6 + 0.1) / 3, (0.9 + 0.6 + 0.1) / 3),
    ([(True, 1.0), (False, 0.8), (False, 0.7)], False, 0.5, 0.5),
    ([(True, 0.9), (True, 0.7), (None, 0.0)], True, 0.8, 0.8),
    # One alone: its confidence times the factor; the value stays its own.
    ([(True, 0.9)], True, 0.54, 0.9),
    ([(None, 0.0), (False, 0.9), (None, 0.4)], False, 0.54, 0.1),
    # A tie goes to the more confident side; no side where they are equal.
    ([(True, 0.9), (False, 0.6)], True, 0.65, 0.65),
    ([(True, 0.6), (False, 0.9)], False, 0.65, 0.35),
    ([(True, 0.75), (False, 0.75)], None, 0.0, 0.5),
    # All abstain.
    ([(None, 0.0), (None, 0.9)], None, 0.0, None),
])
def test_the_vote(verdicts, is_correct, confidence, value):
    merged = merge_one(*verdicts)

    assert (merged.trajectory_id, merged.step_index, merged.strategy) == ("t", 0, "merged")
    assert merged.is_correct is is_correct
    assert merged.confidence == pytest.approx(confidence)
    assert merged.value == (None if value is None else pytest.approx(value))
    assert merged.tokens == len(verdicts)


def test_the_factor_of_a_lone_vote_is_the_configured_one():
    assert merge_one((True, 0.9), lone_vote_factor=0.5).confidence == pytest.approx(0.45)
    assert merge_one((True, 0.9), lone_vote_factor=1.0).confidence == pytest.approx(0.9)


def test_the_reasoning_names_who_says_what():
    assert merge_one((True, 0.9), (False, 0.6), (None, 0.0)).reasoning == (
        "rollout says right: because; mc_dropout says wrong: because")
    assert merge_one((None, 0.0)).reasoning == "rollout abstains: because"


def test_probability_right():
    assert probability_right(label("t", 0, True, 0.9)) == 0.9
    assert probability_right(label("t", 0, False, 0.9)) == pytest.approx(0.1)


VOTE = settings()
LABELS = st.lists(
    st.builds(
        lambda t, i, s, ok, c: StepLabel(f"t{t}", i, NAMES[s], None, ok, c if ok is not None else 0.0, 1, "r"),
        st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.sampled_from([True, False, None]),
        st.sampled_from([0.5, 0.75, 1.0]),
    ),
    max_size=20, unique_by=lambda row: (row.trajectory_id, row.step_index, row.strategy),
)


@given(LABELS, st.data())
def test_labels_are_joined_by_key_whatever_their_order(labels, data):
    """The guide zips two lists that were filtered apart (METHODS 1)."""
    steps = {"t0": 3, "t1": 1, "t2": 3}
    merged = merge_labels(steps, labels, VOTE)
    shuffled = merge_labels(steps, data.draw(st.permutations(labels)), VOTE)

    assert [(m.trajectory_id, m.step_index) for m in merged] == [(t, i) for t, n in steps.items() for i in range(n)]
    for one, other in zip(merged, shuffled, strict=True):
        assert one.is_correct is other.is_correct
        assert one.confidence == pytest.approx(other.confidence)
        # Alone with its own labels, a step gets the same verdict.
        own = [row for row in labels if (row.trajectory_id, row.step_index) == (one.trajectory_id, one.step_index)]
        if own:
            alone = merge_labels({one.trajectory_id: one.step_index + 1}, own, VOTE)[one.step_index]
            assert alone == one


def test_strategies_that_label_different_steps_do_not_slip():
    """A strategy without a label of the first step must not have its second one taken for it."""
    labels = [label("t", 1, False, 0.9, "mcts"), *(label("t", i, True, 0.9, "rollout") for i in range(3))]

    merged = merge_labels({"t": 3, "other": 1}, labels, settings())

    assert [m.is_correct for m in merged] == [True, None, True, None]
    assert [m.confidence for m in merged] == pytest.approx([0.54, 0.0, 0.54, 0.0])
    assert merged[3].reasoning == "no strategy labelled it"


def test_one_strategy_can_be_taken_as_it_is():
    labels = [*votes((True, 0.9), (False, 0.8)), *votes((True, 0.7), step=1)]

    merged = merge_labels({"t": 3}, labels, settings(merge="mc_dropout"))

    assert merged[0] == StepLabel("t", 0, "merged", 0.5, False, 0.8, 1, "mc_dropout: because")
    assert merged[1] == StepLabel("t", 1, "merged", None, None, 0.0, 0, "mc_dropout did not label it")
    assert merged[2].reasoning == "no strategy labelled it"


@pytest.mark.parametrize("name", ["votes", "mcts"])
def test_an_unknown_merge_is_refused(name):
    """A strategy that does not run is none to take labels from."""
    with pytest.raises(InputError, match=f"unknown way to merge labels '{name}'; known: vote"):
        merge_labels({"t": 1}, votes((True, 0.9)), settings(merge=name, strategies=["rollout"]))


def test_the_figures_of_a_run():
    labels = [*votes((True, 0.9), (False, 0.7)), *votes((False, 0.5), (None, 0.0), step=1)]
    merged = merge_labels({"t": 4}, labels, settings())

    figures = summarise(labels, merged, {"rollout": 0, "mc_dropout": 2, "mcts": 1})

    assert figures["train/merged/steps"] == 4
    assert figures["train/rollout/coverage"] == 0.5
    assert figures["train/rollout/correct_share"] == 0.5
    assert figures["train/rollout/mean_confidence"] == pytest.approx(0.7)
    assert figures["train/rollout/tokens_per_step"] == 0.5
    assert figures["train/mc_dropout/coverage"] == 0.25
    assert figures["train/mc_dropout/failed_chains"] == 2
    assert figures["train/merged/coverage"] == 0.5
    # A strategy that said nothing is in the figures too.
    assert figures["train/mcts/coverage"] == figures["train/mcts/correct_share"] == 0
    assert figures["train/mcts/failed_chains"] == 1
