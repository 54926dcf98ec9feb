"""`score_step` and `analyze_trajectory`: the same scores as `/invocations`, with what a client needs to act on them."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises
from prm_core.scoring.scorer import ChainScore
from tests.builders.edge import SOURCE, ask, edge, refused
from tests.builders.scorer import FakeScorer

PROMISES = Promises(Alarm(0.05, 0.9, 100, threshold=0.2), CleanPrefix(0.1, 0.9, 100, threshold=0.8))
SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ok"}]


class Committee(FakeScorer):
    """With two heads, of which one is surer."""

    def _score(self, prompt, steps):
        score = super()._score(prompt, steps)
        members = tuple((one, one / 2) for one in score.step_scores)
        return ChainScore(score.step_scores, score.raw_scores, score.truncated_steps, members=members)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(edge(Committee(), promises=PROMISES))


def test_a_wrong_step_says_how_surely_why_and_what_to_check(client) -> None:
    answer = ask(client, "/score_step", {"prompt": "q", "steps": ["ok"], "step": "wrong", "step_index": 1})
    analysis = answer.pop("analysis")
    # Two heads half a score apart: standard deviation 0.025.
    assert answer.pop("interval") == pytest.approx([0.1 - 1.96 * 0.025, 0.1 + 1.96 * 0.025])
    assert answer == {
        "step_index": 1, "step_score": pytest.approx(0.1), "confidence": pytest.approx(0.9), "is_correct": False,
        "severity": pytest.approx(0.9), "likely_cause": "logic_jump_error", "in_domain": None, "alarm": True,
        "clean_prefix": 1, "calibration_stale": None, "violations": None, "blocked": None, "model": SOURCE}
    assert analysis.startswith("steps[1] “wrong” is right with probability 0.10: the chain holds up to steps[0]")


def test_a_right_step_raises_nothing(client) -> None:
    answer = ask(client, "/score_step", {"prompt": "q", "step": {"text": "ok"}})
    assert {name: answer[name] for name in ("step_index", "is_correct", "severity", "likely_cause", "analysis", "alarm",
                                            "clean_prefix")} == {
        "step_index": 0, "is_correct": True, "severity": None, "likely_cause": None, "analysis": "", "alarm": False,
        "clean_prefix": 1}


def test_an_alarm_that_was_raised_stays_for_the_session(client) -> None:
    answer = ask(client, "/score_step", {"prompt": "q", "steps": ["ok", "wrong"], "step": "ok"})
    assert (answer["is_correct"], answer["alarm"], answer["clean_prefix"]) == (True, True, 1)


@pytest.mark.parametrize("history", [
    {"messages": SAID}, {"conversation": SAID}, {"prompt": "q", "steps": ["ok"]},
    {"messages": SAID[:1], "steps": ["ok"]}])
@pytest.mark.parametrize("step", [{"step": "wrong"}, {"step_text": "wrong"}, {"step": {"text": "wrong"}}])
def test_what_came_before_may_be_a_conversation_or_steps(client, history, step) -> None:
    assert ask(client, "/score_step", {**history, **step})["step_score"] == pytest.approx(0.1)


@pytest.mark.parametrize(("asked", "reason"), [
    ({"prompt": "q", "steps": ["ok"], "step": "a", "step_index": 2}, "`step_index` is 2, and 1 steps came before"),
    ({"prompt": "q"}, "`step`: Field required"), ({"step": "a"}, "`prompt` is empty or no text"),
    ({"prompt": "q", "step": ""}, "step 0 is empty"), ({"prompt": "q", "step": 3}, "`step"),
    ({"prompt": "q", "step": "a", "treshold": 0.1}, "did you mean 'threshold'?"),
    ({"prompt": "q", "step": "a", "threshold": 2}, "threshold is 2.0, not a probability"),
    ({"messages": [{"role": "system", "content": "q"}], "step": {"texts": "a"}}, "step 0 must be a text or an object"),
    ({"prompt": "q", "messages": SAID, "step": "a"}, "`messages` beside `prompt`"),
])
def test_what_cannot_be_scored_is_named(client, asked, reason) -> None:
    assert reason in refused(client, "/score_step", asked)


def test_a_trajectory_is_analysed_as_invocations_does(client) -> None:
    steps = ["ok", "wrong", "ok"]
    (expected,) = ask(client, "/invocations", {"inputs": [{"prompt": "q", "steps": steps}],
                                               "params": {"threshold": 0.95, "aggregate": "mean"}})["predictions"]
    analysis = ask(client, "/analyze_trajectory", {
        "prompt": "q", "steps": steps, "threshold": 0.95, "aggregate": "mean"})
    assert analysis == {**expected, "model": SOURCE}
    assert [error["likely_cause"] for error in analysis["error_steps"]] == [
        "initial_step_error", "accumulated_error", "accumulated_error"]
    assert analysis["alarm_step"] == 1
    assert len(analysis["step_intervals"]) == 3
    assert ask(client, "/analyze_trajectory", {"conversation": SAID})["step_scores"] == [0.9]
    assert "unknown aggregation" in refused(client, "/analyze_trajectory", {
        "prompt": "q", "steps": steps, "aggregate": "x"})
