"""Rules files: what is read, what is wrong with one by line and rule, and that shipped ones pass their own tests."""

from __future__ import annotations

import pytest

from prm_core.errors import InputError
from prm_core.rules.constitution import SHIPPED, find, load
from prm_core.rules.examples import try_examples
from prm_core.rules.verdicts import Judge
from prm_core.types import Call, Step

GOOD = """\
limits: {boxes: 3}
rules:
  - id: few-boxes
    text: No more than three boxes.
    severity: high
    predicate: name == "order" and args.boxes > limits.boxes
    right:
      - calls: [{name: order, arguments: {boxes: 3}}]
      - Done.
    wrong:
      - prompt: Order 4.
        steps:
          - Let me see.
          - calls: [{name: order, arguments: {boxes: 4}}]
"""


def written(folder, text):
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_rules_judge_their_examples_as_they_say(path):
    tried = try_examples(load(path))
    assert (list(tried.failed), list(tried.skipped)) == ([], [])


def test_a_file_is_read_whole(tmp_path):
    found = load(written(tmp_path, GOOD))
    [rule] = found.rules
    assert (rule.id, rule.text, rule.severity, rule.way) == (
        "few-boxes", "No more than three boxes.", "high", "predicate")
    assert rule.where == f"{tmp_path}/rules.yaml:3"
    assert [(one.breaks, one.prompt, len(one.steps)) for one in rule.examples] == [
        (False, "", 1), (False, "", 1), (True, "Order 4.", 2)]
    assert rule.examples[2].steps[1] == Step("", calls=(Call("order", '{"boxes": 4}'),))
    assert found.limits == {"boxes": 3}


def test_a_version_is_of_the_content(tmp_path):
    first = load(written(tmp_path, GOOD)).version
    assert load(written(tmp_path, GOOD)).version == first
    assert load(written(tmp_path, GOOD.replace("boxes: 3}\n", "boxes: 2}\n"))).version != first


@pytest.mark.parametrize(("old", "new", "faults"), [
    ("severity: high", "severity: bad", [":3: rule few-boxes: `severity` is 'bad'"]),
    ("id: few-boxes", "id: Few boxes", [":3: rules[0]: `id` is 'Few boxes'"]),
    ("text: No", "note: No", ["unknown key 'note'", "`text` is missing"]),
    ("args.boxes > limits", "args.boxes >> limits", [
        ":3: rule few-boxes: its predicate: expected a value, found '>' at character 33"]),
    ("predicate:", "predicate_:", ["must have one of predicate, classifier, question"]),
    ("    predicate:", "    question: Is it?\n    predicate:", ["must have one of"]),
    ("- Done.", "- 7", [":3: rule few-boxes: an example of `right`: must be a step"]),
    ("{name: order, arguments: {boxes: 4}}", "{arguments: {}}", [
        ":11: rule few-boxes: an example of `wrong`: its steps: call 0 of step 1 has no name"]),
    ("{boxes: 4}", "{boxes: 2026-01-01}", ["call 0 of step 1: its arguments hold what JSON has not"]),
    ("{boxes: 4}", "{boxes: .nan}", ["its arguments hold what JSON has not"]),
    ("    severity: high", "    severity: low\n    severity: high", [":6: the key 'severity' is there twice"]),
    ("limits: {boxes: 3}", "limits: [3]", [":1: `limits` must be a mapping"]),
    ("limits:", "limit:", ["unknown key 'limit'"]),
    ("rules:", "rules: [", ["not valid YAML"]),
    ("  - id: few-boxes", "  - 7\n  - id: few-boxes", ["rules[0] must be a mapping"]),
    ("limits: {boxes: 3}", "yes: 1", [":1: the key True is no text"]),
])
def test_faults_name_the_line_and_the_rule(tmp_path, old, new, faults):
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, GOOD.replace(old, new, 1)))
    for fault in faults:
        assert fault in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    rule = "  - {id: a, text: t, severity: high, predicate: '1 +'}\n"
    with pytest.raises(InputError) as caught:
        load(written(tmp_path, "rules:\n" + rule + rule.replace("high", "huge")))
    assert str(caught.value).count("its predicate") == 2
    with pytest.raises(InputError, match=r":3: rule a: is there twice"):
        load(written(tmp_path, "rules:\n" + 2 * rule.replace("1 +", "true")))


@pytest.mark.parametrize("text", ["", "rules: []", "- 1", "rules: {a: 1}"])
def test_a_file_without_rules_is_none(tmp_path, text):
    with pytest.raises(InputError, match="at least one rule"):
        load(written(tmp_path, text))


def test_rules_are_found_by_name_or_path(tmp_path):
    assert find("errands") == SHIPPED / "errands.yaml"
    written(tmp_path, GOOD)
    assert find("rules.yaml", tmp_path) == tmp_path / "rules.yaml"
    with pytest.raises(InputError, match="known: agents, errands"):
        find("nothing")
    with pytest.raises(InputError, match="no such rules file"):
        find("other.yaml", tmp_path)


def test_examples_that_are_judged_otherwise_and_rules_without_any_fail(tmp_path):
    tried = try_examples(load(written(tmp_path, GOOD.replace("boxes: 4}}", "boxes: 2}}").replace("- Done.", "- x"))))
    assert (len(tried.failed), tried.passed) == (1, 2)
    assert tried.failed[0].startswith(f"{tmp_path}/rules.yaml:11: rule few-boxes: an example of `wrong` is judged to "
                                      "have the rule kept")
    alone = GOOD[: GOOD.index("    right:")]
    assert [line.split(": ", 2)[2][:30] for line in try_examples(load(written(tmp_path, alone))).failed] == [
        "has no example under `right`; ", "has no example under `wrong`; "]


def test_rules_nobody_can_judge_here_are_skipped_and_said(tmp_path):
    asked = GOOD.replace('predicate: name == "order" and args.boxes > limits.boxes', "question: Are there too many?")
    assert "asks a judge" in try_examples(load(written(tmp_path, asked))).skipped[0]
    learned = GOOD.replace('predicate: name == "order" and args.boxes > limits.boxes', "classifier: few.json")
    assert "not trained yet" in try_examples(load(written(tmp_path, learned), trained=False)).skipped[0]
    with pytest.raises(InputError, match=r"its classifier .*few\.json is not there; `prm rules fit` writes it"):
        load(written(tmp_path, learned))
    sound = '"calibrator": {"method": "identity", "labels": 0, "reason": "", "knots": [], "slope": 1, "intercept": 0}'
    for none in ('{"bias": 0}', f'{{"bias": 0, "weights": {{"x": NaN}}, {sound}}}',
                 f'{{"bias": 1{"0" * 400}, "weights": {{}}, {sound}}}'):
        (tmp_path / "few.json").write_text(none)
        # Nor is it written over: it may be anything.
        for trained in (True, False):
            with pytest.raises(InputError, match=r"is none .* take it away"):
                load(written(tmp_path, learned), trained=trained)


def test_a_judge_answers_questions(tmp_path):
    asked = load(written(tmp_path, GOOD.replace('predicate: name == "order" and args.boxes > limits.boxes',
                                                "question: Are there too many?")))

    def ask(questions):
        return [(0.9 if "4" in repr(steps[-1]) else 0.2, "because") for question, (_, steps) in questions
                if question == "Are there too many?"]

    assert try_examples(asked, 0.5, Judge("j", ask)).passed == 3
    assert len(try_examples(asked, 0.95, Judge("j", ask)).failed) == 1
