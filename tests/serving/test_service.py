"""prm_core/serving: analysis of step scores, the score cache, requests and their errors, the logged MLflow model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises
from prm_core.scoring.scorer import ChainScore
from prm_core.serving.analysis import analyze, likely_cause, verdict_confidences
from prm_core.serving.cache import ScoreCache, context_key
from prm_core.serving.service import ScoringRequest, ScoringService, parse_request
from prm_core.types import Call, Step
from tests.builders.scorer import CONTEXT, FakeScorer


def request(*texts: str, prompt: str = "p", where: str = "inputs[0]") -> ScoringRequest:
    return ScoringRequest(where, prompt, tuple(Step(text) for text in texts))


def answer(service: ScoringService, *requests: ScoringRequest, **options):
    return service.answer(requests, **{"threshold": 0.5, "aggregate": "min", **options})


# Analysis


def test_analysis_of_a_chain_with_one_error():
    result = analyze([0.98, 0.12], ["a", "b"], threshold=0.5, aggregate="min")
    assert result.step_scores == [0.98, 0.12]
    assert result.step_confidences == [0.98, 0.88]
    assert result.overall_score == 0.12
    assert result.first_error_step == 1
    assert [e.model_dump() for e in result.error_steps] == [
        {"step_index": 1, "severity": 0.88, "confidence": 0.88, "likely_cause": "logic_jump_error"}
    ]
    assert len(result.improvements) == 1
    assert result.improvements[0].startswith("steps[1] “b” is right with probability 0.12")
    assert "steps[0]" in result.improvements[0]


def test_causes_follow_the_step_before():
    scores = [0.2, 0.3, 0.9, 0.1]
    assert [likely_cause(scores, i, 0.5) for i in (0, 1, 3)] == [
        "initial_step_error", "accumulated_error", "logic_jump_error"
    ]
    assert [e.step_index for e in analyze(scores, "abcd", threshold=0.5, aggregate="mean").error_steps] == [0, 1, 3]


def test_a_right_chain_has_no_errors_and_a_score_at_the_threshold_is_right():
    result = analyze([0.5, 1.0], ["a", "b"], threshold=0.5, aggregate="prod")
    assert (result.first_error_step, result.error_steps, result.improvements) == (-1, [], [])
    assert result.overall_score == 0.5


def test_confidence_is_that_of_the_verdict_and_not_of_the_likelier_side():
    assert verdict_confidences([0.4, 0.4], 0.3) == [0.4, 0.4]
    assert verdict_confidences([0.4], 0.5) == [0.6]


def test_long_step_is_quoted_short():
    sentence = analyze([0.0], ["x" * 500], threshold=0.5, aggregate="min").improvements[0]
    assert "x" * 79 + "…" in sentence
    assert "x" * 80 not in sentence


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"aggregate": "median"}, "unknown aggregation 'median'; known: last, mean, min, prod"),
    ],
)
def test_bad_parameters_are_named(options, reason):
    with pytest.raises(InputError, match=reason):
        analyze([0.5], ["a"], **{"threshold": 0.5, "aggregate": "min", **options})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1), st.sampled_from(["min", "prod", "mean"]))
def test_analysis_agrees_with_itself(scores, threshold, aggregate):
    result = analyze(scores, ["s"] * len(scores), threshold=threshold, aggregate=aggregate)
    below = [i for i, score in enumerate(scores) if score < threshold]
    assert [e.step_index for e in result.error_steps] == below
    assert result.first_error_step == (below[0] if below else -1)
    assert len(result.improvements) == len(below)
    assert all(0 <= value <= 1 for value in [*result.step_confidences, result.overall_score])


# Cache


TEXTS = st.text(max_size=4)
STEPS = st.lists(st.builds(Step, text=TEXTS, observation=TEXTS, agent=TEXTS), max_size=3).map(tuple)
CONTEXTS = st.tuples(TEXTS, TEXTS, STEPS)


@given(CONTEXTS, CONTEXTS)
def test_keys_are_equal_exactly_when_the_whole_context_is(one, other):
    assert (context_key(*one) == context_key(*other)) == (one == other)


def test_key_sees_the_whole_history_and_is_the_same_in_every_process():
    tail = [Step(str(i)) for i in range(10)]
    assert context_key("v", "p", [Step("a"), *tail]) != context_key("v", "p", [Step("b"), *tail])
    assert context_key("v", "ab", ()) != context_key("va", "b", ())
    # sha256sum of: ["v", "p", [["\\u00e9", "", ""]]]
    assert context_key("v", "p", [Step("é")]) == "65ab89c33d26d93c222413ca689d5d806f9932046d06595964aec98adb996a18"


def test_cache_forgets_the_old_and_the_least_recently_used():
    now = [0.0]
    cache = ScoreCache(2, 10.0, timer=lambda: now[0])
    scores = {name: ChainScore((0.5,), (0.5,), 0) for name in "abc"}
    cache.put("a", scores["a"])
    now[0] = 5.0
    cache.put("b", scores["b"])
    assert cache.get("a") == scores["a"]
    cache.put("c", scores["c"])
    assert (cache.get("b"), cache.get("a"), cache.get("c")) == (None, scores["a"], scores["c"])
    now[0] = 11.0
    assert (cache.get("a"), cache.get("c"), len(cache)) == (None, scores["c"], 1)


def test_cache_of_size_zero_keeps_nothing():
    cache = ScoreCache(0, 10.0)
    cache.put("a", ChainScore((0.5,), (0.5,), 0))
    assert cache.get("a") is None


def test_cache_survives_many_threads():
    cache = ScoreCache(8, 10.0)

    def use(thread: int) -> None:
        for i in range(300):
            cache.put(f"{i % 16}", ChainScore((float(i % 16),), (0.0,), 0))
            found = cache.get(f"{(i + thread) % 16}")
            assert found is None or found.step_scores == (float((i + thread) % 16),)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(cache) == 8


# Service


class Doubtful(FakeScorer):
    """Cannot judge what says "foreign"."""

    def _score(self, prompt, steps):
        return replace(super()._score(prompt, steps), out_of_domain="unlike" if "foreign" in steps[0].text else "")


def test_an_alarm_and_a_clean_prefix_are_said_where_they_were_fitted_and_the_model_can_judge():
    both = Promises(Alarm(0.05, 0.9, 99, 0.5), CleanPrefix(0.1, 0.9, 99, 0.5))
    asked = [request("ok", "wrong", "ok"), request("wrong"), request("ok", "ok"), request("foreign ok", "wrong")]

    def said(promises, scorer):
        service = ScoringService(scorer, ScoreCache(0, 1.0), promises)
        dumps = [one.analysis.model_dump() for one in answer(service, *asked)]
        return [(dump.get("alarm_step", "none"), dump.get("clean_prefix", "none")) for dump in dumps]

    assert said(both, Doubtful()) == [(1, 1), (0, 0), (-1, 2), ("none", "none")]
    # A scorer that cannot tell what it can judge.
    assert said(both, FakeScorer()) == [(1, 1), (0, 0), (-1, 2), (1, 1)]
    assert said(Promises(alarm=both.alarm), FakeScorer())[0] == (1, "none")
    assert said(Promises(prefix=both.prefix), FakeScorer())[0] == ("none", 1)
    assert said(Promises(), FakeScorer()) == [("none", "none")] * 4


def test_one_pass_for_all_that_is_new_and_none_for_what_is_known():
    scorer = FakeScorer()
    service = ScoringService(scorer, ScoreCache(100, 60.0))
    first = answer(service, request("ok", "wrong"), request("ok"), request("ok", "wrong"))
    assert [a.analysis.step_scores for a in first] == [[0.9, 0.1], [0.9], [0.9, 0.1]]
    assert [len(call) for call in scorer.calls] == [2]
    again = answer(service, request("ok"), request("new"), threshold=0.95)
    assert [len(call) for call in scorer.calls] == [2, 1]
    assert [a.analysis.first_error_step for a in again] == [0, 0]


def test_prompt_and_model_version_are_part_of_what_is_known():
    scorer = FakeScorer()
    cache = ScoreCache(100, 60.0)
    answer(ScoringService(scorer, cache), request("ok", prompt="p"))
    answer(ScoringService(scorer, cache), request("ok", prompt="q"))
    scorer.version = "v2"
    answer(ScoringService(scorer, cache), request("ok", prompt="p"))
    assert len(scorer.calls) == 3


def test_chain_longer_than_the_context_is_refused_or_truncated_by_choice():
    service = ScoringService(FakeScorer(), ScoreCache(100, 60.0))
    long = request("ok", "x" * CONTEXT, "ok", where="inputs[7]")
    with pytest.raises(InputError, match=r"inputs\[7\]: the chain is longer .* its last 2 of 3 steps"):
        answer(service, request("ok"), long)
    (result,) = answer(service, long, truncate=True)
    assert (result.analysis.step_scores, result.truncated_steps) == ([0.9], 2)


TURN = {"text": "I look.", "ref": "7",
        "calls": [{"name": "look", "arguments": {"q": "x"}, "result": "wrong", "id": "c"}]}
MESSAGES = [{"role": "user", "content": "p"},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "c", "function": {"name": "look", "arguments": '{"q": "x"}'}}]},
            {"role": "tool", "tool_call_id": "c", "content": "wrong"}]


def test_turns_are_scored_as_objects_and_as_messages():
    seen = {}
    for name, record in (("object", {"prompt": "p", "steps": [TURN]}), ("messages", {"messages": MESSAGES})):
        seen[name] = parse_request(record, "here")
        assert seen[name].steps[0].calls == (Call("look", '{"q": "x"}', "wrong", id="c"),)
    assert context_key("v", "p", seen["object"].steps) == context_key("v", "p", seen["messages"].steps)
    service = ScoringService(FakeScorer(), ScoreCache(100, 60.0))
    refs = [one.analysis.step_refs for one in answer(service, *seen.values(), request("ok"))]
    assert refs == [["7"], ["1"], None]
    tools = [{"type": "function", "function": {"name": "look"}}]
    offered = parse_request({"messages": MESSAGES, "tools": tools}, "here")
    assert offered.prompt == 'p\n\nTools: [{"name": "look"}]'


@pytest.mark.parametrize(("record", "reason"), [
    ({"messages": MESSAGES, "steps": ["a"]}, "`messages` beside `prompt` or `steps`"),
    ({"messages": []}, "must be a non-empty list of chat messages"),
    ({"messages": MESSAGES[:1]}, "has no turn of the assistant"),
    ({"messages": [*MESSAGES, {"role": "narrator", "content": "x"}]}, 'message 3 has the role "narrator"; known are'),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, *MESSAGES]}, "images, .* left out: 1"),
    ({"messages": [*MESSAGES, MESSAGES[2]]}, "results that answer no call, .*: 1"),
    ({"prompt": "p", "steps": ["a"], "tools": "no list"} | {"tools": [3]}, "tools is .*expected a list of function"),
    ({"prompt": "p", "steps": [{"text": "a", "calls": [{"arguments": {}}]}]}, "call 0 of step 0 has no name"),
    ({"prompt": "p", "steps": [{"text": "a", "context": [{"role": "x"}]}]}, "context 0 of step 0 has the role 'x'"),
])
def test_a_conversation_that_cannot_be_scored_whole_is_refused(record, reason):
    with pytest.raises(InputError, match=f"^here: .*{reason}|^here: {reason}"):
        parse_request(record, "here")


def test_a_step_the_encoder_refuses_is_named_with_its_request():
    service = ScoringService(FakeScorer(), ScoreCache(100, 60.0))
    with pytest.raises(InputError, match=r"^inputs\[1\]: step 1 is refused$"):
        answer(service, request("ok"), request("ok", "refuse", where="inputs[1]"))


def test_concurrent_requests_get_their_own_answers():
    service = ScoringService(FakeScorer(), ScoreCache(16, 60.0))
    start = threading.Barrier(8)

    def ask(thread: int) -> None:
        start.wait()
        for i in range(50):
            texts = ["wrong" if (i + thread) % (k + 2) == 0 else "ok" for k in range(4)]
            (result,) = answer(service, request(*texts, prompt=str(i % 20)))
            assert result.analysis.step_scores == [0.1 if text == "wrong" else 0.9 for text in texts]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_outcome_model_cannot_serve_step_scores():
    scorer = FakeScorer()
    scorer.kind = "outcome"
    with pytest.raises(InputError, match="kind 'outcome'"):
        ScoringService(scorer, ScoreCache(1, 1.0))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "p"}, "expected an object with `prompt` and `steps`"),
        ("text", "expected an object with `prompt` and `steps`"),
        ({"prompt": " ", "steps": ["a"]}, "`prompt` is empty"),
        ({"prompt": 3, "steps": ["a"]}, "`prompt` is empty or no text"),
        ({"prompt": "p", "steps": []}, "non-empty list"),
        ({"prompt": "p", "steps": "abc"}, "non-empty list"),
        ({"prompt": "p", "steps": ["a", ""]}, "step 1 is empty"),
        ({"prompt": "p", "steps": ["a", 3]}, "step 1"),
        ({"prompt": "p\ud800", "steps": ["a"]}, "no valid Unicode"),
        ({"prompt": "p", "steps": ["a", "\udfff"]}, "no valid Unicode"),
    ],
)
def test_malformed_request_is_named_in_one_line(record, reason):
    with pytest.raises(InputError, match=reason) as caught:
        parse_request(record, "f.jsonl:3")
    assert str(caught.value).startswith("f.jsonl:3: ")
    assert "\n" not in str(caught.value)


def test_request_keeps_observations():
    parsed = parse_request({"prompt": "p", "steps": ["a", {"text": "b", "observation": "o"}], "id": 1}, "x")
    assert parsed.steps == (Step("a"), Step("b", observation="o"))
