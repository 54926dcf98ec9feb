"""What a run's workspace holds when it is ready, and that nobody's data is overwritten or swapped."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import yaml

from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store, workspace
from prm_core.problems import prepare
from prm_core.types import Problem
from tests.builders.checkout import SIZES, dvc, make_checkout

pytestmark = pytest.mark.usefixtures("quick_dvc")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose default workspace is ready. Tests that change it copy it."""
    root = make_checkout(tmp_path_factory.mktemp("made") / "root")
    assert prepare.prepare(root, "default") == root
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _times(folder: Path) -> dict[str, int]:
    names = ("params.yaml", "dvc.yaml", "data.dvc", "data/train.jsonl", ".dvc/config")
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def test_root_data_is_made_and_recorded(made: Path) -> None:
    assert sorted(path.relative_to(made / "data").as_posix() for path in (made / "data").rglob("*.jsonl")) == [
        "dev.jsonl", "human/labels.jsonl", "human/problems.jsonl", "human/trajectories.jsonl", "shifted.jsonl",
        "test.jsonl",
        "train.jsonl", "warmup.jsonl",
    ]
    # Our hash is DVC's.
    assert workspace.tracked_hash(made / "data") == workspace.data_hash(made / "data")
    assert len((made / "data" / "train.jsonl").read_text().splitlines()) == SIZES["train"]


def test_fresh_clone_gets_the_committed_data_from_the_seed(root: Path) -> None:
    committed = (root / "data.dvc").read_text()
    before = (root / "data" / "test.jsonl").read_bytes()
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc" / "cache")
    prepare.prepare(root, "default")
    assert (root / "data.dvc").read_text() == committed
    assert (root / "data" / "test.jsonl").read_bytes() == before
    assert "up to date" in dvc(root, "status", "data.dvc")


def test_the_users_data_comes_back_from_the_cache_not_from_the_seed(root: Path) -> None:
    (root / "data" / "train.jsonl").write_text('{"mine": 1}\n')
    dvc(root, "add", "data", "--quiet")
    committed = (root / "data.dvc").read_text()
    shutil.rmtree(root / "data")
    prepare.prepare(root, "default")
    assert (root / "data" / "train.jsonl").read_text() == '{"mine": 1}\n'
    assert (root / "data.dvc").read_text() == committed


def test_data_nobody_can_bring_back_is_an_error_and_data_dvc_stays(root: Path) -> None:
    (root / "data" / "train.jsonl").write_text('{"mine": 1}\n')
    dvc(root, "add", "data", "--quiet")
    committed = (root / "data.dvc").read_text()
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc" / "cache")
    with pytest.raises(InputError, match=r"data\.dvc names other content .* remove data\.dvc"):
        prepare.prepare(root, "default")
    assert (root / "data.dvc").read_text() == committed
    assert not (root / "data").exists()
    assert not list(root.glob(".data*"))


def test_root_data_that_is_there_is_left_alone(root: Path) -> None:
    (root / "data" / "train.jsonl").write_text('{"mine": 1}\n')
    committed = (root / "data.dvc").read_text()
    prepare.prepare(root, "default")
    assert (root / "data" / "train.jsonl").read_text() == '{"mine": 1}\n'
    assert (root / "data.dvc").read_text() == committed


def test_profile_workspace_is_a_repository_of_its_own(root: Path, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text(yaml.safe_dump({"seed": 7, "data": {"train": 5}}))
    folder = prepare.prepare(root, str(profile))
    assert folder == root / "runs" / "tiny"
    params = configuration.load(folder)
    assert (params.profile, params.seed, params.data.train, params.data.dev) == ("tiny", 7, 5, SIZES["dev"])
    assert len((folder / "data" / "train.jsonl").read_text().splitlines()) == 5
    graph = configuration.read_yaml(folder / "dvc.yaml")
    assert graph["stages"]["first"]["deps"] == ["data/train.jsonl", "../../prm_core/code.py"]
    # A second time there is nothing to do.
    before = _times(folder)
    prepare.prepare(root, str(profile))
    assert _times(folder) == before
    # It runs with plain DVC, on the root's cache, and the root does not notice.
    dvc(folder, "repro")
    assert (folder / "artifacts" / "second" / "out.txt").exists()
    assert not (folder / ".dvc" / "cache").exists()
    assert "up to date" in dvc(folder, "status")
    assert "runs" not in dvc(root, "status")
    # Code in the root is a dependency of its stages.
    (root / "prm_core" / "code.py").write_text("VERSION = 2\n")
    assert "code.py" in dvc(folder, "status")


def test_data_of_a_profile_follows_the_profile_unless_changed_by_hand(root: Path, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.yaml"
    profile.write_text("seed: 1\n")
    folder = prepare.prepare(root, str(profile))
    first = workspace.data_hash(folder / "data")
    profile.write_text("seed: 2\n")
    prepare.prepare(root, str(profile))
    second = workspace.data_hash(folder / "data")
    assert first != second
    assert workspace.tracked_hash(folder / "data") == second
    # Human labels added by hand are kept, and recorded.
    (folder / "data" / "human" / "labels.jsonl").write_text("")
    prepare.prepare(root, str(profile))
    assert (folder / "data" / "human" / "labels.jsonl").read_text() == ""
    assert workspace.tracked_hash(folder / "data") == workspace.data_hash(folder / "data")
    profile.write_text("seed: 3\n")
    with pytest.raises(InputError, match="changed by hand"):
        prepare.prepare(root, str(profile))


def test_a_problem_file_gets_a_workspace(root: Path, problems: Path) -> None:
    folder = prepare.prepare(root, "default", problems)
    assert folder == root / "runs" / "default-mine"
    assert configuration.load(folder).domain == "general"
    data = folder / "data"
    counts = {split: len((data / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "dev", "test")}
    assert sum(counts.values()) == 60
    assert counts["train"] > 35
    assert (data / "warmup.jsonl").read_bytes() == (root / "data" / "warmup.jsonl").read_bytes()
    assert (data / "human" / "labels.jsonl").read_text() == ""
    old = workspace.data_hash(data)
    with problems.open("a") as file:
        file.write('{"prompt": "What is 9 * 9?", "answer": "81"}\n')
    prepare.prepare(root, "default", problems)
    assert workspace.data_hash(data) != old


def test_a_bad_problem_file_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b"\n')
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        prepare.prepare(root, "default", bad)
    assert not (root / "runs").exists()


def test_an_unknown_domain_is_told_before_anything_is_made(root: Path, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("domain: arithmetik\n")
    with pytest.raises(InputError, match=r"unknown domain 'arithmetik'; known: arithmetic, .*general"):
        prepare.check(root, str(profile))


def test_unknown_profile(root: Path) -> None:
    with pytest.raises(InputError, match=r"unknown profile 'smok'; known: default, .*smoke"):
        prepare.prepare(root, "smok")


def _say(human: Path, strategy: str) -> None:
    """A person's label on the first chain there."""
    labels = human / "labels.jsonl"
    first = json.loads(labels.read_text().splitlines()[0])
    labels.write_text(labels.read_text() + json.dumps({**first, "strategy": strategy}) + "\n")


def test_human_labels_stay_when_problems_are_imported(
    root: Path, problems: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, config = root / "data", configuration.load(root)
    _say(data / "human", "human:lea")
    before = {path.name: path.read_bytes() for path in (data / "human").iterdir()}
    prepare.import_problems(problems, data, config, force=True)
    assert len(store.read_jsonl(Problem, data / "train.jsonl")) > 35
    assert {path.name: path.read_bytes() for path in (data / "human").iterdir()} == before
    assert "human labels (by lea, oracle) stay, with the chains they are about; --drop-labels" in caplog.text
    prepare.import_problems(problems, data, config, force=True, drop_labels=True)
    assert (data / "human" / "labels.jsonl").read_text() == ""
    # Nothing is lost either where the file to import lies in the folder that it would replace.
    inside = Path(shutil.copy(problems, data / "mine.jsonl"))
    with pytest.raises(InputError, match=r"mine\.jsonl: lies in .*data, which the import replaces"):
        prepare.import_problems(inside, data, config, force=True)
    assert inside.read_bytes() == problems.read_bytes()


def test_what_people_said_stays_when_data_is_made_again(root: Path) -> None:
    data, config = root / "data", dataclasses.replace(configuration.load(root), seed=99)
    made = (data / "human" / "labels.jsonl").read_bytes()
    prepare.remake_data(data, config)
    # Labels that the seed made are made again.
    assert (data / "human" / "labels.jsonl").read_bytes() != made
    _say(data / "human", "human:lea")
    said = (data / "human" / "labels.jsonl").read_bytes()
    prepare.remake_data(data, dataclasses.replace(config, seed=100), force=True)
    assert (data / "human" / "labels.jsonl").read_bytes() == said
    prepare.remake_data(data, dataclasses.replace(config, seed=100), force=True, drop_labels=True)
    assert b"lea" not in (data / "human" / "labels.jsonl").read_bytes()


def test_a_problem_longer_than_the_context_is_left_out_before_a_run(root: Path, problems: Path) -> None:
    with problems.open("a") as file:
        file.write(json.dumps({"id": "long-one", "prompt": "One apple. " * 200, "answer": "1"}) + "\n")
    folder = prepare.prepare(root, "default", problems)
    kept = [problem.id for split in ("train", "dev", "test")
            for problem in store.read_jsonl(Problem, folder / "data" / f"{split}.jsonl")]
    assert len(kept) == 60
    assert "long-one" not in kept
