"""Rollout consistency with a scripted policy: what is bought when, exact values, budgets; rollouts as such."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.labeling.strategies.base import label_shard
from prm_core.labeling.strategies.rollout import AFTER_ERROR, RolloutLabeler
from prm_core.sampling.policy import SampledChain
from prm_core.sampling.rollouts import (
    Rollout,
    Start,
    roll_out,
    rollout_succeeds,
    sample_trajectories,
    sampled_accuracy,
    to_trajectory,
)
from prm_core.sampling.sampler import Continuation
from prm_core.types import Step, StepLabel
from tests.builders import errands, tiny
from tests.builders.tiny import RIGHT, WRONG, ScriptedPolicy, answering, chain, tokens_of

K = 8
COST = tokens_of(RIGHT[2])
SPENT = "not valued: label.rollout.max_tokens is spent"


def policy_of(*outcomes, **options):
    """A policy whose rollouts from a prefix of n steps win as the letters of `outcomes[n]` say, in order; the last
    letter goes on for ever."""

    def wins(steps, n):
        letters = outcomes[len(steps)]
        return letters[min(n, len(letters) - 1)] == "W"

    return ScriptedPolicy(answering(wins), **options)


def labeler(policy, rule="any", rollouts=K, decided=1.0, max_tokens=0, **label):
    values = {"rollouts": rollouts, "rule": rule, "temperature": 0.7, "decided": decided, "max_tokens": max_tokens}
    return RolloutLabeler(tiny.make_tools(policy, rollout=values, **label))


def bought(policy):
    """(steps of the prefix, rollouts of it) by call, for one chain."""
    return [(len(call[0]), len(call)) for call in policy.asked]


def facts(labels):
    return [(row.value, row.is_correct) for row in labels]


# --- sequential purchases -------------------------------------------------------------------------------------------


def test_a_prefix_buys_until_its_verdict_is_settled_and_the_whole_chain_is_never_continued():
    policy = policy_of("", "LLLW", "W")

    labels = labeler(policy).label([chain(RIGHT)], seed=1)

    assert policy.asked == [[RIGHT[:1]], [RIGHT[:1]], [RIGHT[:1]] * 2, [RIGHT[:2]]]
    assert [(row.trajectory_id, row.step_index, row.strategy) for row in labels] == [
        ("t0", 0, "rollout"), ("t0", 1, "rollout"), ("t0", 2, "rollout")]
    assert facts(labels) == [(0.25, True), (1.0, True), (1.0, True)]
    assert [row.tokens for row in labels] == [4 * COST, COST, 0]
    assert [row.reasoning for row in labels] == [
        "1 of 4 rollouts after this step reach the answer",
        "1 of 1 rollouts after this step reach the answer",
        "the chain ends here, its answer is right",
    ]
    # The posterior's mass above 1/K: Beta(2, 4), Beta(2, 1), Beta(9, 1).
    t = 1 / K
    assert [row.confidence for row in labels] == pytest.approx([
        (1 - t) ** 5 + 5 * t * (1 - t) ** 4, 1 - t**2, 1 - t**9])


def test_purchases_double_up_to_k_and_nothing_is_bought_after_the_first_wrong_step():
    policy = policy_of("", "W", "L", "W")

    labels = labeler(policy).label([chain([*WRONG, "Thanks!"])], seed=1)

    assert bought(policy) == [(1, 1), (2, 1), (2, 1), (2, 2), (2, 4)]
    assert facts(labels) == [(1.0, True), (0.0, False), (None, None), (None, None)]
    assert [row.tokens for row in labels] == [COST, 8 * COST, 0, 0]
    assert [(row.confidence, row.reasoning) for row in labels[2:]] == [(0.0, AFTER_ERROR)] * 2
    assert labels[1].confidence == pytest.approx(1 - (1 - 1 / K) ** 9)


@pytest.mark.parametrize(("rollouts", "purchases"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (6, [1, 1, 2, 2]),
                                                     (16, [1, 1, 2, 4, 8])])
def test_no_more_than_k_are_bought(rollouts, purchases):
    policy = policy_of("", "L")

    labeler(policy, rollouts=rollouts).label([chain(WRONG)], seed=1)

    assert bought(policy) == [(1, count) for count in purchases]


@pytest.mark.parametrize(("outcomes", "decided", "purchases", "fact"), [
    # Curtailed: 4 failures of 8 cannot be made up for, 5 wins are needed.
    ("L", 1.0, [1, 1, 2], (0.0, False)),
    ("W", 1.0, [1, 1, 2, 4], (1.0, True)),
    ("WLWL", 1.0, [1, 1, 2, 4], (0.25, False)),
    # 1 - 1/2^(n+1) of the posterior after n equal outcomes.
    ("W", 0.87, [1, 1], (1.0, True)),
    ("W", 0.75, [1], (1.0, True)),
    ("L", 0.75, [1], (0.0, False)),
    ("W", 0.97, [1, 1, 2, 4], (1.0, True)),
])
def test_majority_stops_when_it_is_decided(outcomes, decided, purchases, fact):
    policy = policy_of("", outcomes, "L")

    labels = labeler(policy, "majority", decided=decided).label([chain(WRONG)], seed=1)

    assert [call for call in bought(policy) if call[0] == 1] == [(1, count) for count in purchases]
    assert facts(labels)[0] == fact


def test_a_wrong_chain_loses_at_its_last_step_whatever_its_rollouts_say():
    labels = labeler(policy_of("", "W", "W")).label([chain(WRONG)], seed=1)

    assert facts(labels) == [(1.0, True), (1.0, True), (0.0, False)]
    assert labels[2].reasoning == "the chain ends here, its answer is wrong"
    assert labels[2].confidence == pytest.approx(1 - (1 - 1 / K) ** 9)


def test_chains_of_a_shard_buy_in_the_same_batches_and_keep_their_own_rollouts():
    """A slip by one would mix chains."""
    other = dataclasses.replace(tiny.mia("p1"), prompt=tiny.mia().prompt.replace("Mia", "Ben"), answer="6")
    short, one, two = chain(WRONG[2:], other, "t1"), chain(RIGHT, trajectory_id="t2"), chain(WRONG, trajectory_id="t3")
    policy = ScriptedPolicy(answering(lambda steps, n: steps[0] == RIGHT[0]))

    labels = labeler(policy, rollouts=2).label([short, one, two, short], seed=1)

    assert policy.asked == [[RIGHT[:1], WRONG[:1]], [RIGHT[:2], WRONG[:1]]]
    assert [(row.trajectory_id, row.step_index, row.value, row.is_correct) for row in labels] == [
        ("t1", 0, 1.0, True), ("t2", 0, 1.0, True), ("t2", 1, 1.0, True), ("t2", 2, 1.0, True),
        ("t3", 0, 0.0, False), ("t3", 1, None, None), ("t3", 2, None, None), ("t1", 0, 1.0, True)]


# --- relative -------------------------------------------------------------------------------------------------------


def test_relative_rolls_the_bare_question_out_first_and_compares_with_what_was_there():
    policy = policy_of("W", "W", "L")

    labels = labeler(policy, "relative", decided=0.9).label([chain(WRONG)], seed=1)

    # What a step is measured by gets all K: the question and a right prefix. A wrong one is settled by four failures.
    assert bought(policy) == [(0, 1), (0, 1), (0, 2), (0, 4), (1, 1), (1, 1), (1, 2), (1, 4), (2, 1), (2, 1), (2, 2)]
    assert facts(labels) == [(1.0, True), (0.0, False), (None, None)]
    # What the bare question cost is the first step's cost too.
    assert [row.tokens for row in labels] == [(8 + 8) * COST, 4 * COST, 0]
    assert [row.reasoning for row in labels] == [
        "8 of 8 rollouts after this step reach the answer (8 of 8 before it)",
        "0 of 4 rollouts after this step reach the answer (8 of 8 before it)",
        AFTER_ERROR,
    ]


def test_relative_tells_a_hard_question_from_a_wrong_step():
    """2 of 8 everywhere: `majority` blames the step. Wins come first: stopping there would blame the next step."""
    policy = policy_of("WWLLLLLL", "WWLLLLLL", "WWLLLLLL")

    assert [row.is_correct for row in labeler(policy, "relative").label([chain(RIGHT)], 1)] == [True, True, True]
    policy = policy_of("WWLLLLLL", "WWLLLLLL", "WWLLLLLL")
    assert [row.is_correct for row in labeler(policy, "majority").label([chain(RIGHT)], 1)] == [False, None, None]


def test_chains_of_one_question_buy_its_own_rollouts_once():
    policy = policy_of("W", "W", "W")
    other = tiny.chain(RIGHT, problem=dataclasses.replace(tiny.mia(), id="another"), trajectory_id="t2")

    labels = labeler(policy, "relative", rollouts=2).label([chain(RIGHT), chain(RIGHT, trajectory_id="t1"), other], 1)

    assert [sum(not prefix for prefix in call) for call in policy.asked[:2]] == [2, 2]
    assert [sum(not prefix for call in policy.asked for prefix in call)] == [4]
    assert facts(labels) == [(1.0, True)] * 9
    # Who buys pays: the first chain of a question.
    assert [row.tokens for row in labels] == [4 * COST, 2 * COST, 0, 2 * COST, 2 * COST, 0, 4 * COST, 2 * COST, 0]


def test_relative_abstains_where_no_rollout_of_the_question_wins():
    policy = policy_of("L")

    labels = labeler(policy, "relative").label([chain(RIGHT)], seed=1)

    assert bought(policy) == [(0, 1), (0, 1), (0, 2), (0, 4)]
    assert facts(labels) == [(None, None)] * 3
    assert [row.confidence for row in labels] == [0, 0, 0]
    assert [row.tokens for row in labels] == [8 * COST, 0, 0]
    assert [row.reasoning for row in labels] == [
        "no rollout before this step reaches the answer: nothing to compare with",
        "not valued: an earlier step is undecided", "not valued: an earlier step is undecided"]


def test_a_chain_of_one_step_needs_no_rollouts_unless_they_are_compared():
    plain, compared = policy_of(""), policy_of("W")

    assert facts(labeler(plain).label([chain(RIGHT[2:])], 1)) == [(1.0, True)]
    assert plain.asked == []
    assert facts(labeler(compared, "relative", rollouts=2).label([chain(WRONG[2:])], 1)) == [(0.0, False)]
    assert compared.asked == [[()], [()]]


# --- budget ---------------------------------------------------------------------------------------------------------


def test_a_spent_budget_ends_the_purchases_and_the_labels_say_so():
    policy = policy_of("", "L")

    labels = labeler(policy, max_tokens=3 * COST).label([chain(WRONG)], seed=1)

    # 1 + 1 rollouts leave one in the budget; the next round is two.
    assert bought(policy) == [(1, 1), (1, 1), (1, 2)]
    assert facts(labels) == [(None, None)] * 3
    assert [row.tokens for row in labels] == [4 * COST, 0, 0]
    assert {row.reasoning for row in labels} == {SPENT}


def test_what_the_last_purchase_settled_is_judged():
    """What was paid for is used: the win of the last round, and the outcome that costs nothing."""
    policy = policy_of("", "W", "W")

    labels = labeler(policy, max_tokens=1).label([chain(RIGHT), chain(RIGHT[::2], trajectory_id="t1")], seed=1)

    assert policy.asked == [[RIGHT[:1]] * 2]
    assert facts(labels) == [(1.0, True), (None, None), (None, None), (1.0, True), (1.0, True)]
    assert [row.reasoning for row in labels[1:3]] == [SPENT, SPENT]


def test_shards_share_the_budget_by_their_chains():
    chains = [chain(WRONG, trajectory_id=f"t{n}") for n in range(4)]
    policy = policy_of("", "L")
    strategy = labeler(policy, max_tokens=8 * COST)
    strategy.prepare(chains, 1)

    one, three = strategy.label(chains[:1], 1), strategy.label(chains[1:], 1)

    # 2 of 8, and 6 of 8, whatever the other shard has spent.
    assert sum(row.tokens for row in one) == 2 * COST
    assert sum(row.tokens for row in three) == 6 * COST
    # Shards labelled by a process that was started again have the same share.
    again = labeler(policy_of("", "L"), max_tokens=8 * COST)
    again.prepare(chains, 1)
    assert again.label(chains[1:], 1) == three


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4), st.randoms(use_true_random=False),
    st.integers(0, 30), st.sampled_from(["any", "majority", "relative"]), st.sampled_from([0.8, 1.0]),
)
def test_costs_add_up_and_the_budget_is_exceeded_by_less_than_a_round(lengths, chance, affordable, rule, decided):
    chains = []
    for row, length in enumerate(lengths):
        steps = [f"Mia buys {n} more: 3 + {n} = {3 + n}." for n in range(length - 1)]
        chains.append(chain([*steps, chance.choice([RIGHT[2], WRONG[2]])], trajectory_id=f"t{row}"))
    policy = ScriptedPolicy(answering(lambda steps, n: chance.random() < 0.4))

    labels = labeler(policy, rule, decided=decided, max_tokens=affordable * COST).label(chains, seed=1)

    assert [(row.trajectory_id, row.step_index) for row in labels] == [
        (f"t{row}", index) for row, length in enumerate(lengths) for index in range(length)]
    calls = [COST * len(call) for call in policy.asked]
    assert sum(row.tokens for row in labels) == sum(calls)
    if affordable:
        assert sum(calls[:-1]) < affordable * COST
    else:
        assert not any(row.reasoning == SPENT for row in labels)
    for trajectory in {row.trajectory_id for row in labels}:
        verdicts = [row.is_correct for row in labels if row.trajectory_id == trajectory]
        # Right up to the first that is not, and nothing said after it.
        until = next((index for index, verdict in enumerate(verdicts) if verdict is not True), len(verdicts))
        assert all(verdict is None for verdict in verdicts[until + 1 :])
        if not affordable and rule != "relative":
            assert until == len(verdicts) or verdicts[until] is False


# --- chains that are not whole --------------------------------------------------------------------------------------


def test_a_prefix_that_already_answers_wins_when_the_policy_only_ends():
    policy = ScriptedPolicy(lambda steps, number: ([] if steps[-1].startswith("The answer") else RIGHT[2:], True))

    labels = labeler(policy).label([chain([*RIGHT, "Thanks!"]), chain([*WRONG, "Thanks!"], trajectory_id="t1")], 1)

    assert facts(labels[:4]) == [(1.0, True), (1.0, True), (1.0, True), (0.0, False)]
    assert facts(labels[4:]) == [(1.0, True), (1.0, True), (0.0, False), (None, None)]


def test_a_chain_without_a_known_outcome_has_no_verdict_at_its_last_step():
    one = chain(RIGHT)
    unknown = dataclasses.replace(one, trajectory=dataclasses.replace(one.trajectory, outcome=None))
    policy = policy_of("", "W", "W")

    labels = labeler(policy).label([unknown], seed=1)

    assert facts(labels) == [(1.0, True), (1.0, True), (None, None)]
    assert labels[2].reasoning == "not valued: the chain has no outcome"
    assert bought(policy) == [(1, 1), (2, 1)]


def test_a_chain_cut_by_the_context_has_labels_only_where_values_are_known():
    full = tiny.make_encoder().encode(tiny.mia().prompt, RIGHT)
    policy = policy_of("", "W", "W", max_length=full.step_ends[1] + 1)

    labels = labeler(policy).label([chain(RIGHT)], seed=1)

    # Two steps fit; the outcome says nothing of the second, and the third is not there.
    assert [(row.step_index, row.value, row.is_correct) for row in labels] == [(0, 1.0, True), (1, None, None)]
    assert labels[1].reasoning == "not valued: what follows does not fit encoder.max_length"
    assert bought(policy) == [(1, 1)]


# --- settings, lineage, failures ------------------------------------------------------------------------------------


def test_the_settings_reach_the_policy_and_each_round_draws_afresh():
    policy, again, other = (policy_of("", "L") for _ in range(3))
    for one, seed in ((policy, 17), (again, 17), (other, 18)):
        labeler(one, max_new_tokens=33, batch_size=7).label([chain(WRONG)], seed=seed)

    assert {call[:3] for call in policy.settings} == {(0.7, 33, 7)}
    assert len({seed for *_, seed in policy.settings}) == 4
    assert again.settings == policy.settings
    assert {seed for *_, seed in other.settings}.isdisjoint(seed for *_, seed in policy.settings)


def test_labels_depend_on_the_seed_and_not_on_the_batch_size():
    chains = [chain(texts, trajectory_id=f"t{n}") for n, texts in enumerate((RIGHT, WRONG, RIGHT[:2]))]
    policy = tiny.make_policy()

    def labels(seed, batch_size):
        strategy = labeler(policy, rollouts=4, batch_size=batch_size, max_new_tokens=12)
        return strategy.label(chains, seed)

    reference = labels(1, 64)
    assert labels(1, 64) == labels(1, 3) == reference
    assert sum(row.tokens for row in reference) > 0
    assert labels(2, 64) != reference


def test_an_unknown_rule_is_refused_at_once():
    with pytest.raises(InputError, match="unknown verdict rule 'most'"):
        labeler(policy_of(""), rule="most")


def test_every_row_says_what_made_it():
    labels = label_shard(labeler(policy_of("", "L"), max_new_tokens=33), "rollout", [chain(WRONG)], seed=17)

    assert [json.loads(row.lineage) for row in labels] == [{
        "strategy": "rollout@3", "model": "scripted", "seed": 17,
        "parameters": {"rollouts": K, "rule": "any", "temperature": 0.7, "decided": 1.0, "max_tokens": 0,
                       "max_new_tokens": 33},
    }] * 3


def test_a_chain_that_cannot_be_labelled_does_not_take_the_others_along(caplog):
    """The guide swallows what a strategy raises; here it is counted from the labels that say so (METHODS 1)."""
    broken = chain(["", "The answer is 5."], trajectory_id="broken")
    strategy = labeler(policy_of("", "W", "W"))

    labels = label_shard(strategy, "rollout", [chain(RIGHT), broken, chain(WRONG, trajectory_id="t2")], seed=1)

    assert [(row.trajectory_id, row.value) for row in labels] == [
        ("t0", 1.0), ("t0", 1.0), ("t0", 1.0), ("broken", None), ("broken", None), ("t2", 1.0), ("t2", 1.0),
        ("t2", 0.0)]
    failed = labels[3]
    assert failed == StepLabel("broken", 0, "rollout", None, None, 0.0, 0, failed.reasoning, labels[0].lineage)
    assert failed.reasoning.startswith("failed: step 0 is empty")
    assert "rollout failed on chain broken" in caplog.text


# --- rollouts as such -----------------------------------------------------------------------------------------------


def test_rollouts_come_in_groups_with_whole_steps_outcome_and_cost():
    drawn = {
        (): [([*RIGHT], True), ([RIGHT[0], "Mia loses"], False)],
        RIGHT[:2]: [(RIGHT[2:], True), (WRONG[2:], True), ([], True)],
        RIGHT: [([], True), ([], False)],
    }
    policy = ScriptedPolicy(lambda steps, number: drawn[steps][number])
    problem = tiny.mia()
    starts = [Start(problem, policy.encoder.encode(problem.prompt, steps).ids, [Step(text) for text in steps])
              for steps in drawn]

    groups = roll_out(policy, DOMAINS, list(zip(starts, (2, 3, 2), strict=True)), temperature=0.5, max_new_tokens=9,
                      batch_size=4, seed=3)

    # What the token limit cut off has lost, and its unfinished step is none.
    assert groups == [
        [Rollout(tuple(map(Step, RIGHT)), True, True, tokens_of(*RIGHT)),
         Rollout((Step(RIGHT[0]),), False, False, tokens_of(RIGHT[0], "Mia loses", ended=False))],
        [Rollout((Step(RIGHT[2]),), True, True, COST), Rollout((Step(WRONG[2]),), True, False, COST),
         Rollout((), True, False, 1)],
        [Rollout((), True, True, 1), Rollout((), False, False, 0)],
    ]
    assert policy.settings == [(0.5, 9, 4, 3)]
    assert roll_out(policy, DOMAINS, [], temperature=1.0, max_new_tokens=9, batch_size=4, seed=3) == []


def test_where_an_environment_replies_rollouts_replay_it_and_bring_turns_with_what_was_heard():
    problem = errands.solved()
    policy, runs = errands.TeamPolicy([problem], 0.0), {name: errands.run(problem, getattr(errands, name))
                                                       for name in ("WORKED", "SPOILT")}
    starts = [Start(problem, (), runs[name][:length]) for name, length in (("WORKED", 0), ("WORKED", 3), ("SPOILT", 5))]

    groups = roll_out(policy, DOMAINS, list(zip(starts, (1, 2, 1), strict=True)), temperature=1.0, max_new_tokens=40,
                      batch_size=4, seed=3)

    assert [[(list(one.steps), one.finished, one.success) for one in group] for group in groups] == [
        [(runs["WORKED"], True, True)], [(runs["WORKED"][3:], True, True)] * 2, [(runs["SPOILT"][5:], True, False)]]
    assert groups[1][0].tokens == groups[1][1].tokens < groups[0][0].tokens


def succeeds(texts, finished=True, last_step=""):
    policy = ScriptedPolicy(lambda steps, number: ([], True))
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
    assert sampled_accuracy(policy, [tiny.mia("a"), tiny.mia("b")], DOMAINS, samples=1, **options) == 1.0
    assert sampled_accuracy(policy, [tiny.mia("a"), tiny.mia("b")], DOMAINS, samples=3, **options) == 1 / 3
    assert sampled_accuracy(silent, [tiny.mia("a")], DOMAINS, samples=1, **options) == 0.0
