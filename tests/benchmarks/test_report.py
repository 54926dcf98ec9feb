"""What a result says of how it came about: the call with all its options, without the folders of this machine."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from prm_core.platform import store


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workspaces", type=Path, nargs="*")
    parser.add_argument("--model", default="models:/prm@champion")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--parts", nargs="+", default=["rows", "throughput"])
    parser.add_argument("--beside", type=Path, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-stage", help=argparse.SUPPRESS)


def arguments(monkeypatch: pytest.MonkeyPatch, words: str, more: Any = options) -> argparse.Namespace:
    monkeypatch.setattr(sys, "argv", ["x", *shlex.split(words)])
    return report.arguments("some", more)


def test_a_simple_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = arguments(monkeypatch, f"--quick --out {tmp_path}/some.json", lambda parser: None)
    report.write(given, [report.Bar("speed", 3.0, 2.0, 4.0, ">= 1", True)], rows=[1])

    result = store.read_json(tmp_path / "some.json")
    assert result["command"] == "python -m benchmarks.some --quick --repeats 3 --out some.json"
    assert result["bars"] == [{"name": "speed", "value": 3.0, "low": 2.0, "high": 4.0, "bar": ">= 1", "holds": True}]
    assert result["rows"] == [1]
    assert "speed" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "recorded"), [
    ("", "--repeats 3 --model models:/prm@champion --parts rows throughput --seconds 20.0 --seed 0"),
    ("/a/b/default-41 c/default-42 --repeats 1 --model '/a/my model/' --base ../c/tiny --parts 'outcome, PPO' "
     "--seconds 2.5 --beside /d/e --seed 7",
     "default-41 default-42 --repeats 1 --model 'my model' --base tiny --parts 'outcome, PPO' --beside e --seconds 2.5 "
     "--seed 7"),
    ("--base . --seconds 0 --seed 0", "--repeats 3 --model models:/prm@champion --base . --parts rows throughput "
                                      "--seconds 0.0 --seed 0"),
])
def test_every_option_is_recorded(monkeypatch: pytest.MonkeyPatch, words: str, recorded: str) -> None:
    given = arguments(monkeypatch, f"{words} --out /some/where/some.json")
    assert given.command == f"python -m benchmarks.some {recorded} --out some.json"
    # The same call again, where these files lie in one folder.
    assert arguments(monkeypatch, given.command.partition("benchmarks.some ")[2]).command == given.command


def test_what_was_chosen_empty_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--variants", nargs="*", default=("one", "two"))

    assert arguments(monkeypatch, "--variants --out x", more).command.endswith("--repeats 3 --variants --out x")
    assert arguments(monkeypatch, "--out x", more).command.endswith("--repeats 3 --variants one two --out x")
