"""vLLM's and OpenRLHF's requests: their published shapes, and what of a text is a step."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.builders.edge import SOURCE, ask, edge, refused

BAD = [pytest.approx(0.9), pytest.approx(0.1)]
GOOD = BAD[::-1]


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(edge())


def test_classify_has_vllm_s_shape_and_the_last_probability_is_that_of_right(client) -> None:
    answer = ask(client, "/classify", {"model": "m", "input": ["q<|step|>ok<|step|>", "q<|step|>ok<|step|>wrong"]})
    assert answer.pop("id").startswith("classify-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "list", "model": SOURCE,
        "data": [{"index": 0, "label": "right", "probs": GOOD, "num_classes": 2},
                 {"index": 1, "label": "wrong", "probs": BAD, "num_classes": 2}],
        "usage": {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0, "prompt_tokens_details": None}}


def test_pooling_has_a_pair_a_step(client) -> None:
    text = "q<|step|>ok<|step|>wrong<|step|>"
    (data,) = ask(client, "/pooling", {"model": "m", "input": text, "encoding_format": "float"})["data"]
    assert data == {"index": 0, "object": "pooling", "data": [GOOD, BAD]}
    (data,) = ask(client, "/pooling", {"input": text, "task": "classify"})["data"]
    assert data["data"] == BAD


@pytest.mark.parametrize("turns", [["ok<|step|>wrong<|step|>"], ["ok", "wrong"]])
def test_a_chat_is_a_turn_a_step_or_one_turn_with_marks(client, turns) -> None:
    messages = [{"role": "user", "content": "q"}, *({"role": "assistant", "content": text} for text in turns)]
    (data,) = ask(client, "/pooling", {"messages": messages})["data"]
    assert data["data"] == [GOOD, BAD]


@pytest.mark.parametrize(("query", "prompt", "reward"), [
    ("q: ok\n\nwrong", "q: ", 0.1), ("q: ok\n\nok", "q: ", 0.9), ("q: ok<|step|>wrong\n\nok<|step|>", "q: ", 0.1),
    ("q: ", "q: ", 0.0), ("q: \n\n ", "q: ", 0.0)])
def test_a_reward_is_that_of_the_response(client, query, prompt, reward) -> None:
    answer = ask(client, "/get_reward", {"query": ["q<|step|>", query][1:], "prompts": [prompt], "labels": [None]})
    assert answer == {"rewards": [pytest.approx(reward)]}


def test_rewards_keep_their_order_around_empty_responses(client) -> None:
    queries = ["q", "q ok", "q", "q wrong"]
    assert ask(client, "/get_reward", {"query": queries, "prompts": ["q"] * 4}) == {
        "rewards": [0.0, pytest.approx(0.9), 0.0, pytest.approx(0.1)]}
    assert ask(client, "/get_reward", {"query": "q<|step|>wrong"}) == {"rewards": [pytest.approx(0.1)]}


@pytest.mark.parametrize(("path", "asked", "reason"), [
    ("/classify", {"input": "no mark"}, "put '<|step|>' after each of them"),
    ("/classify", {"input": "q<|step|>"}, "put '<|step|>' after each of them"),
    ("/classify", {"input": []}, "holds no text"), ("/classify", {}, "give either `input`"),
    ("/classify", {"input": "q<|step|>a", "messages": []}, "give either `input`"),
    ("/classify", {"input": "q<|step|>a", "use_activation": False}, "`use_activation`"),
    ("/pooling", {"input": "q<|step|>a", "truncate_prompt_tokens": 10}, "`truncate_prompt_tokens`"),
    ("/pooling", {"input": "q<|step|>a", "encoding_format": "base64"}, "`encoding_format`"),
    ("/pooling", {"inputs": "q"}, "did you mean 'input'?"), ("/pooling", {"messages": []}, "must be a non-empty list"),
    ("/get_reward", {"query": ["q"], "prompts": ["q", "r"]}, "1 `query` and 2 `prompts`"),
    ("/get_reward", {"query": ["q a"], "prompts": ["r"]}, "query[0]: does not begin with prompts[0]"),
    ("/get_reward", {"query": ["q a"]}, "put '<|step|>' after each"), ("/get_reward", {"query": []}, "holds no text"),
    ("/get_reward", {"query": ["  a"], "prompts": ["  "]}, "`prompt` is empty"),
])
def test_what_has_no_steps_or_is_asked_otherwise_is_refused(client, path, asked, reason) -> None:
    assert reason in refused(client, path, asked)
