"""Tree search with a scripted policy: what is bought where, the labels read from the trees, costs and evidence."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.labeling.strategies.base import FAILED, Chain, label_shard
from prm_core.labeling.strategies.mcts import MctsLabeler
from prm_core.labeling.strategies.tree import as_record, from_record, preferences
from prm_core.platform import store
from prm_core.types import Step, StepPreference
from tests.builders import errands, tiny
from tests.builders.tiny import RIGHT, WRONG, ScriptedPolicy, answering, chain, tokens_of

WIN, LOSE = (RIGHT[2:], True), (WRONG[2:], True)
K = 4
COST = tokens_of(RIGHT[2])
# Goes wrong at its fifth step of eight.
STEPS = [f"Mia buys 1 more: {n} + 1 = {n + 1 + (n >= 7)}." for n in range(3, 10)]
LONG = [*STEPS, WRONG[2]]
OMEGA = {"problems": 10, "simulations": 0, "selection": "omega", "rollouts": K, "exploration": 0.125,
         "temperature": 0.9, "preference_confidence": 0.9}


def labeler(policy, label=None, **changes):
    if not isinstance(policy, ScriptedPolicy):
        policy = ScriptedPolicy(policy)
    return MctsLabeler(tiny.make_tools(policy, mcts={**OMEGA, **changes}, **{"max_new_tokens": 33, **(label or {})}))


def own(texts, trajectory_id="t0", problem=None):
    """A chain that the scripted policy itself has sampled."""
    return chain(texts, problem, trajectory_id, "scripted")


def label(strategy, chains, seed=1):
    strategy.prepare(chains, seed)
    return strategy.label(chains, seed)


def tree_of(strategy):
    [tree] = strategy.trees
    return tree


def at(tree, steps):
    node = tree.root
    for step in steps:
        node = node.children[Step(step)]
    return node


def counts(tree, steps):
    node = at(tree, steps)
    return node.rollouts, node.wins


def bought(strategy):
    """(steps of the prefix, rollouts of it) by call, for one question."""
    return [(len(call[0]), len(call)) for call in strategy.tools.policy.asked if call]


def verdicts(labels):
    return [row.is_correct for row in labels]


def before_fifth(steps, number):
    """The policy gets there from every prefix without the wrong fifth step, by way of a step of its own."""
    return LOSE if len(steps) >= 5 else (["Mia thinks: 1 + 1 = 2.", RIGHT[2]], True)


def never(steps, number):
    return LOSE


# --- one tree for a question ----------------------------------------------------------------------------------------


def test_the_root_is_the_bare_question_and_chains_share_their_tree():
    """In the guide the root already holds all steps, so no prefix of the chain is ever a node (METHODS 1)."""
    strategy = labeler(never)
    parting = [RIGHT[0], *WRONG[1:]]

    label(strategy, [own(RIGHT), own(WRONG, "t1"), own(parting, "t2"), chain(RIGHT, None, "t3")])

    tree = tree_of(strategy)
    assert (tree.root.step, tree.root.parent, tree.root.chains) == (Step(""), None, ["t0", "t1", "t2", "t3"])
    for texts in (RIGHT, WRONG, parting):
        for length in range(len(texts) + 1):
            assert at(tree, texts[:length]).path() == [Step(text) for text in texts[:length]]
    assert at(tree, RIGHT[:1]).chains == ["t0", "t2", "t3"]
    assert [at(tree, texts).right for texts in (RIGHT, WRONG, parting)] == [True, False, False]


def test_chains_of_the_policy_are_rollouts_of_the_question_and_those_of_others_are_not():
    strategy = labeler(never)
    label(strategy, [own(RIGHT), own(WRONG, "t1"), chain(RIGHT, None, "t2"), chain(WRONG, None, "t3")])
    tree = tree_of(strategy)

    assert counts(tree, ()) == (2, 1)
    assert counts(tree, RIGHT) == (1, 1)
    # One wrong chain by the policy and the rollouts bought at its first step.
    assert counts(tree, WRONG[:1]) == (K, 0)


def test_a_chain_without_a_known_outcome_is_no_rollout():
    one = own(RIGHT)
    unknown = dataclasses.replace(one, trajectory=dataclasses.replace(one.trajectory, outcome=None))
    strategy = labeler(before_fifth)

    labels = label(strategy, [unknown])

    tree = tree_of(strategy)
    # What was bought at the question and at two prefixes.
    assert [counts(tree, RIGHT[:n]) for n in range(4)] == [(1, 1), (1, 1), (1, 1), (0, 0)]
    assert at(tree, RIGHT).right is None
    # The last step is no state that rollouts start from.
    assert verdicts(labels) == [True, True, None]
    assert labels[2].reasoning == "only 0 rollouts through this step"


# --- the first error ------------------------------------------------------------------------------------------------


def test_halving_finds_the_first_error():
    strategy = labeler(before_fifth)

    labels = label(strategy, [own(LONG)])

    # The question is reached, 4 is reached, 6 and 5 never; the chain was one failure of each.
    assert bought(strategy) == [(0, 1), (4, 1), (6, 1), (6, 2), (5, 1), (5, 2)]
    assert verdicts(labels) == [True] * 4 + [False] + [None] * 3
    assert [row.reasoning for row in labels] == [
        *["a chain through this step reaches the answer"] * 3,
        "1 of 2 rollouts through this step reach the answer",
        "none of 4 rollouts through this step reaches the answer",
        *["an earlier step is wrong"] * 3,
    ]


def test_rollouts_that_pass_a_state_count_for_it():
    """Three failures at 6 do not count for 5, from where they did not start; those at 5 do not count for 4."""
    strategy = labeler(before_fifth)
    label(strategy, [own(LONG)])
    tree = tree_of(strategy)

    assert [counts(tree, LONG[:n]) for n in range(9)] == [
        (2, 1), (1, 0), (1, 0), (1, 0), (2, 1), (4, 0), (4, 0), (1, 0), (1, 0)]
    assert [at(tree, LONG[:n]).reached for n in range(9)] == [True] * 5 + [False] * 4


def test_right_chains_need_no_rollouts():
    strategy = labeler(never)

    labels = label(strategy, [own(RIGHT), own(RIGHT, "t1")])

    assert bought(strategy) == []
    assert verdicts(labels) == [True] * 6
    assert {row.tokens for row in labels} == {0}
    # Two rollouts, both won: the mass of Beta(3, 1) above 1/K.
    assert [row.confidence for row in labels] == pytest.approx([1 - (1 / K) ** 3] * 6)
    assert {row.value for row in labels} == {1.0}


def test_what_one_chain_finds_out_the_next_one_knows():
    """Chains with the same beginning: its states are sounded out once."""
    strategy = labeler(before_fifth)
    other = [*LONG[:6], "Mia loses 2: 10 - 2 = 8.", "The answer is 8."]

    labels = label(strategy, [own(LONG), own(other, "t1")])

    # Both are searched, only the first has to buy: two failures were known of each state.
    assert bought(strategy) == [(0, 2), (4, 2), (6, 2), (5, 2)]
    assert verdicts(labels) == [*[True] * 4, False, None, None, None] * 2


def test_only_given_chains_are_searched_without_simulations():
    """Wrong rollouts of the bare question lie in the pool until a simulation selects them."""
    drawn = [LONG, WRONG, RIGHT]
    script = answering(lambda steps, n: False)
    calls = []

    def policy(steps, number):
        if steps:
            return script(steps, number)
        calls.append(1)
        return drawn[len(calls) - 1], True

    strategy = labeler(policy, rollouts=8)
    label(strategy, [own([*STEPS[:3], WRONG[2]])])
    asked = {steps for call in strategy.tools.policy.asked for steps in call}

    assert len(calls) == 3
    assert all(steps == tuple(STEPS[: len(steps)]) and len(steps) <= 3 for steps in asked)
    assert len(tree_of(strategy).pool) == 2


def test_a_selected_rollout_of_the_pool_is_searched():
    """From the first step of a given chain the policy wins half of the time, and else goes wrong its own way."""
    detour = ["Mia thinks.", "Mia thinks twice.", WRONG[2]]

    def policy(steps, number):
        return LOSE if "Mia thinks." in steps or len(steps) >= 2 else (RIGHT, True) if number % 2 else (detour, True)

    given_chain = own([STEPS[0], STEPS[1], WRONG[2]])
    quiet, busy = labeler(policy, rollouts=8), labeler(policy, rollouts=8, simulations=1)
    for strategy in (quiet, busy):
        label(strategy, [given_chain, own(RIGHT, "t1")])

    def searched(strategy):
        return {steps for call in strategy.tools.policy.asked for steps in call if "Mia thinks." in steps}

    assert searched(quiet) == set()
    assert searched(busy) == {(STEPS[0], *detour[:1])}
    assert at(tree_of(busy), STEPS[:1]).visits == 1


# --- what the policy cannot do --------------------------------------------------------------------------------------


def test_a_hopeless_question_blames_no_step():
    strategy = labeler(never)

    labels = label(strategy, [own(WRONG), own(LONG, "t1")])

    # Two failures are known from the chains; no prefix is searched.
    assert bought(strategy) == [(0, 2)]
    assert verdicts(labels) == [None] * 11
    assert {(row.value, row.confidence) for row in labels} == {(None, 0.0)}
    assert labels[0].reasoning == "no rollout from the question reaches the answer"


def test_that_somebody_else_got_there_does_not_make_the_policys_failures_evidence():
    """A right chain by another hand on a question beyond the policy: its own steps stand, no other is blamed."""
    strategy = labeler(never)

    labels = label(strategy, [chain(RIGHT), chain([RIGHT[0], *WRONG[1:]], None, "t1")])

    assert bought(strategy) == [(0, 1), (0, 1), (0, 2)]
    assert verdicts(labels) == [True, True, True, True, None, None]
    assert labels[4].reasoning == "no rollout from the question reaches the answer"
    assert labels[5].reasoning == "an earlier step is undecided"


def test_an_undecided_step_is_not_called_wrong():
    """Without simulations of `ucb1` nothing is bought: a wrong chain has but its own failure."""
    strategy = labeler(never, selection="ucb1")

    labels = label(strategy, [own(RIGHT), own(WRONG, "t1")])

    assert verdicts(labels[3:]) == [None, None, None]
    assert [row.reasoning for row in labels[3:]] == [
        "only 1 rollouts through this step", *["an earlier step is undecided"] * 2]


def test_a_path_that_outgrows_the_context_loses_instead_of_being_continued_from_elsewhere():
    """The encoder would drop the last step, and the samples would be counted for a prefix they do not continue."""
    room = len(tiny.make_encoder().encode(tiny.mia().prompt, [*RIGHT, RIGHT[0]]).ids)
    long = ("Mia buys 4 more: 3 + 4 = 7. " * 12).strip()
    policy = ScriptedPolicy(lambda steps, number: ([RIGHT[0], long, "x"], True), max_length=room)
    strategy = labeler(policy, selection="ucb1", simulations=6, exploration=10.0)

    labels = label(strategy, [own(RIGHT)])

    tree = tree_of(strategy)
    assert all(long not in steps for call in policy.asked for steps in call)
    outgrown = at(tree, [RIGHT[0], long])
    assert outgrown.rolled
    assert (outgrown.wins, outgrown.tokens) == (0, 0)
    assert verdicts(labels) == [True] * 3
    assert sum(row.tokens for row in labels) == sum(map(len, policy.asked)) * tokens_of(RIGHT[0], long, "x")


def test_a_rollout_whose_first_step_does_not_fit_takes_nothing_down():
    """Such a prefix cannot be encoded at all."""
    long = ("Mia buys 4 more: 3 + 4 = 7. " * 20).strip()
    room = len(tiny.make_encoder().encode(tiny.mia().prompt, RIGHT).ids)
    policy = ScriptedPolicy(lambda steps, number: ([long, "x"], True), max_length=room)
    strategy = labeler(policy, selection="ucb1", simulations=3, exploration=10.0)

    labels = label_shard(prepared(strategy, [own(RIGHT)]), "mcts", [own(RIGHT)], 1)

    assert not any(row.reasoning.startswith(FAILED) for row in labels)
    assert at(tree_of(strategy), [long]).rolled


def prepared(strategy, chains):
    strategy.prepare(chains, 1)
    return strategy


# --- the last step --------------------------------------------------------------------------------------------------


def test_the_end_of_a_wrong_chain_is_wrong_with_the_confidence_of_k_failures():
    strategy = labeler(lambda steps, number: (RIGHT[len(steps) :], True))

    labels = label(strategy, [own([*RIGHT[:2], WRONG[2]])])

    assert verdicts(labels) == [True, True, False]
    assert (labels[2].value, labels[2].reasoning) == (0.0, "the chain ends here without the right answer")
    assert labels[2].confidence == pytest.approx(1 - (1 - 1 / K) ** (K + 1))


def test_a_chain_that_stops_early_is_wrong_at_its_last_step_though_others_go_on_from_there():
    """METHODS 8: otherwise short chains look best. For the others the step is a right one."""
    strategy = labeler(lambda steps, number: (RIGHT[len(steps) :], True))

    labels = label(strategy, [own(RIGHT[:2]), own(RIGHT, "t1")])

    assert verdicts(labels) == [True, False, True, True, True]
    assert labels[1].confidence == pytest.approx(1 - (1 - 1 / K) ** (K + 1))
    assert labels[3].confidence > 0.5


def test_a_state_with_more_rollouts_than_k_is_measured_by_what_they_can_show():
    """1 of 20: a confidence below one half would contradict the verdict."""
    strategy = labeler(lambda steps, number: LOSE, selection="ucb1")
    others = [[RIGHT[0], f"Mia loses {n}: 7 - {n} = {7 - n}.", WRONG[2]] for n in range(10, 29)]
    chains = [own(RIGHT), *(own(texts, f"t{n}") for n, texts in enumerate(others, 1))]

    labels = label(strategy, chains)

    assert (labels[0].value, labels[0].is_correct) == (0.05, True)
    t = 1 / 20
    assert labels[0].confidence == pytest.approx((1 - t) ** 21 + 21 * t * (1 - t) ** 20)


# --- ucb1 and puct --------------------------------------------------------------------------------------------------


def after_wrong_start(steps, number):
    if steps[:1] == WRONG[:1]:
        return WRONG[len(steps) :], True
    return RIGHT[len(steps) :], True


@pytest.mark.parametrize(("selection", "exploration"), [("ucb1", 5.0), ("puct", 5.0)])
def test_descending_searches_tell_wrong_steps_from_right_ones(selection, exploration):
    strategy = labeler(after_wrong_start, selection=selection, exploration=exploration, simulations=12)

    labels = label(strategy, [own(RIGHT), own(WRONG, "t1")])

    assert verdicts(labels) == [True, True, True, False, None, None]
    assert tree_of(strategy).root.visits == 12
    # K rollouts of a state; the question is the first, ends buy nothing.
    assert bought(strategy)[0] == (0, K)
    assert {count for _, count in bought(strategy)} == {K}
    asked = [call[0] for call in strategy.tools.policy.asked if call]
    assert len(set(asked)) == len(asked) <= 5


# --- batches, seeds, costs ------------------------------------------------------------------------------------------


def test_trees_of_several_questions_grow_side_by_side_and_apart():
    other = dataclasses.replace(tiny.mia("p1"), prompt=tiny.mia().prompt.replace("Mia", "Ben"), answer="6")
    strategy = labeler(lambda steps, number: LOSE)

    labels = label(strategy, [own(WRONG), own(RIGHT, "t1", other), own(RIGHT, "t2")])

    # "6" is right for the second question alone: rollouts win there, the first question's first step fails K times.
    # One call for both in each round.
    assert strategy.tools.policy.asked == [
        [WRONG[:1], ()], [WRONG[:1]] * 2 + [RIGHT[:1]], [RIGHT[:2]], []]
    first, second = strategy.trees
    assert (first.problem_id, second.problem_id) == ("p0", "p1")
    assert (counts(first, WRONG[:1]), counts(second, ())) == ((K, 0), (2, 1))
    assert [(row.trajectory_id, row.is_correct) for row in labels] == [
        ("t0", False), ("t0", None), ("t0", None), ("t1", True), ("t1", True), ("t1", False), ("t2", True),
        ("t2", True), ("t2", True)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.sampled_from(STEPS[:3]), max_size=5), st.booleans(), st.booleans(),
                       st.integers(0, 1)), min_size=1, max_size=6),
    st.randoms(use_true_random=False), st.sampled_from(["omega", "ucb1", "puct"]), st.integers(0, 5),
)
def test_costs_add_up_and_labels_stop_at_the_first_that_is_not_right(rows, chance, selection, simulations):
    chains = [
        chain([*steps, RIGHT[2] if right else WRONG[2]], tiny.mia(f"p{number}"), f"t{row}", ["ann", "scripted"][mine])
        for row, (steps, right, mine, number) in enumerate(rows)]
    paths = [[RIGHT[2]], [WRONG[2]], [STEPS[0], RIGHT[2]], [STEPS[1], STEPS[2], WRONG[2]], []]
    drawn = []

    def script(steps, number):
        drawn.append((chance.choice(paths), chance.random() < 0.9))
        return drawn[-1]

    strategy = labeler(script, selection=selection, simulations=simulations)
    labels = label(strategy, chains)

    assert sum(row.tokens for row in labels) == sum(tokens_of(*texts, ended=ended) for texts, ended in drawn)
    first = {tree.root.chains[0] for tree in strategy.trees}
    assert {row.trajectory_id for row in labels if row.tokens} <= first
    assert [(row.trajectory_id, row.step_index) for row in labels] == [
        (one.trajectory.id, index) for one in chains for index in range(len(one.trajectory.steps))]
    for one in chains:
        said = [row for row in labels if row.trajectory_id == one.trajectory.id]
        until = next((n for n, row in enumerate(said) if row.is_correct is not True), len(said))
        assert all((row.is_correct, row.value, row.confidence) == (None, None, 0.0) for row in said[until + 1 :])
        assert all(row.confidence >= 0.5 and 0 <= row.value <= 1 for row in said if row.is_correct is not None)
        if one.trajectory.outcome:
            assert until == len(said)
        else:
            assert until < len(said)


def test_labels_depend_on_the_seed_and_not_on_the_batch_size():
    chains = [chain(texts, None, f"t{n}", "tiny-0") for n, texts in enumerate((RIGHT, WRONG, LONG))]
    policy = tiny.make_policy()

    def grown(seed, batch_size):
        strategy = MctsLabeler(tiny.make_tools(policy, mcts={**OMEGA, "simulations": 3, "selection": "ucb1"},
                                               max_new_tokens=12, batch_size=batch_size))
        return label(strategy, chains, seed), [as_record(tree) for tree in strategy.trees]

    reference = grown(1, 64)
    assert grown(1, 64) == grown(1, 3) == reference
    assert reference[0][0].tokens > 0
    assert grown(2, 64)[1] != reference[1]


def test_the_settings_reach_the_policy_and_each_round_draws_afresh():
    strategy = labeler(before_fifth, label={"batch_size": 7})
    label(strategy, [own(LONG)], seed=3)
    used = strategy.tools.policy.settings

    assert {call[:3] for call in used} == {(0.9, 33, 7)}
    assert len({seed for *_, seed in used}) == len(used)


# --- where an environment replies ------------------------------------------------------------------------------------


def shopping(error_rate=0.0, **changes):
    policy = errands.TeamPolicy([errands.solved()], error_rate)
    return MctsLabeler(tiny.make_tools(policy, mcts={**OMEGA, **changes}, max_new_tokens=40))


def shopped(steps, trajectory_id="t0"):
    return Chain(errands.solved(), errands.trajectory(errands.problem(), steps, trajectory_id, "team"))


def test_the_first_wrong_turn_is_the_one_that_the_oracle_names():
    strategy, spoilt = shopping(), shopped(errands.SPOILT)

    labels = label(strategy, [spoilt])

    verdicts_of = ORACLES["errands"](spoilt.problem, spoilt.trajectory.steps)
    assert first_error(verdicts_of) == 4
    assert verdicts(labels) == [True] * 4 + [False] + [None] * 3
    assert labels[4].reasoning == "none of 4 rollouts through this step reaches the answer"
    tree = tree_of(strategy)
    # The rollout of the question went another way from the fifth turn on, with what the shop replied to it.
    worked = errands.run(spoilt.problem, errands.WORKED)
    node = tree.root
    for step in worked:
        node = node.children[step]
    assert (node.right, node.reached) == (True, True)
    assert preferences(tree, 0.9) == [
        StepPreference("p", tuple(worked[:4]), worked[4], spoilt.trajectory.steps[4], 1.0, 0.0, 1, 4)]


@pytest.mark.parametrize("selection", ["omega", "ucb1", "puct"])
def test_every_path_in_a_tree_is_a_run_of_the_environment(selection):
    strategy = shopping(0.2, selection=selection, simulations=4)
    chains = [shopped(errands.SPOILT), shopped(errands.WORKED, "t1")]

    label(strategy, chains)

    paths = [node.path() for node in tree_of(strategy).root.walk()]
    assert len(paths) > 1 + 8 + 4
    assert all(errands.run(chains[0].problem, path) == path for path in paths)
    assert [node.right for node in tree_of(strategy).root.walk() if node.step == errands.DONE].count(True) == 1


def test_the_same_seed_grows_the_same_tree_of_turns():
    def grown(seed):
        strategy = shopping(0.2, simulations=3)
        return label(strategy, [shopped(errands.SPOILT)], seed), [as_record(tree) for tree in strategy.trees]

    assert grown(1) == grown(1)
    assert grown(1)[1] != grown(2)[1]


# --- questions, failures, evidence ----------------------------------------------------------------------------------


def test_only_the_first_questions_get_a_tree():
    problems = [tiny.mia(f"p{n}") for n in range(4)]
    chains = [own(RIGHT, f"{problem.id}/{n}", problem) for problem in problems for n in range(2)]
    strategy = labeler(never, problems=2)
    strategy.prepare(chains, 1)

    assert {row.trajectory_id for row in strategy.label(chains, 1)} == {"p0/0", "p0/1", "p1/0", "p1/1"}
    # Shards are labelled one by one: one without a chosen question gets nothing.
    assert strategy.label(chains[4:], 1) == []
    assert labeler(never, problems=0).label(chains, 1) == []


def test_an_unknown_selection_is_refused_at_once():
    with pytest.raises(InputError, match="unknown selection rule of the tree search 'best'"):
        labeler(never, selection="best")


def test_every_row_says_what_made_it():
    strategy = prepared(labeler(never), [own(WRONG)])

    rows = label_shard(strategy, "mcts", [own(WRONG)], 17)

    assert [json.loads(row.lineage) for row in rows] == [
        {"strategy": "mcts@2", "model": "scripted", "seed": 17, "parameters": {**OMEGA, "max_new_tokens": 33}}] * 3


def test_trees_are_kept_until_they_are_written(tmp_path):
    strategy = labeler(before_fifth)
    chains = [own(LONG), own(RIGHT, "t1", tiny.mia("p1"))]
    label(strategy, chains)
    expected = [as_record(tree, model="scripted", selection="omega") for tree in strategy.trees]

    strategy.keep_evidence(tmp_path / "evidence", 3)

    records = [record for _, record in store.read_json_lines(tmp_path / "evidence" / "trees-00003.jsonl")]
    assert records == expected
    assert [record["problem_id"] for record in records] == ["p0", "p1"]
    assert as_record(from_record(records[0]), model="scripted", selection="omega") == records[0]
    # Written is written: the next shard's file holds its own trees, and one without trees has no file.
    assert strategy.trees == []
    strategy.keep_evidence(tmp_path / "evidence", 4)
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["trees-00003.jsonl"]


def test_a_shard_that_falls_back_to_chain_by_chain_keeps_all_its_trees_and_no_half_grown_ones():
    broken = own(["", RIGHT[2]], "broken", tiny.mia("p2"))
    chains = [own(LONG), broken, own(RIGHT, "t1", tiny.mia("p1"))]
    strategy = prepared(labeler(before_fifth), chains)

    rows = label_shard(strategy, "mcts", chains, 1)

    assert [tree.root.chains for tree in strategy.trees] == [["t0"], ["t1"]]
    assert {row.trajectory_id for row in rows if row.reasoning.startswith(FAILED)} == {"broken"}
    # A chain that cannot be encoded is found before anything is bought.
    policy = strategy.tools.policy
    assert sum(row.tokens for row in rows) == sum(
        tokens_of(*before_fifth(steps, 0)[0]) for call in policy.asked for steps in call)


def test_a_search_that_breaks_off_leaves_no_tree(monkeypatch):
    strategy = prepared(labeler(before_fifth), [own(LONG), own(WRONG, "t1", tiny.mia("p1"))])
    genuine, calls = MctsLabeler._grow, []

    def grow(self, searches, *rest):
        calls.append(list(searches))
        genuine(self, searches, *rest)
        if len(calls) == 1:
            raise ZeroDivisionError("broken off")

    monkeypatch.setattr(MctsLabeler, "_grow", grow)
    label_shard(strategy, "mcts", [own(LONG), own(WRONG, "t1", tiny.mia("p1"))], 1)

    assert calls == [["p0", "p1"], ["p0"], ["p1"]]
    assert [tree.root.chains for tree in strategy.trees] == [["t0"], ["t1"]]
