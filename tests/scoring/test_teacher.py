"""What a teacher teaches: soft scores up to the first step it calls wrong, and nothing of what it cannot judge."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prm_core.errors import InputError
from prm_core.scoring.scorer import ChainScore
from prm_core.scoring.teacher import BEHIND, check_teacher, teach
from prm_core.types import Step

STEPS = tuple(map(Step, ("one", "two", "three")))


class Said:
    """A teacher with given scores."""

    kind = "process"

    def __init__(self, *said: ChainScore) -> None:
        self.said = said

    def score(self, chains):
        assert len(chains) == len(self.said)
        return list(self.said)


def lesson(*scores: float, truncated: int = 0, doubt: str | None = None):
    [found] = teach(Said(ChainScore(scores, scores, truncated, out_of_domain=doubt)), [("Why?", STEPS)])
    return found


def test_scores_are_targets_as_they_are() -> None:
    assert lesson(0.9, 0.5, 0.51).targets == (0.9, 0.5, 0.51)
    assert lesson(0.9, 0.5, 0.51).reasons == ("", "", "")


def test_nothing_is_taught_behind_the_first_wrong_step() -> None:
    found = lesson(0.9, 0.2, 0.8)
    assert found.targets == (0.9, 0.2, None)
    assert found.reasons == ("", "", BEHIND)


def test_what_does_not_fit_or_cannot_be_judged_has_no_target() -> None:
    found = lesson(0.9, 0.8, truncated=1)
    assert found.targets == (0.9, 0.8, None)
    assert found.reasons[2] == "the step does not fit the teacher's context"
    strange = lesson(0.9, 0.8, 0.7, doubt="it is Greek")
    assert strange.targets == (None, None, None)
    assert set(strange.reasons) == {"the teacher cannot judge the chain: it is Greek"}
    # A model that does not know its domain says "" or None.
    assert lesson(0.9, 0.8, 0.7, doubt="").targets == (0.9, 0.8, 0.7)


@pytest.mark.parametrize("kind", ["outcome", "advantage"])
def test_a_teacher_scores_steps(kind) -> None:
    with pytest.raises(InputError, match=f"teacher big: a reward model of kind '{kind}' does not say how likely each"):
        check_teacher(SimpleNamespace(kind=kind), "big")
    check_teacher(Said(), "big")
