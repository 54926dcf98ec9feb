"""`prm score` and what `prm serve` does before there is a server."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from prm_core import config as configuration
from prm_core.cli.scoring.score import LINES_PER_BATCH, score
from prm_core.cli.scoring.serve import serve
from prm_core.errors import InputError
from prm_core.scoring.conformal import Alarm, CleanPrefix, Promises
from prm_core.serving import app
from prm_core.serving.metrics import SHARED
from tests import ROOT
from tests.builders import fake_ray
from tests.builders.scorer import CONTEXT, FakeScorer, fake_model_folder

LINES = [
    {"id": 7, "prompt": "p", "steps": ["ok", "wrong"], "meta": {"a": [1]}},
    {"prompt": "q", "steps": [{"text": "ok", "observation": "seen", "agent": "a"}]},
]


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr("prm_core.scoring.foreign.load_any_scorer", lambda folder, **_: FakeScorer())
    return str(fake_model_folder(tmp_path / "prm"))


def write(path: Path, *lines: dict | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_comes_back_whole_with_its_scores(model, tmp_path):
    out = tmp_path / "new" / "scored.jsonl"
    score(write(tmp_path / "in.jsonl", *LINES), model, out)
    first, second = read(out)
    assert first == {
        **LINES[0],
        "step_scores": [0.9, 0.1], "step_confidences": [0.9, 0.9], "overall_score": 0.1, "first_error_step": 1,
        "error_steps": [{"step_index": 1, "severity": 0.9, "confidence": 0.9, "likely_cause": "logic_jump_error"}],
        "improvements": first["improvements"],
    }
    assert {key: second[key] for key in LINES[1]} == LINES[1]
    assert second["first_error_step"] == -1
    assert os.listdir(out.parent) == ["scored.jsonl"]


def test_a_line_scored_before_keeps_nothing_that_another_model_said_of_its_domain(model, tmp_path):
    before = {**LINES[0], "in_domain": False, "out_of_domain": "of the other model"}
    score(write(tmp_path / "in.jsonl", before), model, tmp_path / "out.jsonl")
    (after,) = read(tmp_path / "out.jsonl")
    # This one does not know.
    assert not {"in_domain", "out_of_domain"} & set(after)


def test_what_the_models_folder_promises_stands_in_each_line(model, tmp_path):
    scored = {**LINES[0], "alarm_step": 7, "clean_prefix": 7}
    score(write(tmp_path / "in.jsonl", scored), model, tmp_path / "out.jsonl")
    assert not {"alarm_step", "clean_prefix"} & set(read(tmp_path / "out.jsonl")[0])
    Promises(Alarm(0.05, 0.9, 99, 0.5), CleanPrefix(0.1, 0.9, 99, 0.5)).save(Path(model))
    score(write(tmp_path / "in.jsonl", scored, LINES[1]), model, tmp_path / "out.jsonl")
    assert [(row["alarm_step"], row["clean_prefix"]) for row in read(tmp_path / "out.jsonl")] == [(1, 1), (-1, 1)]


def test_without_out_the_lines_go_to_standard_output(model, tmp_path, capsys):
    score(write(tmp_path / "in.jsonl", *LINES), model, threshold=0.05, aggregate="mean")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["overall_score"], row["first_error_step"]) for row in rows] == [(0.5, -1), (0.9, -1)]


def test_more_lines_than_a_batch_keep_their_order(model, tmp_path):
    count = LINES_PER_BATCH + 3
    lines = [{"prompt": str(i), "steps": ["wrong" if i % 3 == 0 else "ok"]} for i in range(count)]
    score(write(tmp_path / "in.jsonl", *lines), model, tmp_path / "out.jsonl")
    assert [(row["prompt"], row["first_error_step"]) for row in read(tmp_path / "out.jsonl")] == [
        (str(i), 0 if i % 3 == 0 else -1) for i in range(count)
    ]


def test_batches_are_scored_by_whom_the_workspace_names(model, tmp_path):
    lines = [{"prompt": str(i), "steps": ["wrong" if i % 3 == 0 else "ok"]} for i in range(2 * LINES_PER_BATCH + 3)]
    file = write(tmp_path / "in.jsonl", *lines)
    score(file, model, tmp_path / "here.jsonl")
    raw = {**configuration.read_yaml(ROOT / "params.yaml"), "workers": {"runner": "ray", "count": 3}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    ray = fake_ray.FakeRay(lambda worker, method, _: method == "do" and worker == 1, seed=1)
    with fake_ray.installed(ray):
        score(file, model, tmp_path / "there.jsonl", workspace=tmp_path)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    assert sorted(batch for _, batch in ray.done) == [0, 1, 2]
    assert len(ray.workers) == 4, "one was lost"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected a JSON object"),
        ({"prompt": "p"}, "`prompt` and `steps`"),
        ({"prompt": "p", "steps": ["ok", ""]}, "step 1 is empty"),
        ({"prompt": "p", "steps": ["refuse"]}, "step 0 is refused"),
    ],
)
def test_bad_line_is_named_and_nothing_is_written(model, tmp_path, capsys, bad, reason):
    file = write(tmp_path / "in.jsonl", *LINES, bad)
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    for destination in (out, None):
        with pytest.raises(InputError, match=reason) as caught:
            score(file, model, destination)
        assert str(caught.value).startswith(f"{file}:3: ")
    assert out.read_text() == "before"
    assert capsys.readouterr().out == ""
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl", "prm"]


def test_chains_longer_than_the_context_are_left_out_and_named(model, tmp_path, caplog):
    long, cut = {"prompt": "p", "steps": ["x" * 2 * CONTEXT, "ok"]}, {"prompt": "p", "steps": ["ok", "x" * CONTEXT]}
    file = write(tmp_path / "in.jsonl", long, *LINES, cut)
    for truncate, count, named in ((False, 2, f"{file}:1, {file}:4; --truncate"), (True, 1, f"{file}:1")):
        caplog.clear()
        score(file, model, tmp_path / "out.jsonl", truncate=truncate)
        assert [row["prompt"] for row in read(tmp_path / "out.jsonl")] == ["p", "q", *(["p"] if truncate else [])]
        assert f"{count} of 4 chains are longer than the model's context and left out: {named}" in caplog.text
    with pytest.raises(InputError, match=r"only\.jsonl: no chain fits the model's context"):
        score(write(tmp_path / "only.jsonl", long), model, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_truncate_leaves_null_scores_and_counts_them(model, tmp_path, caplog):
    lines = [LINES[0], {"prompt": "p", "steps": ["wrong", "x" * CONTEXT, "ok"]}]
    score(write(tmp_path / "in.jsonl", *lines), model, tmp_path / "out.jsonl", truncate=True)
    whole, cut = read(tmp_path / "out.jsonl")
    assert "truncated_steps" not in whole
    assert (cut["step_scores"], cut["step_confidences"]) == ([0.1, None, None], [0.9, None, None])
    assert (cut["truncated_steps"], cut["first_error_step"], cut["overall_score"]) == (2, 0, 0.1)
    assert "2 trailing steps" in caplog.text


def test_a_file_scored_before_speaks_of_the_second_model_only(model, tmp_path, caplog):
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    score(write(tmp_path / "in.jsonl", {"prompt": "p", "steps": ["wrong", "x" * CONTEXT], "id": 1}), model, first,
          truncate=True)
    caplog.clear()
    foreign = {"prompt": "p", "steps": ["ok"], "truncated_steps": "none", "step_scores": None}
    score(write(first, *[row | {"steps": ["ok", "wrong"]} for row in read(first)], foreign), model, second)
    rows = read(second)
    assert ["truncated_steps" in row for row in rows] == [False, False]
    assert [(row["step_scores"], row["first_error_step"]) for row in rows] == [([0.9, 0.1], 1), ([0.9], -1)]
    assert rows[0]["id"] == 1
    assert not caplog.records


def test_turns_are_scored_as_they_are(model, tmp_path, caplog):
    turn = {"text": "", "calls": [{"name": "look", "arguments": {"q": "a\nb"}, "result": "wrong"}], "ref": "s7"}
    line = {"prompt": "p", "steps": ["a\nb", {"text": "c", "observation": "d\n\ne"}, turn]}
    score(write(tmp_path / "in.jsonl", line), model, tmp_path / "out.jsonl")
    scored, = read(tmp_path / "out.jsonl")
    assert (scored["steps"], scored["step_scores"]) == (line["steps"], [0.9, 0.9, 0.1])
    assert scored["step_refs"] == ["", "", "s7"]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"aggregate": "median"}, "unknown aggregation"),
        ({"model": "no/model"}, "--model no/model: no reward model there"),
        ({"file": Path("none.jsonl")}, "none.jsonl: no such file"),
        ({"out": Path()}, "is a folder"),
    ],
)
def test_bad_options_are_named(model, tmp_path, options, reason):
    file = write(tmp_path / "in.jsonl", *LINES)
    with pytest.raises(InputError, match=reason):
        score(**{"file": file, "model": model, **options})


def test_empty_file_is_an_error(model, tmp_path):
    with pytest.raises(InputError, match="holds no records"):
        score(write(tmp_path / "in.jsonl"), model)


# Other projects' formats


def run(*texts: str, **extra: Any) -> dict:
    steps = [{"step_id": 1, "source": "user", "message": "p"}]
    steps += [{"step_id": number, "source": "agent", "message": text} | ({"extra": extra} if extra else {})
              for number, text in enumerate(texts, 2)]
    return {"schema_version": "ATIF-v1.8", "trajectory_id": texts[0], "agent": {"name": "a", "version": "1"},
            "steps": steps}


def test_chains_of_a_format_are_lines_that_say_where_each_score_belongs(model, tmp_path):
    file = write(tmp_path / "in.jsonl", run("ok", "wrong"), run("fine"))
    score(file, model, tmp_path / "out.jsonl", from_format="atif")
    first, second = read(tmp_path / "out.jsonl")
    assert {name: first[name] for name in ("source", "id", "step_refs", "step_scores", "first_error_step")} == {
        "source": "atif", "id": "ok", "step_refs": ["2", "3"], "step_scores": [0.9, 0.1], "first_error_step": 1}
    assert (second["id"], second["step_refs"]) == ("fine", ["2"])


def test_records_come_back_with_the_scores_in_them(model, tmp_path, capsys):
    before = run("ok", "wrong", prm={"score": 0.5, "version": "old"})
    file = write(tmp_path / "in.jsonl", before)
    score(file, model, from_format="atif", to_format="atif")
    (after,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert [step.get("extra") for step in after["steps"]] == [
        None, {"prm": {"score": 0.9, "version": "v1"}}, {"prm": {"score": 0.1, "version": "v1"}}]
    assert [step | {"extra": 0} for step in after["steps"]] == [step | {"extra": 0} for step in before["steps"]]
    # What is scored may be written in another format that has a place for it.
    score(file, model, tmp_path / "chat.json", from_format="atif", to_format="chat")
    assert json.loads((tmp_path / "chat.json").read_text())[0]["step_scores"] == {"1": 0.9, "2": 0.1}


def test_a_record_too_long_for_the_context_stays_without_a_score(model, tmp_path, caplog):
    file = write(tmp_path / "in.jsonl", run("ok"), run("long", "x" * CONTEXT, prm={"score": 0.5}))
    score(file, model, tmp_path / "out.jsonl", from_format="atif", to_format="atif")
    assert [step.get("extra") for row in read(tmp_path / "out.jsonl") for step in row["steps"]] == [
        None, {"prm": {"score": 0.9, "version": "v1"}}, None, None, None]
    assert f"1 of 2 chains are longer than the model's context and left out: {file}: long; --truncate" in caplog.text
    score(file, model, tmp_path / "out.jsonl", from_format="atif", to_format="atif", truncate=True)
    assert [step.get("extra") for step in read(tmp_path / "out.jsonl")[1]["steps"]] == [
        None, {"prm": {"score": 0.9, "version": "v1"}}, None]


def test_a_run_without_a_question_is_scored_and_said(model, tmp_path, caplog):
    unasked = run("wrong")
    unasked["steps"][0]["message"] = ""
    file = write(tmp_path / "in.jsonl", run("ok"), unasked)
    score(file, model, tmp_path / "out.jsonl", from_format="atif")
    assert [row["step_scores"] for row in read(tmp_path / "out.jsonl")] == [[0.9], [0.1]]
    assert "1 of 2 trajectories hold no question, so their steps are judged without one" in caplog.text


def test_scores_of_traces_become_events(model, tmp_path):
    said = {"choices": [{"message": {"role": "assistant", "content": "wrong"}}]}
    span = {"span_id": "AAAAAAAAAAE=", "name": "s", "start_time_unix_nano": 1, "attributes": {
        "mlflow.spanType": '"CHAT_MODEL"', "mlflow.spanInputs": '"p"', "mlflow.spanOutputs": json.dumps(said)}}
    file = write(tmp_path / "in.jsonl", {"info": {"trace_id": "tr-" + "1" * 32}, "data": {"spans": [span]}})
    score(file, model, tmp_path / "out.jsonl", from_format="mlflow_trace", to_format="evaluation_events")
    (request,) = read(tmp_path / "out.jsonl")
    (event,) = request["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert (event["eventName"], event["traceId"], event["spanId"]) == (
        "gen_ai.evaluation.result", "1" * 32, "0000000000000001")


@pytest.mark.parametrize(("options", "reason"), [
    ({"to_format": "atif"}, "--to atif needs --format"),
    ({"from_format": "atif", "to_format": "trl"}, "--to trl has no place for scores; those that have: .*atif, chat"),
    ({"from_format": "csv"}, "unknown format 'csv'; known: "),
    ({"from_format": "atif", "model": "no/model"}, r"in\.jsonl:2: schema_version is null"),
    ({"from_format": "chat"}, r"in\.jsonl:1: field messages is missing"),
])
def test_bad_formats_and_records_are_named_before_the_model_loads(model, tmp_path, options, reason):
    file = write(tmp_path / "in.jsonl", run("ok"), {"steps": []})
    with pytest.raises(InputError, match=reason):
        score(**{"file": file, "model": model, "out": tmp_path / "out.jsonl", **options})
    assert not (tmp_path / "out.jsonl").exists()


# prm serve


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(ROOT / configuration.PARAMS_FILE, tmp_path)
    return tmp_path


def test_serve_without_a_champion_says_how_to_get_one(workspace):
    with pytest.raises(InputError, match=r"model 'prm' has no champion in sqlite:.*`prm promote`"):
        serve(workspace=workspace)


def test_serve_on_a_busy_port_says_so(workspace):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"):
            serve(model="models:/prm/1", port=port, workspace=workspace)


def test_serve_takes_a_model_or_an_alias(workspace):
    with pytest.raises(InputError, match="--model and --alias"):
        serve(model="models:/prm/1", alias="challenger", workspace=workspace)


def test_serve_loads_a_folder_here_or_has_several_processes_load_it(workspace, model, monkeypatch):
    started = []
    monkeypatch.setattr(app, "load_any_scorer", lambda folder, **_: FakeScorer())
    for name in (app.MODEL, app.WORKSPACE, SHARED):
        # So that it is put back.
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("uvicorn.run", lambda *arguments, **settings: started.append((arguments, settings)))
    configured = []
    monkeypatch.setattr(app, "configure", configured.append)
    monkeypatch.setattr("prm_core.serving.http.logs.configure", configured.append)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for workers in (1, 2):
        serve(model=model, port=port, workers=workers, workspace=workspace)
    (((one,), settings), ((name,), several)) = started
    assert settings == {"host": "127.0.0.1", "port": port, "log_config": None, "access_log": False,
                        "timeout_graceful_shutdown": 60}
    assert several == settings | {"workers": 2, "factory": True, "timeout_worker_healthcheck": 60}
    assert name == "prm_core.serving.app:create_app"
    monkeypatch.delenv(SHARED)
    assert app.create_app().current.served.source == one.current.served.source == Path(model).name
    assert configured == [False] * 3
    with pytest.raises(InputError, match="--model no/model: no reward model there"):
        serve(model="no/model", port=port, workspace=workspace)
