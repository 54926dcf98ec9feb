"""The bias of ways to make advantages on a problem whose gradient is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import stopping_bias
from prm_core import config as configuration

DEFAULT = configuration.load(Path(__file__).parents[2]).train_policy.advantages
WAYS = dict(stopping_bias.ways(DEFAULT))
CHAINS = 20_000


def test_the_exact_gradient_of_a_sum_is_that_of_the_expected_length() -> None:
    # E = 1 + p + p² + p³ + p⁴ steps of 0.8; the logit's derivative of p is p (1 - p).
    p = stopping_bias.GO_ON
    slope = sum(power * p ** (power - 1) for power in range(1, stopping_bias.STEPS)) * p * (1 - p)
    assert stopping_bias.exact(WAYS["sum, to_go, none"], "equal") == pytest.approx(0.8 * slope)


@pytest.mark.parametrize("game", stopping_bias.GAMES)
@pytest.mark.parametrize("name", ["configured", "sum, to_go, leave_one_out", "sum, to_go, prefix",
                                  "prod, to_go, prefix", "mean, chain, leave_one_out", "pav, step, leave_one_out"])
def test_what_looks_at_others_alone_has_no_bias(name: str, game: str) -> None:
    found, error = stopping_bias.estimate(WAYS[name], game, CHAINS)
    assert found == pytest.approx(stopping_bias.exact(WAYS[name], game), abs=3.5 * error + 1e-6)


def test_the_default_neither_pays_nor_fines_going_on() -> None:
    for game in stopping_bias.GAMES:
        assert stopping_bias.exact(DEFAULT, game) == pytest.approx(0, abs=1e-6)


def test_the_process_sum_is_biased() -> None:
    """With equal scores nothing is left of what the sum pays for a step; padding above the mean is paid."""
    name = "sum, to_go, step"
    equal, _ = stopping_bias.estimate(WAYS[name], "equal", CHAINS)
    assert equal == pytest.approx(0, abs=1e-6)
    assert stopping_bias.exact(WAYS[name], "equal") > 0.3
    padding, error = stopping_bias.estimate(WAYS["process form of GRPO (DeepSeekMath 4.1.3)"], "padding", CHAINS)
    assert padding > 10 * error


def test_a_group_s_own_mean_takes_its_share_off_the_gradient() -> None:
    settings = WAYS["sum, to_go, group"]
    found, error = stopping_bias.estimate(settings, "equal", CHAINS)
    assert 5 * error < found < stopping_bias.exact(settings, "equal") - 5 * error
