"""Search among steps: choices by hand on scripts, ways back, and what the shapes have in common."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest

from prm_core.search.methods import METHODS, search
from prm_core.search.steps import Shape, grow
from tests.builders.errands import TeamPolicy, solved
from tests.builders.errands import problem as errand
from tests.builders.search import TextScorer, make_tools
from tests.builders.tiny import RIGHT, ScriptedPolicy, make_policy, mia
from tests.search.test_whole import forbidding

GOOD, BAD, END = "3 + 4 = 7.", "3 + 4 = 8.", RIGHT[2]
WRONG_END = "The answer is 6."


def tree(options):
    """A policy whose next steps after each prefix come in turn, in all calls together; none ends the chain."""
    drawn: dict[tuple[str, ...], int] = {}

    def script(steps, number):
        choices = options.get(steps, [None])
        drawn[steps] = drawn.get(steps, 0) + 1
        text = choices[(drawn[steps] - 1) % len(choices)]
        return ([] if text is None else [text]), True

    return ScriptedPolicy(script)


def steps_of(found):
    return [step.text for step in found.trajectory.steps]


def test_the_first_step_over_the_threshold_is_taken():
    policy = tree({(): [BAD, GOOD, BAD], (GOOD,): [END]})
    scorer = TextScorer({GOOD: 0.9, BAD: 0.1, END: 0.95})
    [found] = search("step_best_of_n", [mia()], make_tools(policy, scorer), 0)
    assert steps_of(found) == [GOOD, END]
    assert found.trajectory.outcome is True
    # Two first steps, one second, one end; each is scored once it is there.
    assert [len(call) for call in policy.asked] == [1, 1, 1, 1]
    assert (found.drawn, scorer.asked[0]) == (4, [(BAD,)])


def test_a_threshold_of_one_takes_the_best_of_all():
    policy = tree({(): [GOOD, BAD], (GOOD,): [WRONG_END, END]})
    [found] = search("step_best_of_n", [mia()],
                     make_tools(policy, TextScorer({GOOD: 0.9, BAD: 0.1, END: 0.95}), threshold=1.0), 0)
    assert steps_of(found) == [GOOD, END]
    assert [len(call) for call in policy.asked] == [4, 4, 4]


@pytest.mark.parametrize(("back_offs", "steps"), [(0, [BAD, WRONG_END]), (1, [GOOD, END])])
def test_a_step_after_which_nothing_is_good_is_given_up(back_offs, steps):
    # BAD looks good enough and is drawn first; after it nothing does.
    policy = tree({(): [BAD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]})
    scorer = TextScorer({BAD: 0.7, GOOD: 0.8, WRONG_END: 0.2, END: 0.9})
    [found] = search("step_best_of_n", [mia()], make_tools(policy, scorer, back_offs=back_offs), 0)
    assert steps_of(found) == steps


def test_a_barred_step_is_taken_where_there_is_no_other():
    policy = tree({(): [BAD], (BAD,): [WRONG_END]})
    scorer = TextScorer({BAD: 0.7, WRONG_END: 0.2})
    [found] = search("step_best_of_n", [mia()], make_tools(policy, scorer, back_offs=1), 0)
    assert steps_of(found) == [BAD, WRONG_END]


def test_beams_are_kept_that_a_single_one_would_lose():
    # GOOD scores less than BAD at first; what comes after it more.
    options = {(): [BAD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]}
    scorer = TextScorer({BAD: 0.8, GOOD: 0.7, WRONG_END: 0.1, END: 0.9})
    settings = {"candidates": 2, "step_aggregate": "last"}
    [single] = search("beam", [mia()], make_tools(tree(options), scorer, width=1, **settings), 0)
    [double] = search("beam", [mia()], make_tools(tree(options), scorer, width=2, **settings), 0)
    assert (steps_of(single), steps_of(double)) == ([BAD, WRONG_END], [GOOD, END])


def test_trees_know_nothing_of_each_other():
    # Four first steps, two a tree: the second tree sees GOOD alone.
    options = {(): [BAD, BAD, GOOD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]}
    scorer = TextScorer({BAD: 0.8, GOOD: 0.7, WRONG_END: 0.1, END: 0.9})
    [found] = search("dvts", [mia()], make_tools(tree(options), scorer, width=2, candidates=2), 0)
    assert (steps_of(found), found.drawn) == ([GOOD, END], 12)


def test_blocks_choose_every_few_steps():
    options = {(): [BAD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]}
    scorer = TextScorer({BAD: 0.8, GOOD: 0.7, WRONG_END: 0.1, END: 0.9})
    [found] = search("blocks", [mia()], make_tools(tree(options), scorer, width=1, candidates=2, granularity=2), 0)
    assert steps_of(found) == [GOOD, END]
    assert scorer.asked[0] == [(BAD, WRONG_END), (GOOD, END)], "first steps alone are not scored"


def test_of_more_steps_than_a_chain_has_blocks_are_best_of_n():
    options = {(): [BAD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]}
    scores = {BAD: 0.8, GOOD: 0.7, WRONG_END: 0.1, END: 0.9}
    settings = {"width": 1, "candidates": 4, "step_aggregate": "min"}
    [blocks] = search("blocks", [mia()], make_tools(tree(options), TextScorer(scores), granularity=9, **settings), 0)
    assert blocks.value == 0.7
    assert steps_of(blocks) == [GOOD, END]
    assert blocks.drawn == 4


def test_a_chain_that_stops_without_an_answer_is_worth_nothing():
    policy = tree({(): [None, GOOD], (GOOD,): [END]})
    [found] = search("step_best_of_n", [mia()],
                     make_tools(policy, TextScorer({GOOD: 0.9, END: 0.9}), threshold=1.0), 0)
    assert steps_of(found) == [GOOD, END]


def test_the_limit_of_tokens_ends_a_chain_without_an_answer():
    policy = tree({(): [GOOD], (GOOD,): [GOOD], (GOOD, GOOD): [GOOD]})
    [found] = search("beam", [mia()], make_tools(policy, TextScorer({GOOD: 0.9}), max_new_tokens=12), 0)
    assert (found.trajectory.answer, found.trajectory.outcome, found.value) == (None, False, 0.0)


def test_a_width_and_candidates_of_one_are_plain_sampling():
    policy = make_policy()
    tools = make_tools(policy, TextScorer({}), max_new_tokens=40, width=1, candidates=1, temperature=0.0,
                       threshold=0.0)
    [plain] = policy.sample([mia().prompt], samples=1, temperature=0.0, max_new_tokens=40, batch_size=64, seed=0)
    for method in ("step_best_of_n", "beam", "dvts"):
        [found] = search(method, [mia()], tools, 0)
        # A blank step ends a search, which plain sampling passes over.
        assert tuple(steps_of(found)) == plain[0].steps[: len(steps_of(found))]


def test_the_seed_decides_and_problems_do_not_mix():
    policy = make_policy()
    tools = make_tools(policy, TextScorer({}), max_new_tokens=10)
    for method in ("step_best_of_n", "beam", "dvts", "blocks"):
        one, two, three = (search(method, [mia("a"), mia("b")], tools, seed) for seed in (1, 1, 2))
        assert [steps_of(found) for found in one] == [steps_of(found) for found in two]
        assert [found.meter for found in one] == [found.meter for found in two]
        assert [found.trajectory.problem_id for found in three] == ["a", "b"]


def test_the_meter_counts_every_candidate():
    policy = make_policy()
    [found] = grow([mia()], make_tools(policy, TextScorer({}), max_new_tokens=6), 0, Shape(candidates=3))
    assert 3 <= found.meter.generated <= 3 * 6 * found.drawn
    prompt = len(policy.encoder.encode_prompt(mia().prompt))
    assert found.meter.read >= prompt - 1


def test_turns_in_an_environment():
    tools = make_tools(make_policy(), TextScorer({}), candidates=3, max_new_tokens=8)
    [found] = search("step_best_of_n", [errand()], tools, 0)
    assert found.trajectory.tools
    assert found.meter.generated > 0
    assert METHODS["step_best_of_n"].environments


@pytest.mark.parametrize("method", ["step_best_of_n", "beam", "dvts", "blocks"])
def test_a_step_that_breaks_a_rule_is_taken_only_where_there_is_no_other(method, tmp_path):
    options = {(): [BAD, GOOD], (BAD,): [WRONG_END], (GOOD,): [END]}
    scorer = TextScorer({BAD: 0.99, WRONG_END: 0.99, GOOD: 0.1, END: 0.1})
    for forbidden, steps in (([BAD], [GOOD, END]), ([BAD, GOOD], [BAD, WRONG_END])):
        tools = make_tools(tree(options), scorer, candidates=2, width=1, granularity=1)
        [found] = search(method, [mia()], replace(tools, overseer=forbidding(tmp_path, *forbidden)), 0)
        assert steps_of(found) == steps


def test_a_turn_that_breaks_a_rule_is_not_executed_where_another_is_there(tmp_path, monkeypatch):
    # Half of what it writes is beside the point, which the scorer likes best.
    policy, scorer = TeamPolicy([solved()], 0.5), TextScorer({"The answer is 1.": 0.9})
    monkeypatch.setattr(policy, "keeping_prefixes", nullcontext)
    tools = make_tools(policy, scorer, candidates=12)
    [found] = search("step_best_of_n", [solved()], tools, 0)
    assert (steps_of(found), found.trajectory.outcome) == (["The answer is 1."], False)
    [found] = search("step_best_of_n", [solved()], replace(tools, overseer=forbidding(tmp_path, "The answer is 1.")), 0)
    assert (steps_of(found)[-1], found.trajectory.outcome) == ("Done.", True)


def test_where_all_turns_break_a_rule_others_are_drawn_as_often_as_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(TeamPolicy, "keeping_prefixes", lambda self: nullcontext())
    overseer = forbidding(tmp_path, "The answer is 1.")
    ended = {}
    for back_offs in (0, 50):
        policy = TeamPolicy([solved()], 0.8)
        tools = make_tools(policy, TextScorer({}), candidates=2, back_offs=back_offs)
        [found] = search("step_best_of_n", [solved()], replace(tools, overseer=overseer), 0)
        ended[back_offs] = steps_of(found)[-1]
    assert ended == {0: "The answer is 1.", 50: "Done."}
