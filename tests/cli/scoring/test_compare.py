"""`prm compare` from the command line: a file of agents, the tables, the JSON file, the chart, and what is refused."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from prm_core.cli.scoring.compare import compare, judge_names, read_prices
from prm_core.errors import InputError
from tests.builders.judge_server import reply, serving, verdicts
from tests.builders.reward_models import tiny_reward_model

app = typer.Typer()
app.command()(compare)


def chain(number: int, calls: int, labels: dict[str, int]) -> dict:
    messages = [{"role": "user", "content": f"Ann has {number} apples ?"}]
    for call in range(calls):
        called = {"id": str(call), "type": "function", "function": {"name": "look", "arguments": "{}"}}
        messages += [{"role": "assistant", "content": "", "tool_calls": [called]},
                     {"role": "tool", "tool_call_id": str(call), "content": "7"}]
    return {"messages": [*messages, {"role": "assistant", "content": "7 ."}], "tools": [], "step_labels": labels}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [chain(3, 1, {"1": 1, "3": 1}), chain(4, 2, {"1": 1, "3": -1, "5": 1}), chain(5, 1, {"1": 1, "3": -1})]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny_reward_model(tmp_path / "model")
    tiny_reward_model(tmp_path / "outcome", kind="outcome")
    return tmp_path


def run(*args: str):
    return CliRunner().invoke(app, ["runs.jsonl", "--model", "model", *args])


def test_four_judges_side_by_side(files) -> None:
    def answer(body, before):
        steps = body["messages"][1]["content"].count('"step":')
        return reply(verdicts(*[True] * (steps - 1), False), 200, 40)

    with serving(answer) as server:
        done = run("--judge", "rules", "--judge", "orm=outcome", "--judge", "llm=m", "--endpoint", server.url,
                   "--price", "llm=1,4", "--repeats", "2", "--resamples", "100", "--out", "out.json", "--plot",
                   "plot.png")
    assert done.exit_code == 0, done.output
    found = json.loads((files / "out.json").read_text())
    assert list(found["judges"]) == ["prm", "rules", "orm", "llm"]
    # The second look with the same arguments is the one that people call wrong; the third run's answer is not seen.
    rules, llm = found["judges"]["rules"], found["judges"]["llm"]
    assert rules["figures"]["step_accuracy"]["value"] == pytest.approx(6 / 7)
    assert rules["figures"]["first_error_accuracy"]["value"] == pytest.approx(2 / 3)
    # It calls the last step of every run wrong.
    assert llm["figures"]["first_error_accuracy"]["value"] == pytest.approx(1 / 3)
    assert llm["agreement"] == {"kept": 1, "alpha": 1}
    assert llm["cost"]["price"]["value"] == pytest.approx((200 * 1 + 40 * 4) / 1e6)
    assert len(server.bodies) == 6
    assert (files / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert "3 trajectories of 3 problems, 7 judged steps, 2 of them wrong" in done.output
    for text in ("How right", "How steady", "Minus prm", "always right"):
        assert text in done.output


def test_threshold_of_the_file_itself(files) -> None:
    done = run("--threshold-from", "runs.jsonl", "--resamples", "100", "--out", "out.json")
    assert done.exit_code == 0, done.output
    assert json.loads((files / "out.json").read_text())["judges"]["prm"]["threshold_rule"].startswith(
        "chosen on runs.jsonl (first-error F1 ")


@pytest.mark.parametrize(("args", "message"), [
    (["--judge", "oracle"], "unknown judge 'oracle'; known: llm, orm, prm, rules"),
    (["--judge", "rules", "--judge", "rules=empty_turn", "--judge", "rules=empty_turn"],
     "--judge rules=empty_turn: named twice"),
    (["--judge", "orm=nowhere"], "no reward model there"),
    (["--price", "rules=1,2"], "there is no judge 'rules'; those are prm"),
    (["--price", "prm=1"], r"--price prm=1: expected JUDGE=READ,WRITTEN"),
    (["--format", "nothing"], "unknown format 'nothing'"),
    (["--threshold-from", "missing.jsonl"], "missing.jsonl"),
    (["--threshold-from", "runs.jsonl", "--threshold", "0.4"], "--threshold and --threshold-from: give one of them"),
])
def test_refused(files, args, message) -> None:
    done = run(*args)
    assert isinstance(done.exception, InputError)
    assert "\n" not in str(done.exception)
    with pytest.raises(InputError, match=message):
        raise done.exception


def test_names_of_judges() -> None:
    assert judge_names(["prm=a", "rules", "llm=x", "llm=y"]) == {
        "prm": ("prm", "a"), "rules": ("rules", ""), "llm": ("llm", "x"), "llm=y": ("llm", "y")}
    assert read_prices(["llm=y=1,2.5"], ["llm=y"]) == {"llm=y": (1.0, 2.5)}
    with pytest.raises(InputError, match="a price is a number from 0"):
        read_prices(["prm=-1,2"], ["prm"])
