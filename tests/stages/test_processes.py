"""A stage whose work several processes share: what it writes, that it is written once, and what one of them refuses."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from prm_core.errors import InputError
from prm_core.platform import processes, store, tracking
from prm_core.stages import base
from prm_core.stages.base import execute

# The processes of a stage start with what was imported before the first test.
from prm_core.training.policy import loop  # noqa: F401
from prm_core.training.reward import recipe  # noqa: F401
from tests import ROOT
from tests.builders import tracking_store, warm_python
from tests.builders.training import CALIBRATED, files, make_encoder, save_lm, small_values, training_workspace

SECTIONS = {**CALIBRATED, "train_prm": {"solver": "convex", "committee": 3}, "train_policy": {"updates": 2}}


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory) -> tuple[Path, Path]:
    """Both training stages, in one process and in two."""
    root = tmp_path_factory.mktemp("stages")
    one = training_workspace(root / "one", **SECTIONS)
    store.write_json(one / "artifacts/probe/metrics.json", {})
    tracking_store.place(one / "mlflow.db")
    two = Path(shutil.copytree(one, root / "two"))
    store.write_text(two / "params.yaml", yaml.safe_dump(small_values(**SECTIONS, launch={"processes": 2})))
    with pytest.MonkeyPatch.context() as patch, warm_python.commands():
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("PYTHONPATH", str(ROOT))
        for workspace in (one, two):
            for stage in ("train_prm", "train_policy"):
                execute(stage, workspace)
    return one, two


@pytest.mark.parametrize("stage", ["train_prm", "train_policy"])
def test_a_stage_in_two_processes_writes_what_one_writes(workspaces, stage: str) -> None:
    one, two = (workspace / "artifacts" / stage for workspace in workspaces)
    assert files(one) == files(two)
    assert files(workspaces[1] / ".work") == []
    expected, found = (store.read_json(folder / "metrics.json") for folder in (one, two))
    assert expected == pytest.approx(found, rel=1e-4, abs=1e-4)
    weights = [name for name in files(one) if name.endswith(".safetensors")]
    assert weights
    for name in weights:
        assert_close(load_file(two / name), load_file(one / name), atol=2e-4, rtol=1e-3, msg=name)


def test_it_is_one_run_with_the_figures_of_one_process(workspaces) -> None:
    client = tracking.connect(workspaces[1])
    runs = client.search_runs([tracking.experiment_id(client, workspaces[1])], order_by=["attributes.start_time"])
    assert [(run.data.tags["stage"], run.info.status) for run in runs] == [
        ("train_prm", "FINISHED"), ("train_policy", "FINISHED")]
    written = store.read_json(workspaces[1] / "artifacts/train_prm/metrics.json")
    assert {name: runs[0].data.metrics[name] for name in written} == pytest.approx(written)


def test_what_all_of_them_refuse_is_said_once(workspaces, tmp_path, capfd) -> None:
    root = Path(shutil.copytree(workspaces[1], tmp_path / "w"))
    values = {**SECTIONS, "train_policy": {"reward_model": "artifacts/train_prm/orm"}, "launch": {"processes": 2}}
    store.write_text(root / "params.yaml", yaml.safe_dump(small_values(**values)))
    with warm_python.commands(), pytest.raises(InputError, match="an outcome model scores no steps"):
        execute("train_policy", root)
    assert files(root / "artifacts/train_policy") == []
    assert "Traceback" not in capfd.readouterr().err


def test_a_process_with_other_data_is_told_before_anything_is_trained(workspaces, tmp_path) -> None:
    """As where each machine has its own copy of the workspace."""
    for rank in (0, 1):
        shutil.copytree(workspaces[0], tmp_path / f"w{rank}")
    store.write_jsonl(tmp_path / "w1/data/train.jsonl", [{"not": "the same"}])
    program = "import os, sys; sys.argv[-1] += os.environ['RANK']; from prm_core.cli import main; main()"
    command = [sys.executable, "-c", program, "stage", "train_prm", "--workspace", str(tmp_path / "w")]
    with pytest.raises(InputError, match=r"process 1 of 2 works with other contents than process 0: data/train.jsonl;"):
        processes.launch(2, command)
    assert files(tmp_path / "w1/.work") == []


@pytest.mark.parametrize(("changed", "unlike"), [
    ("lm/config.json", ["models.policy", "models.reward_backbone"]), ("data/train.jsonl", ["data/train.jsonl"]),
    ("params.yaml", ["params.yaml"])])
def test_what_processes_of_several_machines_compare(
    workspaces, tmp_path, monkeypatch, changed: str, unlike: list[str]
) -> None:
    def meet(found: dict[str, str], *, on_cpu: bool) -> None:
        facts.append(found)
        raise InputError("compared")

    facts: list[dict[str, str]] = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "meet", meet)
    monkeypatch.setenv("RANK", "0")
    roots = [Path(shutil.copytree(workspaces[0], tmp_path / name)) for name in ("here", "there")]
    for root in roots:
        save_lm(root / "lm", make_encoder())
        values = small_values(**SECTIONS, models={"policy": "lm", "reward_backbone": "lm"})
        store.write_text(root / "params.yaml", yaml.safe_dump(values))
    if changed == "params.yaml":
        store.write_text(roots[1] / changed, yaml.safe_dump({**values, "seed": 99}))
    else:
        with (roots[1] / changed).open("a") as file:
            file.write("\n")
    for root in roots:
        with pytest.raises(InputError, match="compared"):
            execute("train_prm", root)
    assert [name for name in facts[0] if facts[0][name] != facts[1][name]] == unlike


def test_stages_that_train_are_shared_out() -> None:
    assert {name for name in base.CHAIN if base.load_stage(name).shared} == {"train_prm", "train_policy"}


def test_how_many_processes_is_no_reason_to_run_a_stage_again(workspaces) -> None:
    assert all("launch" not in base.load_stage(name).params for name in base.CHAIN)
    stage = base.load_stage("train_prm")
    one, two = (base._work_facts(stage, base.configuration.load(workspace),
                                 {key: workspace / path for key, path in stage.inputs.items()})
                for workspace in workspaces)
    assert one == two, "another number of processes goes on from the same checkpoint"
