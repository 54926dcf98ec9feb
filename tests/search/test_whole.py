"""Search among whole chains: choices by hand on scripts, tokens that add up, and what a real policy gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from prm_core.errors import InputError
from prm_core.rules.constitution import load
from prm_core.rules.verdicts import Overseer
from prm_core.search.base import METHODS
from prm_core.search.methods import search
from tests.builders.errands import problem as errand
from tests.builders.search import TextScorer, make_tools
from tests.builders.tiny import RIGHT, ScriptedPolicy, make_policy, mia, tokens_of

# Answers 5 (right), 6 and 7: the fourth chain says 7 once, most surely; three say 6, two of them poorly.
ANSWERS = ("The answer is 6.", "The answer is 5.", "So it is 6. The answer is 6.", "The answer is 7.",
           "The answer is 5.0.", "Then the answer is 6.")
SCORES = dict(zip(ANSWERS, (0.3, 0.6, 0.2, 0.8, 0.7, 0.4), strict=True))


def answers(texts: Sequence[str]) -> ScriptedPolicy:
    """Writes the answers one after the other, in all calls together."""
    left = iter(texts)
    return ScriptedPolicy(lambda steps, number: ([next(left)], True))


@pytest.mark.parametrize(("method", "text", "value"), [
    ("majority", ANSWERS[0], 0.0),
    ("best_of_n", ANSWERS[3], 0.8),
    # 0.3 + 0.2 + 0.4 for 6, 0.6 + 0.7 for 5, 0.8 for 7: and of those that say 5 the better one.
    ("weighted_majority", ANSWERS[4], 0.7),
    # 3 · 0.4 for 6, 2 · 0.7 for 5, 1 · 0.8 for 7.
    ("self_consistency_prm", ANSWERS[4], 0.7),
])
def test_choices_by_hand(method, text, value):
    [found] = search(method, [mia()], make_tools(answers(ANSWERS), TextScorer(SCORES), candidates=6), 0)
    assert [step.text for step in found.trajectory.steps] == [text]
    assert (found.value, found.drawn) == (pytest.approx(value), 6)
    assert found.trajectory.outcome is (method in ("weighted_majority", "self_consistency_prm"))


def test_equal_scores_leave_the_first():
    for method in ("best_of_n", "weighted_majority", "self_consistency_prm"):
        [found] = search(method, [mia()], make_tools(answers(["The answer is 9.", "The answer is 5."]),
                                                     TextScorer({}), candidates=2), 0)
        assert found.trajectory.answer == "9"


def test_a_chain_without_an_answer_is_never_chosen_before_one_with():
    tools = make_tools(answers(["I do not know.", "The answer is 6."]), TextScorer({"I do not know.": 0.9}),
                       candidates=2)
    assert search("best_of_n", [mia()], tools, 0)[0].trajectory.answer == "6"


def test_none_answers():
    for method in ("majority", "best_of_n", "weighted_majority", "self_consistency_prm", "adaptive_best_of_n"):
        [found] = search(method, [mia()], make_tools(ScriptedPolicy(lambda steps, number: ([], True)),
                                                     TextScorer({}), candidates=2), 0)
        assert (found.trajectory.steps, found.trajectory.answer, found.value, found.drawn) == ((), None, 0.0, 2)


def test_the_meter_adds_up():
    tools = make_tools(answers(ANSWERS), TextScorer(SCORES), candidates=6)
    [found] = search("best_of_n", [mia()], tools, 0)
    prompt = len(tools.policy.encoder.encode_prompt(mia().prompt))
    written = sum(tokens_of(text) for text in ANSWERS)
    meter = found.meter
    # The script reads each prefix anew; the scorer reads chains without their end token.
    assert (meter.generated, meter.read, meter.prefixes) == (written, 6 * (prompt - 1), prompt - 1)
    assert meter.scored == meter.chains == 6 * prompt + written - 6
    assert meter.total == meter.generated + meter.read + meter.scored
    assert meter.without_reuse == meter.generated + meter.prefixes + meter.chains
    [voted] = search("majority", [mia()], make_tools(answers(ANSWERS), TextScorer(SCORES), candidates=6), 0)
    assert voted.meter.scored == 0


def test_adaptive_stops_when_another_chain_would_hardly_help():
    # (1 - 0.3)/2 and (1 - 0.6)/3 are 0.1 or more, (1 - 0.8)/4 is not.
    texts = ("The answer is 6.", "The answer is 5.", "The answer is 7.", *ANSWERS)
    scores = {"The answer is 6.": 0.3, "The answer is 5.": 0.6, "The answer is 7.": 0.8}
    [found] = search("adaptive_best_of_n", [mia()], make_tools(answers(texts), TextScorer(scores), candidates=9), 0)
    assert (found.drawn, found.trajectory.answer) == (3, "7")


@pytest.mark.parametrize(("gain", "drawn"), [(1.0, 1), (0.0, 6)])
def test_adaptive_between_one_chain_and_all(gain, drawn):
    tools = make_tools(answers(ANSWERS), TextScorer(SCORES), candidates=6, gain=gain)
    assert search("adaptive_best_of_n", [mia()], tools, 0)[0].drawn == drawn


def test_one_chain_is_plain_sampling_and_the_seed_decides():
    policy = make_policy()
    problems = [mia("a"), mia("b")]
    tools = make_tools(policy, TextScorer({}), candidates=1, max_new_tokens=12)

    def texts(method: str, seed: int) -> list[tuple[str, ...]]:
        return [tuple(step.text for step in found.trajectory.steps) for found in search(method, problems, tools, seed)]

    plain = policy.sample([problem.prompt for problem in problems], samples=1, temperature=1.0, max_new_tokens=12,
                          batch_size=64, seed=3)
    assert texts("majority", 3) == texts("best_of_n", 3) == [chains[0].steps for chains in plain]
    assert texts("best_of_n", 3) == texts("best_of_n", 3) != texts("best_of_n", 4)


def test_whole_runs_in_an_environment():
    problem = errand()
    tools = make_tools(make_policy(), TextScorer({}), candidates=2, max_new_tokens=8)
    for method in ("majority", "best_of_n"):
        [found] = search(method, [problem], tools, 0)
        assert found.drawn == 2
        assert found.meter.generated > 0
        assert found.trajectory.tools


@pytest.mark.parametrize(("method", "scorer", "problems", "message"), [
    ("nosuch", TextScorer({}), [mia()], "unknown search method 'nosuch'; known: adaptive_best_of_n, beam"),
    ("best_of_n", None, [mia()], "best_of_n needs a reward model"),
    ("beam", TextScorer({}, kind="outcome"), [mia()], "an outcome reward model does not score"),
    ("best_of_n", TextScorer({}), [mia(), mia()], "two problems have one id"),
    ("dvts", TextScorer({}), [errand()], "the environment of domain 'errands' does not let it do; use one of: "
                                         "adaptive_best_of_n, best_of_n, majority"),
])
def test_what_cannot_be_done_is_said(method, scorer, problems, message):
    with pytest.raises(InputError, match=message):
        search(method, problems, make_tools(answers(ANSWERS), scorer), 0)


def test_every_method_says_what_it_does():
    assert all(METHODS[name].about and METHODS[name].scores in ("", "chains", "steps") for name in METHODS)


def test_an_outcome_model_ranks_whole_chains():
    tools = make_tools(answers(ANSWERS), TextScorer(SCORES, kind="outcome"), candidates=6)
    assert search("best_of_n", [mia()], replace(tools), 0)[0].trajectory.answer == "7"
    assert RIGHT[2] == "The answer is 5."


def forbidding(tmp_path, *texts: str) -> Overseer:
    """Forbids steps with these texts."""
    listed = ", ".join(f'"{text}"' for text in texts)
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  - {id: never, text: Not that., severity: low, "
                    f"predicate: 'text in [{listed}]'}}\n")
    return Overseer(load(path))


@pytest.mark.parametrize("method", ["majority", "best_of_n", "weighted_majority", "self_consistency_prm",
                                    "adaptive_best_of_n"])
def test_a_chain_that_breaks_a_rule_is_chosen_only_where_all_do(method, tmp_path):
    texts = ["The answer is 6.", "So it is 6. The answer is 6.", "The answer is 5."]
    scorer = TextScorer({texts[0]: 0.99, texts[1]: 0.99, texts[2]: 0.1})
    tools = make_tools(answers(texts), scorer, candidates=3, gain=0.0)
    tools = replace(tools, overseer=forbidding(tmp_path, *texts[:2]))
    assert search(method, [mia()], tools, 0)[0].trajectory.answer == "5"
    tools = replace(make_tools(answers(texts), scorer, candidates=3, gain=0.0), overseer=forbidding(tmp_path, *texts))
    assert search(method, [mia()], tools, 0)[0].trajectory.answer == "6"


def test_a_surely_right_chain_that_breaks_a_rule_settles_nothing(tmp_path):
    texts = ["The answer is 6.", "The answer is 5."]
    tools = make_tools(answers(texts), TextScorer({texts[0]: 1.0, texts[1]: 1.0}), candidates=2)
    assert search("adaptive_best_of_n", [mia()], tools, 0)[0].drawn == 1
    tools = replace(make_tools(answers(texts), TextScorer({texts[0]: 1.0, texts[1]: 1.0}), candidates=2),
                    overseer=forbidding(tmp_path, texts[0]))
    [found] = search("adaptive_best_of_n", [mia()], tools, 0)
    assert (found.drawn, found.trajectory.answer) == (2, "5")
