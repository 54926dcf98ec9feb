"""The direction of imports (contracts in pyproject.toml), and that light modules stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "mlflow", "pandas", "great_expectations", "sklearn", "matplotlib", "prefect",
         "nicegui", "openai", "crowdkit", "sympy")


def test_contracts_hold() -> None:
    # In a process of its own: import-linter configures logging anew, which would deafen other tests' caplog.
    script = (
        "from importlinter.cli import lint_imports\n"
        f"raise SystemExit(lint_imports(config_filename={str(ROOT / 'pyproject.toml')!r}, no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["prm_core.cli", "prm_core.stages.base", "prm_core.workspace", "prm_core.tracking"])
def test_heavy_libraries_are_imported_where_they_are_used(module: str) -> None:
    script = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_stage_is_declared_without_heavy_imports() -> None:
    script = (
        "import sys; from prm_core.stages.base import CHAIN, load_stage\n"
        f"for name in CHAIN: load_stage(name)\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
