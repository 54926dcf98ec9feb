"""A round of adaptation from served traffic to the gate; waiting, undoing, resuming."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from prm_core.adaptation import lineage, loop
from prm_core.adaptation.rounds import rounds
from prm_core.config import Config
from prm_core.errors import GateError, InputError
from prm_core.platform import store, tracking
from prm_core.platform.workspace import ADAPT_LOCK, InUse, exclusive
from prm_core.serving.model_registry import OUTCOME_AUROC, reward_model_folder
from prm_core.serving.promotion import promote
from tests.builders.adaptation import NOW, a_round, answer, make_workspace, serve

FIRST = ("new", 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with traffic; each test has a copy."""
    folder, config = make_workspace(tmp_path_factory.mktemp("adaptation") / "made")
    serve(folder, config, FIRST[1], FIRST[0])
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> tuple[Path, Config]:
    from prm_core import config as configuration

    folder = tmp_path / "work"
    shutil.copytree(made, folder)
    return folder, configuration.load(folder)


def champion(workspace: Path) -> str:
    return str(tracking.connect(workspace).get_model_version_by_alias("prm", "champion").version)


def test_a_round_asks_waits_trains_and_promotes(work) -> None:
    folder, config = work
    asked = loop.adapt(folder, config, NOW)
    assert asked.state == loop.WAITING
    assert "0 verdicts of people" in asked.reason
    assert champion(folder) == "1"
    count = answer(folder, config, FIRST)
    done = loop.adapt(folder, config, NOW)
    assert (done.state, done.version) == (loop.PROMOTED, "models:/prm/2"), done.reason
    assert champion(folder) == "2"
    (_one, found), = lineage.versions(folder, config).values()
    assert found.parent == "models:/prm/1"
    assert found.people == ["ann"]
    assert found.round == 1
    assert len(found.labels) == count
    assert len(found.trajectories) + len(found.held_out) == FIRST[1]
    tags = tracking.connect(folder).get_model_version("prm", "2").tags
    assert tags[lineage.PARENT] == "models:/prm/1"
    assert tags[lineage.RECIPE] == found.recipe
    # All that was served has been taken.
    again = loop.adapt(folder, config, NOW)
    assert again.state == loop.WAITING
    assert "0 new served trajectories" in again.reason
    assert again.round is None


def test_an_undone_version_is_not_made_again(work) -> None:
    folder, config = work
    assert a_round(folder, config, FIRST).version == "models:/prm/2"
    assert lineage.undo(folder, config, "it likes long answers") == ("models:/prm/2", "models:/prm/1")
    assert champion(folder) == "1"
    with pytest.raises(GateError, match="it likes long answers"):
        promote(folder, config.promote, config.drift, "models:/prm/2")
    with pytest.raises(InputError, match="none to go back to"):
        lineage.undo(folder, config)
    bad = {name for one in store.read_json(folder / "served/adapt/undone.json") for name in one["trajectories"]}
    assert len(bad) == FIRST[1]
    # There is nothing new to learn from, and of what comes only that is learned from.
    assert loop.adapt(folder, config, NOW).state == loop.WAITING
    more = ("more", 30)
    serve(folder, config, more[1], more[0])
    done = a_round(folder, config, more)
    assert done.round == 2
    _, found = lineage.versions(folder, config)[done.version]
    assert not bad & {*found.trajectories, *found.held_out}
    assert len(found.trajectories) + len(found.held_out) == 30


def test_too_few_answers_are_waited_for_unless_told_to_go_on(work) -> None:
    folder, config = work
    loop.adapt(folder, config, NOW)
    answer(folder, config, FIRST)
    review = folder / "served/adapt/review/data/human/labels.jsonl"
    lines = review.read_text().splitlines(keepends=True)
    review.write_text("".join(lines[: len(lines) // 2]))
    waits = loop.adapt(folder, config, NOW)
    assert waits.state == loop.WAITING
    assert "steps that were asked have a verdict" in waits.reason
    assert loop.adapt(folder, config, NOW, go=True).state != loop.WAITING


def test_with_all_answered_and_too_few_of_them_the_next_round_asks_for_more(work) -> None:
    folder, config = work
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, min_labels=1000))
    loop.adapt(folder, config, NOW)
    answer(folder, config, FIRST)
    waits = loop.adapt(folder, config, NOW)
    assert waits.state == loop.WAITING
    assert "the next round asks for more" in waits.reason
    assert rounds(folder, config)[0].over
    assert loop.adapt(folder, config, NOW).round is None


def test_people_alone_are_enough(work) -> None:
    from prm_core.scoring.scorer import load_scorer

    folder, config = work
    (folder / "served/outcomes.jsonl").unlink()
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, replay=0.0))
    done = a_round(folder, config, FIRST)
    assert done.version == "models:/prm/2"
    figures = store.read_json(rounds(folder, config)[0].figures)
    assert figures["new/outcomes"] == 0 < figures["new/labels"]
    # Nothing said how chains end.
    assert load_scorer(reward_model_folder(done.version, folder), device="cpu").model.heads is None


def test_retraining_waits_for_the_round_at_work(work) -> None:
    folder, config = work
    loop.adapt(folder, config, NOW)
    with pytest.raises(InputError, match="round 1 is at work"):
        loop.adapt(folder, config, NOW, retrain=True)


def test_two_at_once_are_one(work) -> None:
    from prm_core.cli.adapt import one_round

    folder, _ = work
    with exclusive(folder, lock=ADAPT_LOCK), pytest.raises(InUse):
        one_round(folder, False, False)


def test_where_no_oracle_judges_steps_a_challenger_is_held_to_answers(work, monkeypatch) -> None:
    from prm_core.evaluation import judged_chains

    folder, config = work
    monkeypatch.setattr(judged_chains, "ORACLES", {})
    with pytest.raises(InputError, match=r"promote\.by to outcomes"):
        a_round(folder, config, FIRST)
    config = dataclasses.replace(config, promote=dataclasses.replace(config.promote, by="outcomes"))
    tracking.connect(folder).set_model_version_tag("prm", "1", f"{OUTCOME_AUROC}_low", "0.0")
    done = loop.adapt(folder, config, NOW)
    figures = store.read_json(rounds(folder, config)[0].figures)
    assert not {key for key in figures if "f1" in key or (key.startswith("old/") and "ece" in key)}
    told = figures["old/challenger/outcome_auroc"]
    tags = tracking.connect(folder).get_model_version("prm", "2").tags
    assert (float(tags[OUTCOME_AUROC]), float(tags[f"{OUTCOME_AUROC}_low"])) == (told["value"], told["low"])
    # By what the gate says of these figures, whichever it is.
    gained = told["value"] - figures["old/champion/outcome_auroc"]["value"]
    assert figures["old/outcome_auroc_gain"]["value"] == pytest.approx(gained)
    assert (done.state == loop.PROMOTED) == (told["low"] > 0.5 and gained >= -1), done.reason
    # Killed before it was decided, and the settings changed meanwhile: what was measured is not what decides.
    rounds(folder, config)[0].decision.unlink()
    with pytest.raises(InputError, match=r"measured with promote\.by outcomes, and it is steps now; set it back"):
        loop.adapt(folder, dataclasses.replace(config, promote=dataclasses.replace(config.promote, by="steps")), NOW)


class Killed(BaseException):
    """In place of a signal."""


def outcome_of(folder: Path, config: Config) -> dict[str, object]:
    """What a round came to, without what differs between two runs of it: times and MLflow's ids."""
    (one,) = rounds(folder, config)
    found = {path.name: json.loads(path.read_text()) for path in (one.figures, one.lineage, one.version, one.decision)}
    assert not one.model.exists()
    uri = found["version.json"]["uri"]
    found["model"] = store.digest(reward_model_folder(uri, folder))
    found["versions"] = sorted(str(v.version) for v in tracking.connect(folder).search_model_versions("name = 'prm'"))
    return found


def test_a_round_killed_anywhere_comes_to_the_same(work, tmp_path, monkeypatch) -> None:
    folder, config = work
    loop.adapt(folder, config, NOW)
    answer(folder, config, FIRST)
    replace, written, dies = os.replace, 0, None

    def counting(source, target):
        nonlocal written
        if "/served/adapt/rounds/" in str(target):
            if written == dies:
                raise Killed
            written += 1
        replace(source, target)

    monkeypatch.setattr(os, "replace", counting)

    def run(name: str) -> Path:
        nonlocal written
        written, copy = 0, tmp_path / name
        if not copy.exists():
            shutil.copytree(folder, copy)
        loop.adapt(copy, config, NOW)
        return copy

    expected, files = outcome_of(run("whole"), config), written
    assert files >= 8
    # Before anything is frozen; the model half saved; registered, and not noted; promoted, and not noted.
    for dies in (0, files // 2, files - 2, files - 1):
        with pytest.raises(Killed):
            run(f"killed-{dies}")
        copy, dies = tmp_path / f"killed-{dies}", None
        assert not rounds(copy, config)[0].over
        assert outcome_of(run(copy.name), config) == expected


def test_what_was_learned_stays_learned_when_traffic_turns_and_turns_back(work) -> None:
    folder, config = work
    first = a_round(folder, config, FIRST)
    _, before = lineage.versions(folder, config)[first.version]
    more = ("more", 30)
    serve(folder, config, more[1], more[0])
    done = a_round(folder, config, more)
    _, after = lineage.versions(folder, config)[done.version]
    # Earlier rounds and the chain's own training set are trained again; the same questions stay held out.
    assert set(before.trajectories) < set(after.trajectories)
    assert set(before.held_out) < set(after.held_out)
    assert after.parent == first.version
    assert before.chain == after.chain != ""
    assert len(before.labels) < len(after.labels)
    # What comes again is known: it opens no round.
    serve(folder, config, FIRST[1], FIRST[0])
    assert loop.adapt(folder, config, NOW).reason.startswith("0 new served trajectories")


@pytest.mark.parametrize("how", ["heads", "lora", "all"])
def test_what_is_trained_goes_on_from_the_champion(work, tmp_path, how: str) -> None:
    from safetensors.torch import load_file

    from prm_core.adaptation import training
    from prm_core.scoring.scorer import load_scorer

    folder, config = work
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, train=how))
    config = training.settings(config)
    steps, ends = training.replayed(folder, config)
    assert len(steps) == 30
    training.train(load_scorer(folder / "champion", device="cpu"), steps, ends, config, work=tmp_path / "training",
                   into=tmp_path / "challenger")
    old, new = (load_file(place / "model.safetensors") for place in (folder / "champion", tmp_path / "challenger"))
    assert old.keys() == new.keys()
    changed = {name for name in old if not old[name].equal(new[name])}
    heads = {name for name in old if name.startswith("score")}
    assert changed >= heads
    assert (changed == heads) == (how == "heads")


def test_a_share_of_the_chains_own_problems_is_trained_again(work) -> None:
    from prm_core.adaptation import training

    folder, config = work
    some = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, replay=0.5))
    assert len(training.replayed(folder, some)[0]) == 15
    shutil.rmtree(folder / training.TRAINING_SET)
    with pytest.raises(InputError, match=r"adapt\.replay to 0"):
        training.replayed(folder, config)
    assert training.replayed(folder, dataclasses.replace(
        config, adapt=dataclasses.replace(config.adapt, replay=0.0))) == ([], [])
