"""Aggregations: exact values on small chains, and what must hold for any chain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.scoring.scorer import ChainScore
from prm_core.search.aggregate import AGGREGATIONS, chain_value

scores = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("name", "expected"), [("min", 0.2), ("prod", 0.9 * 0.2 * 0.5), ("mean", 1.6 / 3), ("last", 0.5)]
)
def test_exact_values(name, expected):
    assert AGGREGATIONS[name]([0.9, 0.2, 0.5]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["min", "prod", "mean", "last"])
def test_no_steps_is_an_error(name):
    with pytest.raises(InputError, match="without step scores"):
        AGGREGATIONS[name]([])


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown aggregation 'max'; known: last, mean, min, prod"):
        AGGREGATIONS["max"]


@given(scores)
def test_order_of_aggregations(chain):
    prod, low, mean = (AGGREGATIONS[name](chain) for name in ("prod", "min", "mean"))
    assert 0 <= prod <= low + 1e-12
    assert low <= mean + 1e-12 <= max(chain) + 2e-12


@given(st.floats(0, 1), st.sampled_from(["min", "prod", "mean", "last"]))
def test_a_single_step_is_its_own_aggregate(score, name):
    assert AGGREGATIONS[name]((score,)) == pytest.approx(score)


@pytest.mark.parametrize(("kind", "outcome", "truncated", "value"), [
    ("process", None, 0, 0.5), ("process", 0.9, 0, 0.7), ("advantage", None, 0, 0.5), ("outcome", None, 0, 0.7),
    ("process", 0.9, 1, 0.0), ("outcome", None, 2, 0.0),
])
def test_what_a_chain_is_chosen_by(kind, outcome, truncated, value):
    score = ChainScore((0.3, 0.7), (0.3, 0.7), truncated, outcome_score=outcome)
    assert chain_value(score, kind, "mean") == pytest.approx(value)
