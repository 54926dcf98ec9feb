"""Chains of known first error, from labelled ones."""

from __future__ import annotations

from prm_core.evaluation.adversarial.gold_chains import from_labelled
from prm_core.formats import LabelledChain
from prm_core.types import Step


def test_a_model_reads_the_tools_that_were_offered() -> None:
    steps = (Step("a"), Step("b"))
    found = from_labelled([LabelledChain("Q?", steps, (1.0, 0.0), tools='[{"name": "look"}]'),
                           LabelledChain("Q?", steps, (None, 0.0)), LabelledChain("Q?", steps, (1.0, 1.0))], "f")
    assert [(one.name, one.prompt, one.first_error) for one in found] == [
        ("f/0", 'Q?\n\nTools: [{"name": "look"}]', 1), ("f/2", "Q?", -1)]
