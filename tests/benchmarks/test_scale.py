"""Sampling at servers: the bare client asks what sampling asks, and two distributions are told apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks import scale
from benchmarks.scale_client import raw_rate
from prm_core.domains import arithmetic
from prm_core.sampling.backends import policy_for
from prm_core.sampling.policy import load_policy
from tests.builders import taught
from tests.builders.completions_server import NAME, serving
from tests.builders.quality import make_config


def test_the_bare_client_asks_what_sampling_asks(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = str(taught.save_policy(tmp_path_factory.mktemp("taught")))
    problems = arithmetic.make_problems("scale", 20, 3)

    def asked(bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without the seed, of which each sample has its own."""
        return sorted(({name: value for name, value in body.items() if name != "seed"} for body in bodies),
                      key=lambda body: body["prompt"])

    with serving(load_policy(folder, make_config()), "transformers") as server:
        config = make_config(sampling={"backend": "server", "endpoint": server.url, "model": NAME,
                                       "server": "transformers", "verify": False, "concurrency": 4})
        served = policy_for("generate", folder, config)
        scale._rows(served, problems, config, samples=1, temperature=1.0, seed=1)
        ours = asked(server.bodies)
        server.bodies.clear()
        assert raw_rate(served, problems, config, 1) > 0
        assert asked(server.bodies) == ours
    assert len(ours) == 20


@pytest.mark.parametrize(("one", "other", "same"), [
    ({"a": 50, "b": 50}, {"a": 52, "b": 48}, True), ({"a": 50, "b": 50}, {"a": 85, "b": 15}, False),
    ({"a": 50, "b": 50}, {"c": 50, "d": 50}, False), ({"a": 50}, {"a": 50}, True),
    # What is rare counts together.
    ({"a": 40, **{f"r{n}": 1 for n in range(20)}}, {"a": 40, **{f"s{n}": 1 for n in range(20)}}, True)])
def test_distributions_are_compared(one: dict[str, int], other: dict[str, int], same: bool) -> None:
    from scipy.stats import chi2_contingency

    assert (scale._p_value([Counter(one), Counter(other)], chi2_contingency) >= scale.LEVEL) == same
