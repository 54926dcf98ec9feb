"""Reward models and language models as judges: what they are asked, what it costs, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prm_core.errors import InputError
from prm_core.evaluation.judges.base import JUDGES, Setup
from prm_core.evaluation.judges.models import LanguageModelJudge
from prm_core.scoring.domain import moderate
from prm_core.scoring.scorer import load_scorer
from prm_core.types import Step
from tests.builders.judge_server import reply, serving, verdicts
from tests.builders.judges import case, look
from tests.builders.quality import make_config
from tests.builders.reward_models import tiny_reward_model

CASE = case([Step("3 + 4 = 7 ."), Step("The answer is 7 .")], prompt="Ann has 3 apples ?", tools="")
LONG = case([Step("3 + 4 = 7 . " * count) for count in (1, 1, 20)], prompt="Ann ?", tools="")


def setup(**settings):
    config = make_config()
    judge = replace(config.label.judge, **settings) if settings else config.label.judge
    return Setup(replace(config, label=replace(config.label, judge=judge)), lambda source: source)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {kind: str(tiny_reward_model(root / kind, kind=kind)) for kind in ("process", "outcome")}


def test_a_process_model_scores_each_step_in_one_pass(folders) -> None:
    judge, scorer = JUDGES["prm"](folders["process"], setup()), load_scorer(folders["process"])
    said = judge.judge(CASE, 0)
    assert said.scores == scorer.score([(CASE.asked, CASE.steps)])[0].step_scores
    assert said.tokens_read == len(scorer.encoder.encode(CASE.asked, CASE.steps).ids)
    assert (said.verdicts, said.tokens_written, judge.version) == ((), 0, scorer.version)
    assert said.verdicts_at(2.0) == (False, False)
    cut = judge.judge(LONG, 0)
    assert (len(cut.scores), cut.scores[2], cut.verdicts_at(0.0)) == (3, None, (True, True, None))


def test_an_outcome_model_reads_as_far_as_each_step(folders) -> None:
    judge, scorer = JUDGES["orm"](folders["outcome"], setup()), load_scorer(folders["outcome"])
    said = judge.judge(CASE, 0)
    prefixes = [(CASE.asked, CASE.steps[:1]), (CASE.asked, CASE.steps)]
    assert said.scores == tuple(one.step_scores[0] for one in scorer.score(prefixes))
    assert said.tokens_read == sum(len(scorer.encoder.encode(*prefix).ids) for prefix in prefixes)
    assert judge.judge(LONG, 0).scores[2] is None


def test_a_threshold_meets_scores_as_before_moderation(folders, monkeypatch) -> None:
    judge = JUDGES["prm"](folders["process"], setup())
    said = judge.scorer.score([(CASE.asked, CASE.steps)])[0]
    strange = replace(said, step_scores=tuple(moderate([0.9, 0.1])), out_of_domain="unlike anything")
    monkeypatch.setattr(judge.scorer, "score", lambda chains: [strange])
    assert judge.judge(CASE, 0).scores == pytest.approx((0.9, 0.1))


def test_each_kind_of_reward_model_has_its_judge(folders) -> None:
    with pytest.raises(InputError, match="is a model of kind outcome; the judge orm takes an outcome model"):
        JUDGES["prm"](folders["outcome"], setup())
    with pytest.raises(InputError, match="is a model of kind process"):
        JUDGES["orm"](folders["process"], setup())
    with pytest.raises(InputError, match="a reward model as a judge needs its name"):
        JUDGES["orm"]("", setup())


def test_a_language_model_is_asked_once_and_sees_the_tools() -> None:
    turns = case([look(), Step("They cost 4 coins.")])
    with serving(lambda body, before: reply(verdicts(True, False, confidence=0.75), 120, 30)) as server:
        judge = LanguageModelJudge("other", setup(
            model="m", endpoint=server.url, input_price=2.0, output_price=8.0, retries=0, temperature=0.0))
        said = judge.judge(turns, 0)
    assert (said.scores, said.verdicts) == ((0.75, 0.25), (True, False))
    assert said.reasons == ("because 1", "because 2")
    assert (said.tokens_read, said.tokens_written, judge.prices) == (120, 30, (2.0, 8.0))
    [body] = server.bodies
    assert body["model"] == "other"
    assert '\\"boxes\\"' in body["messages"][1]["content"]


def test_no_usable_answer_is_no_verdict() -> None:
    with serving(lambda body, before: reply("Fine!")) as server:
        judge = LanguageModelJudge("", setup(model="m", endpoint=server.url, retries=1))
        said = judge.judge(CASE, 0)
    assert (said.scores, said.verdicts) == ((None, None), (None, None))
    assert said.reasons[0].startswith("no usable answer in 2 tries")
    # Both questions were read.
    assert (said.tokens_read, said.tokens_written) == (200, 40)


def test_a_judge_that_is_none() -> None:
    with pytest.raises(InputError, match=r"unknown judge 'oracle'; known: llm, orm, prm, rules"):
        _ = JUDGES["oracle"]
    with pytest.raises(InputError, match=r"label.judge.model is empty"):
        JUDGES["llm"]("", setup(model=""))
