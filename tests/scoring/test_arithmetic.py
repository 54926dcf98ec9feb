"""A calculator's term of a step's score: verdicts, where the term goes, and what a folder may say of it."""

from __future__ import annotations

import json

import pytest
import torch

from prm_core.errors import InputError
from prm_core.platform import sums
from prm_core.scoring.arithmetic import Arithmetic, equations_hold
from prm_core.scoring.incremental.reader import IncrementalReader
from prm_core.scoring.scorer import load_scorer, save_reward_model
from prm_core.types import Step
from tests.builders.reward_models import TEXTS, tiny_reward_model

TERM = Arithmetic(-3.0, 0.5)
STEPS = (Step("3 + 4 = 7 ."), Step("3 + 4 = 8 ."), Step(TEXTS[1].replace("=", "is")))


@pytest.mark.parametrize(("text", "verdict"), [
    ("3 + 4 = 7, so she has 7.", True), ("3 + 4 = 8.", False), ("2 * 3 = 6 and 6 + 1 = 8", False),
    ("She has apples.", None), ("x + 4 = 8", None), ("", None), ("1 + 1 = 3 " * 4000, None),
])
def test_equations_hold_where_all_do_that_can_be_calculated(text: str, verdict: bool | None) -> None:
    assert equations_hold(text) is verdict


def test_terms_lie_as_logits_do() -> None:
    found = TERM.of_texts([["3 + 4 = 7", "3 + 4 = 8"], ["so"], []], torch.zeros(3, 3))
    assert found.tolist() == [[0.5, -3, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", ["process", "advantage"])
def test_the_term_moves_the_steps_logits_in_whole_chains_and_step_by_step_and_is_saved(tmp_path, kind: str) -> None:
    scorer = load_scorer(tiny_reward_model(tmp_path / "prm", kind=kind), device="cpu")
    chains = [(TEXTS[0], STEPS[:2]), (TEXTS[0], STEPS), (TEXTS[0], (STEPS[1], STEPS[1]))]
    before = [torch.tensor(score.raw_scores).logit() for score in scorer.score(chains)]
    scorer.model.arithmetic = TERM
    texts = [step.text for step in STEPS]
    terms = [torch.tensor([TERM.of_text(texts[STEPS.index(step)]) for step in steps]) for _, steps in chains]
    expected = [torch.sigmoid(logit + term) for logit, term in zip(before, terms, strict=True)]
    save_reward_model(scorer.model, scorer.encoder, scorer.calibrator, tmp_path / "saved")
    for one in (scorer, load_scorer(tmp_path / "saved", device="cpu")):
        reader = IncrementalReader(one)
        ways = (one.score(chains), [job.score for chain in chains for job in reader.score([chain])])
        for scores in ways:
            for score, wanted in zip(scores, expected, strict=True):
                assert score.raw_scores == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize("values", [
    3, {"false": -1}, {"false": "a", "true": 1}, {"false": True, "true": 1}, {"false": -1, "true": None}])
def test_a_folder_that_says_something_else_is_refused(tmp_path, values) -> None:
    folder = tiny_reward_model(tmp_path / "prm")
    config = json.loads((folder / "config.json").read_text())
    config["prm"]["arithmetic"] = values
    (folder / "config.json").write_text(json.dumps(config))
    sums.write_sums(folder)
    with pytest.raises(InputError, match=r"prm\.arithmetic must hold the numbers"):
        load_scorer(folder, device="cpu")
