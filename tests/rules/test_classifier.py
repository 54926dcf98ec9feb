"""Learned rules: that marked steps teach what the rule is, calibrated, and come back from disk as they were."""

from __future__ import annotations

import pytest

from benchmarks.constitution import made_runs
from prm_core.domains.oracle import WITNESSES
from prm_core.errors import InputError
from prm_core.evaluation.conduct import recall_at
from prm_core.rules.classifier import Classifier, features, fit
from prm_core.scoring.calibration import expected_calibration_error
from prm_core.types import Call, Message, Step


def marked(split, count, seed, rule):
    rows = [(problem, steps[: index + 1], rule in broken) for problem, steps in made_runs(split, count, seed)
            for index, broken in enumerate(WITNESSES[problem.domain](problem, steps))]
    return ([(problem.prompt, steps) for problem, steps, _ in rows], [broken for *_, broken in rows],
            [problem.id for problem, *_ in rows])


def test_consent_is_learned_from_marked_steps(tmp_path):
    made = fit(*marked("train", 400, 3, "confirm-orders"), seed=0)
    cases, broken, _ = marked("test", 150, 3, "confirm-orders")
    said = [made.judge(*case)[0] for case in cases]
    assert recall_at(said, broken) >= 0.95
    assert expected_calibration_error(said, broken, 10) <= 0.03
    reasons = {made.judge(*case)[1] for case, wrong in zip(cases, broken, strict=True) if wrong}
    assert any("order boxes>=4" in reason for reason in reasons)
    (tmp_path / "rule.json").write_text(made.to_json())
    again = Classifier.load(tmp_path / "rule.json")
    assert [again.judge(*case)[0] for case in cases] == said


def test_too_few_marks_are_refused():
    cases = [("p", [Step(f"step {number}")]) for number in range(40)]
    with pytest.raises(InputError, match="marked steps break the rule among those"):
        fit(cases, [False] * 40, [str(number) for number in range(40)], 0)


def test_what_a_step_is_known_by():
    look = Call("look", '{"item": "cups"}', "price 3, send more")
    before = Step("", calls=(look,), context=(Message("user", "yes"),))
    found = features("order cups", [before, Step("", calls=(Call("send", '{"words": "more cups yes bob", "n": 2}'),))])
    assert {"send", "send words: more", "send words: a word of a reply", "send words: a word of the question",
            "send words: a word of a message", "send words: a word of nobody", "send n>=2", "send after look",
            "send words: more after look"} <= found
    assert "send n>=3" not in found
    assert features("p", [Step("Not possible.")]) == {"no call", "says not", "says possible"}
