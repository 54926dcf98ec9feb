"""`prm judge`: what the options come to. What a pass does: tests/serving/test_trace_judge.py."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.judge import agent_run, place
from prm_core import cli
from prm_core.cli.scoring.judge import parse_since
from prm_core.errors import InputError
from prm_core.platform import tracking
from prm_core.serving import trace_judge
from tests.builders.scorer import FakeScorer, fake_model_folder

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NOON = round(NOW.timestamp() * 1000)


@pytest.mark.parametrize(("text", "ms"), [
    ("90m", NOON - 5_400_000), ("24h", NOON - 86_400_000), ("7d", NOON - 7 * 86_400_000),
    ("2026-11-27", NOON - 43_200_000), ("2026-11-27T13:00+01:00", NOON),
])
def test_since(text: str, ms: int) -> None:
    assert parse_since(text, NOW) == ms


@pytest.mark.parametrize("text", ["", "h", "24", "1w", "-1h", "yesterday", "2026-13-01"])
def test_since_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--since"):
        parse_since(text, NOW)


def test_one_line_says_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trace_judge, "load_any_scorer", lambda folder: FakeScorer())
    client = tracking.connect(tmp_path)
    experiment = client.create_experiment("agents")
    now = round(datetime.now(UTC).timestamp() * 1000)
    place(client, experiment, now - 3_600_000, agent_run(["a", "wrong"], 1))
    place(client, experiment, now - 90_000_000, agent_run(["old"], 0))
    place(client, experiment, now, agent_run(["new"], 0))
    model = fake_model_folder(tmp_path / "model")

    def judge(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["prm", "judge", "--experiment", "agents", "--model", str(model),
                                          "--workspace", str(tmp_path), *more])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, capsys.readouterr().out

    since = ("--since", "24h", "--settle", "5")
    late = "traces not ended, or just, left for later: 1\n"
    assert judge(*since) == (0, f"2 traces match, 0 had their scores, 1 were judged, 2 steps scored; {late}")
    assert judge(*since) == (0, f"2 traces match, 1 had their scores, 0 were judged, 0 steps scored; {late}")
    assert judge("--name", "other", "--limit", "2") == (
        0, "2 traces match, 0 had their scores, 2 were judged, 3 steps scored\n")
    assert judge("--filter", "tags.a = 'b'") == (0, "no trace matches\n")
