"""Chains of known first error, from labelled ones."""

from __future__ import annotations

from prm_core.evaluation.adversarial.gold_chains import from_labelled, judged_or_answered
from prm_core.formats import LabelledChain
from prm_core.types import Problem, Step
from tests.builders.tiny import RIGHT, WRONG, mia


def test_a_model_reads_the_tools_that_were_offered() -> None:
    steps = (Step("a"), Step("b"))
    found = from_labelled([LabelledChain("Q?", steps, (1.0, 0.0), tools='[{"name": "look"}]'),
                           LabelledChain("Q?", steps, (None, 0.0)), LabelledChain("Q?", steps, (1.0, 1.0))], "f")
    assert [(one.name, one.prompt, one.first_error) for one in found] == [
        ("f/0", 'Q?\n\nTools: [{"name": "look"}]', 1), ("f/2", "Q?", -1)]


def test_where_a_chain_goes_wrong_is_the_oracle_s_word_or_its_answer_s() -> None:
    wrong, right = tuple(map(Step, WRONG)), tuple(map(Step, RIGHT))
    assert judged_or_answered("a", mia(), wrong, False).first_error == 0
    own = Problem("p0", "general", "?", "5")
    assert judged_or_answered("b", own, wrong, False).first_error == 2
    assert judged_or_answered("c", own, right, True).sound
