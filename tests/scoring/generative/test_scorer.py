"""A verifier's scores: the mean of its verdicts, the same whatever is scored beside; its folder; what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import sums
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.conformal import Promises
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.generative.checks import execute, verdict_turn
from prm_core.scoring.generative.scorer import (
    GenerativeScorer,
    Writing,
    load_generative,
    save_generative,
    verdict_tokens,
)
from prm_core.scoring.scorer import load_scorer
from prm_core.serving.cache import ScoreCache
from prm_core.serving.service import ScoringRequest, ScoringService
from prm_core.types import Step
from tests.builders import tiny

STEPS = tuple(map(Step, tiny.WRONG))
OTHER = tuple(map(Step, tiny.RIGHT))
PROMPT = tiny.mia().prompt
CALIBRATOR = Calibrator("platt", 9, slope=0.5, intercept=0.1)


def make_scorer(max_length: int = tiny.MAX_LENGTH, **writing) -> GenerativeScorer:
    encoder = tiny.make_encoder(max_length)
    return GenerativeScorer(tiny.make_model(encoder), encoder, CALIBRATOR, "v", 2,
                            Writing(**{"votes": 3, "temperature": 1.0, "max_new_tokens": 6, **writing}))


def test_a_score_is_the_mean_of_the_verdicts_on_its_checks() -> None:
    scorer = make_scorer()
    [checks] = scorer.checks_of([(PROMPT, STEPS)])
    assert [len(found) for found in checks] == [3, 3, 3]
    [score] = scorer.score([(PROMPT, STEPS)])
    for index, found in enumerate(checks):
        said = []
        for check in found:
            assert check.says is None, "a random model calculates nothing"
            turns = (*STEPS[: index + 1], check.turn, verdict_turn(True))
            ids = scorer.encoder.encode(PROMPT, turns).ids
            with torch.inference_mode():
                # The verdict and the boundary behind it come last.
                logits = scorer.model(input_ids=torch.tensor([ids[:-2]])).logits[0, -1]
            right, wrong = (scorer.encoder.encode(PROMPT, [verdict_turn(verdict)]).ids[-2] for verdict in (True, False))
            said.append(torch.sigmoid(logits[right] - logits[wrong]).item())
        assert score.raw_scores[index] == pytest.approx(sum(said) / 3, abs=1e-5)
    assert score.step_scores == tuple(CALIBRATOR.apply(list(score.raw_scores)).tolist())
    assert (score.truncated_steps, score.out_of_domain) == (0, None)


def test_a_chain_scores_the_same_alone_and_beside_others() -> None:
    scorer = make_scorer()
    [alone] = scorer.score([(PROMPT, STEPS)])
    before = (*OTHER[:1], *STEPS)
    beside = scorer.score([("What is 1 + 1?", OTHER), (PROMPT, before), (PROMPT, STEPS), (PROMPT, STEPS[:2])])
    assert beside[2].raw_scores == pytest.approx(alone.raw_scores, abs=1e-5)
    # What comes later changes nothing.
    assert beside[3].raw_scores == pytest.approx(alone.raw_scores[:2], abs=1e-5)
    assert scorer.score([]) == []
    assert scorer.score([(PROMPT, ())])[0].step_scores == ()


def test_a_check_is_written_without_a_look_at_the_step() -> None:
    scorer = make_scorer(votes=2)
    [[_, one]], [[_, other]] = (scorer.checks_of([(PROMPT, (STEPS[0], last))]) for last in (STEPS[1], OTHER[2]))
    assert [check.step for check in one] == [check.step for check in other]


def test_what_is_written_is_executed(monkeypatch) -> None:
    scorer = make_scorer(votes=1)
    monkeypatch.setattr(scorer, "_write", lambda encoded: [[["We have 3 + 4 = 9."]] * len(STEPS)])
    assert scorer.checks_of([(PROMPT, STEPS)]) == [[[execute("We have 3 + 4 = 9.", step.text)] for step in STEPS]]
    assert scorer.checks_of([(PROMPT, STEPS)])[0][0][0].reply == "7 , 8 -"
    # The tool's verdicts are the scores: 7 is neither 8 nor 6, and no answer.
    assert scorer.score([(PROMPT, STEPS)])[0].raw_scores == (0.0, 0.0, 0.0)
    monkeypatch.setattr(scorer, "_write", lambda encoded: [[["3 + 4 = 9.", "9 - 1 = 9."]] * len(STEPS)])
    assert scorer.score([(PROMPT, STEPS)])[0].raw_scores == (0.5, 0.0, 0.0)


def test_steps_whose_verdict_does_not_fit_have_no_score() -> None:
    scorer = make_scorer()
    [checks] = scorer.checks_of([(PROMPT, STEPS)])
    chain = scorer.encoder.encode(PROMPT, STEPS)
    longest = [max(len(scorer.encoder.encode(PROMPT, (*STEPS[: index + 1], check.turn, verdict_turn(True))).ids)
                   for check in found) for index, found in enumerate(checks)]
    assert len(chain.ids) < longest[0] < longest[1]
    [score] = make_scorer(max_length=longest[0]).score([(PROMPT, STEPS)])
    assert (len(score.step_scores), score.truncated_steps) == (1, 2)
    [nothing] = make_scorer(max_length=16).score([(PROMPT, STEPS)])
    assert (nothing.step_scores, nothing.truncated_steps) == ((), 3)


def test_a_folder_is_the_scorer(tmp_path) -> None:
    scorer = make_scorer()
    expected = scorer.score([(PROMPT, STEPS)])
    save_generative(scorer, tmp_path / "verifier")
    loaded = load_any_scorer(tmp_path / "verifier", device="cpu")
    assert isinstance(loaded, GenerativeScorer)
    assert (loaded.kind, loaded.writing, loaded.encoder.config) == ("process", scorer.writing, scorer.encoder.config)
    assert loaded.score([(PROMPT, STEPS)])[0].step_scores == pytest.approx(expected[0].step_scores, abs=1e-5)
    service = ScoringService(loaded, ScoreCache(0, 1.0), Promises.load(tmp_path / "verifier"))
    [answer] = service.answer([ScoringRequest("here", PROMPT, STEPS)], threshold=0.5, aggregate="min", truncate=False)
    assert answer.analysis.step_scores == pytest.approx(expected[0].step_scores, abs=1e-5)
    # More votes are another model.
    file = tmp_path / "verifier/config.json"
    settings = json.loads(file.read_text())
    settings["prm"]["writing"]["votes"] = 4
    file.write_text(json.dumps(settings))
    sums.write_sums(tmp_path / "verifier")
    more = load_any_scorer(tmp_path / "verifier", device="cpu")
    assert more.version != loaded.version
    with pytest.raises(InputError, match="a reward model of kind 'generative', where one of kind"):
        load_scorer(tmp_path / "verifier", device="cpu")


@pytest.mark.parametrize("writing", [None, {"votes": 0, "temperature": 1.0, "max_new_tokens": 6}, {"votes": 3},
                                     {"votes": 3, "temperature": "hot", "max_new_tokens": 6}])
def test_a_folder_that_does_not_say_how_it_writes_is_refused(tmp_path, writing) -> None:
    save_generative(make_scorer(), tmp_path / "verifier")
    file = tmp_path / "verifier/config.json"
    settings = json.loads(file.read_text())
    settings["prm"]["writing"] = writing
    file.write_text(json.dumps(settings))
    sums.write_sums(tmp_path / "verifier")
    with pytest.raises(InputError, match=r"prm\.writing must hold votes and max_new_tokens of 1 or more"):
        load_generative(tmp_path / "verifier", device="cpu")


def test_a_verdict_is_one_token() -> None:
    encoder = tiny.make_encoder()
    opening, (right, wrong) = verdict_tokens(encoder)
    assert encoder.turn([*opening, right]) == verdict_turn(True)
    assert encoder.turn([*opening, wrong]) == verdict_turn(False)
    # " +" is a word of this one, "-" is spelled.
    lopsided = Encoder(train_tokenizer(["3 + 4"]), EncoderConfig(max_length=64))
    with pytest.raises(InputError, match="no single token for each of the verdicts"):
        verdict_tokens(lopsided)
