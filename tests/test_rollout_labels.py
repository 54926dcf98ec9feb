"""Rollout consistency with a scripted policy: exact values, the last step, costs, confidence; rollouts as such."""

from __future__ import annotations

import dataclasses

import pytest

from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.labeling.base import label_shard
from prm_core.labeling.rollout import RolloutLabeler
from prm_core.models.policy import SampledChain
from prm_core.models.sampler import Continuation
from prm_core.rollouts import rollout_succeeds, sample_trajectories, sampled_accuracy, to_trajectory
from prm_core.types import StepLabel
from tests import tiny
from tests.tiny import RIGHT, WRONG, ScriptedPolicy, chain

K = 4
WIN, LOSE = (["The answer is 5."], True), (["The answer is 6."], True)
# How many of the K rollouts after so many steps of a chain win.
WINS = {0: 2, 1: 3, 2: 4}


def script(steps, number):
    return WIN if number < WINS[len(steps)] else LOSE


def labeler(policy, rule="any", rollouts=K, **label):
    settings = {"rollouts": rollouts, "rule": rule, "temperature": 0.7}
    return RolloutLabeler(tiny.make_tools(policy, rollout=settings, **label))


def tokens(*texts, end=True):
    encoder = tiny.make_encoder()
    return sum(len(encoder.tokenizer.encode(text)) + 1 for text in texts) + end


def test_values_are_shares_of_rollouts_and_the_last_is_the_chains_own_outcome():
    policy = ScriptedPolicy(script)

    labels = labeler(policy).label([chain(RIGHT)], seed=1)

    cost = K * tokens("The answer is 5.")
    keys = [(row.trajectory_id, row.step_index, row.strategy) for row in labels]
    assert keys == [("t0", 0, "rollout"), ("t0", 1, "rollout"), ("t0", 2, "rollout")]
    assert [row.value for row in labels] == [0.75, 1.0, 1.0]
    assert [row.is_correct for row in labels] == [True, True, True]
    # The rollouts of the bare question are the first step's cost too; the last step needs none.
    assert [row.tokens for row in labels] == [2 * cost, cost, 0]
    assert [row.reasoning for row in labels] == [
        "3 of 4 rollouts after this step reach the answer (2 before it)",
        "4 of 4 rollouts after this step reach the answer (3 before it)",
        "the chain ends here, its answer is right",
    ]
    # One call; the empty prefix is valued, the whole chain is not continued.
    assert policy.asked == [[()] * K + [RIGHT[:1]] * K + [RIGHT[:2]] * K]


def test_a_wrong_chain_loses_at_its_last_step_whatever_its_rollouts_say():
    labels = labeler(ScriptedPolicy(script)).label([chain(WRONG)], seed=1)

    assert [row.value for row in labels] == [0.75, 1.0, 0.0]
    assert [row.is_correct for row in labels] == [True, True, False]
    assert labels[2].reasoning == "the chain ends here, its answer is wrong"


def test_confidence_is_the_posterior_on_the_verdicts_side():
    labels = labeler(ScriptedPolicy(script)).label([chain(WRONG)], seed=1)

    # Any of K = 4: threshold 1/4. Beta(4, 2), Beta(5, 1), Beta(1, 5) by hand.
    assert [row.confidence for row in labels] == pytest.approx([
        1 - (5 * 0.25**4 * 0.75 + 0.25**5), 1 - 0.25**5, 1 - 0.75**5,
    ])


def test_relative_compares_with_the_value_before_the_step():
    wins = {0: 4, 1: 1, 2: 1}
    policy = ScriptedPolicy(lambda steps, number: WIN if number < wins[len(steps)] else LOSE)

    labels = labeler(policy, rule="relative").label([chain(RIGHT)], seed=1)

    # 4 → 1 loses more than half; 1 → 1 and 1 → 4 do not. `any` and `majority` would differ at one of them.
    assert [row.is_correct for row in labels] == [False, True, True]
    assert [row.is_correct for row in labeler(policy, rule="any").label([chain(RIGHT)], 1)] == [True, True, True]
    assert [row.is_correct for row in labeler(policy, rule="majority").label([chain(RIGHT)], 1)] == [
        False, False, True]


def test_relative_abstains_where_no_rollout_won_before():
    policy = ScriptedPolicy(lambda steps, number: LOSE)

    labels = labeler(policy, rule="relative").label([chain(RIGHT)], seed=1)

    assert [row.is_correct for row in labels] == [None, None, None]
    assert [row.confidence for row in labels] == [0, 0, 0]
    assert [row.value for row in labels] == [0.0, 0.0, 1.0]


def test_chains_of_unlike_length_keep_their_own_rollouts():
    """All prefixes of a shard go into one batch; a slip by one would mix chains."""
    other = dataclasses.replace(tiny.mia("p1"), prompt=tiny.mia().prompt.replace("Mia", "Ben"), answer="6")
    short, long = chain(WRONG[2:], other, "t1"), chain(RIGHT, trajectory_id="t2")

    labels = labeler(ScriptedPolicy(script)).label([short, long, short], seed=1)

    assert [(row.trajectory_id, row.step_index, row.value) for row in labels] == [
        ("t1", 0, 1.0), ("t2", 0, 0.75), ("t2", 1, 1.0), ("t2", 2, 1.0), ("t1", 0, 1.0)]


def test_a_prefix_that_already_answers_wins_when_the_policy_only_ends():
    policy = ScriptedPolicy(lambda steps, number: ([], True) if steps and steps[-1].startswith("The answer") else LOSE)

    labels = labeler(policy).label([chain([*RIGHT, "Thanks!"]), chain([*WRONG, "Thanks!"], trajectory_id="t1")], 1)

    assert [row.value for row in labels] == [0, 0, 1.0, 0, 0, 0, 0, 0]


def test_a_chain_without_a_known_outcome_has_no_label_at_its_last_step():
    one = chain(RIGHT)
    unknown = dataclasses.replace(one, trajectory=dataclasses.replace(one.trajectory, outcome=None))

    labels = labeler(ScriptedPolicy(script)).label([unknown], seed=1)

    assert [(row.step_index, row.value) for row in labels] == [(0, 0.75), (1, 1.0)]


def test_a_chain_cut_by_the_context_has_labels_only_where_values_are_known():
    full = tiny.make_encoder().encode(tiny.mia().prompt, RIGHT)
    policy = ScriptedPolicy(script, max_length=full.step_ends[1] + 1)

    labels = labeler(policy).label([chain(RIGHT)], seed=1)

    # Two steps fit; the outcome says nothing of the second.
    assert [(row.step_index, row.value) for row in labels] == [(0, 0.75)]


def test_one_rollout_is_enough_for_a_verdict():
    labels = labeler(ScriptedPolicy(lambda steps, number: WIN), rollouts=1).label([chain(WRONG)], seed=1)

    assert [(row.is_correct, row.confidence) for row in labels] == [
        (True, pytest.approx(0.75)), (True, pytest.approx(0.75)), (False, pytest.approx(0.75))]


def test_the_seed_and_settings_reach_the_policy():
    policy = ScriptedPolicy(script)
    labeler(policy, max_new_tokens=33, batch_size=7).label([chain(RIGHT)], seed=17)

    assert policy.settings == [(0.7, 33, 7, 17)]


def test_an_unknown_rule_is_refused_at_once():
    with pytest.raises(InputError, match="unknown verdict rule 'most'"):
        labeler(ScriptedPolicy(script), rule="most")


def test_a_chain_that_cannot_be_labelled_does_not_take_the_others_along(caplog):
    """The guide swallows what a strategy raises; here it is counted from the labels that say so (METHODS 1)."""
    broken = chain(["Mia buys\n4 more.", "The answer is 5."], trajectory_id="broken")
    strategy = labeler(ScriptedPolicy(script))

    labels = label_shard(strategy, "rollout", [chain(RIGHT), broken, chain(WRONG, trajectory_id="t2")], seed=1)

    assert [(row.trajectory_id, row.value) for row in labels] == [
        ("t0", 0.75), ("t0", 1.0), ("t0", 1.0), ("broken", None), ("broken", None), ("t2", 0.75), ("t2", 1.0),
        ("t2", 0.0)]
    failed = labels[3]
    assert failed == StepLabel("broken", 0, "rollout", None, None, 0.0, 0, failed.reasoning)
    assert failed.reasoning.startswith("failed: step 0 holds the step separator")
    assert "rollout failed on chain broken" in caplog.text


def succeeds(texts, finished=True, last_step=""):
    policy = ScriptedPolicy(script)
    encoder = policy.encoder
    ids = [token for block in encoder.encode_steps(texts) for token, _ in block] + [encoder.eos_id] * finished
    one = Continuation(ids, [0.0] * len(ids), finished)
    return rollout_succeeds(policy, DOMAINS["arithmetic"], tiny.mia(), one, last_step)


@pytest.mark.parametrize(("texts", "finished", "last_step", "won"), [
    (["Mia loses 2: 7 - 2 = 5.", "The answer is 5."], True, RIGHT[0], True),
    (["The answer is 5.0."], True, "", True),
    (["The answer is 6."], True, "", False),
    (["The answer is 15."], True, "", False),
    # Cut off by the token limit: it might have gone on.
    (["The answer is 5."], False, "", False),
    (["The answer is 5.", "Thanks!"], True, "", False),
    ([], True, "The answer is 5.", True),
    ([], True, RIGHT[1], False),
    ([], True, "", False),
    ([], False, "The answer is 5.", False),
    # What the prefix says does not help a rollout that goes on without answering.
    (["Thanks!"], True, "The answer is 5.", False),
])
def test_a_rollout_succeeds_when_it_ends_by_itself_with_the_right_answer(texts, finished, last_step, won):
    assert succeeds(texts, finished, last_step) is won


def test_a_chain_cut_off_by_the_token_limit_has_no_answer():
    domain, problem = DOMAINS["arithmetic"], tiny.mia()
    done, cut = (
        to_trajectory(domain, problem, SampledChain(RIGHT, finished, 9), trajectory_id="t", policy="v", seed=3)
        for finished in (True, False)
    )

    assert (done.answer, done.outcome) == ("5", True)
    assert (cut.answer, cut.outcome) == (None, False)
    assert dataclasses.replace(cut, answer="5", outcome=True) == done


def test_trajectories_are_named_by_problem_and_empty_chains_left_out():
    texts = [RIGHT, (), WRONG]
    policy = ScriptedPolicy(lambda steps, number: (texts[number], True))
    options = {"temperature": 1.0, "max_new_tokens": 64, "batch_size": 8, "seed": 5}

    rows = sample_trajectories(policy, [tiny.mia("a"), tiny.mia("b")], DOMAINS, samples=3, prefix="gen", **options)

    assert [(row.id, row.problem_id, row.outcome) for row in rows] == [
        ("gen/a/0", "a", True), ("gen/a/2", "a", False), ("gen/b/0", "b", True), ("gen/b/2", "b", False)]
    assert {(row.policy, row.seed) for row in rows} == {("scripted", 5)}
    # A problem without a chain counts as not answered.
    silent = ScriptedPolicy(lambda steps, number: ((), True))
    assert sampled_accuracy(policy, [tiny.mia("a"), tiny.mia("b")], DOMAINS, **options) == 1.0
    assert sampled_accuracy(silent, [tiny.mia("a")], DOMAINS, **options) == 0.0
