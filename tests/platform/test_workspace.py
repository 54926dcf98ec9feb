"""Workspaces: where they lie, that one run has them at a time, and that nobody's data is overwritten."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from prm_core.errors import InputError
from prm_core.platform import store, workspace
from prm_core.problems import prepare
from tests import ROOT
from tests.builders.checkout import make_checkout

pytestmark = pytest.mark.usefixtures("quick_dvc")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose default workspace is ready."""
    root = make_checkout(tmp_path / "root")
    prepare.prepare(root, "default")
    return root


@pytest.mark.parametrize(
    ("profile", "problems", "expected"),
    [
        ("default", None, "."),
        ("smoke", None, "runs/smoke"),
        ("default", "in/my problems.jsonl", "runs/default-my_problems"),
        ("smoke", "gsm8k.jsonl", "runs/smoke-gsm8k"),
        ("mine/big.yaml", None, "runs/big"),
        ("qwen2.5-7b", None, "runs/qwen2.5-7b"),
    ],
)
def test_locate(profile: str, problems: str | None, expected: str) -> None:
    assert workspace.locate(Path("/x"), profile, problems and Path(problems)) == Path("/x") / expected


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        workspace.exclusive(tmp_path),
        pytest.raises(InputError, match="another run is at work here"),
        workspace.exclusive(tmp_path),
    ):
        pass
    with workspace.exclusive(tmp_path):
        pass


def test_replace_data_spares_what_dvc_has_not_recorded(root: Path) -> None:
    folder = root / "data"

    def write(text: str):
        def make(target: Path) -> None:
            target.mkdir()
            (target / "train.jsonl").write_text(text)

        return make

    # What is there is recorded, so it can come back.
    workspace.replace_data(folder, write("one"))
    with pytest.raises(InputError, match="dvc add data"):
        workspace.replace_data(folder, write("two"))
    assert (folder / "train.jsonl").read_text() == "one"
    workspace.replace_data(folder, write("one"))
    workspace.replace_data(folder, write("two"), force=True)
    assert (folder / "train.jsonl").read_text() == "two"

    def broken(target: Path) -> None:
        write("three")(target)
        raise InputError("half way")

    with pytest.raises(InputError, match="half way"):
        workspace.replace_data(folder, broken, force=True)
    assert (folder / "train.jsonl").read_text() == "two"
    assert not list(root.glob(".data*"))
    # A crash between the two renames of a replacement.
    folder.rename(root / ".data.old")
    with pytest.raises(InputError, match="half way"):
        workspace.replace_data(folder, broken, force=True)
    assert (folder / "train.jsonl").read_text() == "two"
    folder.rename(root / ".data.old")
    workspace.restore_data(root, broken)
    assert (folder / "train.jsonl").read_text() == "two"


def test_make_clean_asks_before_it_removes_what_people_have_judged(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    labels = {name: tmp_path / f"runs/{name}/data/human/labels.jsonl" for name in ("made", "empty", "judged")}
    for name, path in labels.items():
        reviewers = {"made": ["oracle"], "judged": ["oracle", "lea"]}.get(name, [])
        store.write_jsonl(path, [{"strategy": f"human:{reviewer}"} for reviewer in reviewers])
    clean = ["make", "-C", str(tmp_path), "clean"]
    refused = subprocess.run(clean, capture_output=True, text=True)
    assert refused.returncode
    assert "People have judged steps in runs/judged/data/human/labels.jsonl\n" in refused.stdout
    assert all(path.exists() for path in labels.values())
    subprocess.run([*clean, "LABELS=drop"], check=True, capture_output=True)
    assert not (tmp_path / "runs").exists()
