"""The register stage and the MLflow model it logs: what is in it, what it is tagged with, how it answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version as installed
from pathlib import Path

import pytest

from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store, sums, tracking
from prm_core.scoring.conformal import FILE, Alarm, CleanPrefix, Promises
from prm_core.serving import model_registry
from prm_core.serving.drift import reference
from prm_core.stages import register
from prm_core.stages.base import StageIO
from prm_core.types import StepLabel
from tests import ROOT
from tests.builders.drift import evaluated
from tests.builders.quality import label
from tests.builders.scorer import CONTEXT, FakeScorer, fake_model_folder

METRICS = {
    "test/prm/first_error_f1": 91.5, "test/prm/first_error_f1_low": 89.0, "test/prm/first_error_f1_high": 94.0,
    "test/prm/first_error_f1_spread": 0.5, "test/prm/ece": 0.03, "test/policy_base/pass_at_1": 0.5,
    "test/prm_best_of_n/accuracy_at_8": 0.9, "probe/suffix/passed": 0.125, "probe/policy/outcome_fall": -0.02,
}
PROMISES = Promises(Alarm(0.05, 0.9, 99, 0.5), CleanPrefix(0.1, 0.9, 99, 0.5))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace as the evaluate stage leaves it."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copy(ROOT / configuration.PARAMS_FILE, root)
    store.write_json(root / "artifacts/evaluate/metrics.json", METRICS)
    PROMISES.write(root / "artifacts/evaluate/promises.json")
    evaluated(root, questions=3)
    store.write_shard(root / "artifacts/calibrate/training_set", 0, StepLabel, [label("gen-0", 0), label("gen-0", 1)])
    fake_model_folder(root / "artifacts/train_prm/prm")
    return root


@pytest.fixture(scope="module")
def registered(workspace: Path) -> dict:
    """The stage, run once: logging a model takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("prm_core.scoring.scorer.load_scorer", lambda folder, **_: FakeScorer())
        config = configuration.load(workspace)
        for stage, made in (("train_prm", "artifacts/train_prm/prm"), ("evaluate", "artifacts/evaluate/metrics.json")):
            with tracking.stage_run(workspace, stage, config) as run:
                run.note_output(workspace / made)
        run_stage(workspace)
    return store.read_json(workspace / "artifacts/register/model_version.json")


@pytest.fixture
def model(workspace, registered, monkeypatch):
    """The registered model, loaded through MLflow."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("prm_core.scoring.scorer.load_scorer", lambda folder, **_: FakeScorer())
    tracking.use_store(workspace)
    return mlflow.pyfunc.load_model(registered["uri"])


def run_stage(workspace: Path) -> None:
    stage = register.STAGE
    outputs = {key: workspace / path for key, path in stage.outputs.items()}
    io = StageIO({key: workspace / path for key, path in stage.inputs.items()}, outputs, workspace / ".work", workspace)
    register.run(configuration.load(workspace), io)


def test_version_is_tagged_and_challenger(workspace, registered):
    client = tracking.connect(workspace)
    version = model_registry.version_by_alias(client, "prm", "challenger")
    assert (str(version.version), version.run_id) == (registered["version"], registered["run_id"])
    assert registered["uri"] == f"models:/prm/{registered['version']}"
    assert model_registry.version_by_alias(client, "prm", "champion") is None
    assert version.tags == registered["tags"]
    # Few enough that the reason of a promotion, which comes to them, is seen.
    gate = ("test/prm/first_error_f1", "test/prm/first_error_f1_low", "test/prm/first_error_f1_spread", "test/prm/ece",
            "probe/suffix/passed", "probe/policy/outcome_fall")
    assert "| wrong chains that pass with a suffix searched for | **0.1250** |" in version.description
    assert version.tags == {
        "data_hash": f"sha256:{store.digest(workspace / 'data')}",
        "git_commit": tracking.code_version(),
        "profile": "default",
        "precision": "float32",
        **{key: str(METRICS[key]) for key in gate},
    }
    assert client.get_run(registered["run_id"]).data.metrics == METRICS
    (output,) = client.get_run(registered["run_id"]).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "prm", "version": version.version}]
    assert {metric.key: metric.value for metric in logged.metrics} == METRICS
    assert (logged.status, logged.source_run_id) == ("READY", registered["run_id"])
    assert logged.experiment_id == tracking.experiment_id(client, workspace)


def test_model_is_tied_to_its_data_and_to_the_runs_that_made_it(workspace, registered):
    client = tracking.connect(workspace)
    found = client.search_runs([tracking.experiment_id(client, workspace)])
    runs = {run.data.tags["stage"]: client.get_run(run.info.run_id) for run in found}
    (output,) = runs["register"].outputs.model_outputs
    assert [one.model_id for one in runs["train_prm"].outputs.model_outputs] == [output.model_id]
    assert [one.model_id for one in runs["evaluate"].inputs.model_inputs] == [output.model_id]
    data = {entry.dataset.name: entry.dataset for entry in runs["register"].inputs.dataset_inputs}
    assert set(data) == {"data/test.jsonl", "artifacts/calibrate/training_set", "data/dev.jsonl",
                         "artifacts/evaluate/trajectories", "artifacts/evaluate/scores.jsonl"}
    test = data["data/test.jsonl"]
    # The digest is DVC's, and the place has nothing of where the workspace lies.
    assert test.digest == hashlib.md5((workspace / "data/test.jsonl").read_bytes()).hexdigest()
    assert json.loads(test.source) == {"uri": "data/test.jsonl"}
    metrics = client.get_logged_model(output.model_id).metrics
    assert {(metric.dataset_name, metric.dataset_digest) for metric in metrics} == {(test.name, test.digest)}


def test_a_version_says_first_how_good_it_is_and_what_it_was_made_of(workspace, registered):
    client = tracking.connect(workspace)
    card = client.get_model_version("prm", registered["version"]).description.splitlines()
    assert card[2:5] == [
        "| F1 of finding the first wrong step | **91.5000** | 89.0000 to 94.0000 |",
        "| standard deviation of that F1 between the PRM's committee members | **0.5000** |  |",
        "| expected calibration error of single steps | **0.0300** |  |",
    ]
    text = "\n".join(card)
    assert "- Alarm: a run is to stop after the first step that scores below 0.5. Of runs" in text
    assert "artifacts/calibrate/training_set`, 2 rows" in text
    assert f"commit `{tracking.code_version()}`" in text
    assert ", trained in float32" in text
    for run in client.search_runs([tracking.experiment_id(client, workspace)], "tags.stage != 'register'"):
        assert f"- {run.data.tags['stage']}: [run {run.info.run_id[:8]}](#/experiments/" in text
    assert f"--model models:/prm/{registered['version']}" in text
    assert "`champion`" in client.get_registered_model("prm").description


def logged_folder(workspace: Path, uri: str) -> Path:
    import mlflow

    tracking.use_store(workspace)
    return Path(mlflow.artifacts.download_artifacts(uri))


def test_logged_files_hold_no_pickle_and_only_the_package(workspace, registered):
    folder = logged_folder(workspace, registered["uri"])
    # Python may have compiled the model's code when another test loaded it.
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {p.name for p in (folder / "code").iterdir()} == {"prm_core"}
    assert not [p for p in files if p.suffix in {".pkl", ".pickle", ".pt", ".bin", ".pyc"}]
    # A pickle's first byte is PROTO (0x80), whatever the file is called.
    assert not [p for p in files if p.read_bytes()[:1] == b"\x80"]
    original = workspace / "artifacts/train_prm/prm"
    copied = model_registry.reward_model_folder(registered["uri"], workspace)
    assert Promises.load(copied) == PROMISES
    # The two files that the trained model had not, and the digests.
    assert {path.name for path in copied.iterdir()} - {path.name for path in original.iterdir()} == {
        FILE, reference.FILE, sums.FILE}
    # Of each held-out problem the one whole chain of the base policy.
    calibrated_on = reference.Reference.load(copied)
    assert (calibrated_on.traffic, calibrated_on.renderer) == ("the base policy's on dev and test problems", 1)
    assert [(len(one.prefixes), one.scores, one.first_error) for one in calibrated_on.samples] == [
        (2, [0.9, 0.2], 1)] * 6
    assert not list(sums.differences(copied))
    assert all((copied / path.name).read_bytes() == path.read_bytes() for path in original.iterdir())


def test_requirements_are_pinned_to_what_is_installed(workspace, registered):
    lines = (logged_folder(workspace, registered["uri"]) / "requirements.txt").read_text().split()
    assert f"mlflow=={installed('mlflow')}" in lines
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
    assert not [line for line in lines if line.startswith(("prefect", "dvc", "great"))]


def test_signature_has_the_contract_s_fields_and_parameters(model):
    signature = model.metadata.signature
    (row,) = [column.to_dict() for column in signature.inputs]
    assert set(row["properties"]) == {"prompt", "steps", "messages", "tools"}
    assert row["properties"]["steps"]["type"] == "array"
    (answer,) = [column.to_dict() for column in signature.outputs]
    assert set(answer["properties"]) == {
        "step_scores", "step_confidences", "overall_score", "first_error_step", "error_steps", "improvements",
        "in_domain", "out_of_domain", "outcome_score", "step_reliabilities", "step_intervals", "alarm_step",
        "clean_prefix", "calibration_stale", "violations", "blocked", "step_refs"
    }
    assert {p.name: p.default for p in signature.params} == {"threshold": 0.5, "aggregate": "min"}


def test_model_answers_as_the_contract_says(model):
    (answer,) = model.predict([{"prompt": "p", "steps": ["ok", "wrong"]}])
    assert json.loads(json.dumps(answer)) == {
        "step_scores": [0.9, 0.1],
        "step_confidences": [0.9, 0.9],
        "overall_score": 0.1,
        "first_error_step": 1,
        "error_steps": [
            {"step_index": 1, "severity": 0.9, "confidence": 0.9, "likely_cause": "logic_jump_error"}
        ],
        "improvements": answer["improvements"],
        "alarm_step": 1,
        "clean_prefix": 1,
    }
    (lenient,) = model.predict([{"prompt": "p", "steps": ["ok", "wrong"]}], {"threshold": 0.05, "aggregate": "mean"})
    assert (lenient["first_error_step"], lenient["overall_score"]) == (-1, 0.5)


GOOD = {"prompt": "p", "steps": ["ok"]}


@pytest.mark.parametrize(
    ("rows", "params", "reason"),
    [
        ([], {}, "`inputs` must be a list of at least one object"),
        (GOOD, {}, "`inputs` must be a list of at least one object"),
        (["text"], {}, "inputs[0]: expected an object with `prompt` and `steps`"),
        ([GOOD, {"prompt": "p"}], {}, "inputs[1]: expected an object with `prompt` and `steps`"),
        ([{"prompt": "", "steps": ["ok"]}], {}, "inputs[0]: `prompt` is empty"),
        ([{"prompt": "p", "steps": []}], {}, "inputs[0]: `steps` must be a non-empty list"),
        ([{"prompt": "p", "steps": "ok"}], {}, "inputs[0]: `steps` must be a non-empty list"),
        ([{"prompt": "p", "steps": ["ok", ""]}], {}, "inputs[0]: step 1 is empty"),
        ([{"prompt": "p", "steps": [{"txt": "ok"}]}], {}, "inputs[0]: step 0 must be a text or an object of text, "),
        ([{"messages": [{"role": "user", "content": "p"}]}], {}, "inputs[0]: `messages` has no turn of the assistant"),
        ([{**GOOD, "step": []}], {}, "inputs[0]: unknown field 'step'"),
        ([GOOD, {"prompt": "p", "steps": ["ok", "refuse"]}], {}, "inputs[1]: step 1 is refused"),
        ([{"prompt": "p", "steps": ["ok", "x" * CONTEXT]}], {}, "inputs[0]: the chain is longer"),
        ([GOOD], {"threshold": 1.5}, "threshold is 1.5"),
        ([GOOD], {"aggregate": "median"}, "unknown aggregation 'median'"),
    ],
)
def test_bad_request_is_http_400_with_one_line(model, rows, params, reason):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        model.predict(rows, params)
    # What MLflow's server does with an error before it answers.
    caught.value.message = f"Failed to predict data '{rows}'. \nError: {caught.value.message}"
    assert caught.value.get_http_status_code() == 400
    line = json.loads(caught.value.serialize_as_json())["message"]
    assert line.startswith(reason)
    assert "\n" not in line


def test_turns_and_messages_are_scored(model):
    call = {"id": "c", "function": {"name": "look", "arguments": "{}"}}
    asked = {"role": "assistant", "tool_calls": [call]}
    answered = {"role": "tool", "tool_call_id": "c", "content": "ok"}
    said = {"role": "assistant", "content": "wrong\n"}
    (turns, messages) = model.predict([
        {"prompt": "p", "steps": [{"text": "", "calls": [{"name": "look", "result": "ok"}]}, "wrong\n"]},
        {"messages": [{"role": "user", "content": "p"}, asked, answered, said], "tools": [{"name": "look"}]}])
    assert turns["step_scores"] == messages["step_scores"] == [0.9, 0.1]
    assert "step_refs" not in turns
    assert messages["step_refs"] == ["1", "3"]


def test_a_fault_of_ours_is_http_500(model):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match="scoring failed") as caught:
        model.predict([{"prompt": "p", "steps": ["crash"]}])
    assert caught.value.get_http_status_code() == 500


def test_data_hash_is_that_of_data_dvc(tmp_path):
    (tmp_path / "data.dvc").write_text("outs:\n- md5: 0123abcd.dir\n  path: data\n")
    assert register.data_hash(tmp_path) == "md5:0123abcd.dir"
    (tmp_path / "data.dvc").write_text("outs: []\n")
    with pytest.raises(InputError, match=r"data\.dvc: names no md5"):
        register.data_hash(tmp_path)


@pytest.mark.parametrize(("name", "reason"), [("model.bin", "pickled file model.bin"), (None, "no safetensors")])
def test_pickled_model_is_refused(workspace, tmp_path, name, reason):
    folder = fake_model_folder(tmp_path / "prm")
    if name:
        (folder / name).write_bytes(b"")
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=reason):
        model_registry.log_reward_model(workspace, "run", folder, configuration.load(workspace).serve)


def test_model_that_cannot_answer_is_not_registered(workspace, registered, monkeypatch):
    def broken(folder, **_):
        # Whatever happens from here on, the run is not finished yet.
        client = tracking.connect(workspace)
        (run,) = client.search_runs([tracking.experiment_id(client, workspace)], max_results=1)
        assert run.info.status == "RUNNING"
        raise RuntimeError("weights do not fit")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("prm_core.scoring.scorer.load_scorer", broken)
    with pytest.raises(RuntimeError, match="weights do not fit"):
        run_stage(workspace)
    client = tracking.connect(workspace)
    (run,) = client.search_runs([tracking.experiment_id(client, workspace)], max_results=1)
    assert (run.data.tags["stage"], run.info.status) == ("register", "FAILED")
    version = model_registry.version_by_alias(tracking.connect(workspace), "prm", "challenger")
    assert str(version.version) == registered["version"]


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("no/such/folder", "no reward model there"),
        ("models:/prm@nobody", "no such model"),
        ("models:/other/1", "no such model"),
        ("models:/prm/99", "no such model"),
        ("runs:/00000000000000000000000000000000/reward_model", "no such model"),
        ("models:/", "no such model"),
    ],
)
def test_unknown_model_uri_is_one_clear_line(workspace, registered, monkeypatch, uri, reason):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=reason) as caught:
        model_registry.reward_model_folder(uri, workspace)
    assert "\n" not in str(caught.value)
    assert uri in str(caught.value)


def test_model_is_found_by_alias_version_and_run(workspace, registered, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for uri in ("models:/prm@challenger", registered["uri"], f"runs:/{registered['run_id']}/reward_model"):
        assert (model_registry.reward_model_folder(uri, workspace) / "model.safetensors").read_bytes() == b"weights"


def test_looking_a_model_up_makes_no_store(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"there is no sqlite:.*mlflow\.db to look it up in"):
        model_registry.reward_model_folder("models:/prm@champion", tmp_path)
    assert list(tmp_path.iterdir()) == []
