"""How a stage is run: inputs checked, outputs whole or absent, work kept for the next try; and the training stages."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import prm_core
from prm_core.errors import GateError, InputError
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.scoring.calibration import fit_calibrator
from prm_core.scoring.scorer import ChainScore, load_scorer
from prm_core.stages import base, train_policy
from prm_core.stages.base import CHAIN, Stage, StageIO, execute, load_stage, model_path
from prm_core.stages.train_prm import MODELS, calibrate_scores
from prm_core.training.examples import Example
from prm_core.types import Step, StepLabel
from tests.builders.quality import Tracked, make_config
from tests.builders.training import (
    CALIBRATED,
    Interrupted,
    changed,
    files,
    make_encoder,
    make_workspace,
    small_config,
    small_values,
    training_workspace,
)

# How stages are run


class Trial:
    """A workspace with one stage `trial`, which does what it is told."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.set("warmup", {})
        store.write_text(root / "data/in.txt", "input")
        self.run: Callable[[StageIO], None] = self.write_all
        self.ios: list[StageIO] = []
        outputs = {"file": "artifacts/trial/metrics.json", "folder": "artifacts/trial/parts"}
        stage = Stage({"data": "data/in.txt"}, outputs, ("seed", "generate"), self._run)
        monkeypatch.setattr(base, "load_stage", lambda name: stage)

    def set(self, section: str, over: dict) -> None:
        store.write_text(self.root / "params.yaml", yaml.safe_dump(small_values(**{section: over})))

    def _run(self, config, io: StageIO) -> None:
        self.ios.append(io)
        self.run(io)

    @staticmethod
    def write_all(io: StageIO) -> None:
        store.write_json(io.outputs["file"], {"value": 1})
        io.outputs["folder"].mkdir()
        store.write_text(io.outputs["folder"] / "a.txt", "a")

    @staticmethod
    def write_half_and_fail(io: StageIO) -> None:
        store.write_text(io.work / "shard", "done")
        io.outputs["folder"].mkdir()
        store.write_text(io.outputs["folder"] / "half.txt", "h")
        raise Interrupted

    def fail(self) -> Path:
        """Runs to a failure; returns the work folder."""
        self.run = self.write_half_and_fail
        with pytest.raises(Interrupted):
            execute("trial", self.root)
        return self.ios[-1].work


@pytest.fixture
def trial(tmp_path, monkeypatch) -> Trial:
    return Trial(tmp_path, monkeypatch)


WRITTEN = ["SHA256SUMS", "metrics.json", "parts/a.txt"]


def test_outputs_lie_where_they_are_declared_and_nothing_else_is_left(trial) -> None:
    execute("trial", trial.root)
    assert files(trial.root / "artifacts/trial") == WRITTEN
    assert files(trial.root / ".work") == []
    assert store.read_json(trial.root / "artifacts/trial/metrics.json") == {"value": 1}


def test_outputs_of_an_earlier_run_do_not_mix_with_new_ones(trial) -> None:
    store.write_text(trial.root / "artifacts/trial/parts/old.txt", "old")
    store.write_text(trial.root / "artifacts/trial/metrics.json", "old")
    execute("trial", trial.root)
    assert files(trial.root / "artifacts/trial") == WRITTEN
    execute("trial", trial.root)
    assert files(trial.root / "artifacts/trial") == WRITTEN


def test_a_stage_that_fails_leaves_no_output_neither_half_nor_old(trial) -> None:
    execute("trial", trial.root)
    trial.fail()
    assert files(trial.root / "artifacts") == []


def test_the_next_try_finds_the_work_of_a_failed_one_but_not_its_outputs(trial) -> None:
    work = trial.fail()

    def go_on(io: StageIO) -> None:
        assert (io.work, files(io.work)) == (work, ["shard"])
        trial.write_all(io)

    trial.run = go_on
    execute("trial", trial.root)
    assert files(trial.root / "artifacts/trial") == WRITTEN
    assert not work.exists()


@pytest.mark.parametrize(("change", "kept"), [
    ("nothing", True), ("a param of another stage", True), ("a param of the stage", False), ("the seed", False),
    ("an input", False), ("the code", False),
])
def test_work_is_found_again_only_if_the_result_would_be_the_same(trial, monkeypatch, tmp_path, change, kept) -> None:
    work = trial.fail()
    match change:
        case "a param of another stage":
            trial.set("warmup", {"max_updates": 11})
        case "a param of the stage":
            trial.set("generate", {"samples": 3})
        case "the seed":
            store.write_text(trial.root / "params.yaml", yaml.safe_dump(small_values(seed=1)))
        case "an input":
            store.write_text(trial.root / "data/in.txt", "other")
        case "the code":
            store.write_text(tmp_path / "package/__init__.py", "CHANGED = True")
            monkeypatch.setattr(prm_core, "__file__", str(tmp_path / "package/__init__.py"))
    assert (trial.fail() == work) == kept


def test_a_stage_that_forgets_an_output_is_at_fault(trial) -> None:
    trial.run = lambda io: store.write_json(io.outputs["file"], 1)
    with pytest.raises(RuntimeError, match="did not write artifacts/trial/parts"):
        execute("trial", trial.root)
    assert files(trial.root / "artifacts") == []


def test_a_missing_input_is_named_before_anything_is_touched(trial) -> None:
    execute("trial", trial.root)
    (trial.root / "data/in.txt").unlink()
    with pytest.raises(InputError, match=r"stage trial needs data/in\.txt, which is not there; run the stage"):
        execute("trial", trial.root)
    assert files(trial.root / "artifacts/trial") == WRITTEN


@pytest.mark.parametrize(("change", "reason"), [
    (lambda parts: store.write_text(parts / "a.txt", "b"), r"parts/a\.txt: its bytes are not those that were written"),
    (lambda parts: (parts / "a.txt").unlink(), r"parts/a\.txt: is missing"),
    (lambda parts: store.write_text(parts / "b.txt", "b"), r"parts/b\.txt: was added after"),
])
def test_what_a_stage_reads_is_what_another_one_wrote(trial, monkeypatch, change, reason: str) -> None:
    execute("trial", trial.root)
    reader = Stage({"parts": "artifacts/trial/parts"}, {"out": "artifacts/reader/out.json"}, (),
                   lambda config, io: store.write_json(io.outputs["out"], 1))
    monkeypatch.setattr(base, "load_stage", lambda name: reader)
    # Not among what it reads.
    store.write_text(trial.root / "artifacts/trial/metrics.json", "other")
    execute("reader", trial.root)
    change(trial.root / "artifacts/trial/parts")
    with pytest.raises(InputError, match=f"{reason}.*run stage trial again"):
        execute("reader", trial.root)
    monkeypatch.setattr(base, "CHAIN", ("reader",))
    assert list(base.damaged(trial.root)) == []
    store.write_json(trial.root / "artifacts/reader/out.json", 2)
    store.write_text(trial.root / "artifacts/reader/notes.txt", "a person's")
    assert [(stage, path.name) for stage, path, _ in base.damaged(trial.root)] == [("reader", "out.json")]
    (trial.root / "artifacts/reader/notes.txt").unlink()
    assert files(trial.root / "artifacts/reader") == ["SHA256SUMS", "out.json"], "nothing is touched"


def test_an_unknown_stage_is_told_the_known_ones(tmp_path) -> None:
    with pytest.raises(InputError, match=r"unknown stage 'trane_prm'; known: warmup, .*train_prm"):
        execute("trane_prm", tmp_path)


def test_a_folder_without_params_is_no_workspace(tmp_path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: no such file; run from a workspace"):
        execute("generate", tmp_path)


def test_every_output_is_made_by_one_stage_and_every_input_is_made_before() -> None:
    made: dict[str, str] = {}
    for name in CHAIN:
        stage = load_stage(name)
        for path in stage.inputs.values():
            assert path.startswith("data/") or path in made, f"{name} reads {path}"
        for path in stage.outputs.values():
            assert path.startswith(f"artifacts/{name}/")
            assert made.setdefault(path, name) == name


def test_model_names_are_paths_where_the_workspace_has_them(tmp_path) -> None:
    (tmp_path / "artifacts/lm").mkdir(parents=True)
    assert model_path(tmp_path, "artifacts/lm") == str(tmp_path / "artifacts/lm")
    assert model_path(tmp_path, "org/model") == "org/model"


@pytest.mark.parametrize(("section", "key"), [
    ("warmup", "eval_every"), ("train_prm", "epochs"), ("train_prm", "log_every"), ("train_policy", "updates"),
    ("train_policy", "temperature"), ("train_policy", "checkpoint_every"),
])
def test_training_by_nothing_is_refused_before_it_starts(section: str, key: str) -> None:
    with pytest.raises(InputError, match=rf"{section}\.{key}: Input should be greater than 0"):
        small_config(**{section: {key: 0}})


# The training stages on tiny models


@pytest.fixture
def tracked(monkeypatch) -> Tracked:
    stands_in = Tracked()
    monkeypatch.setattr("prm_core.platform.tracking.stage_run", stands_in.stage_run)
    return stands_in


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Tracked]:
    """A workspace whose three models are trained and not probed, and what the run reported. Tests that change it copy
    it."""
    root, tracked = training_workspace(tmp_path_factory.mktemp("trained") / "w", **CALIBRATED), Tracked()
    store.write_json(root / "artifacts/probe/metrics.json", {})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("prm_core.platform.tracking.stage_run", tracked.stage_run)
        execute("train_prm", root)
    return root, tracked


def test_train_prm_writes_three_models_that_score(trained) -> None:
    root, tracked = trained
    scorers = {name: load_scorer(root / f"artifacts/train_prm/{name}", device="cpu") for name in MODELS}
    assert {name: scorer.kind for name, scorer in scorers.items()} == MODELS == {
        "prm": "process", "orm": "outcome", "pav": "advantage"}
    assert scorers["prm"].calibrator.method == "platt"
    (ends,) = scorers["prm"].score([("Ann has 3 pens.", (Step("3 + 4 = 7."),))])
    assert 0 < ends.outcome_score < 1
    assert ends.members == (), "no committee is asked for here"
    assert scorers["pav"].calibrator.method == "identity", "values are frequencies already"
    metrics = store.read_json(root / "artifacts/train_prm/metrics.json")
    # 12 problems, a quarter of them for dev; all models on the same chains.
    assert [metrics[f"train/{name}/{what}"] for name in MODELS for what in ("chains", "dev_chains")] == [9, 3] * 3
    steps = len(store.read_shards(StepLabel, root / "artifacts/calibrate/training_set"))
    assert metrics["train/prm/labels"] == steps
    assert metrics["train/orm/targets"] == 9
    # A value for each prefix and one for each prompt.
    assert metrics["train/pav/targets"] == metrics["train/prm/targets"] + 9
    assert metrics["train/prm/pairs"] == metrics["train/orm/pairs"] == 0
    # One for each second problem, those of dev problems left out.
    assert 3 <= metrics["train/pav/pairs"] <= 6
    history = store.read_json(root / "artifacts/train_prm/history.json")
    for name in MODELS:
        assert metrics[f"dev/{name}/loss"] == min(record["dev_loss"] for record in history[name])
    assert metrics["dev/pav/advantage_variance"] >= 0
    # The stand-in for the reviewer judged every step of the chains up to the first wrong one.
    assert metrics["human/prm/other/human_labels"] > 8
    assert 0 <= metrics["human/prm/other/ece"] <= 1
    assert metrics == {key: tracked.metrics[key] for key in metrics}
    assert "process/loss" in tracked.metrics
    assert tracked.tags == {"precision": "float32"}
    assert files(root / ".work") == []


def test_models_on_a_frozen_backbone_find_it_in_their_workspace(tmp_path, tracked, monkeypatch) -> None:
    values = {**CALIBRATED, "train_prm": {"solver": "convex", "committee": 3}}
    root = training_workspace(tmp_path / "w", **values)
    execute("train_prm", root)
    (said,) = load_scorer(root / "artifacts/train_prm/prm", device="cpu").score([("Ann has 3 pens.", (Step("So 7."),))])
    assert len(said.members[0]) == 3
    assert 0 <= said.reliabilities[0] <= 1
    assert 0 < said.outcome_score < 1, "foreign text is not believed to be hopeless for sure"
    backbone = root / "artifacts/warmup/models/backbone"
    monkeypatch.chdir(tmp_path)
    for name in MODELS:
        made = root / "artifacts/train_prm" / name
        assert "model.safetensors" not in files(made)
        # The same wherever the workspace lies.
        assert not (made / ".base").exists()
        base = load_scorer(made, device="cpu").model.base
        assert (base.name, base.at) == ("artifacts/warmup/models/backbone", str(backbone))


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_scores_are_calibrated_to_the_targets_of_held_out_chains(kind: str) -> None:
    """A probable target counts as both verdicts, one that is not there as none, and a step without a score neither."""
    step = Step("one")
    targets = ((0.9, 0.2, math.nan), (1.0, 0.75), (0.6,)) if kind == "process" else ((1.0,), (0.0,), (math.nan,))
    dev = [Example("p", f"prompt {n}", (step,) * 3, one) for n, one in enumerate(targets)]
    raw = {0: (0.8, 0.3, 0.1), 1: (0.7,), 2: ()} if kind == "process" else {0: (0.8,), 1: (0.3,), 2: (0.5,)}

    class Scorer:
        def score(self, chains):
            assert chains == [(example.prompt, example.steps) for example in dev]
            return [ChainScore(raw[n], raw[n], 0) for n in range(3)]

    Scorer.kind = kind
    config = make_config(calibrate={"min_labels": 2})
    found = calibrate_scores(Scorer(), dev, config)
    pairs = ([0.8, 0.3, 0.7], [0.9, 0.2, 1.0]) if kind == "process" else ([0.8, 0.3], [1, 0])
    assert found == fit_calibrator(*pairs, "isotonic", 2)
    assert (found.method, found.labels) == ("isotonic", len(pairs[0]))


def test_too_few_targets_leave_the_scores_as_they_are(tmp_path, tracked) -> None:
    root = training_workspace(tmp_path / "w", calibrate={"min_labels": 10_000})
    execute("train_prm", root)
    assert load_scorer(root / "artifacts/train_prm/prm").calibrator.method == "identity"


def test_train_prm_needs_two_problems(tmp_path, tracked) -> None:
    root = training_workspace(tmp_path / "w")
    labels = store.read_shards(StepLabel, root / "artifacts/calibrate/training_set")
    store.write_shard(root / "artifacts/calibrate/training_set", 0, StepLabel,
                      [row for row in labels if row.trajectory_id == "gen/0"])
    with pytest.raises(InputError, match=r"chains of 1 problem\(s\); training and dev need one each"):
        execute("train_prm", root)


@pytest.mark.parametrize("kind", ["outcome", "advantage"])
def test_train_prm_resumed_while_a_later_model_trains_ends_the_same(
    trained, tmp_path, tracked, monkeypatch, kind: str
) -> None:
    root, other = trained[0], training_workspace(tmp_path / "b", **CALIBRATED)

    def crash(figures, step=None) -> None:
        if f"{kind}/loss" in figures and step == 3:
            raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(tracked, "log_metrics", crash)
        with pytest.raises(Interrupted):
            execute("train_prm", other)
    assert files(other / "artifacts/train_prm") == []
    torch.manual_seed(7)
    execute("train_prm", other)
    names = files(root / "artifacts/train_prm")
    assert names == files(other / "artifacts/train_prm")
    for name in names:
        one, two = (folder / "artifacts/train_prm" / name for folder in (root, other))
        assert one.read_bytes() == two.read_bytes(), name


def test_train_policy_writes_a_policy_that_moved(trained, tmp_path, tracked) -> None:
    root = Path(shutil.copytree(trained[0], tmp_path / "w"))
    store.write_text(root / "params.yaml", yaml.safe_dump(small_values(**CALIBRATED, train_policy={"kl_coef": 0.1})))
    execute("train_policy", root)
    base_folder, folder = root / "artifacts/warmup/models/policy", root / "artifacts/train_policy/policy"
    before, after = (load_file(path / "model.safetensors") for path in (base_folder, folder))
    assert changed(before, after)
    config = base.configuration.load(root)
    assert len(load_policy(str(folder), config).sample(["How many?"], samples=2, temperature=1.0, max_new_tokens=4,
                                                       batch_size=4, seed=0)[0]) == 2
    history = store.read_json(root / "artifacts/train_policy/history.json")
    metrics = store.read_json(root / "artifacts/train_policy/metrics.json")
    assert [record["update"] for record in history] == [1, 2, 3, 4]
    assert metrics["train/policy_trained/reward/process"] == history[-1]["reward/process"]
    assert {"reward/outcome", "reward/process", "reward/paid", "kl"} <= set(tracked.metrics)


def test_an_outcome_model_rewards_no_steps(trained, tmp_path) -> None:
    root = Path(shutil.copytree(trained[0], tmp_path / "w"))
    store.write_text(root / "params.yaml", yaml.safe_dump(small_values(
        **CALIBRATED, train_policy={"reward_model": "artifacts/train_prm/orm"})))
    with pytest.raises(InputError, match=r"reward_model artifacts/train_prm/orm: an outcome model scores no steps"):
        execute("train_policy", root)
    assert files(root / "artifacts/train_policy") == []


@pytest.mark.parametrize(("figures", "said"), [
    ({}, "metrics.json has no probe/suffix/passed, which train_policy.guard.require_probe demands; run the stage"),
    ({"probe/suffix/passed": 0.2, "probe/policy/outcome_fall": 0.06},
     "may not reward a policy: its probe/policy/outcome_fall 0.0600 is above the limit "
     "train_policy.guard.max_outcome_fall 0.0500; train it"),
    ({"probe/suffix/passed": 0.2, "probe/policy/outcome_fall": 0.05}, ""),
])
def test_a_required_probe_decides_whether_the_prm_may_reward(figures, said: str) -> None:
    required = dataclasses.replace(small_config().train_policy.guard, require_probe=True)
    with pytest.raises(InputError, match=re.escape(said)) if said else nullcontext():
        train_policy._check_probe(required, figures)
    train_policy._check_probe(dataclasses.replace(required, require_probe=False), {})


def test_the_probe_tries_the_prm_and_leaves_the_policy_as_it_was(trained, tmp_path, tracked) -> None:
    root = Path(shutil.copytree(trained[0], tmp_path / "w"))
    probe = {"problems": 4, "suffix_chains": 2, "suffix_tokens": 2, "suffix_rounds": 1, "suffix_tries": 2, "updates": 2}
    policy = root / "artifacts/warmup/models/policy/model.safetensors"
    before = policy.read_bytes()
    for enabled in (True, False):
        # Of chains of random weights any score is below it, and all are wrong.
        store.write_text(root / "params.yaml", yaml.safe_dump(small_values(
            **CALIBRATED, probe=probe | {"enabled": enabled}, serve={"threshold": 1.0})))
        execute("probe", root)
        figures = store.read_json(root / "artifacts/probe/metrics.json")
        suffixes = store.read_json(root / "artifacts/probe/suffixes.json")
        if not enabled:
            assert (figures, suffixes) == ({}, [])
            continue
        assert {"probe/edits/harmless/raised", "probe/suffix/step_rise", "probe/random_suffix/step_rise",
                "probe/policy/outcome_fall", "probe/policy/updates"} <= set(figures)
        # A search from the random ones ends no lower.
        found, first = (figures[f"probe/{name}/chain_rise"] + figures[f"probe/{name}/step_rise"]
                        for name in ("suffix", "random_suffix"))
        assert found >= first
        assert len(suffixes) == figures["probe/suffix/n_chains"] == 2
        assert {name for name, value in figures.items() if not isinstance(value, str)} <= set(tracked.metrics)
    assert policy.read_bytes() == before


def test_warmup_trains_the_two_models_from_data(tmp_path, tracked) -> None:
    root = tmp_path / "w"
    make_workspace(root, small_values(warmup={"policy_accuracy": 1e-9, "backbone_accuracy": 1.0}))
    # A model of ten updates answers nothing.
    with pytest.raises(GateError, match=r"warm-up ended at accuracy 0\.000"):
        execute("warmup", root)
    assert files(root / "artifacts/warmup") == []


def test_warmup_switched_off_leaves_a_note_and_no_model(tmp_path, tracked) -> None:
    root = tmp_path / "w"
    make_workspace(root, small_values(warmup={"enabled": False}, models={"policy": "org/policy"}))
    execute("warmup", root)
    assert files(root / "artifacts/warmup") == [
        "SHA256SUMS", "history.json", "metrics.json", "models/named_in_config.json"]
    assert json.loads((root / "artifacts/warmup/models/named_in_config.json").read_text())["policy"] == "org/policy"


def test_warmup_saves_what_it_trained(tmp_path, tracked, monkeypatch) -> None:
    root = tmp_path / "w"
    make_workspace(root, small_values())
    monkeypatch.setattr("prm_core.sampling.rollouts.sampled_accuracy", lambda *args, **kwargs: 0.75)
    execute("warmup", root)
    folders = [root / f"artifacts/warmup/models/{name}" for name in ("policy", "backbone")]
    assert all((folder / "model.safetensors").is_file() for folder in folders)
    assert len(load_policy(str(folders[0]), base.configuration.load(root)).encoder.tokenizer) != len(
        make_encoder().tokenizer), "the tokenizer is learned from this workspace's problems"
    metrics = store.read_json(root / "artifacts/warmup/metrics.json")
    assert metrics["warmup/policy_update"] == 2
    assert (metrics["warmup/updates"], metrics["dev/backbone/pass_at_1"]) == (10, 0.75)
