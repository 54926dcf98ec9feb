"""`prm train`: from a file of labelled chains to a folder every command loads; what it refuses; resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForTokenClassification

from prm_core.cli.train import train
from prm_core.errors import InputError
from prm_core.platform import processes, store
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.foreign import load_any_scorer
from prm_core.scoring.generative.checks import execute
from prm_core.scoring.generative.scorer import GenerativeScorer
from prm_core.scoring.scorer import load_scorer, save_reward_model
from prm_core.scoring.settings import reward_settings
from prm_core.scoring.teacher import teach
from tests import ROOT
from tests.builders import warm_python
from tests.builders.training import CHAINS, files, make_encoder, make_reward_model, save_lm

PROFILE = {
    "domain": "general",
    "models": {"device": "cpu", "surprisal": ["process"]},
    "encoder": {"max_length": 256},
    "calibrate": {"method": "platt", "min_labels": 5},
    "train_prm": {"solver": "gradient", "labels": "hard", "harmless_steps": 0, "nonsense_steps": 0,
                  "epochs": 2, "row_tokens": 256, "rows_per_update": 1, "learning_rate": 0.001, "dev_share": 0.3,
                  "log_every": 1, "checkpoint_every": 2},
}


@pytest.fixture
def place(tmp_path) -> Path:
    """A backbone, a profile and a file of chains whose steps are right when they add."""
    save_lm(tmp_path / "lm", make_encoder())
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
    rows = [{"prompt": prompt, "completions": [step.text for step in steps],
             "labels": ["+" in step.text for step in steps]} for prompt, steps in CHAINS]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(place: Path, name: str = "prm", **options) -> Path:
    settings = {"format_name": "trl", "profile": str(place / "tiny.yaml"), "backbone": str(place / "lm"),
                "workspace": place}
    train([place / "chains.jsonl"], out=place / name, **{**settings, **options})
    return place / name


def test_a_file_becomes_a_model_with_its_figures(place):
    folder = run(place)
    assert files(folder) == ["SHA256SUMS", "calibrator.json", "config.json", "domain.safetensors", "model.safetensors",
                             "surprisal.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"]
    record = store.read_json(folder / "training.json")
    assert (record["precision"], reward_settings(str(folder))["precision"]) == ("float32", "float32")
    assert (record["kind"], record["format"]) == ("process", "trl")
    # A model goes to other machines: nothing of this one's folders.
    assert record["files"] == [{"name": "chains.jsonl", "sha256": store.digest(place / "chains.jsonl")}]
    assert str(place) not in (folder / "training.json").read_text()
    assert record["counts"]["chains"] + record["counts"]["dev_chains"] == len(CHAINS)
    assert [row["epoch"] for row in record["history"]] == [1, 2]
    assert record["held_out"]["loss"] == min(row["dev_loss"] for row in record["history"])
    assert 0 <= record["held_out"]["auroc"] <= 1
    scorer = load_scorer(folder, device="cpu")
    assert (scorer.kind, scorer.calibrator.method) == ("process", "platt")
    assert len(scorer.score([CHAINS[0]])[0].step_scores) == len(CHAINS[0][1])
    AutoModelForTokenClassification.from_pretrained(folder)
    assert not (place / "prm.work").exists(), "nothing is left of the work"


def test_two_processes_give_the_model_of_one(place, monkeypatch):
    alone = run(place)
    (place / "two.yaml").write_text(yaml.safe_dump({**PROFILE, "launch": {"processes": 2}}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with warm_python.commands():
        done = warm_python.run(
            "prm_core.cli", "train", "chains.jsonl", "--format", "trl", "--profile", "two.yaml", "--backbone", "lm",
            "--out", "two", cwd=place)
    assert done.returncode == 0, done.stderr
    assert files(place / "two") == files(alone)
    one, two = (store.read_json(folder / "training.json") for folder in (alone, place / "two"))
    assert [row["dev_loss"] for row in one["history"]] == pytest.approx(
        [row["dev_loss"] for row in two["history"]], rel=1e-4)
    assert one["counts"] == two["counts"]


def test_processes_of_several_machines_compare_what_they_read(place, monkeypatch):
    def meet(found, *, on_cpu):
        facts.append(found)
        raise InputError("compared")

    facts = []
    shutil.copytree(place, there := place.with_name(f"{place.name}-there"))
    for changed in ("chains.jsonl", "lm/config.json"):
        with (there / changed).open("a") as file:
            file.write("\n")
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "meet", meet)
    monkeypatch.setenv("RANK", "0")
    for folder in (place, there):
        monkeypatch.chdir(folder)
        with pytest.raises(InputError, match="compared"):
            run(Path(), backbone="lm")
    assert list(facts[0]) == list(facts[1])
    assert [name for name in facts[0] if facts[0][name] != facts[1][name]] == ["chains.jsonl", "the backbone"]


def test_a_model_on_a_frozen_backbone_remembers_where_that_was(place, monkeypatch):
    frozen = {**PROFILE, "train_prm": {**PROFILE["train_prm"], "learning_rate": 0.0}}
    (place / "tiny.yaml").write_text(yaml.safe_dump(frozen))
    monkeypatch.chdir(place)
    folder = run(place, backbone="lm")
    assert files(folder) == [".base", "SHA256SUMS", "calibrator.json", "config.json", "domain.safetensors",
                             "trained.safetensors", "training.json"]
    monkeypatch.chdir("/")
    moved = shutil.move(folder, place.parent / f"{place.name}-moved")
    scores = load_scorer(moved, device="cpu").score(CHAINS)
    # Where the base has moved too, the user says where it is.
    base = shutil.move(place / "lm", place / "another-name")
    with pytest.raises(InputError, match="saved without its base model lm"):
        load_scorer(moved, device="cpu")
    monkeypatch.setenv("PRM_BASE", str(base))
    assert load_scorer(moved, device="cpu").score(CHAINS) == scores


def test_outcomes_train_the_other_kinds(place):
    rows = [{"id": str(i), "generator": "x", "problem": prompt, "steps": [step.text for step in steps],
             "final_answer_correct": i % 2 == 0, "label": -1 if i % 2 == 0 else 0}
            for i, (prompt, steps) in enumerate(CHAINS)]
    (place / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind, scores in (("outcome", 1), ("implicit", len(CHAINS[0][1]))):
        folder = run(place, kind, kind=kind, format_name="processbench")
        assert len(load_scorer(folder, device="cpu").score([CHAINS[0]])[0].step_scores) == scores


def test_an_interrupted_training_goes_on(place, monkeypatch):
    from prm_core.training.reward import recipe

    genuine, seen = recipe.train_reward_model, []

    def crash(*args, report, **options):
        def noted(figures, update):
            seen.append(update)
            report(figures, update)
            if len(seen) == 4:
                raise KeyboardInterrupt
        return genuine(*args, report=noted, **options)

    monkeypatch.setattr(recipe, "train_reward_model", crash)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert not (place / "prm").exists()
    before = len(seen)
    run(place)
    assert seen[before] > 1, "it did not begin again"
    assert (place / "prm/training.json").is_file()


def test_steps_of_several_lines_and_masked_ones(place):
    rows = [{"prompt": prompt, "completions": [f"{steps[0].text}\nsame", *[step.text for step in steps[1:]]],
             "labels": [False] + [True] * (len(steps) - 1)} for prompt, steps in CHAINS]
    (place / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # All that is left are wrong first steps.
    assert store.read_json(run(place) / "training.json")["counts"]["targets"] == pytest.approx(
        store.read_json(place / "prm/training.json")["counts"]["chains"])
    whole = store.read_json(run(place, "whole", mask_after_error=False) / "training.json")["counts"]
    assert whole["targets"] > whole["chains"]


def test_a_student_learns_what_its_teacher_says(place):
    encoder = make_encoder()
    save_reward_model(make_reward_model(place / "other", encoder), encoder, Calibrator("identity", 0), place / "big")
    teacher = load_scorer(place / "big", device="cpu")
    rows = [{"id": str(number), "messages": [{"role": "user", "content": prompt},
                                             *({"role": "assistant", "content": step.text} for step in steps)]}
            for number, (prompt, steps) in enumerate(CHAINS)]
    (place / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="none of the 12 chains has a labelled step"):
        run(place, format_name="chat")
    record = store.read_json(run(place, format_name="chat", teacher=str(place / "big")) / "training.json")
    assert record["teacher"] == teacher.version
    # Nothing is learned behind what it calls wrong.
    taught = [target for lesson in teach(teacher, CHAINS) for target in lesson.targets if target is not None]
    counts = record["counts"]
    assert 0 < counts["targets"] + record["held_out"]["targets"] == len(taught)
    with pytest.raises(InputError, match="a model of kind outcome learns outcomes"):
        run(place, "orm", kind="outcome", teacher=str(place / "big"))


def test_a_verifier_that_writes_checks(place, monkeypatch):
    # What a random model writes bears nothing out.
    own = dict(CHAINS)
    monkeypatch.setattr(GenerativeScorer, "checks_of", lambda self, chains: [
        [[execute(mine.text, step.text)] for mine, step in zip(own[prompt], steps, strict=True)]
        for prompt, steps in chains])
    few = {**PROFILE["train_prm"], "generative": {"epochs": 1, "votes": 2, "max_new_tokens": 4}}
    (place / "tiny.yaml").write_text(yaml.safe_dump({**PROFILE, "train_prm": few}))
    folder = run(place, kind="generative")
    record = store.read_json(folder / "training.json")
    assert (record["kind"], record["config"]["votes"]) == ("generative", 2)
    assert record["counts"]["chains"] + record["counts"]["dev_chains"] == len(CHAINS)
    assert 0 < record["counts"]["kept"] < record["counts"]["written"]
    scorer = load_any_scorer(folder, device="cpu")
    assert isinstance(scorer, GenerativeScorer)
    assert len(scorer.score([CHAINS[0]])[0].step_scores) == len(CHAINS[0][1])
    assert not (place / "prm.work").exists(), "nothing is left of the work"


@pytest.mark.parametrize(("change", "message"), [
    ({"format_name": "nothing"}, "unknown format 'nothing'"),
    ({"profile": "nothing"}, "unknown profile 'nothing'"),
    ({"backbone": "./nothing"}, r"nothing: no config\.json there"),
    ({"kind": "outcome"}, "none of the 12 chains has an outcome, which the outcome model trains on"),
    ({"teacher": "./nothing"}, r"nothing: no reward model there"),
    ({"neutral": "wrong"}, "trl has no neutral ratings"),
])
def test_what_it_refuses(place, change, message):
    with pytest.raises(InputError, match=message):
        run(place, **change)
    assert not (place / "prm").exists()


def test_an_existing_folder_is_never_overwritten(place):
    (place / "prm").mkdir()
    with pytest.raises(InputError, match="prm: exists; name a new folder"):
        run(place)


def test_a_file_counts_once(place):
    with pytest.raises(InputError, match="named twice"):
        train([place / "chains.jsonl", place / "lm" / ".." / "chains.jsonl"], format_name="trl", out=place / "prm")
