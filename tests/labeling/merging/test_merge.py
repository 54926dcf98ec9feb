"""Merging strategies: joined by key, the guide's vote, Dawid-Skene, consensus, abstentions, figures of a run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.merging.merge import merge_labels, probability_right
from prm_core.labeling.summary import summarise
from prm_core.types import Step, StepLabel, Trajectory
from tests.builders.quality import label, make_config

NAMES = ["rollout", "mc_dropout", "mcts"]


def settings(**changes):
    return make_config(label={"strategies": NAMES, "merge": "vote", "lone_vote_factor": 0.6, **changes}).label


def votes(*verdicts, trajectory="t", step=0):
    """Labels of one step, one for each (verdict, confidence), by the strategies in order."""
    return [label(trajectory, step, verdict, confidence, NAMES[i], value=0.5)
            for i, (verdict, confidence) in enumerate(verdicts)]


def chains(outcome=None, **steps):
    """Trajectories with so many steps, all with one outcome."""
    return [Trajectory(name, "p", "policy", tuple(Step(f"step {i}") for i in range(count)), None, outcome, 0)
            for name, count in steps.items()]


def merged_labels(steps, labels, config):
    return merge_labels(chains(**steps), labels, config).labels


def merge_one(*verdicts, **changes):
    (merged,) = merged_labels({"t": 1}, votes(*verdicts), settings(**changes))
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
    assert json.loads(merged.lineage) == {
        "strategy": "merged@3", "model": "", "seed": 0,
        "parameters": {"merge": "vote", "consensus": False, "strategies": NAMES, "lone_vote_factor": 0.6},
    }


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
    assert probability_right(label("t", 0, None, 0.0, value=0.4)) == 0.4
    assert probability_right(label("t", 0, None, 0.0)) is None


VOTE = settings()
LABELS = st.lists(
    st.builds(
        # Trajectory t1 has one step.
        lambda t, i, s, ok, c: StepLabel(f"t{t}", 0 if t == 1 else i, NAMES[s], None, ok,
                                         c if ok is not None else 0.0, 1, "r"),
        st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.sampled_from([True, False, None]),
        st.sampled_from([0.5, 0.75, 1.0]),
    ),
    max_size=20, unique_by=lambda row: (row.trajectory_id, row.step_index, row.strategy),
)


@given(LABELS, st.data())
def test_labels_are_joined_by_key_whatever_their_order(labels, data):
    """The guide zips two lists that were filtered apart (METHODS 1)."""
    steps = {"t0": 3, "t1": 1, "t2": 3}
    merged = merged_labels(steps, labels, VOTE)
    shuffled = merged_labels(steps, data.draw(st.permutations(labels)), VOTE)

    assert [(m.trajectory_id, m.step_index) for m in merged] == [(t, i) for t, n in steps.items() for i in range(n)]
    for one, other in zip(merged, shuffled, strict=True):
        assert one.is_correct is other.is_correct
        assert one.confidence == pytest.approx(other.confidence)
        # Alone with its own labels, a step gets the same verdict.
        own = [row for row in labels if (row.trajectory_id, row.step_index) == (one.trajectory_id, one.step_index)]
        if own:
            alone = merged_labels({one.trajectory_id: one.step_index + 1}, own, VOTE)[one.step_index]
            assert alone == one


def test_strategies_that_label_different_steps_do_not_slip():
    """A strategy without a label of the first step must not have its second one taken for it."""
    labels = [label("t", 1, False, 0.9, "mcts"), *(label("t", i, True, 0.9, "rollout") for i in range(3))]

    merged = merged_labels({"t": 3, "other": 1}, labels, settings())

    assert [m.is_correct for m in merged] == [True, None, True, None]
    assert [m.confidence for m in merged] == pytest.approx([0.54, 0.0, 0.54, 0.0])
    assert merged[3].reasoning == "no strategy labelled it"


def test_one_strategy_can_be_taken_as_it_is():
    labels = [*votes((True, 0.9), (False, 0.8)), *votes((True, 0.7), step=1)]

    merged = merged_labels({"t": 3}, labels, settings(merge="mc_dropout"))

    plain = [dataclasses.replace(row, lineage="") for row in merged]
    assert plain[0] == StepLabel("t", 0, "merged", 0.5, False, 0.8, 1, "mc_dropout: because")
    assert plain[1] == StepLabel("t", 1, "merged", None, None, 0.0, 0, "mc_dropout did not label it")
    assert plain[2].reasoning == "mc_dropout did not label it"


@pytest.mark.parametrize("name", ["votes", "mcts"])
def test_an_unknown_merge_is_refused(name):
    """A strategy that does not run is none to take labels from."""
    known = "dawid_skene, first_error, vote"
    with pytest.raises(InputError, match=f"unknown way to merge labels '{name}'; known: {known}"):
        merged_labels({"t": 1}, votes((True, 0.9)), settings(merge=name, strategies=["rollout"]))


def test_the_figures_of_a_run():
    labels = [*votes((True, 0.9), (False, 0.7)), *votes((False, 0.5), (None, 0.0), step=1)]
    merged = merge_labels(chains(t=4), labels, settings())

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


# --- Dawid-Skene ------------------------------------------------------------------------------------------------------


def crowd(rng, count, steps, accuracies, error_share=0.5):
    """Chains with a known first error (or none), and each strategy's verdicts up to its own first "wrong"."""
    truth, labels = {}, []
    for number in range(count):
        name = f"t{number}"
        truth[name] = int(rng.integers(steps)) if rng.random() < error_share else -1
        for strategy, accuracy in accuracies.items():
            for index in range(steps):
                right = truth[name] < 0 or index < truth[name]
                verdict = right if rng.random() < accuracy else not right
                labels.append(label(name, index, verdict, 0.9, strategy))
                if not verdict:
                    break
    return truth, labels


def found_errors(merged):
    found = {row.trajectory_id: -1 for row in merged}
    for row in reversed(merged):
        if row.is_correct is False:
            found[row.trajectory_id] = row.step_index
    return found


@pytest.mark.parametrize("name", ["dawid_skene", "first_error"])
def test_the_reliable_strategy_is_found_without_any_gold(name):
    rng = np.random.default_rng(0)
    # mc_dropout is nearly always right; the other two guess with a bias to the truth and disagree with each other.
    truth, labels = crowd(rng, 400, 4, {"rollout": 0.7, "mc_dropout": 0.98, "verifier": 0.7})
    config = settings(merge=name, strategies=["rollout", "mc_dropout", "verifier"])
    trajectories = [dataclasses.replace(t, outcome=truth[t.id] < 0) for t in chains(**dict.fromkeys(truth, 4))]

    merged = merge_labels(trajectories, labels, config)

    found = found_errors(merged.labels)
    assert np.mean([found[t] == at for t, at in truth.items()]) > 0.9
    by_vote = found_errors(merged_labels(dict.fromkeys(truth, 4), labels,
                                         settings(strategies=["rollout", "mc_dropout", "verifier"])))
    assert np.mean([by_vote[t] == at for t, at in truth.items()]) < 0.85
    rates = {n.replace("policy rollouts", "rollout"): r for n, r in merged.reliability.items()}
    assert rates["mc_dropout"]["right"] > 0.93 > 0.85 > rates["rollout"]["right"]


@pytest.mark.parametrize("name", ["dawid_skene", "first_error"])
def test_nothing_is_said_after_the_first_error(name):
    truth, labels = crowd(np.random.default_rng(1), 60, 4, {"rollout": 0.95, "mc_dropout": 0.95})
    merged = merged_labels(dict.fromkeys(truth, 4), labels, settings(merge=name, strategies=["rollout", "mc_dropout"]))

    assert len(merged) == 240
    found = found_errors(merged)
    after = [row for row in merged if 0 <= found[row.trajectory_id] < row.step_index]
    assert after
    assert {(row.is_correct, row.value, row.reasoning) for row in after} == {(None, None, "an earlier step is wrong")}
    upto = [row for row in merged if row.is_correct is not None]
    assert all(row.confidence == max(row.value, 1 - row.value) >= 0.5 for row in upto)


@pytest.mark.parametrize("name", ["dawid_skene", "first_error"])
def test_steps_nobody_judges_stay_undecided(name):
    (row,) = merged_labels({"t": 1}, [], settings(merge=name))
    assert (row.is_correct, row.value, row.reasoning) == (None, None, "no strategy labelled it")


def test_strategies_of_one_evidence_count_once():
    """Rollouts and the tree search both ask the policy: together they must not outvote two others (METHODS 2)."""
    rng = np.random.default_rng(2)
    truth, labels = crowd(rng, 300, 3, {"rollout": 0.8, "mc_dropout": 0.9, "verifier": 0.9})
    config = settings(merge="first_error", strategies=["rollout", "mcts", "mc_dropout", "verifier"])
    twice = [*labels, *(dataclasses.replace(row, strategy="mcts") for row in labels if row.strategy == "rollout")]

    once, both = (merge_labels(chains(**dict.fromkeys(truth, 3)), rows, config).labels for rows in (labels, twice))

    assert [row.value for row in once] == [row.value for row in both]


def test_consensus_keeps_the_chains_two_unlike_strategies_agree_on():
    def said(name, strategy, *verdicts):
        return [label(name, i, verdict, 0.9, strategy) for i, verdict in enumerate(verdicts)]

    labels = [
        *said("same", "rollout", True, False), *said("same", "mc_dropout", True, False, True),
        *said("apart", "rollout", False), *said("apart", "mc_dropout", True, False),
        # Two that read the same evidence are no consensus.
        *said("alike", "rollout", False), *said("alike", "mcts", False),
        # Only who has judged every step says that there is no error.
        *said("sound", "rollout", True, True, True), *said("sound", "mc_dropout", True, True, True),
        *said("partly", "rollout", True, True), *said("partly", "mc_dropout", True, True, True),
    ]
    merged = merged_labels(dict.fromkeys(("same", "apart", "alike", "sound", "partly"), 3), labels,
                           settings(consensus=True))
    kept = {row.trajectory_id for row in merged if row.is_correct is not None}
    assert kept == {"same", "sound"}
    dropped = [row for row in merged if row.trajectory_id == "apart"]
    assert all(row.reasoning.startswith("no consensus: ") and row.confidence == 0.0 for row in dropped)
    assert len(merged) == 15
