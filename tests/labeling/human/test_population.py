"""Whose chains people judged, and how wrong labels are by what they say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.labeling.human.population import human_error, other_authors
from tests.builders.quality import trajectory


def by(author, number, prefix="human"):
    return dataclasses.replace(trajectory(number, prefix), policy=author)


def test_the_policys_own_are_generated_chains_by_content_and_those_of_its_version():
    generated = [by("v2", 0, "gen"), by("v2", 1, "gen")]
    human = [by("corrupted-solution", 0), by("v2", 7), by("v1", 8), by("corrupted-solution", 9)]
    # human-0 reads like a generated chain, whoever is said to have written it.
    contents = {"human-0": "same", "human-7": "x", "human-8": "y", "human-9": "z"}
    found = other_authors(human, contents, generated, ["same", "more"])
    assert found == {"human-8": "v1", "human-9": "corrupted-solution"}


def test_the_share_is_weighed_and_the_interval_is_over_chains():
    chains = np.repeat([f"t{n}" for n in range(40)], 5)
    differs, weights = np.repeat(np.arange(40) < 4, 5), np.repeat([1.0, 3.0], 100)
    found = human_error(chains, differs, weights, 0)
    assert (found.labels, found.share) == (200, pytest.approx(20 / 400))
    # Chains err whole here: each step for itself would give an interval about half as wide.
    apart = human_error([f"s{n}" for n in range(200)], differs, weights, 0)
    assert found.high - found.low > 1.7 * (apart.high - apart.low)
    assert found == human_error(chains, differs, weights, 0)


def test_no_difference_seen_is_not_none_there():
    ids, weights = [f"t{n}" for n in range(100)], np.ones(100)
    none, every = (human_error(ids, np.full(100, differs), weights, 0) for differs in (False, True))
    # One among 101, drawn 101 times: three or fewer in 97.5 % of the draws.
    assert (none.low, none.share, none.high) == (0, 0, pytest.approx(3 / 101))
    assert (every.low, every.share, every.high) == (pytest.approx(98 / 101), 1, 1)


@pytest.mark.parametrize(("rare", "sure"), [(0.3, 0.1), (0.05, 0.01)])
def test_the_interval_holds_the_truth(rare, sure):
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(50):
        # Doubtful steps err more, are looked at more often, and weigh less.
        doubtful = rng.random(200) < 0.5
        differs = rng.random(200) < np.where(doubtful, rare, sure)
        found = human_error([f"t{n}" for n in range(200)], differs, np.where(doubtful, 1.0, 4.0), seed)
        held += found.low <= (rare * 1 + sure * 4) / 5 <= found.high
    assert held >= 45


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.floats(0.01, 100)), min_size=1, max_size=20))
def test_the_share_lies_in_its_interval(rows):
    chains, differs, weights = zip(*rows, strict=True)
    found = human_error(chains, np.array(differs), np.array(weights), 0)
    assert 0 <= found.low <= found.share <= found.high <= 1
