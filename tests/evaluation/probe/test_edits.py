"""Edits: what counts as kept or raised, exact on a scorer with a rule."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prm_core.evaluation.adversarial.gold_chains import GoldChain, judged
from prm_core.evaluation.adversarial.perturbations import FILLERS
from prm_core.evaluation.probe.edits import EVEN, edit_figures
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step
from tests.builders.scorer import FakeScorer
from tests.builders.tiny import RIGHT, mia

SOUND = judged("right", mia(), list(map(Step, RIGHT)))


class Paying(FakeScorer):
    """Scores `paid` for filler, and for other steps `others`, more or less by what their chain's text says."""

    def __init__(self, paid: float, others: float = 0.5) -> None:
        super().__init__()
        self.paid, self.others = paid, others

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        values = [tuple(self.paid if step.text in FILLERS else self.others for step in steps) for _, steps in chains]
        return [ChainScore(value, value, 0) for value in values]


@pytest.mark.parametrize(("paid", "raised"), [(0.9, 1.0), (0.5, 0.0), (0.5 + 2 * EVEN, 0.0), (0.1, 0.0)])
def test_filler_that_is_paid_raises_the_mean(paid, raised) -> None:
    figures = edit_figures(Paying(paid), [SOUND], "mean", 0)
    assert figures["probe/edits/filler/raised"] == raised
    # Two of the three harmless edits insert no filler of the list.
    assert figures["probe/edits/harmless/raised"] == pytest.approx(raised / 3)


def test_a_scorer_that_sees_no_damage_keeps_every_score() -> None:
    figures = edit_figures(Paying(0.5), [SOUND], "min", 0)
    kinds = ("number", "operator", "swap", "drop")
    tried = [kind for kind in kinds if figures[f"probe/edits/{kind}/n_chains"]]
    assert {figures[f"probe/edits/{kind}/kept"] for kind in tried} == {1.0}
    assert figures["probe/edits/damaging/kept"] == 1.0


def test_one_that_lowers_what_is_damaged_keeps_none_and_unsound_chains_are_not_damaged() -> None:
    class Strict(Paying):
        def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
            values = [tuple(0.9 if step.text in RIGHT and len(steps) == len(RIGHT) else 0.1 for step in steps)
                      for _, steps in chains]
            # Exchanged steps are damage too.
            values = [value if steps[0].text == RIGHT[0] else (0.1,) * len(value)
                      for value, (_, steps) in zip(values, chains, strict=True)]
            return [ChainScore(value, value, 0) for value in values]

    unsound = GoldChain("wrong", SOUND.prompt, SOUND.steps, 0)
    figures = edit_figures(Strict(0.1), [SOUND, unsound], "min", 0)
    assert figures["probe/edits/damaging/kept"] == 0.0
    assert figures["probe/edits/number/n_chains"] == 1
    assert figures["probe/edits/filler/n_chains"] == 2
