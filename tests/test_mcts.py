"""MCTS: the tree's shape, backups, UCB1 by hand, expansion with a scripted policy, and the labels read from it."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.labeling.mcts import MctsLabeler, Node, backup, select, ucb1
from tests import tiny
from tests.tiny import RIGHT, WRONG, ScriptedPolicy, chain

WIN, LOSE = (["The answer is 5."], True), (["The answer is 6."], True)


def labeler(script, max_length=tiny.MAX_LENGTH, **settings):
    values = {"problems": 10, "simulations": 1, "branching": 2, "exploration": 1.4, "rule": "any", "min_visits": 2,
              "temperature": 0.9}
    policy = ScriptedPolicy(script, max_length)
    strategy = MctsLabeler(tiny.make_tools(policy, mcts={**values, **settings}, max_new_tokens=33, batch_size=7))
    return strategy, policy


def grow(strategy, chains, seed=1):
    strategy.prepare(chains, seed)
    return strategy.grow(chains, seed)


def at(root, steps):
    node = root
    for step in steps:
        node = node.children[step]
    return node


def counts(root, steps):
    node = at(root, steps)
    return node.visits, node.wins


# --- the tree alone -------------------------------------------------------------------------------------------------


def test_backup_counts_at_the_node_and_above_it_alone():
    root = Node("", None)
    left, right = root.child("left"), root.child("right")
    leaf = left.child("leaf")

    backup(leaf, True, 5)
    backup(right, False, 3)
    backup(left, False, 2)

    found = {node.step: (node.visits, node.wins, node.tokens) for node in root.walk()}
    assert found == {"": (3, 1, 10), "left": (2, 1, 7), "leaf": (1, 1, 5), "right": (1, 0, 3)}
    assert (root.value, left.value, Node("", None).value) == (1 / 3, 0.5, 0.0)


def test_children_are_made_once_and_know_their_path():
    root = Node("", None)
    leaf = root.child("a").child("b")

    assert root.child("a").child("b") is leaf
    assert root.child("b") is not leaf
    assert (root.path(), leaf.path()) == ([], ["a", "b"])


def test_ucb1_by_hand():
    root = Node("", None)
    tried, untried = root.child("tried"), root.child("untried")
    root.visits, tried.visits, tried.wins = 20, 4, 3

    assert ucb1(tried, 1.4) == pytest.approx(0.75 + 1.4 * math.sqrt(math.log(20) / 4))
    assert ucb1(tried, 0.0) == 0.75
    assert ucb1(untried, 1.4) == math.inf
    assert ucb1(root, 1.4) == math.inf


@pytest.mark.parametrize(("exploration", "chosen"), [
    # 0.75 + 0.5 * 0.87 against 0.5 + 0.5 * 1.22: value wins; with 1.4 the one less visited does.
    (0.0, "good"), (0.5, "good"), (1.4, "rare"),
])
def test_exploration_trades_value_against_visits(exploration, chosen):
    root = Node("", None, visits=20, expanded=True)
    for step, visits, wins in (("good", 4, 3), ("rare", 2, 1)):
        node = root.child(step)
        node.visits, node.wins = visits, wins

    assert select(root, exploration).step == chosen


def test_selection_stops_where_nothing_was_sampled_yet():
    root = Node("", None, visits=3)
    child = root.child("a")
    grandchild = child.child("b")
    child.visits = grandchild.visits = 2

    assert select(root, 1.4) is root
    root.expanded = True
    assert select(root, 1.4) is child
    child.expanded = True
    assert select(root, 1.4) is grandchild
    # Expanded, but no continuation had a step.
    grandchild.expanded = True
    assert select(root, 1.4) is grandchild


@given(st.lists(st.tuples(st.lists(st.sampled_from("ab"), max_size=4), st.booleans()), max_size=20))
def test_a_node_counts_what_was_backed_up_at_and_below_it(simulations):
    root = Node("", None)
    for steps, won in simulations:
        node = root
        for step in steps:
            node = node.child(step)
        backup(node, won, 1)

    for node in root.walk():
        below = [won for steps, won in simulations if steps[: len(node.path())] == node.path()]
        assert (node.visits, node.wins, node.tokens) == (len(below), sum(below), len(below))
        assert sum(child.visits for child in node.children.values()) <= node.visits


# --- growing --------------------------------------------------------------------------------------------------------


def test_the_root_is_the_bare_question_and_every_prefix_of_a_chain_is_on_its_path():
    """In the guide the root already holds all steps, so no prefix of the chain is ever a node (METHODS 1)."""
    strategy, policy = labeler(lambda steps, number: LOSE)

    (root,) = grow(strategy, [chain(RIGHT), chain(WRONG, trajectory_id="t1")]).values()

    assert (root.step, root.parent, root.path()) == ("", None, [])
    for texts in (RIGHT, WRONG):
        for length in range(len(texts) + 1):
            node = at(root, texts[:length])
            assert node.path() == list(texts[:length])
            assert node.terminal is (length == 3)
    # The first thing continued is the question itself.
    assert policy.asked[0] == [(), ()]


def test_the_prefixes_of_a_finished_chain_are_sampled_from():
    """A finished chain is the only leaf of its path: descending to leaves alone would never sample anything."""
    strategy, policy = labeler(lambda steps, number: LOSE, simulations=12, exploration=10.0)

    grow(strategy, [chain(WRONG)])

    asked = {steps for call in policy.asked for steps in call}
    assert asked >= {(), WRONG[:1], WRONG[:2]}
    # What is finished is not continued, and nothing is sampled from twice.
    assert all(not steps or not steps[-1].startswith("The answer") for steps in asked)
    assert all(len(call) in (0, 2) for call in policy.asked)
    assert len([steps for call in policy.asked for steps in call]) == 2 * len(asked)


def test_one_simulation_counts_its_samples_once_each():
    """Two samples from the question: one takes the chain's first step and wins, one makes another and loses."""
    other = "Mia buys 4 more: 3 + 4 = 9."
    samples = [([*RIGHT], True), ([other, "The answer is 9."], True)]
    strategy, policy = labeler(lambda steps, number: samples[number])

    (root,) = grow(strategy, [chain(RIGHT)]).values()

    assert counts(root, ()) == (3, 2)
    assert counts(root, RIGHT[:1]) == (2, 2)
    assert counts(root, RIGHT[:2]) == counts(root, RIGHT) == (1, 1)
    assert counts(root, [other]) == (1, 0)
    # Only the first step of a sample becomes a node.
    assert not at(root, [other]).children
    assert not at(root, [other]).terminal
    cost = [sum(len(policy.encoder.tokenizer.encode(text)) + 1 for text in texts) + 1 for texts, _ in samples]
    assert (root.tokens, at(root, RIGHT[:1]).tokens, at(root, [other]).tokens) == (sum(cost), cost[0], cost[1])
    assert policy.settings[0][:3] == (0.9, 33, 7)


def test_a_sample_that_ends_at_once_is_a_visit_of_the_node_itself():
    strategy, _ = labeler(lambda steps, number: ([], True))

    (root,) = grow(strategy, [chain(RIGHT)]).values()

    assert counts(root, ()) == (3, 1)
    assert [list(node.children) for node in root.walk()] == [[RIGHT[0]], [RIGHT[1]], [RIGHT[2]], []]
    assert not root.terminal


def test_a_terminal_leaf_is_visited_again_at_no_cost_with_its_own_outcome():
    """Each sample answers at once: all nodes below the question are finished, so the later rounds sample nothing."""
    strategy, policy = labeler(lambda steps, number: WIN if number else LOSE, simulations=6)

    (root,) = grow(strategy, [chain(["The answer is 7."])]).values()

    assert [len(call) for call in policy.asked] == [2, 0, 0, 0, 0, 0]
    assert root.visits == 1 + 2 + 5
    leaves = {node.step: node for node in root.children.values()}
    assert set(leaves) == {"The answer is 5.", "The answer is 6.", "The answer is 7."}
    assert all(leaf.terminal for leaf in leaves.values())
    assert leaves["The answer is 5."].wins == leaves["The answer is 5."].visits
    assert leaves["The answer is 6."].wins == leaves["The answer is 7."].wins == 0
    # UCB1 prefers the one that wins and still tries the others.
    assert leaves["The answer is 5."].visits > leaves["The answer is 6."].visits >= 1


def test_an_unfinished_sample_loses():
    strategy, _ = labeler(lambda steps, number: (["Mia buys 4 more: 3 + 4 = 7.", "The answer is 5."], False))

    (root,) = grow(strategy, [chain(WRONG)]).values()

    assert counts(root, ()) == (3, 0)
    assert counts(root, RIGHT[:1]) == (2, 0)


def test_a_chain_without_a_known_outcome_is_no_simulation():
    one = chain(RIGHT)
    unknown = dataclasses.replace(one, trajectory=dataclasses.replace(one.trajectory, outcome=None))
    strategy, _ = labeler(lambda steps, number: LOSE)

    (root,) = grow(strategy, [unknown]).values()

    assert counts(root, ()) == (2, 0)
    assert counts(root, RIGHT) == (0, 0)
    assert not at(root, RIGHT).terminal


def test_a_path_that_outgrows_the_context_loses_instead_of_being_continued_from_elsewhere():
    """The encoder would drop the last step, and the samples would be counted for a prefix they do not continue."""
    long = "Mia buys 4 more: 3 + 4 = 7. " * 5
    room = len(tiny.make_encoder().encode(tiny.mia().prompt, RIGHT).ids)
    strategy, policy = labeler(lambda steps, number: ([RIGHT[0], long], True) if not steps else ([long, "x"], True),
                               max_length=room, simulations=8, exploration=10.0)

    (root,) = grow(strategy, [chain(WRONG)]).values()

    assert all(long.strip() not in steps for call in policy.asked for steps in call)
    outgrown = at(root, [RIGHT[0], long.strip()])
    assert outgrown.terminal
    assert (outgrown.wins, outgrown.visits > 2) == (0, True)


def test_trees_of_several_questions_grow_side_by_side_and_apart():
    other = dataclasses.replace(tiny.mia("p1"), prompt=tiny.mia().prompt.replace("Mia", "Ben"), answer="6")
    strategy, policy = labeler(lambda steps, number: LOSE, simulations=1)

    trees = grow(strategy, [chain(WRONG), chain(WRONG, other, "t1"), chain(RIGHT, trajectory_id="t2")])

    # One call a round for all questions. "6" is right for the second question alone.
    assert [len(call) for call in policy.asked] == [4]
    assert counts(trees["p0"], ()) == (4, 1)
    assert counts(trees["p1"], ()) == (3, 3)


def test_the_same_seed_grows_the_same_tree():
    def script(steps, number):
        return WIN if number else (["Mia loses 2: 7 - 2 = 5.", "The answer is 5."], True)

    def shape(seed):
        strategy, policy = labeler(script, simulations=5)
        (root,) = grow(strategy, [chain(WRONG)], seed).values()
        return [(node.path(), node.visits, node.wins) for node in root.walk()], policy.settings

    one, same, other = shape(1), shape(1), shape(2)

    assert one == same
    assert one[1] != other[1]
    # Each round draws afresh.
    assert len({seed for *_, seed in one[1]}) == 5


# --- labels ---------------------------------------------------------------------------------------------------------


def after_wrong_start(steps, number):
    """The policy wins from every prefix but those with the wrong first step."""
    if steps[:1] == WRONG[:1]:
        return ["Mia loses 2: 8 - 2 = 6.", "The answer is 6."][len(steps) - 1 :], True
    return list(RIGHT[len(steps) :]), True


def test_wrong_steps_are_told_from_right_ones():
    strategy, _ = labeler(after_wrong_start, simulations=30)
    chains = [chain(RIGHT), chain(WRONG, trajectory_id="t1")]
    strategy.prepare(chains, 1)

    labels = strategy.label(chains, 1)

    assert [(row.trajectory_id, row.step_index, row.strategy, row.is_correct) for row in labels] == [
        ("t0", 0, "mcts", True), ("t0", 1, "mcts", True), ("t0", 2, "mcts", True),
        ("t1", 0, "mcts", False), ("t1", 1, "mcts", False), ("t1", 2, "mcts", False)]
    assert [row.value for row in labels] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert all(row.confidence >= 0.5 for row in labels)
    assert all(row.confidence > 0.9 for row in labels[:2])
    assert labels[0].tokens > 0


def test_the_label_is_read_from_the_nodes_counts():
    samples = [([RIGHT[0], "The answer is 6."], True), ([WRONG[0], "The answer is 6."], True)]
    strategy, _ = labeler(lambda steps, number: samples[number], min_visits=2)
    strategy.prepare([chain(RIGHT)], 1)

    labels = strategy.label([chain(RIGHT)], 1)

    # The first step: the chain itself and one sample that lost. The second was only passed by the chain: too few.
    # The last ends the chain, so its outcome is known however seldom it was visited.
    assert [(row.value, row.is_correct) for row in labels] == [(0.5, True), (1.0, None), (1.0, True)]
    assert [row.confidence for row in labels] == pytest.approx([0.5, 0.0, 0.75])
    assert labels[0].reasoning == "1 of 2 simulations through this step reach the answer"


def test_relative_compares_with_the_parents_value():
    # Parent: 2 of 4 win. Child: 0 of 2.
    root = Node("", None, visits=4, wins=2)
    node = root.child(WRONG[2])
    node.visits = 2
    node.terminal = True
    strategy, _ = labeler(lambda steps, number: LOSE, rule="relative")

    (label,) = strategy._read(root, chain(WRONG[2:]))

    assert label.is_correct is False
    # Half of the parent's 1 of 2: P(value <= 1/4) with Beta(1, 3).
    assert label.confidence == pytest.approx(1 - 0.75**3)


def test_only_the_first_questions_get_a_tree():
    problems = [tiny.mia(f"p{n}") for n in range(4)]
    chains = [chain(RIGHT, problem, f"{problem.id}/{n}") for problem in problems for n in range(2)]
    strategy, _ = labeler(lambda steps, number: WIN, problems=2)
    strategy.prepare(chains, 1)

    assert {row.trajectory_id for row in strategy.label(chains, 1)} == {"p0/0", "p0/1", "p1/0", "p1/1"}
    # Shards are labelled one by one: one without a chosen question gets nothing.
    assert strategy.label(chains[4:], 1) == []


def test_no_trees_at_all_can_be_asked_for():
    strategy, policy = labeler(lambda steps, number: WIN, problems=0)
    strategy.prepare([chain(RIGHT)], 1)

    assert strategy.label([chain(RIGHT)], 1) == []
    assert policy.asked == []
