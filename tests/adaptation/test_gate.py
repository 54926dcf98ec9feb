"""What refuses a challenger."""

from __future__ import annotations

from typing import Any

import pytest

from prm_core.adaptation.gate import faults
from tests.builders.quality import make_config


def gain(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


GOOD: dict[str, Any] = {
    "new/labels": 50, "new/gain": gain(0.02, -0.01, 0.05), "new/challenger/ece": gain(0.2, 0.05, 0.4),
    "new/outcomes": 100, "new/outcome_gain": gain(0.0, -0.1, 0.1),
    "old/f1_gain": gain(-0.004, -0.01, 0.002), "old/challenger/ece": gain(0.01),
    "champion/probe/suffix/passed": 0.25, "challenger/probe/suffix/passed": 0.375,
    "probe/suffix_rise": gain(0.125, 0.03, 0.2), "old/evaluated_f1": gain(0.98), "old/best": 0.985,
}


def test_one_that_is_better_on_the_new_and_no_worse_elsewhere_passes() -> None:
    assert faults(GOOD, make_config()) == []


@pytest.mark.parametrize(("figure", "value", "reason"), [
    ("new/gain", gain(0.0), "not better on served traffic"),
    ("new/gain", gain(None), "was judged by people"),
    ("new/gain", gain(-0.02, -0.03, -0.01), "worse on served traffic"),
    ("new/outcome_gain", gain(-0.05, -0.1, -0.01), "worse at saying how served trajectories end"),
    # Beyond the interval, and beyond what is let pass whatever the interval.
    ("old/f1_gain", gain(-0.003, -0.005, -0.001), "worse on the evaluation's chains"),
    ("old/f1_gain", gain(-0.011, -0.05, 0.02), "worse on the evaluation's chains"),
    ("old/f1_gain", gain(None), "not defined"),
    ("old/challenger/ece", gain(0.2, 0.15, 0.3), "not calibrated on the evaluation's chains"),
    ("new/challenger/ece", gain(0.2, 0.15, 0.3), "not calibrated on served traffic"),
    # Rounds that each lose what chance may have taken.
    ("old/best", 0.991, "below 0.9910, the best of the versions that it goes back to"),
    ("probe/suffix_rise", gain(0.2, 0.01, 0.4), "easier to hack"),
])
def test_each_fault_refuses(figure: str, value: Any, reason: str) -> None:
    assert any(reason in found for found in faults({**GOOD, figure: value}, make_config()))


def test_a_rise_that_chance_makes_as_well_does_not_refuse() -> None:
    assert faults({**GOOD, "probe/suffix_rise": gain(0.25, 0.0, 0.5)}, make_config()) == []


def test_a_round_that_an_older_version_measured_is_refused_as_it_was() -> None:
    older = {key: value for key, value in GOOD.items() if key != "probe/suffix_rise"}
    assert faults(older, make_config()) == []
    (found,) = faults({**older, "challenger/probe/suffix/passed": 0.5}, make_config())
    assert found == ("it is easier to hack: 0.50 of wrong chains pass with a suffix, 0.25 of the champion's "
                     "(adapt.max_suffix_rise 0.125)")


def test_without_a_wrong_chain_to_try_the_probe_says_nothing() -> None:
    untried = {key: value for key, value in GOOD.items() if "suffix" not in key}
    assert faults(untried, make_config()) == []
    assert faults({**untried, "champion/probe/suffix/passed_left_out": "none", "champion/probe/suffix/n_chains": 0},
                  make_config()) == []


def test_outcomes_may_say_that_it_is_better_where_verdicts_say_little() -> None:
    little = {**GOOD, "new/gain": gain(-0.01, -0.05, 0.03)}
    assert faults(little, make_config())
    assert faults({**little, "new/outcome_gain": gain(0.02, 0.001, 0.04)}, make_config()) == []


def test_one_that_leaves_data_out_need_not_be_better() -> None:
    assert faults({**GOOD, "new/gain": gain(-0.01, -0.03, 0.01)}, make_config(), retrain=True) == []
    (found,) = faults({**GOOD, "new/gain": gain(-0.02, -0.03, -0.01)}, make_config(), retrain=True)
    assert "worse on served traffic" in found


def test_where_nobody_judges_steps_answers_are_compared() -> None:
    told = {key: value for key, value in GOOD.items() if not key.startswith("old/")}
    told["old/best"], told["old/challenger/outcome_auroc"] = 0.8, gain(0.795)
    assert faults({**told, "old/outcome_auroc_gain": gain(0.01, -0.02, 0.03)}, make_config()) == []
    (found,) = faults({**told, "old/outcome_auroc_gain": gain(0.01, -0.02, 0.03), "old/best": 0.806}, make_config())
    assert "0.7950, is below 0.8060" in found
    (found,) = faults({**told, "old/outcome_auroc_gain": gain(-0.05, -0.08, -0.02)}, make_config())
    assert "AUROC of right answers" in found
