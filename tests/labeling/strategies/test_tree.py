"""Search trees alone: what a rollout counts for, the search for the first error, selection by hand, preferences."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.labeling.strategies.tree import (
    SELECTIONS,
    Node,
    Tree,
    WrongRollout,
    as_record,
    first_error_search,
    from_record,
    omega_score,
    preferences,
    puct,
    sound_out,
    ucb1,
)
from prm_core.labeling.strategies.verdicts import Tally, probability_kept
from prm_core.turns import identity, unnamed
from prm_core.types import Call, Step, StepPreference
from tests.builders.turns import turns as any_turns

ROLLOUTS = st.lists(
    st.tuples(st.lists(st.sampled_from("ab"), max_size=3), st.lists(st.sampled_from("ab"), max_size=3), st.booleans(),
              st.booleans(), st.integers(0, 9)), max_size=20)


def new_tree():
    return Tree("p", "How many?", "5")


def turns(texts):
    return [Step(text) for text in texts]


def texts(node):
    return [step.text for step in node.path()]


def at(tree, steps):
    node = tree.root
    for step in turns(steps):
        node = node.children[step]
    return node


def grown(rollouts):
    """A tree with rollouts (start, steps, won, sampled, tokens)."""
    tree = new_tree()
    for start, steps, won, sampled, tokens in rollouts:
        node = tree.root
        for step in turns(start):
            node = node.child(step)
        tree.add(node, turns(steps), ended=True, success=won, tokens=tokens, sampled=sampled)
    return tree


def tally(node, wins, rollouts):
    node.wins, node.rollouts = wins, rollouts
    return node


def play(tree, purchases, wins):
    """Answers purchases by rollouts of one step; returns (steps before, rollouts) of each."""
    bought = []
    for node, count in purchases:
        bought.append((len(node.path()), count))
        for _ in range(count):
            won = wins(node)
            tree.add(node, [Step("won" if won else "lost")], ended=True, success=won, tokens=1)
    return bought


# --- what a rollout counts for --------------------------------------------------------------------------------------


def test_a_rollout_counts_from_its_start_on_and_a_success_is_known_up_to_the_root():
    tree = new_tree()
    tree.add(tree.root, turns("abc"), ended=True, success=False, tokens=7)
    tree.add(at(tree, "a"), turns("xy"), ended=True, success=True, tokens=5)
    tree.add(at(tree, "a"), turns("x"), ended=False, success=False, tokens=3)

    seen = {"".join(texts(n)): (n.wins, n.rollouts, n.reached, n.tokens, n.right) for n in tree.root.walk()}
    assert seen == {
        "": (0, 1, True, 7, None), "a": (1, 3, True, 8, None), "ab": (0, 1, False, 0, None),
        "abc": (0, 1, False, 0, False), "ax": (1, 2, True, 0, None), "axy": (1, 1, True, 0, True),
    }
    assert [(n.step.text, n.started) for n in tree.root.walk() if n.started] == [("", 1), ("a", 2)]
    assert (at(tree, "a").value, at(tree, "a").tally, Node(Step(""), None).value) == (1 / 3, Tally(1, 3), 0.0)
    # What is to be searched: wrong, with a step between start and end.
    assert [(w.start, [n.step.text for n in w.nodes], w.tokens) for w in tree.pool] == [(tree.root, ["a", "b", "c"], 7)]


def test_a_chain_by_another_hand_is_no_sample_and_says_nothing_of_the_question():
    tree = new_tree()
    tree.add(tree.root, turns("ab"), ended=True, success=True, tokens=9, sampled=False)
    tree.add(tree.root, turns("ac"), ended=True, success=False, tokens=9, sampled=False)

    seen = {"".join(texts(n)): (n.rollouts, n.reached, n.tokens, n.right) for n in tree.root.walk()}
    assert seen == {"": (0, False, 0, None), "a": (0, True, 0, None), "ab": (0, True, 0, True),
                    "ac": (0, False, 0, False)}
    assert [[n.step.text for n in wrong.nodes] for wrong in tree.pool] == [["a", "c"]]


def test_a_rollout_that_ends_at_once_counts_at_its_start_alone():
    tree = new_tree()
    tree.root.child(Step("a")).child(Step("b"))

    assert tree.add(at(tree, "ab"), [], ended=True, success=True, tokens=1) == []
    assert [(n.rollouts, n.wins, n.reached) for n in tree.root.walk()] == [(0, 0, True), (0, 0, True), (1, 1, True)]
    assert at(tree, "ab").right is None


def test_children_are_made_once_and_know_their_path():
    root = Node(Step(""), None)
    leaf = root.child(Step("a")).child(Step("b"))

    assert root.child(Step("a")).child(Step("b")) is leaf
    assert root.child(Step("b")) is not leaf
    assert (texts(root), texts(leaf)) == ([], ["a", "b"])
    assert [node.step.text for node in leaf.ancestry()] == ["", "a", "b"]


@given(st.lists(any_turns(), min_size=2, max_size=4))
def test_children_are_told_apart_by_what_a_model_reads(steps):
    """Not by what their sources call them and their calls."""
    root = Node(Step(""), None)
    renamed = [replace(step, ref="line 3", calls=tuple(replace(call, id="id-7") for call in step.calls))
               for step in steps]

    assert [root.child(step) for step in renamed] == [root.child(step) for step in steps]
    assert len(root.children) == len({json.dumps(identity([step])) for step in steps})
    assert [child.step for child in root.children.values()] == [*dict.fromkeys(map(unnamed, steps))]


@given(ROLLOUTS)
def test_a_node_counts_the_samples_that_pass_it(rollouts):
    tree = grown(rollouts)

    for node in tree.root.walk():
        path = texts(node)
        own = [(won, tokens) for start, steps, won, sampled, tokens in rollouts
               if sampled and len(start) <= len(path) and (start + steps)[: len(path)] == path]
        assert (node.wins, node.rollouts) == (sum(won for won, _ in own), len(own))
        reaching = [start for start, steps, won, sampled, _ in rollouts if won and (start + steps)[: len(path)] == path
                    and (sampled or len(path) > len(start))]
        assert node.reached is bool(reaching)
    assert sum(node.tokens for node in tree.root.walk()) == sum(t for *_, sampled, t in rollouts if sampled)


# --- the first error ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("known", "most", "purchases"), [
    (0, 8, [1, 1, 2, 4]), (1, 8, [1, 2, 4]), (3, 8, [3, 2]), (7, 8, [1]), (8, 8, []), (20, 8, []), (0, 1, [1]),
    (0, 3, [1, 1, 1]),
])
def test_a_state_is_sounded_out_by_doubling_purchases(known, most, purchases):
    tree = new_tree()
    tree.root.rollouts = known

    assert play(tree, sound_out(tree.root, most), lambda node: False) == [(0, count) for count in purchases]


def test_a_state_that_is_reached_buys_nothing_more():
    tree, outcomes = new_tree(), iter([False, False, True, False])

    assert play(tree, sound_out(tree.root, 8), lambda node: next(outcomes)) == [(0, 1), (0, 1), (0, 2)]
    assert list(sound_out(tree.root, 8)) == []


@given(st.integers(2, 40).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m))), st.sampled_from([1, 2, 8]))
def test_halving_finds_the_first_error_with_few_rollouts(place, most):
    """Against the brute force that sounds out every prefix."""
    length, error = place
    steps = [f"s{n}" for n in range(length)]

    def wins(node):
        return len(node.path()) < error

    def planted():
        tree = new_tree()
        tree.root.reached = True
        return tree, tree.add(tree.root, turns(steps), ended=True, success=False, tokens=0)

    tree, nodes = planted()
    bought = play(tree, first_error_search((tree.root, *nodes), most), wins)
    brute, brute_nodes = planted()
    for node in brute_nodes[:-1]:
        play(brute, sound_out(node, most), wins)
        if not node.reached and most > 1:
            break

    # One rollout of each state was the wrong chain itself: with most = 1 it alone decides.
    if most > 1:
        first = next((n for n, node in enumerate(nodes, 1) if not node.reached), None)
        assert first == error
        assert first == next(n for n, node in enumerate(brute_nodes, 1) if not node.reached)
        # The state before it is reached, the state itself has failed as often as asked: labels stop nowhere else.
        assert error == 1 or nodes[error - 2].reached
        assert error == length or nodes[error - 1].rollouts == most
    else:
        assert bought == []
    assert len({depth for depth, _ in bought}) <= math.ceil(math.log2(length))
    assert sum(count for _, count in bought) <= math.ceil(math.log2(length)) * (most - 1)


def test_the_search_for_the_first_error_step_by_step():
    tree = new_tree()
    tree.root.reached = True
    nodes = tree.add(tree.root, turns("abcdefgh"), ended=True, success=False, tokens=0)

    bought = play(tree, first_error_search((tree.root, *nodes), 4), lambda node: len(node.path()) < 3)

    # 4 fails (one failure was known), 2 wins, 3 fails.
    assert bought == [(4, 1), (4, 2), (2, 1), (3, 1), (3, 2)]
    assert [node.reached for node in nodes] == [True, True] + [False] * 6


# --- selection ------------------------------------------------------------------------------------------------------


def test_selections_are_found_by_name():
    assert sorted(SELECTIONS) == ["omega", "puct", "ucb1"]
    with pytest.raises(InputError, match="unknown selection rule of the tree search 'best'; known: omega, puct, ucb1"):
        SELECTIONS["best"]


def test_omega_score_by_hand():
    state = tally(Node(Step(""), None), 3, 4)
    state.visits = 1
    rollout = WrongRollout(state, (), 250)

    # 0.5^(1/4) · 0.9^(1/2) + 0.125 · √9 / 2
    assert omega_score(rollout, 0.125, 9) == pytest.approx(0.840896415 * 0.948683298 + 0.1875)
    assert omega_score(rollout, 0.0, 9) == pytest.approx(0.797744)


def omega_tree():
    """Wrong rollouts from three states: one half right, one mostly right, one never right."""
    tree = new_tree()
    for step, wins in (("half", 2), ("mostly", 3), ("never", 0)):
        node = tree.root.child(Step(step))
        for n in range(4):
            won = n < wins
            tree.add(node, turns(["won"] if won else [f"{step} {n}", "lost"]), ended=True, success=won, tokens=100)
    return tree


def test_omega_takes_the_wrong_rollout_with_the_largest_score_out_of_the_pool():
    tree = omega_tree()
    chosen = next(SELECTIONS["omega"](tree, 0.0, 4))

    # Its middle state is sounded out: what was nearly always right before is searched first.
    assert texts(chosen[0]) == ["mostly", "mostly 3"]
    assert chosen[1] == 1
    assert len(tree.pool) == 2 + 1 + 4 - 1
    assert [node.visits for node in (at(tree, ["mostly"]), at(tree, ["half"]))] == [1, 0]


def test_omega_leaves_hopeless_and_certain_states_alone_and_comes_to_an_end():
    tree = omega_tree()
    for _ in range(10):
        play(tree, SELECTIONS["omega"](tree, 0.125, 4), lambda node: False)

    assert {wrong.start.step.text for wrong in tree.pool} == {"never"}
    assert (at(tree, ["half"]).visits, at(tree, ["mostly"]).visits, at(tree, ["never"]).visits) == (2, 1, 0)
    assert not any(node.rollouts > 1 for node in at(tree, ["never"]).walk() if node.step.text != "never")
    # Searched: each middle state failed four times.
    assert [at(tree, ["half", f"half {n}"]).rollouts for n in (2, 3)] == [4, 4]


def test_exploration_moves_omega_to_states_not_yet_visited():
    # 0.5^(1/4)·0.9^(1/5) = 0.823 against 0.692: √4·c/(1+4) against √4·c make up for it from c = 0.082 on.
    assert texts(next(SELECTIONS["omega"](omega_tree_with_visits(), 0.08, 4))[0])[0] == "mostly"
    assert texts(next(SELECTIONS["omega"](omega_tree_with_visits(), 0.09, 4))[0])[0] == "half"


def omega_tree_with_visits():
    tree = omega_tree()
    at(tree, ["mostly"]).visits = 4
    return tree


def test_visits_of_states_whose_rollouts_are_all_searched_still_count():
    """Σ N runs over all states (Luo et al., eq. 3), also those that have left the pool."""
    tree = omega_tree_with_visits()
    tree.pool = [wrong for wrong in tree.pool if wrong.start.step.text == "half"]
    rare = tree.root.child(Step("rare"))
    for won in (True, False, False, False, False):
        tree.add(rare, turns(["won"] if won else ["x", "lost"]), ended=True, success=won, tokens=100)
    at(tree, ["half"]).visits = 1

    # Q: 0.692 against 0.562; U with Σ N = 5: √5·c/2 against √5·c.
    assert texts(next(SELECTIONS["omega"](tree, 0.10, 8))[0])[0] == "half"
    assert texts(next(SELECTIONS["omega"](tree, 0.125, 8))[0])[0] == "rare"


def test_ucb1_by_hand():
    root = Node(Step(""), None, visits=20)
    tried, untried = tally(root.child(Step("tried")), 6, 8), root.child(Step("untried"))
    tried.visits = 4

    assert ucb1(tried, 1.4) == pytest.approx(0.75 + 1.4 * math.sqrt(math.log(20) / 4))
    assert ucb1(tried, 0.0) == 0.75
    assert ucb1(untried, 1.4) == math.inf


def test_puct_by_hand():
    root = Node(Step(""), None, visits=9)
    often, rare, given_ = (tally(root.child(Step(step)), *counts) for step, counts in
                           (("often", (3, 6)), ("rare", (1, 2)), ("given", (0, 0))))
    often.visits = 4
    # What started at the child itself says nothing of how often the policy takes the step.
    tally(often, 5, 10).started = 4

    # The prior is the share of the rollouts through the parent: 6/8, 2/8, 0.
    assert puct(often, 2.0) == pytest.approx(0.5 + 2 * 0.75 * 3 / 5)
    assert puct(rare, 2.0) == pytest.approx(0.5 + 2 * 0.25 * 3)
    assert puct(given_, 2.0) == 0.0
    # Nothing sampled yet: all alike.
    for node in (often, rare):
        node.rollouts = node.wins = node.started = 0
    assert puct(rare, 1.0) == puct(given_, 1.0) == pytest.approx(1 / 3 * 3)


@pytest.mark.parametrize(("exploration", "chosen"), [
    # 0.75 + c·0.87 against 0.5 + c·1.22.
    (0.0, "good"), (0.5, "good"), (1.4, "rare"),
])
def test_exploration_trades_value_against_visits(exploration, chosen):
    tree = new_tree()
    tree.root.visits, tree.root.rolled = 20, True
    for step, visits, wins in (("good", 4, 3), ("rare", 2, 1)):
        tally(tree.root.child(Step(step)), wins, visits).visits = visits

    [(node, count)] = SELECTIONS["ucb1"](tree, exploration, 3)

    assert (node.step.text, count) == (chosen, 3)
    assert (tree.root.visits, node.visits) == (21, {"good": 5, "rare": 3}[chosen])


@pytest.mark.parametrize("name", ["ucb1", "puct"])
def test_descent_stops_where_nothing_was_rolled_out_yet_and_buys_nothing_at_an_end(name):
    tree = new_tree()
    tree.add(tree.root, turns("ab"), ended=True, success=True, tokens=0)
    found = []
    for _ in range(4):
        purchases = list(SELECTIONS[name](tree, 1.0, 2))
        found.append([("".join(texts(node)), count) for node, count in purchases])
        for node, _count in purchases:
            node.rolled = True

    assert found == [[("", 2)], [("a", 2)], [], []]
    assert [node.visits for node in tree.root.walk()] == [4, 3, 2]


# --- what comes out -------------------------------------------------------------------------------------------------


def test_preferences_are_the_best_sibling_against_each_that_is_surely_worth_less():
    tree = new_tree()
    state = tree.root.child(Step("first"))
    for step, counts in (("best", (8, 8)), ("as good", (4, 4)), ("unsure", (1, 2)), ("bad", (0, 8)), ("new", (0, 0))):
        tally(state.child(Step(step)), *counts)
    tally(state, 13, 22)

    assert preferences(tree, 0.96) == [
        StepPreference("p", (Step("first"),), Step("best"), Step("bad"), 1.0, 0.0, 8, 8)]
    # P(Beta(9, 1) > x) = 1 - x^9, and E[x^9] under the density 6x(1 - x) is 6/11 - 6/12.
    sure = probability_kept(Tally(8, 8), Tally(1, 2), 1.0)
    assert sure == pytest.approx(1 - 6 * (1 / 11 - 1 / 12), abs=0.005)
    assert [pair.rejected.text for pair in preferences(tree, sure - 1e-6)] == ["unsure", "bad"]
    assert [pair.rejected.text for pair in preferences(tree, sure + 1e-6)] == ["bad"]


def test_preferences_of_the_first_step_have_an_empty_prefix_and_equal_siblings_give_none():
    tree = new_tree()
    tally(tree.root.child(Step("right")), 8, 8)
    tally(tree.root.child(Step("wrong")), 0, 8)
    equal = tree.root.child(Step("right"))
    for step in "xy":
        tally(equal.child(Step(step)), 8, 8)

    assert [(pair.steps, pair.chosen.text, pair.rejected.text) for pair in preferences(tree, 0.95)] == [
        ((), "right", "wrong")]


@given(ROLLOUTS, st.floats(0.5, 0.99))
def test_preferences_hold_what_they_promise(rollouts, confidence):
    tree = grown(rollouts)
    for pair in preferences(tree, confidence):
        parent = at(tree, [step.text for step in pair.steps])
        chosen, rejected = parent.children[pair.chosen], parent.children[pair.rejected]
        assert (pair.chosen_value, pair.rejected_value) == (chosen.value, rejected.value)
        assert (pair.chosen_rollouts, pair.rejected_rollouts) == (chosen.rollouts, rejected.rollouts)
        assert pair.chosen_value > pair.rejected_value
        assert all(child.value <= chosen.value for child in parent.children.values())
        assert probability_kept(chosen.tally, rejected.tally, 1.0) >= confidence


@given(ROLLOUTS, st.integers(0, 99))
def test_a_tree_survives_its_record(rollouts, seed):
    tree, chance = grown(rollouts), random.Random(seed)
    for node in tree.root.walk():
        node.visits, node.chains = chance.randrange(5), [f"t{n}" for n in range(chance.randrange(3))]

    record = json.loads(json.dumps(as_record(tree, model="m", selection="omega")))
    back = from_record(record)

    assert as_record(back, model="m", selection="omega") == record
    assert preferences(back, 0.6) == preferences(tree, 0.6)
    assert [row["id"] for row in record["nodes"]] == list(range(len(record["nodes"])))
    assert all(row["parent"] is None if row["id"] == 0 else row["parent"] < row["id"] for row in record["nodes"])


@given(st.lists(any_turns(), min_size=1, max_size=3), st.lists(any_turns(), max_size=2))
def test_turns_survive_the_record_of_their_tree(steps, others):
    tree = new_tree()
    for one, success in ((steps, True), ([*steps[:1], *others], False)):
        tree.add(tree.root, one, ended=True, success=success, tokens=1)

    record = json.loads(json.dumps(as_record(tree)))
    back = from_record(record)

    assert as_record(back) == record
    assert [node.path() for node in back.root.walk()] == [node.path() for node in tree.root.walk()]


def test_a_call_without_a_name_that_a_policy_wrote_survives_the_record_of_its_tree():
    tree = new_tree()
    nameless = Step("", calls=(Call("", "{", "no such tool", failed=True),))
    tree.add(tree.root, [nameless], ended=False, success=False, tokens=1)

    [_, node] = from_record(json.loads(json.dumps(as_record(tree)))).root.walk()
    assert node.step == nameless


def test_a_record_by_hand():
    tree = new_tree()
    tree.add(tree.root, turns("ab"), ended=True, success=True, tokens=4)
    tree.root.chains.append("t0")

    common = {"rollouts": 1, "wins": 1, "value": 1.0, "visits": 0, "reached": True}
    assert as_record(tree, model="m") == {
        "problem_id": "p", "prompt": "How many?", "answer": "5", "model": "m",
        "nodes": [
            {"id": 0, "parent": None, "step": "", **common, "tokens": 4, "right": None, "chains": ["t0"]},
            {"id": 1, "parent": 0, "step": "a", **common, "tokens": 0, "right": None, "chains": []},
            {"id": 2, "parent": 1, "step": "b", **common, "tokens": 0, "right": True, "chains": []},
        ],
    }


def test_a_turn_in_a_record_is_a_step_as_files_have_it():
    tree = new_tree()
    looked = Step("", calls=(Call("look", '{"item": "cup"}', "price 4", id="7"),), ref="line 3")
    tree.add(tree.root, [looked, Step("Done.")], ended=True, success=True, tokens=4)

    record = as_record(tree)

    assert [row["step"] for row in record["nodes"]] == [
        "", {"text": "", "observation": "", "agent": "", "calls": [
            {"name": "look", "arguments": '{"item": "cup"}', "result": "price 4", "failed": False, "id": ""}]}, "Done."]
