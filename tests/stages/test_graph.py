"""dvc.yaml, the flow's order and the stages' declarations say the same, and a change runs again what it touches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prm_core import config as configuration
from prm_core import stages
from prm_core.stages import graph
from prm_core.stages.base import CHAIN, load_stage
from tests import ROOT
from tests.builders.checkout import dvc

GRAPH: dict[str, dict[str, Any]] = configuration.read_yaml(ROOT / "dvc.yaml")["stages"]
HEADLINE = load_stage("evaluate").outputs["headline"]
TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def imports() -> Any:
    return graph.build_imports()


def _names(items: list[Any]) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in items]


def test_dvc_yaml_is_what_the_code_says() -> None:
    assert graph.render(TEXT) == TEXT, "dvc.yaml is not of this code: run `make graph`"


def test_the_flow_the_stages_and_dvc_yaml_name_the_same_in_the_same_order() -> None:
    modules = {path.stem for path in Path(stages.__file__).parent.glob("*.py")} - {"__init__", "base", "graph"}
    assert list(GRAPH) == list(CHAIN)
    assert modules == set(CHAIN)


def test_chain_is_a_topological_order() -> None:
    written: set[str] = set()
    for name in CHAIN:
        for path in load_stage(name).inputs.values():
            made = not path.startswith("artifacts/") or any(path == o or path.startswith(f"{o}/") for o in written)
            assert made, (name, path)
        written.update(_names(GRAPH[name].get("outs", [])) + _names(GRAPH[name].get("metrics", [])))


@pytest.mark.parametrize("name", CHAIN)
def test_stage_is_as_declared(name: str) -> None:
    declared, written = load_stage(name), GRAPH[name]
    assert written["cmd"] == f"prm stage {name}"
    assert [path for path in written["deps"] if not path.startswith("prm_core/")] == list(declared.inputs.values())
    outputs = _names(written.get("outs", [])) + _names(written.get("metrics", []))
    assert sorted(outputs) == sorted([*declared.outputs.values(), f"artifacts/{name}/SHA256SUMS"])
    assert written.get("params", []) == list(declared.params)
    # Whatever is kept out of the cache is lost to a clone.
    assert all(isinstance(entry, str) for kind in ("outs", "metrics") for entry in written.get(kind, []))
    assert written.get("metrics", []) == [declared.outputs[key] for key in ("headline",) if key in declared.outputs]


@pytest.mark.parametrize(("stage", "depends", "not_on"), [
    # Strategies are registered by their package, the sympy worker is started by its path, a report has a template.
    ("label", ["labeling/strategies/mcts.py", "labeling/strategies/__init__.py", "maths/sympy_worker.py"], "serving/"),
    ("evaluate", ["evaluation/report/templates/report.html.j2", "domains/oracle.py"], "serving/"),
    ("register", ["serving/pyfunc_model.py", "scoring/implicit.py"], "labeling/"),
    ("train_prm", ["scoring/implicit.py", "training/reward/loop.py"], "labeling/strategies/"),
    ("warmup", ["training/warmup.py"], "scoring/"),
])
def test_code_dependencies_are_whole_and_narrow(stage: str, depends: list[str], not_on: str, imports: Any) -> None:
    code = graph.code_of(stage, imports)
    assert {f"prm_core/{path}" for path in depends} <= set(code)
    assert not [path for path in code if path.startswith(f"prm_core/{not_on}")]
    assert not [path for path in code if "/platform/" in path or path.endswith(("config.py", "stages/base.py"))]


def test_what_serving_changes_only_registers_anew(imports: Any) -> None:
    assert [name for name in CHAIN if any("/serving/" in path for path in graph.code_of(name, imports))] == ["register"]


def test_check_says_what_is_stale_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = TEXT.replace("      - prm_core/training/warmup.py\n", "      - prm_core/training/gone.py\n", 1)
    (tmp_path / "dvc.yaml").write_text(stale)
    monkeypatch.setattr(graph, "project_root", lambda: tmp_path)
    monkeypatch.setattr(sys, "argv", ["graph", "--check"])
    assert graph.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line[:2] in ("- ", "+ ")] == [
        "-      - prm_core/training/gone.py", "+      - prm_core/training/warmup.py"]
    assert (tmp_path / "dvc.yaml").read_text() == stale
    monkeypatch.setattr(sys, "argv", ["graph"])
    assert graph.main() == 0
    assert (tmp_path / "dvc.yaml").read_text() == TEXT


def stand_in(root: Path) -> None:
    """A git repository with the real graph and what a run of it leaves, a line in each output, committed and pushed.
    The folder of search trees is empty, as in a profile without them."""
    root.mkdir()
    for name in (".gitignore", ".dvcignore", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    git(root, "init", "-q")
    for stage in GRAPH.values():
        for path in (root / name for name in (*stage["deps"], *stage.get("outs", []), *stage.get("metrics", []))):
            file = path if path.suffix else path / "part"
            file.parent.mkdir(parents=True, exist_ok=True)
            if path.name != "evidence":
                file.write_text('{"figure": 0.5}\n')
    (root / "artifacts/evaluate/plots/best_of_n.csv").write_text("method,n,accuracy\nmajority,1,0.5\nmajority,8,0.6\n")
    for command in ("remote add -q -d store ../remote", "add -q data", "commit -q -f", "push -q"):
        dvc(root, *command.split())
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "a run")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_clone_that_pulls_has_everything_runs_nothing_and_shows_its_figures_offline(
    tmp_path: Path, quick_dvc: None
) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    stand_in(origin)
    git(tmp_path, "clone", "-q", "origin", "clone")
    dvc(clone, "pull", "-q")
    assert json.loads(dvc(clone, "status", "--json")) == {}
    assert "Running stage" not in dvc(clone, "repro")
    for stage in GRAPH.values():
        for path in (*stage.get("outs", []), *stage.get("metrics", [])):
            assert (clone / path).exists(), path
    # Figures of a commit are in the cache: a clone compares with it.
    (shown,) = json.loads(dvc(clone, "metrics", "show", "--json"))[""]["data"]
    assert shown == HEADLINE
    (clone / HEADLINE).unlink()
    (clone / HEADLINE).write_text('{"figure": 0.75}')
    diff = json.loads(dvc(clone, "metrics", "diff", "--json"))
    assert diff == {HEADLINE: {"figure": {"old": 0.5, "new": 0.75, "diff": 0.25}}}
    dvc(clone, "plots", "show", "-q", "artifacts/evaluate/plots/best_of_n.csv")
    page = (clone / "dvc_plots/index.html").read_text()
    assert "src=" not in page
    assert '"usermeta": {"x": "n", "y": "accuracy"}' in page


def test_params_exist() -> None:
    keys = set(configuration.read_yaml(ROOT / "params.yaml"))
    assert {key for stage in GRAPH.values() for key in stage.get("params", [])} <= keys


def test_stages_that_rules_are_held_in_run_again_for_another_judge() -> None:
    held = {name: stage["params"] for name, stage in GRAPH.items() if "rules" in stage.get("params", [])}
    assert {"train_policy", "evaluate"} <= set(held)
    assert all("label" in params for params in held.values())


@pytest.mark.parametrize("profile", configuration.profile_names())
def test_profiles_parse_and_no_stage_refuses_them(profile: str) -> None:
    config = configuration.parse(configuration.resolve(ROOT / "params.yaml", profile), profile)
    assert config.profile == profile
    # A pretrained profile must not ask for models that only a warm-up writes.
    assert config.warmup.enabled == config.models.policy.startswith("artifacts/warmup/")
    stages.base.check(config)
