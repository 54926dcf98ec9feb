"""`prm search`: what it reads, writes and prints, and what it refuses. How methods search: tests/search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from prm_core.cli.app import app
from prm_core.cli.scoring.search import read_problems, settings, summary
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.search.base import Found, Meter
from prm_core.types import Problem, Trajectory
from tests import ROOT
from tests.builders.quality import make_config
from tests.builders.reward_models import tiny_reward_model
from tests.builders.tiny import mia, save_policy


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A policy, a reward model, two test problems, and settings that keep chains short."""
    folder = tmp_path_factory.mktemp("workspace")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["generate"]["max_new_tokens"], raw["models"]["policy"] = 10, "policy"
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    save_policy(folder / "policy")
    tiny_reward_model(folder / "prm")
    tiny_reward_model(folder / "orm", kind="outcome")
    store.write_jsonl(folder / "data/test.jsonl", [mia("a"), mia("b")])
    return folder


def run(workspace: Path, *arguments: str) -> None:
    app(["search", *arguments, "--workspace", str(workspace)], standalone_mode=False)


def test_chosen_chains_come_with_their_cost(workspace, tmp_path, capsys):
    out = tmp_path / "chosen.jsonl"
    run(workspace, "best_of_n", "--model", str(workspace / "prm"), "--out", str(out), "--candidates", "3")
    rows = store.read_jsonl(Trajectory, out)
    assert [row.problem_id for row in rows] == ["a", "b"]
    totals = []
    for row in rows:
        said = row.meta["search"]
        assert (said["method"], said["drawn"]) == ("best_of_n", 3)
        tokens = said["tokens"]
        assert tokens["total"] == tokens["generated"] + tokens["read"] + tokens["scored"]
        totals.append(tokens["total"])
    printed = capsys.readouterr().out
    assert "right: " in printed
    assert " of 2 (" in printed
    assert f"tokens a problem: {sum(totals) / 2:.0f} (" in printed
    # The same again.
    run(workspace, "best_of_n", "--model", str(workspace / "prm"), "--out", str(tmp_path / "again.jsonl"),
        "--candidates", "3")
    assert (tmp_path / "again.jsonl").read_text() == out.read_text()


def test_questions_without_answers_get_chains_without_an_outcome(workspace, tmp_path, capsys):
    questions, out = tmp_path / "questions.jsonl", tmp_path / "chosen.jsonl"
    questions.write_text('{"prompt": "Mia has 3 apples. How many apples does Mia have?"}\n')
    # A majority asks no model: none is looked for.
    run(workspace, "majority", "--problems", str(questions), "--out", str(out), "--model", "nowhere")
    [row] = store.read_jsonl(Trajectory, out)
    assert (row.outcome, row.meta["search"]["tokens"]["scored"]) == (None, 0)
    assert "right: " not in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["nosuch"], "unknown search method 'nosuch'"),
    (["beam", "--model", "orm"], "which an outcome reward model does not score"),
    (["best_of_n", "--model", "policy"], "policy"),
    (["best_of_n", "--threshold", "7"], "--threshold 7: must lie between 0 and 1"),
    (["majority", "--problems", "nosuch.jsonl"], "nosuch.jsonl: there is no such file"),
])
def test_what_cannot_be_done_is_said_before_a_file_is_written(workspace, tmp_path, arguments, message):
    given = [str(workspace / part) if part in ("orm", "policy") else part for part in arguments]
    with pytest.raises(InputError, match=message):
        run(workspace, *given, "--out", str(tmp_path / "out.jsonl"))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("line", "message"), [
    ("{oops", ":1: not valid JSON"),
    ('{"prompt": " "}', "`prompt` is empty"),
    ('{"question": "?"}', "missing field prompt|unknown field question"),
    ('{"prompt": 3}', "field prompt is 3"),
    ('{"prompt": "?", "domain": "magic"}', "unknown domain 'magic'; known: arithmetic"),
    ('{"prompt": "?", "id": "x"}\n{"prompt": "!", "id": "x"}', ":2: the id 'x' is another problem's too"),
    ("", "holds no"),
])
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(f"{line}\n" if line else "")
    with pytest.raises(InputError, match=message):
        read_problems(file, "arithmetic")


def test_questions_need_no_more_than_a_prompt(tmp_path):
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"prompt": "1 + 1?"}) + "\n" + json.dumps({"prompt": "2?", "answer": "2", "id": "two"}))
    assert read_problems(file, "general") == [Problem("0", "general", "1 + 1?", ""),
                                              Problem("two", "general", "2?", "2")]


def test_options_lie_over_the_settings():
    base = make_config().search
    assert settings(base, candidates=None, gain=None) == base
    assert settings(base, candidates=3, gain=0.5).candidates == 3


def test_the_summary_counts_only_problems_with_answers():
    trajectory = Trajectory("t", "a", "p", (), "5", True, 0)
    found = [Found(trajectory, 0.5, 1, Meter(10, 20, 30, 40, 50)), Found(trajectory, 0.5, 1, Meter())]
    lines = summary(found, [mia("a"), Problem("b", "general", "?", "")], 1.25)
    assert lines == ["right: 1 of 1 (100.0%)",
                     "tokens a problem: 30 (5 sampled, 10 of prefixes, 15 scored); 50 if nothing were kept",
                     "1.2 s for 2 problems"]


def test_no_file_is_left_where_the_models_do_not_load(workspace, tmp_path):
    broken = tmp_path / "prm"
    shutil.copytree(workspace / "prm", broken)
    (broken / "calibrator.json").write_text("{}")
    with pytest.raises(InputError, match=r"calibrator\.json: its bytes are not those"):
        run(workspace, "best_of_n", "--model", str(broken), "--out", str(tmp_path / "out.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prm"]
