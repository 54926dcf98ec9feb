"""Figures of a labelling run."""

from __future__ import annotations

from prm_core.labeling.merging.error_estimate import LabelError
from prm_core.labeling.merging.merge import Merged
from prm_core.labeling.summary import summarise
from tests.builders.quality import label


def test_the_merge_says_how_wrong_it_is_where_it_knows():
    rows = [label("a", 0), label("a", 1, None, 0.0)]
    silent = summarise([], Merged(rows), {})
    assert (silent["train/merged/steps"], silent["train/merged/coverage"]) == (2, 0.5)
    assert not any("label_error" in name for name in silent)
    error = LabelError(40, 0.05, 0.01, 0.125)
    assert summarise([], Merged(rows, error=error), {}) == silent | {
        "train/merged/label_error": 0.05, "train/merged/label_error_low": 0.01, "train/merged/label_error_high": 0.125}
    assert str(error) == ("of the policy's 40 chains 5.0% have another first error than their labels say "
                          "(95 % interval 1.0% to 12.5%), by the merge's own estimate")
