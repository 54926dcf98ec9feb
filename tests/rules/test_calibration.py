"""What a judge's confidence is worth: measured on marked steps, of one question and judge, applied to verdicts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from prm_core.errors import InputError
from prm_core.rules.calibration import JudgeCalibration, fit
from prm_core.rules.constitution import load
from prm_core.rules.verdicts import Judge, Overseer
from prm_core.scoring.calibration import expected_calibration_error
from prm_core.types import Step
from tests.rules.test_constitution import written

QUESTION = "Does it insult somebody?"
ASKED = f"""\
rules:
  - {{id: polite, text: No insults., severity: low, question: "{QUESTION}", calibration: polite.json}}
"""


def boasts(count: int, seed: int) -> tuple[list[float], list[bool]]:
    """A judge that is right four times out of five, and as sure as nineteen times out of twenty."""
    rng = random.Random(seed)
    broken = [rng.random() < 0.3 for _ in range(count)]
    return [0.95 if wrong == (rng.random() < 0.8) else 0.05 for wrong in broken], broken


def rules(folder: Path, made: JudgeCalibration) -> Path:
    (folder / "polite.json").write_text(made.to_json())
    return written(folder, ASKED)


def test_a_judge_that_is_too_sure_is_told_so(tmp_path) -> None:
    made = fit(*boasts(2000, 0), QUESTION, "judge-1")
    file = rules(tmp_path, made)
    said, broken = boasts(4000, 1)
    assert expected_calibration_error(said, broken, 10) > 0.1
    overseer = Overseer(load(file), judge=Judge("judge-1", lambda asked: [(one, "r") for one in said[: len(asked)]]))
    verdicts = overseer.verdicts([("q", [Step("x")])] * len(said))
    told = [one.probability for [[one]] in verdicts]
    assert expected_calibration_error(told, broken, 10) < 0.03
    assert verdicts[0][0][0].reason == "r"
    assert JudgeCalibration.load(tmp_path / "polite.json") == made


def test_it_is_of_one_judge_and_one_question(tmp_path) -> None:
    file = rules(tmp_path, fit(*boasts(100, 0), QUESTION, "judge-1"))
    with pytest.raises(InputError, match="rule polite was calibrated for the judge judge-1, and judge-2 is asked"):
        Overseer(load(file), judge=Judge("judge-2", lambda asked: []))
    version = load(file).version
    rules(tmp_path, fit(*boasts(100, 1), QUESTION, "judge-1"))
    assert load(file).version != version
    rules(tmp_path, fit(*boasts(100, 1), "Is it rude?", "judge-1"))
    with pytest.raises(InputError, match=r"rules.yaml:2: rule polite: its calibration .* of another question"):
        load(file)
    # Until it is fitted again.
    assert load(file, trained=False).rules[0].calibration_file == "polite.json"


@pytest.mark.parametrize(("text", "reason"), [
    (ASKED, "is not there; `prm rules fit` writes it"),
    (ASKED.replace(f'question: "{QUESTION}"', "predicate: text == 'x'"), "of a rule with a `question`"),
    (ASKED.replace("polite.json", "[1]"), "`calibration` is the path of a file"),
])
def test_a_rules_file_with_a_bad_calibration_is_refused(text: str, reason: str, tmp_path) -> None:
    with pytest.raises(InputError, match=reason):
        load(written(tmp_path, text))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("content", [
    b"", b"[" * 200_000, b'{"judge": "j"}', b"[]", b"null", b"3", b'"x"', b"\xff\xfe", None,
    *(json.dumps({"question": QUESTION, "judge": "j", "calibrator": {
        "method": "platt", "labels": 20, "reason": "", "knots": [], "slope": 1.0, "intercept": 0.0, **fault}}).encode()
      for fault in ({"slope": float("nan")}, {"intercept": float("inf")}, {"slope": "1"}, {"method": "guess"},
                    {"labels": -1}, {"knots": [[0, 10 ** 400]]}, {"own": 1})),
], ids=lambda content: repr(content)[-30:])
def test_a_file_that_is_none_is_refused(content: bytes | None, trained: bool, tmp_path) -> None:
    if content is None:
        (tmp_path / "polite.json").mkdir()
    else:
        (tmp_path / "polite.json").write_bytes(content)
    with pytest.raises(InputError, match=r"rules.yaml:2: rule polite: its calibration .* is none .* take it away"):
        load(written(tmp_path, ASKED), trained=trained)


def test_a_file_is_of_one_rule(tmp_path) -> None:
    other = ASKED.splitlines()[1].replace("polite,", "kind,").replace("polite.json", "./polite.json")
    with pytest.raises(InputError, match=r"rules.yaml:3: rule kind: names the file ./polite.json, which is of rule p"):
        load(written(tmp_path, f"{ASKED}{other}\n"), trained=False)


def test_a_calibration_of_another_question_is_not_gone_by_until_it_is_fitted_again(tmp_path) -> None:
    (tmp_path / "polite.json").write_text(fit(*boasts(100, 0), "Is it rude?", "judge-1").to_json())
    overseer = Overseer(load(written(tmp_path, ASKED), trained=False), judge=Judge("j", lambda asked: [(0.95, "")]))
    assert overseer.verdicts([("q", [Step("x")])])[0][0][0].probability == 0.95


@pytest.mark.parametrize("said", [[1.0] * 30, [0.0] * 30, [0.4] * 30, [0.1] * 15 + [0.9] * 15])
def test_a_judge_that_tells_nothing_is_refused(said: list[float]) -> None:
    with pytest.raises(InputError, match="the judge judge-1 is no surer of a broken rule on the steps that break it"):
        fit(said, [True] * 15 + [False] * 15, QUESTION, "judge-1")


def test_a_judge_that_is_always_right_is_believed_as_far_as_it_was_seen() -> None:
    made = fit([1.0] * 15 + [0.0] * 30, [True] * 15 + [False] * 30, QUESTION, "judge-1")
    # Platt's smoothed targets.
    assert (made.apply(1.0), made.apply(0.0)) == (pytest.approx(16 / 17, abs=1e-3), pytest.approx(1 / 32, abs=1e-3))


@pytest.mark.parametrize("broken", [[True] * 9 + [False] * 50, [False] * 9 + [True] * 50])
def test_too_few_marked_steps_are_refused(broken: list[bool]) -> None:
    with pytest.raises(InputError, match="9 marked steps"):
        fit([0.5] * len(broken), broken, QUESTION, "judge-1")
