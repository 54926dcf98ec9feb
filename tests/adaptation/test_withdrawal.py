"""What was withdrawn is nowhere, is learned from by nobody, and the versions that it went into are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prm_core import config as configuration
from prm_core.adaptation import lineage, loop
from prm_core.adaptation.rounds import REVIEW, home, rounds
from prm_core.adaptation.withdrawal import forget
from prm_core.config import Config
from prm_core.labeling.human.labels import read_human
from prm_core.platform import tracking
from prm_core.review.session import HUMAN
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import read_outcomes
from prm_core.serving.drift.samples import sample
from prm_core.serving.drift.withdrawn import Withdrawn, read_withdrawn
from prm_core.types import Step
from tests.builders.adaptation import BEGIN, NOW, answer, make_workspace, serve

TRAFFIC = ("new", 40)
MARK = "Zebra-4711 asks. "


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A workspace that a round has gone through; each test has a copy."""
    folder, config = make_workspace(tmp_path_factory.mktemp("withdrawal") / "made", review_share=1.0)
    names = serve(folder, config, TRAFFIC[1], TRAFFIC[0], mark=MARK)
    loop.adapt(folder, config, NOW)
    answer(folder, config, TRAFFIC, reviewers=("ann", "bob"))
    assert loop.adapt(folder, config, NOW).version == "models:/prm/2"
    return folder, names


@pytest.fixture
def work(made, tmp_path: Path) -> tuple[Path, Config, list[str]]:
    folder = tmp_path / "work"
    shutil.copytree(made[0], folder)
    return folder, configuration.load(folder), made[1]


def holding(folder: Path, text: str) -> list[str]:
    """The files below that hold a text, Parquet read."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        said = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_bytes().decode(
            errors="replace")
        if text in said:
            found.append(str(path.relative_to(folder)))
    return found


def test_a_trajectory_is_nowhere_and_a_version_without_it_is_one_call_away(work) -> None:
    folder, config, names = work
    assert len(holding(folder, MARK)) >= 5
    done = forget(folder, config, Withdrawn(frozenset([names[0]])))
    assert holding(folder, MARK) == []
    assert done.versions == ["models:/prm/2"]
    assert done.removed["trajectories"] == 2
    assert names[0] not in {one.trajectory for one in read_outcomes(folder / "served")}
    retrained = loop.adapt(folder, config, NOW, go=True, retrain=True)
    _, found = lineage.versions(folder, config)[retrained.version]
    assert found.parent == "models:/prm/1"
    assert names[0] not in {*found.trajectories, *found.held_out}
    assert len(found.trajectories) + len(found.held_out) == TRAFFIC[1] - 1
    assert lineage.trained_on(folder, config, read_withdrawn(folder / "served")) == ["models:/prm/2"]
    assert retrained.state == loop.PROMOTED, retrained.reason
    assert str(tracking.connect(folder).get_model_version_by_alias("prm", "champion").version) == "3"


def test_what_it_began_with_and_what_went_on_with_it_go_too_and_nothing_else(work) -> None:
    folder, config, _ = work

    def kept(*steps: str) -> files.Sample:
        return sample("q", [Step(text) for text in steps], [0.5] * len(steps), time=BEGIN, threshold=0.5, renderer=2,
                      texts=True)

    path = folder / "served/samples/20260921T230000-0-0.parquet"
    files.write(path, [kept("a"), kept("a", "b"), kept("a", "b", "c"), kept("a", "x")])
    forget(folder, config, Withdrawn(frozenset(["served-" + kept("a", "b").prefixes[-1]])))
    assert [one.text and one.text.count("text") for one in files.read(path)[0]] == [2]
    # It may not come back.
    files.write(path, [kept("a", "b")])
    assert loop.window(folder, config, NOW)[:0] == []
    assert not [
        one for one in loop.window(folder, config, NOW) if one.prompt == kept("a").prompt]


def test_a_persons_labels_go_and_others_stay(work) -> None:
    folder, config, _ = work
    human = home(folder, config) / REVIEW / HUMAN
    before = read_human(human).labels
    done = forget(folder, config, Withdrawn(people=frozenset(["ann"])))
    after = read_human(human).labels
    assert {row.strategy for row in before} == {"human:ann", "human:bob"}
    assert after == [row for row in before if row.strategy == "human:bob"]
    assert done.versions == ["models:/prm/2"]


def test_the_chains_own_versions_are_named_where_its_people_go(work) -> None:
    from prm_core.labeling.human.labels import HumanData, write_human
    from prm_core.stages.register import data_hash
    from prm_core.types import Problem, StepLabel, Trajectory

    folder, config, _ = work
    chain = Trajectory("t", "p", "policy", (Step("3 + 4 = 7."),), None, None, 0)
    label = StepLabel("t", 0, "human:cleo", 1.0, True, 1.0, 0, "")
    write_human(folder / HUMAN, HumanData([Problem("p", "arithmetic", "q", "7")], [chain], [label]))
    tracking.connect(folder).set_model_version_tag("prm", "1", "data_hash", data_hash(folder))
    done = forget(folder, config, Withdrawn(people=frozenset(["cleo"])))
    # The second was trained from the first.
    assert done.versions == ["models:/prm/1", "models:/prm/2"]
    assert "prm run" in str(done)
    assert read_human(folder / HUMAN) == HumanData()


def test_a_tenants_trajectories_go(work) -> None:
    folder, config, names = work
    done = forget(folder, config, Withdrawn(tenants=frozenset(["tenant-1"])))
    assert holding(folder, MARK)
    assert done.removed["outcomes"] == 20
    assert done.versions == ["models:/prm/2"]
    (path,) = (path for _, path in files.files(folder / "served/samples"))
    assert {one.tenant for one in files.read(path)[0]} == {"tenant-0"}
    left = {row.trajectory_id.split("@")[0] for row in read_human(home(folder, config) / REVIEW / HUMAN).labels}
    assert left <= set(names[::2])


def test_nothing_was_kept_of_what_nobody_served(work) -> None:
    folder, config, _ = work
    done = forget(folder, config, Withdrawn(frozenset(["served-0000000000000000"])))
    assert done.versions == []
    assert "nothing was kept of it" in str(done)
    assert "no version was trained" in str(done)


def test_a_round_at_work_begins_anew_without_it_and_stays_where_nothing_of_it_goes(tmp_path: Path) -> None:
    folder, config = make_workspace(tmp_path / "made")
    names = serve(folder, config, TRAFFIC[1], TRAFFIC[0], mark=MARK)
    loop.adapt(folder, config, NOW)
    (one,) = rounds(folder, config)
    asked = one.queue.read_bytes()
    forget(folder, config, Withdrawn(frozenset(["served-0000000000000000"])))
    assert one.queue.read_bytes() == asked
    forget(folder, config, Withdrawn(frozenset([names[0]])))
    assert not one.queue.exists()
    assert holding(folder, MARK) == []
    assert loop.adapt(folder, config, NOW).round == 1
    answer(folder, config, TRAFFIC)
    done = loop.adapt(folder, config, NOW)
    assert done.version == "models:/prm/2"
    assert lineage.trained_on(folder, config, read_withdrawn(folder / "served")) == []
