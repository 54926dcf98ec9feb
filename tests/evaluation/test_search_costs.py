"""Methods at equal total tokens: token counts and comparisons by hand."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from prm_core.evaluation.judged_chains import Chain
from prm_core.evaluation.search_costs import Searched, SearchRow, at_tokens, compare, compared, whole_tokens
from prm_core.types import Problem, Step, Trajectory


def chain(problem: int, *texts: str) -> Chain:
    return Chain(problem, Trajectory("t", f"p{problem}", "base", tuple(map(Step, texts)), None, True, 0))


def length(prompt: str, steps) -> int:
    return len(prompt) + sum(len(step.text) for step in steps)


def test_tokens_of_whole_chains_by_hand():
    problems = [Problem("p0", "general", "ask", "")]
    chains = [chain(0, "ab"), chain(0, "ab"), chain(0, "cdef")]
    # Sampled: the prompt once, (3 + 3 + 5) / 3 each with its end.
    sampled = {1: 3 + 11 / 3, 2: 3 + 22 / 3, 3: 3 + 11}
    assert whole_tokens(chains, problems, length, (1, 2, 3), 0) == pytest.approx(sampled)
    # Scored: "ab" is among one chain with probability 2/3, among two or three always; "cdef" with n/3.
    scored = {1: 3 + 2 * 2 / 3 + 4 / 3, 2: 3 + 2 + 4 * 2 / 3, 3: 3 + 2 + 4}
    assert whole_tokens(chains, problems, length, (1, 2, 3), 1) == pytest.approx(
        {n: sampled[n] + scored[n] for n in sampled})


def test_what_chains_begin_with_is_read_once():
    chains = [chain(0, "ab", "c"), chain(0, "ab", "de")]
    # Sampled 3 + 2 · (3 + 4 + 2)/2; scored the prompt, "ab" once, "c" and "de".
    assert whole_tokens(chains, [Problem("p0", "general", "ask", "")], length, (2,), 1) == {2: 3 + 9 + 3 + 2 + 1 + 2}


def test_a_curve_between_and_beyond_its_points():
    curve = [(400.0, np.array([1.0, 0.5])), (100.0, np.array([0.0, 0.5]))]
    assert at_tokens(curve, 200).tolist() == pytest.approx([0.5, 0.5]), "halfway in the logarithm"
    assert at_tokens(curve, 10).tolist() == [0.0, 0.5]
    assert at_tokens(curve, 9000).tolist() == [1.0, 0.5]
    assert at_tokens(curve, 400).tolist() == [1.0, 0.5]
    assert at_tokens(curve[:1], 150).tolist() == [1.0, 0.5]


def test_methods_are_compared_at_equal_tokens():
    problems = 8
    accuracies = {(method, n): np.full(problems, value) for method, row in {
        "majority": (0.2, 0.3), "weighted_majority": (0.2, 0.4), "orm_best_of_n": (0.2, 0.4),
        "prm_best_of_n": (0.2, 0.6), "combined_best_of_n": (0.2, 0.6)}.items() for n, value in zip(
        (1, 4), row, strict=True)}
    tokens = {0: {1: 50.0, 4: 200.0}, 1: {1: 100.0, 4: 400.0}}
    right = [True] * 6 + [False] * 2
    everything = compare(accuracies, tokens, [Searched("beam", right, [200] * problems)], 200, 0)
    assert all(row.violations is None for row in everything)
    # At every cost, and weighted majority with itself.
    assert [(row.method, row.n, row.tokens) for row in everything] == [
        *(("majority", n, tokens[0][n]) for n in (1, 4)),
        *((method, n, tokens[1][n]) for method in (
            "weighted_majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n") for n in (1, 4)),
        ("beam", None, 200.0)]
    assert all(row.gain.value == 0 for row in everything if row.method == "weighted_majority")
    rows = {row.method: row for row in compared(everything)}
    assert compared([]) == []
    assert list(rows) == ["majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n", "beam"]
    # 200 tokens buy weighted majority two chains: 0.3, the middle of its ends.
    assert rows["majority"].rival.value == rows["beam"].rival.value == pytest.approx(0.3)
    assert (rows["majority"].gain.value, rows["majority"].beats) == (pytest.approx(0.0), False)
    assert (rows["prm_best_of_n"].gain.value, rows["prm_best_of_n"].beats) == (pytest.approx(0.2), True)
    assert rows["beam"].gain.value == pytest.approx(0.45)
    assert rows["beam"].gain.low < 0.45 < rows["beam"].gain.high
    assert math.isclose(rows["beam"].flat()["search/beam/over_weighted_majority"], rows["beam"].gain.value)


def test_with_rules_every_row_says_how_often_they_are_broken():
    whole = ("majority", "weighted_majority", "orm_best_of_n", "prm_best_of_n", "combined_best_of_n", "ruled_best_of_n")
    accuracies = {(method, 1): np.full(4, 0.5) for method in whole}
    violations = {(method, 1): np.array([0.0, 0.5, 1.0, 1.0]) for method in whole} | {
        ("ruled_best_of_n", 1): np.array([0.0, 0.0, 0.0, 1.0])}
    searched = [Searched("beam", [True] * 4, [200] * 4, [True, False, False, False])]
    rows = {row.method: row for row in compare(accuracies, {0: {1: 50.0}, 1: {1: 100.0}}, searched, 100, 0, violations)}
    assert list(rows) == [*whole, "beam"]
    assert {name: row.violations.value for name, row in rows.items()} == {
        **dict.fromkeys(whole, 0.625), "ruled_best_of_n": 0.25, "beam": 0.25}
    flat = rows["beam"].flat()
    assert (flat["search/beam/violations"], flat["search/beam/violations_low"]) == (0.25, 0.0)
    # As the report reads it back, also from a file of before.
    assert SearchRow.from_record(asdict(rows["beam"])) == rows["beam"]
    old = {name: value for name, value in asdict(rows["beam"]).items() if name != "violations"}
    assert SearchRow.from_record(old).violations is None
