"""A checkout with a graph of a few trivial stages, for trying workspaces and flows without models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from prm_core import config as configuration
from tests import ROOT

SIZES = {"warmup": 12, "train": 12, "dev": 4, "test": 4, "human_chains": 3}


def dvc(folder: Path, *arguments: str) -> str:
    """Runs dvc there; returns what it printed, with its errors. Raises when it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_graph(folder: Path, stages: dict[str, dict[str, Any]]) -> None:
    """Writes dvc.yaml."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))


def copy_stage(source: str, target: str, **more: Any) -> dict[str, Any]:
    """A stage that copies a file and writes a figure, and depends on one module of ours."""
    folder = Path(target).parent
    command = f"mkdir -p {folder} && cp {source} {target} && echo '{{\"count\": 3}}' > {folder}/metrics.json"
    return {"cmd": command, "deps": [source, "prm_core/code.py"], "outs": [target],
            "metrics": [{f"{folder}/metrics.json": {"cache": False}}], **more}


def make_checkout(root: Path) -> Path:
    """params.yaml with little data, stages `first` and `second`, and a DVC repository without git."""
    root.mkdir()
    raw = configuration.read_yaml(ROOT / "params.yaml")
    (root / "params.yaml").write_text(yaml.safe_dump({**raw, "data": SIZES}, sort_keys=False))
    (root / "prm_core").mkdir()
    (root / "prm_core" / "code.py").write_text("VERSION = 1\n")
    (root / ".dvcignore").write_text((ROOT / ".dvcignore").read_text())
    write_graph(root, {
        "first": copy_stage("data/train.jsonl", "artifacts/first/out.txt"),
        "second": copy_stage("artifacts/first/out.txt", "artifacts/second/out.txt"),
    })
    dvc(root, "init", "--no-scm", "--quiet")
    return root
