"""The direction of imports (contracts in pyproject.toml), and that light modules stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "mlflow", "pandas", "great_expectations", "sklearn", "matplotlib", "prefect")


def test_contracts_hold(capsys: pytest.CaptureFixture[str]) -> None:
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert code == 0, capsys.readouterr().out


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
