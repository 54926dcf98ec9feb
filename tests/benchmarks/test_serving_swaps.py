"""What the benchmark of swaps calls wrong and mixed, and what its clients ask."""

from __future__ import annotations

import itertools
import json

import pytest

from benchmarks.serving_swaps import SESSION_STEPS, Answer, Question, judged, questions

CHAIN = ("q", ["a", "b"])
KEY = json.dumps(CHAIN)
PLAIN = {"models:/prm/1": {KEY: [0.9, 0.8]}, "models:/prm/2": {KEY: [0.2, 0.1]}}


@pytest.mark.parametrize(("model", "scores", "wrong", "mixed"), [
    (1, [0.9, 0.8], 0, 0), (2, [0.2, 0.10001], 0, 0), (2, [0.1], 0, 0), (1, [0.2, 0.1], 1, 0), (1, [0.9, 0.1], 1, 1),
    (1, [0.9, 0.5], 1, 0), (2, [0.8], 1, 0),
])
def test_an_answer_is_held_against_the_version_it_names(model, scores, wrong, mixed) -> None:
    found = judged([Answer(f"models:/prm/{model}", Question("/", b"", [CHAIN], list), [scores])], PLAIN)
    assert (found["wrong"], found["mixed"]) == (wrong, mixed)
    assert found["told_apart"] == 1


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_what_is_read_of_an_answer_belongs_to_the_chains_that_were_asked_about(kind) -> None:
    for question in itertools.islice(questions(kind, itertools.count(), 0), SESSION_STEPS + 1):
        asked = json.loads(question.content)
        if kind == 0:
            sent = [(asked["prompt"], [*asked["steps"], asked["step"]])]
            assert question.read({"step_score": 0.5}) == [[0.5]]
        else:
            sent = [(one["prompt"], one["steps"]) for one in asked["inputs"]]
            assert question.read({"predictions": [{"step_scores": [0.5]}]}) == [[0.5]]
        assert sent == question.chains
