"""Which figures come first, and how they are shown."""

from __future__ import annotations

from prm_core.evaluation.headline import figure_table, headline, headline_figures

TABLE = {
    "test/prm/ece": 0.012345, "test/prm/ece_low": 0.01, "test/prm/ece_high": 0.02, "test/prm/brier": 0.5,
    "test/majority/accuracy_at_2": 0.25, "test/majority/accuracy_at_4": 0.5, "test/policy_base/pass_at_1": 1,
    "test/prm/first_error_f1_left_out": "no oracle",
}


def test_headline_figures_are_rounded_named_shortly_and_none_is_made_up() -> None:
    assert headline(TABLE) == {"ece": 0.0123, "majority_at_4": 0.5, "pass_at_1": 1.0}


def test_best_of_8_is_shown_where_it_was_measured() -> None:
    wide = {f"test/majority/accuracy_at_{n}": n / 100 for n in (4, 8, 16)}
    assert headline(wide) == {"majority_at_8": 0.08}


def test_what_could_not_be_measured_says_why() -> None:
    figures = headline_figures(TABLE)
    assert [(one.key, one.reason) for one in figures if one.value is None] == [
        ("test/prm/first_error_f1", "no oracle")]
    assert figure_table(TABLE).splitlines()[2:] == [
        "| F1 of finding the first wrong step | not measured: no oracle |  |",
        "| expected calibration error of single steps | **0.0123** | 0.0100 to 0.0200 |",
        "| right answers, majority of 4 | **0.5000** |  |",
        "| right answers, one chain of the base policy | **1.0000** |  |",
    ]
    assert figure_table({}) == ""
