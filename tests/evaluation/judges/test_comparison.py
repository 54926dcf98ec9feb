"""Figures, agreement, paired differences and losses on four small trajectories, computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.evaluation.judges.base import judge_all
from prm_core.evaluation.judges.comparison import (
    ALWAYS_RIGHT,
    GUESS,
    agreement,
    compare,
    judge_cases,
    kinds_of,
    krippendorff,
    quantile,
)
from prm_core.types import Call, Step
from tests.builders.judges import GivenJudge, case, look

SAY = Step("So.")
CASES = [
    case([look(), look(), SAY], (True, False, None), id="a", problem="p1"),
    case([look(), SAY], (True, True), id="b", problem="p1"),
    case([SAY], (False,), id="c", problem="p2"),
    case([look(), Step("", agent="worker", calls=(Call("buy"), Call("look"))), SAY], id="d", problem="p2"),
]
SCORES = {"a": [(0.9, 0.2, 0.9)], "b": [(0.9, 0.9)], "c": [(0.8,)], "d": [(0.9, 0.4, 0.9)]}
VERDICTS = {"a": [(True, None, True)], "b": [(None, None)], "c": [(False,)], "d": [(True, True, True)]}


def compared(repeats=1, said=VERDICTS, **more):
    judges = {"prm": GivenJudge(SCORES, tokens=(10, 0)), "llm": GivenJudge(said, decides=True, **more)}
    judged = judge_cases(judges, CASES, [], dev_name="", threshold=0.5, repeats=repeats, seed=0)
    return compare(CASES, judged, 200, 0)


def values(table):
    return {name: estimate["value"] for name, estimate in table.items()}


def test_figures_by_hand() -> None:
    found = compared()
    assert {name: found[name] for name in ("trajectories", "problems", "judged_steps", "wrong_steps", "first")} == {
        "trajectories": 4, "problems": 2, "judged_steps": 8, "wrong_steps": 2, "first": "prm"}
    assert values(found["judges"]["prm"]["figures"]) == pytest.approx({
        "step_accuracy": 6 / 8, "balanced_accuracy": (5 / 6 + 1 / 2) / 2, "judged": 1, "first_error_accuracy": 1 / 2,
        "first_error_f1": 1 / 2})
    # A step without a verdict is a miss, and so is the first error of the trajectory without any.
    assert values(found["judges"]["llm"]["figures"]) == pytest.approx({
        "step_accuracy": 5 / 8, "balanced_accuracy": (4 / 6 + 1 / 2) / 2, "judged": 5 / 8,
        "first_error_accuracy": 1 / 2, "first_error_f1": 1 / 2})
    assert values(found["floors"][ALWAYS_RIGHT])["step_accuracy"] == 6 / 8
    assert values(found["floors"][ALWAYS_RIGHT])["balanced_accuracy"] == 1 / 2
    assert values(found["floors"][GUESS])["first_error_accuracy"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1 / 4) / 4)


def test_differences_are_paired() -> None:
    minus = compared()["judges"]["llm"]["minus_first"]
    assert values(minus) == pytest.approx({"step_accuracy": -1 / 8, "balanced_accuracy": -1 / 12,
                                           "first_error_accuracy": 0, "first_error_f1": 0})
    # Of resampled problems the differences are 1 - 4 steps of 4 twice, 4 - 2 of 4 twice, or the mean: p1 twice is
    # -3/4, p2 twice is +2/4.
    assert (minus["step_accuracy"]["low"], minus["step_accuracy"]["high"]) == (-3 / 4, 1 / 2)
    same = compared(said={name: [tuple(score >= 0.5 for score in row[0])] for name, row in SCORES.items()})
    for estimate in same["judges"]["llm"]["minus_first"].values():
        assert estimate == {"value": 0, "low": 0, "high": 0}


def test_where_the_first_loses() -> None:
    lost = compared()["judges"]["llm"]["first_loses"]
    assert {name: lost[name] for name in ("lost", "won", "both_wrong", "steps")} == {
        "lost": 2, "won": 3, "both_wrong": 0, "steps": 8}
    assert lost["by_kind"]["tool"] == {"buy + look": {"lost": 1, "won": 0, "steps": 1},
                                       "no call": {"lost": 1, "won": 1, "steps": 3},
                                       "look": {"lost": 0, "won": 2, "steps": 4}}
    assert lost["by_kind"]["agent"] == {"worker": {"lost": 1, "won": 0, "steps": 1}}
    assert sum(one["steps"] for one in lost["by_kind"]["position"].values()) == 8
    # The surest first.
    assert [(one["trajectory"], one["step"], one["gold"], one["score"], one["other_reason"]) for one in lost["worst"]
            ] == [("c", 0, False, 0.8, "because"), ("d", 1, True, 0.4, "because")]


def test_agreement_over_repeats() -> None:
    two = {**VERDICTS, "c": [(False,), (True,)], "d": [(True, True, True), (True, True, None)]}
    found = compared(repeats=2, said=two)["judges"]
    assert found["prm"]["agreement"] == {"kept": 1, "alpha": 1}
    # Of nine steps one turns round and one loses its verdict. Coincidences: a 2 + 2, d 2 + 2 of right with right, c one
    # of each unlike pair; 9 right and 1 wrong values, 2 unlike: 1 - 2 * 9 / (2 * 9 * 1).
    assert found["llm"]["agreement"] == {"kept": 7 / 9, "alpha": pytest.approx(0)}
    assert compared()["judges"]["llm"]["agreement"] == {"kept": None, "alpha": None}
    assert agreement(CASES[:1], [[(True, True, True)]] * 3) == {"kept": 1, "alpha": None}


def test_krippendorff_of_the_textbook() -> None:
    # Krippendorff 2011, "Computing Krippendorff's alpha-reliability", A: two observers, ten units, 0.095.
    one, other = "0100000000", "1110010010"
    units = [(a == "1", b == "1") for a, b in zip(one, other, strict=True)]
    assert krippendorff(units) == pytest.approx(0.095, abs=5e-4)
    # A unit with one value has nothing to be compared with.
    assert krippendorff([*units, (True, None)]) == krippendorff(units)


@given(st.lists(st.lists(st.sampled_from([True, False, None]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_alpha_is_at_most_one_and_does_not_see_who_said_what(units) -> None:
    alpha = krippendorff(units)
    assert alpha is None or alpha <= 1 + 1e-12
    turned = krippendorff([[None if value is None else not value for value in unit[::-1]] for unit in units])
    assert turned == (None if alpha is None else pytest.approx(alpha))


def test_expense() -> None:
    found = compared(repeats=3, tokens=(1000, 50), prices=(2.0, 8.0))["judges"]
    assert values(found["llm"]["cost"]) == pytest.approx({
        "tokens_read": 1000, "tokens_written": 50, "price": (1000 * 2 + 50 * 8) / 1e6})
    assert values(found["prm"]["cost"]) == {"tokens_read": 10, "tokens_written": 0, "price": 0}
    times = found["llm"]["latency"]
    assert 0 < times["median"]["value"] <= times["p95"]["value"]


def test_a_trajectory_has_its_own_time() -> None:
    ticks = iter([0, 1, 10, 13, 20, 20.5, 30, 34])
    said = judge_all(GivenJudge(VERDICTS, decides=True), "llm", CASES, 0, clock=lambda: next(ticks))
    assert [one.seconds for one in said] == [1, 3, 0.5, 4]


def test_quantiles_weigh_problems() -> None:
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    middle = quantile([5, 1, 9, 2], [0, 0, 1, 1], 0.5)
    assert middle(weights).tolist() == [2, 1, 2]
    assert quantile([5, 1, 9, 2], [0, 0, 1, 1], 0.95)(weights).tolist() == [9, 5, 9]


def test_thresholds_are_chosen_on_other_trajectories() -> None:
    dev = [case([SAY, SAY], (True, False), id="x", problem="q"), case([SAY], (True,), id="y", problem="r")]
    said = {**SCORES, "x": [(0.95, 0.86)], "y": [(0.9,)]}
    found = judge_cases({"prm": GivenJudge(said), "llm": GivenJudge(VERDICTS, decides=True)}, CASES, dev,
                        dev_name="dev.jsonl", threshold=0.5, repeats=1, seed=0)
    assert found["prm"].threshold == pytest.approx(0.88)
    assert found["prm"].rule == "chosen on dev.jsonl (first-error F1 100.0 there)"
    assert found["llm"].rule == "its own verdicts"
    with pytest.raises(InputError, match="the trajectories for the threshold: a threshold needs chains with an error"):
        judge_cases({"prm": GivenJudge(said)}, CASES, dev[:1], dev_name="dev", threshold=0.5, repeats=1, seed=0)


def test_kinds_of_a_step() -> None:
    assert kinds_of(CASES[3], 1) == {"tool": "buy + look", "position": "2", "length": "51 to 200 characters",
                                     "agent": "worker"}
    long = case([SAY] * 8 + [Step("x" * 900)])
    assert [kinds_of(long, index)["position"] for index in range(9)] == [
        "1", "2", "3", "4 to 6", "4 to 6", "4 to 6", "more than 6", "more than 6", "more than 6"]
    assert kinds_of(long, 8)["length"] == "more than 800 characters"


def test_gold_without_first_error_leaves_those_figures_out() -> None:
    cases = [case([SAY, SAY], (None, True), id="b")]
    judged = judge_cases({"prm": GivenJudge(SCORES)}, cases, [], dev_name="", threshold=0.5, repeats=1, seed=0)
    figures = compare(cases, judged, 100, 0)["judges"]["prm"]["figures"]
    # Of one kind of step there is none: balanced accuracy is not defined.
    assert set(figures) == {"step_accuracy", "judged"}
    assert not any(math.isnan(part) for estimate in figures.values() for part in estimate.values())
