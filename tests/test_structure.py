"""The house: rooms of a size, no circles, imports that point one way, light modules that stay light, tests where their
module is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests import ROOT

HEAVY = ("torch", "transformers", "mlflow", "pandas", "great_expectations", "sklearn", "matplotlib", "prefect",
         "nicegui", "aiohttp", "crowdkit", "sympy", "pydantic", "pyarrow")
PACKAGES = sorted(path.parent for path in (ROOT / "prm_core").rglob("__init__.py"))
MOST_MODULES, MOST_LOOSE = 15, 6
# Tests of several modules together, and of what is no module.
WHOLE = {"test_structure.py", "test_bare_machine.py", "test_docs.py", "test_makefile.py"}


def python(script: str) -> str:
    """Output of a script in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def modules_of(package: Path) -> list[Path]:
    return [path for path in package.glob("*.py") if path.name != "__init__.py"]


def test_contracts_hold() -> None:
    # In a process of its own: import-linter configures logging anew, which would deafen other tests' caplog.
    python("from importlinter.cli import lint_imports\n"
           f"raise SystemExit(lint_imports(config_filename={str(ROOT / 'pyproject.toml')!r}, no_cache=True))")


def test_no_circle_not_even_for_type_checking() -> None:
    graph = grimp.build_graph("prm_core", "flows", cache_dir=None)
    assert graph.nominate_cycle_breakers("prm_core") == set()
    for package in PACKAGES[1:]:
        assert graph.nominate_cycle_breakers(".".join(package.relative_to(ROOT).parts)) == set()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_is_small_and_says_what_lives_there(package: Path) -> None:
    most = MOST_LOOSE if package == ROOT / "prm_core" else MOST_MODULES
    assert len(modules_of(package)) <= most
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert said, f"{package}/__init__.py: say what lives here and what does not"


def test_every_test_lies_where_its_module_does() -> None:
    astray = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.relative_to(ROOT / "tests").parent
        homes = [ROOT / "prm_core" / folder, ROOT / folder]
        if path.name not in WHOLE and not any(home.is_dir() for home in homes):
            astray.append(path)
    assert astray == []


@pytest.mark.parametrize("module", ["prm_core.cli", "prm_core.stages.base", "prm_core.platform.workspace",
                                    "prm_core.platform.tracking", "prm_core.config", "prm_core.formats"])
def test_heavy_libraries_are_imported_where_they_are_used(module: str) -> None:
    assert python(f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])").split() == []


def test_a_config_is_checked_without_heavy_imports() -> None:
    heavy = [name for name in HEAVY if name != "pydantic"]
    said = python("import sys; from pathlib import Path; from prm_core import config, stages\n"
                  "stages.base.check(config.load(Path('.')))\n"
                  f"print(*[name for name in {heavy} if name in sys.modules])")
    assert said.split() == []


def test_every_stage_is_declared_without_heavy_imports() -> None:
    assert python("import sys; from prm_core.stages.base import CHAIN, load_stage\n"
                  f"for name in CHAIN: load_stage(name)\nprint(*[name for name in {HEAVY} if name in sys.modules])"
                  ).split() == []
