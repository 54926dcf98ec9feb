"""Who answers: one version a request, and the one before ends after its last."""

from __future__ import annotations

import threading
import time

import pytest

from prm_core.errors import OverloadError
from prm_core.serving.service import parse_request
from prm_core.serving.swap.current import Current
from tests.builders.versions import served


def ask(one, step: str = "ok") -> list[float]:
    request = parse_request({"prompt": "p", "steps": [step]}, "row")
    [answer] = one.service.answer([request], threshold=0.5, aggregate="min")
    return answer.analysis.step_scores


def test_a_request_is_answered_by_the_version_it_began_with_which_ends_after_it() -> None:
    one, two = served(1), served(2)
    current = Current(one)
    with current.request() as first, current.request() as also_first:
        assert current.take_over(two) is one
        ending = threading.Thread(target=current.retire, args=(one,))
        ending.start()
        with current.request() as second:
            assert (ask(first), ask(second)) == ([0.9], [pytest.approx(0.8)])
        assert also_first is first is one
        time.sleep(0.02)
        assert ending.is_alive()
        assert ask(first) == [0.9]
    ending.join(10)
    assert not ending.is_alive()
    with pytest.raises(OverloadError, match="is stopping"):
        ask(one, "another")
    assert ask(two) == [pytest.approx(0.8)]
