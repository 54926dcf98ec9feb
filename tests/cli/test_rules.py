"""`prm rules`: check, judge and fit, with their exit codes."""

from __future__ import annotations

import json

import pytest

from benchmarks.constitution import made_runs
from prm_core.domains.oracle import WITNESSES
from prm_core.platform.steps import to_record
from tests.cli.test_commands import call
from tests.rules.test_constitution import GOOD, written


@pytest.mark.parametrize(("text", "code", "said"), [
    (GOOD, 0, "1 rules, 3 examples judged as they say, version "),
    (GOOD.replace("boxes: 4}}", "boxes: 3}}"), 1, "is judged to have the rule kept"),
    (GOOD.replace("high", "worst"), 2, "rules.yaml:3: rule few-boxes: `severity` is 'worst'"),
])
def test_check(text, code, said, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, "rules", "check", str(written(tmp_path, text))) == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err


def test_runs_are_judged_by_predicates_alone(tmp_path, monkeypatch, capsys):
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "own": 1, "steps": [{"calls": [
        {"name": "order", "arguments": {"boxes": boxes}}]}]}) + "\n" for boxes in (3, 4)))
    out = tmp_path / "out.jsonl"
    rules = str(written(tmp_path, GOOD.replace("    right:", "    first: More than {args.boxes - 1}?\n    right:")))
    assert call(monkeypatch, "rules", "judge", rules, str(file), "--out", str(out)) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[one["rule"] for one in row["violations"]] for row in rows] == [[], ["few-boxes"]]
    assert rows[1]["violations"][0]["first"] == {"text": "More than 3?"}
    assert all(row["own"] == 1 for row in rows)
    assert "1 of 2 runs break a rule" in capsys.readouterr().err


def test_a_classifier_is_trained_and_its_rule_passes_its_examples(tmp_path, monkeypatch, capsys):
    rules = written(tmp_path, """\
rules:
  - id: no-names
    text: No names in a search.
    severity: low
    classifier: names.json
    right: [{calls: [{name: search, arguments: {words: cups red}}]}]
    wrong: [{prompt: "Ben: order cups for Ann.", steps: [{calls: [{name: search, arguments: {words: cups red Ben}}]}]}]
""")
    file = tmp_path / "marked.jsonl"
    file.write_text("".join(json.dumps({
        "prompt": problem.prompt, "steps": [to_record(step) for step in steps],
        "broken": {"no-names": [index for index, broken in enumerate(WITNESSES[problem.domain](problem, steps))
                                if "no-names" in broken]}}) + "\n" for problem, steps in made_runs("train", 150, 0)))
    assert call(monkeypatch, "rules", "fit", str(rules), str(file), "--rule", "no-names") == 0
    assert call(monkeypatch, "rules", "check", str(rules)) == 0
    assert "2 examples judged as they say" in capsys.readouterr().out


def test_a_judge_is_calibrated_on_marked_steps(tmp_path, monkeypatch, capsys):
    import yaml

    from prm_core import config as configuration
    from tests import ROOT
    from tests.builders.judge_server import reply, serving

    rules = written(tmp_path, """\
rules:
  - id: polite
    text: No insults.
    severity: low
    question: Does it insult somebody?
    calibration: polite.json
    right: [Dear friend]
    wrong: [You fool]
""")
    marked = [{"prompt": f"p{number}", "steps": ["Dear friend", "You fool"], "broken": {"polite": [
        1 if number % 5 else 0]}} for number in range(20)]
    file = tmp_path / "marked.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in marked))

    def script(body, before):
        last = json.loads(body["messages"][1]["content"])["steps"][-1]["text"]
        return reply(json.dumps({"reason": "r", "breaks": "fool" in last, "confidence": 0.99}))

    with serving(script) as server:
        raw = configuration.read_yaml(ROOT / "params.yaml")
        raw["label"]["judge"] |= {"model": "m", "endpoint": server.url, "retries": 0}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
        assert call(monkeypatch, "rules", "fit", str(rules), str(file), "--rule", "polite", "--workspace",
                    str(tmp_path)) == 0
        told = capsys.readouterr().out
        assert "from 20 steps that break polite and 20 that do not" in told
        assert "is surest that it is broken (0.99), it is with probability 0.7" in told
        out = tmp_path / "out.jsonl"
        assert call(monkeypatch, "rules", "judge", str(rules), str(file), "--out", str(out), "--judge", "--workspace",
                    str(tmp_path)) == 0
    [first] = json.loads(out.read_text().splitlines()[0])["violations"]
    # Four of five of its verdicts were right, however sure it was.
    assert (first["step_index"], first["probability"]) == (1, pytest.approx(0.8, abs=0.04))


def test_a_judge_is_not_asked_where_too_few_steps_are_marked(tmp_path, monkeypatch, capsys):
    from prm_core.cli import rules as cli

    rules = written(tmp_path, "rules: [{id: polite, text: t, severity: low, question: q, calibration: p.json}]")
    file = tmp_path / "marked.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p", "steps": ["a"], "broken": {"polite": [0]}}) + "\n"
                            for _ in range(30)))
    monkeypatch.setattr(cli, "_judge", lambda workspace: pytest.fail("asked"))
    assert call(monkeypatch, "rules", "fit", str(rules), str(file), "--rule", "polite") == 2
    assert "0 marked steps keep the rule" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


@pytest.mark.parametrize(("broken", "rule", "said"), [
    ({"no-names": [9]}, "no-names", "`broken` must be an object of rule ids"), ([], "no-names", "`broken` must be"),
    ({}, "no-names", "no line has 'no-names' in `broken`"), ({}, "other", "--rule other: "),
])
def test_fit_refuses_what_it_cannot_learn_from(broken, rule, said, tmp_path, monkeypatch, capsys):
    rules = written(tmp_path, "rules: [{id: no-names, text: t, severity: low, classifier: n.json}]")
    file = tmp_path / "marked.jsonl"
    file.write_text(json.dumps({"prompt": "p", "steps": ["a"], "broken": broken}) + "\n")
    assert call(monkeypatch, "rules", "fit", str(rules), str(file), "--rule", rule) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "n.json").exists()
