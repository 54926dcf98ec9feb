"""dvc.yaml says the same as the stages' declarations, and names exactly the modules each stage runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import grimp
import pytest

from prm_core import config as configuration
from prm_core.stages.base import CHAIN, load_stage

ROOT = Path(__file__).parent.parent
# Modules that carry values without making them: a change there is no reason to run a stage again.
PLUMBING = {
    "prm_core", "prm_core.types", "prm_core.errors", "prm_core.registry", "prm_core.config", "prm_core.store",
    "prm_core.tracking", "prm_core.progress", "prm_core.environment", "prm_core.ranks", "prm_core.stages",
    "prm_core.stages.base",
}
# Where no import statement shows it: the strategies, which `label` imports by their configured names, the script that
# the verifier starts by its path, and the model file that `register` logs.
BY_NAME = {
    "label": {
        *(f"prm_core.labeling.{name}" for name in get_args(configuration.StrategyName)),
        "prm_core.labeling.sympy_worker",
    },
    "register": {"prm_core.serving.pyfunc_model"},
}
GRAPH: dict[str, dict[str, Any]] = configuration.read_yaml(ROOT / "dvc.yaml")["stages"]


def _names(items: list[Any]) -> list[str]:
    return [item if isinstance(item, str) else next(iter(item)) for item in items]


def _data(stage: dict[str, Any]) -> list[str]:
    return [path for path in stage["deps"] if not path.startswith("prm_core/")]


def _file(module: str) -> str:
    path = Path(*module.split("."))
    return str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py"))


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("prm_core", cache_dir=None)


def test_the_flow_runs_the_stages_of_the_graph() -> None:
    assert list(GRAPH) == list(CHAIN)


@pytest.mark.parametrize("name", CHAIN)
def test_stage_is_as_declared(name: str) -> None:
    declared, written = load_stage(name), GRAPH[name]
    assert written["cmd"] == f"prm stage {name}"
    assert _data(written) == list(declared.inputs.values())
    outputs = _names(written.get("outs", [])) + _names(written.get("metrics", []))
    assert sorted(outputs) == sorted(declared.outputs.values())
    assert written.get("params", []) == list(declared.params)


@pytest.mark.parametrize("name", CHAIN)
def test_metrics_stay_out_of_the_cache(name: str) -> None:
    for entry in GRAPH[name].get("metrics", []):
        ((path, options),) = entry.items()
        assert path == f"artifacts/{name}/metrics.json"
        assert options == {"cache": False}


@pytest.mark.parametrize("name", CHAIN)
def test_code_dependencies_are_what_the_stage_imports(name: str, imports: grimp.ImportGraph) -> None:
    roots = {f"prm_core.stages.{name}"} | BY_NAME.get(name, set())
    modules = roots.union(*(imports.find_upstream_modules(root) for root in roots)) - PLUMBING
    expected = {_file(module) for module in modules}
    written = {path for path in GRAPH[name]["deps"] if path.startswith("prm_core/")}
    assert written == expected, (
        f"dvc.yaml, deps of {name}: add {sorted(expected - written)}, remove {sorted(written - expected)}"
    )


def test_only_registration_depends_on_serving() -> None:
    assert [name for name in CHAIN if any("/serving/" in path for path in GRAPH[name]["deps"])] == ["register"]


def test_chain_is_a_topological_order() -> None:
    written: set[str] = set()
    for name in CHAIN:
        for path in _data(GRAPH[name]):
            made_here = path.startswith("artifacts/")
            assert not made_here or any(path == out or path.startswith(f"{out}/") for out in written), (name, path)
        written.update(_names(GRAPH[name].get("outs", [])) + _names(GRAPH[name].get("metrics", [])))


def test_params_exist() -> None:
    keys = set(configuration.read_yaml(ROOT / "params.yaml"))
    assert {key for stage in GRAPH.values() for key in stage.get("params", [])} <= keys


@pytest.mark.parametrize("profile", configuration.profile_names())
def test_profiles_parse(profile: str) -> None:
    config = configuration.parse(configuration.resolve(ROOT / "params.yaml", profile), profile)
    assert config.profile == profile
    # A pretrained profile must not ask for models that only a warm-up writes.
    assert config.warmup.enabled == config.models.policy.startswith("artifacts/warmup/")
