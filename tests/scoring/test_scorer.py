"""Scorers: saving and loading, calibration, order, threads, and folders that are none."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification

from prm_core.errors import InputError
from prm_core.models.bases import Base
from prm_core.models.chains import collate
from prm_core.scoring.calibration import Calibrator, fit_calibrator
from prm_core.scoring.domain import fit_domain
from prm_core.scoring.kinds import load_reward_model
from prm_core.scoring.reward import RewardModel
from prm_core.scoring.scorer import RewardScorer, load_scorer, save_reward_model, whole
from prm_core.types import Step
from tests.builders.training import CHAINS, files, make_encoder, make_reward_model, save_lm

ENCODER = make_encoder()
IDENTITY = Calibrator("identity", 0)
# Far from the identity, so that a lost calibrator shows.
_rng = np.random.default_rng(0)
_raw = _rng.uniform(0.2, 0.8, 80)
PLATT = fit_calibrator(_raw, (_rng.uniform(size=80) < 3 * (_raw - 0.4)).tolist(), "platt", 10)


def save(folder: Path, kind: str = "process", calibrator: Calibrator = IDENTITY) -> RewardModel:
    model = make_reward_model(folder / "lm", ENCODER, kind)
    save_reward_model(model, ENCODER, calibrator, folder / "prm")
    return model


@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_a_saved_model_scores_as_before_without_pickle(tmp_path, kind: str) -> None:
    model = save(tmp_path, kind, PLATT)
    before = RewardScorer(model, ENCODER, PLATT, "", 64).score(CHAINS)
    scorer = load_scorer(tmp_path / "prm", device="cpu")
    assert scorer.score(CHAINS) == before
    assert (scorer.kind, scorer.calibrator, scorer.model.training) == (kind, PLATT, False)
    assert {Path(name).suffix for name in files(tmp_path / "prm")} <= {".json", ".safetensors", ".jinja", ""}
    assert "model.safetensors" in files(tmp_path / "prm")


def test_a_folder_without_its_base_is_made_whole(tmp_path) -> None:
    """What is registered serves alone: the base is in it, and nothing else has changed."""
    model = make_reward_model(tmp_path / "lm", ENCODER)
    model.base = Base.of(str(tmp_path / "lm"), "lm")
    domain = fit_domain(model, ENCODER, [(str(i), *chain) for i, chain in enumerate(CHAINS)])
    save_reward_model(model, ENCODER, PLATT, tmp_path / "prm", domain)
    assert not any("tokenizer" in name or name == "model.safetensors" for name in files(tmp_path / "prm"))
    before = load_scorer(tmp_path / "prm", device="cpu").score(CHAINS)
    assert all(score.out_of_domain is not None for score in before)
    with whole(tmp_path / "prm") as complete:
        shutil.copytree(complete, tmp_path / "alone/prm")
    assert not complete.exists()
    shutil.rmtree(tmp_path / "lm")
    assert load_scorer(tmp_path / "alone/prm", device="cpu").score(CHAINS) == before
    _, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "alone/prm", output_loading_info=True)
    assert not report["missing_keys"]
    with pytest.raises(InputError, match=r"was saved without its base model lm \(sha256 .*Set PRM_BASE"):
        load_scorer(tmp_path / "prm")
    with whole(tmp_path / "alone/prm") as complete:
        assert complete == tmp_path / "alone/prm"


def test_scores_are_calibrated_probabilities_of_each_step(tmp_path) -> None:
    save(tmp_path, calibrator=PLATT)
    for (_, steps), score in zip(CHAINS, load_scorer(tmp_path / "prm", device="cpu").score(CHAINS), strict=True):
        assert len(score.step_scores) == len(score.raw_scores) == len(steps)
        assert score.step_scores == pytest.approx(PLATT.apply(np.array(score.raw_scores)).tolist())
        assert score.step_scores != pytest.approx(score.raw_scores, abs=0.01)
        assert all(0 <= value <= 1 for value in score.step_scores)


def test_raw_scores_are_the_sigmoid_of_the_head(tmp_path) -> None:
    model = save(tmp_path)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([-0.25, 0.75]))
        model.surprisal.weight.zero_()
    score = RewardScorer(model, ENCODER, IDENTITY, "", 64).score(CHAINS[:1])[0]
    assert score.raw_scores == pytest.approx([0.7310586] * len(CHAINS[0][1]))


def test_an_outcome_model_gives_one_score_a_chain_read_at_its_last_step(tmp_path) -> None:
    model = save(tmp_path, "outcome")
    for chain, score in zip(CHAINS, load_scorer(tmp_path / "prm", device="cpu").score(CHAINS), strict=True):
        with torch.inference_mode():
            logits = model(collate([ENCODER.encode(*chain)], ENCODER.pad_id))[0]
        assert score.raw_scores == pytest.approx([logits[-1].sigmoid().item()], abs=1e-5)
        assert logits[0].sigmoid().item() != pytest.approx(logits[-1].sigmoid().item(), abs=1e-3)


def test_an_advantage_model_values_the_bare_prompt_and_every_prefix(tmp_path) -> None:
    model = save(tmp_path, "advantage", PLATT)
    found = load_scorer(tmp_path / "prm", device="cpu").score(CHAINS[:3])
    for (prompt, steps), score in zip(CHAINS[:3], found, strict=True):
        chain = ENCODER.encode(prompt, steps)
        with torch.inference_mode():
            logits = model(collate([chain], ENCODER.pad_id, prompt_slot=True))[0]
        raw = torch.sigmoid(logits).double().numpy()
        assert score.raw_scores == pytest.approx(raw[1:].tolist(), abs=1e-6)
        assert score.step_scores == pytest.approx(PLATT.apply(raw)[1:].tolist(), abs=1e-5)
        assert score.prompt_score == pytest.approx(PLATT.apply(raw)[0], abs=1e-5)
    assert RewardScorer(model, ENCODER, IDENTITY, "", 8).score(CHAINS[:1])[0].prompt_score != pytest.approx(
        found[0].prompt_score, abs=1e-3)


def test_only_an_advantage_model_scores_the_prompt(tmp_path) -> None:
    for kind in ("process", "outcome"):
        save(tmp_path / kind, kind)
        assert {score.prompt_score for score in load_scorer(tmp_path / kind / "prm").score(CHAINS[:2])} == {None}


def test_order_and_batch_size_do_not_matter(tmp_path) -> None:
    save(tmp_path)
    base = [score.raw_scores for score in load_scorer(tmp_path / "prm", batch_size=64).score(CHAINS)]
    small = load_scorer(tmp_path / "prm", batch_size=1)
    found = [score.raw_scores for score in small.score(CHAINS[::-1])][::-1]
    for one, other in zip(base, found, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_two_models_on_one_backbone_share_its_pass(tmp_path) -> None:
    process, outcome, other = (save(tmp_path / name, kind) for name, kind in
                               (("a", "process"), ("b", "outcome"), ("c", "outcome")))
    with torch.no_grad():
        next(other.backbone.parameters()).view(-1)[-1] += 1e-3
    prm, orm, apart = (RewardScorer(model, ENCODER, PLATT, "", 2) for model in (process, outcome, other))
    assert prm.shares_pass(orm)
    assert prm.score_with([orm], CHAINS) == [prm.score(CHAINS), orm.score(CHAINS)]
    assert not prm.shares_pass(apart)
    # The bare prompt has a slot of its own there, which shifts the others.
    values = RewardScorer(save(tmp_path / "d", "advantage"), ENCODER, IDENTITY, "", 2)
    assert prm.model.shares_backbone(values.model)
    assert not prm.shares_pass(values)


def test_the_question_is_part_of_what_is_scored(tmp_path) -> None:
    save(tmp_path)
    steps = CHAINS[0][1]
    one, other = load_scorer(tmp_path / "prm").score([(CHAINS[0][0], steps), (CHAINS[1][0], steps)])
    assert one.raw_scores != pytest.approx(other.raw_scores, abs=1e-3)


def test_the_version_names_weights_and_calibrator(tmp_path) -> None:
    model = save(tmp_path)
    version = load_scorer(tmp_path / "prm").version
    shutil.copytree(tmp_path / "prm", tmp_path / "copy")
    assert load_scorer(tmp_path / "copy").version == version
    save_reward_model(model, ENCODER, PLATT, tmp_path / "prm")
    assert load_scorer(tmp_path / "prm").version != version
    with torch.no_grad():
        model.head.bias[1] += 1.0
    save_reward_model(model, ENCODER, IDENTITY, tmp_path / "prm")
    assert load_scorer(tmp_path / "prm").version != version


def test_trailing_steps_beyond_the_context_have_no_score_and_are_counted(tmp_path) -> None:
    prompt, steps = max(CHAINS, key=lambda chain: len(chain[1]))
    room = ENCODER.encode(prompt, steps).step_ends[1] + 1
    encoder = make_encoder(max_length=room)
    model = make_reward_model(tmp_path / "lm", encoder)
    score = RewardScorer(model, encoder, IDENTITY, "", 8).score([(prompt, steps)])[0]
    assert (len(score.step_scores), score.truncated_steps) == (2, len(steps) - 2)


def test_two_threads_score_as_one(tmp_path) -> None:
    save(tmp_path, calibrator=PLATT)
    scorer = load_scorer(tmp_path / "prm", batch_size=2)
    alone = scorer.score(CHAINS)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: scorer.score(CHAINS), range(12))) == [alone] * 12


def test_nothing_to_score(tmp_path) -> None:
    save(tmp_path)
    assert load_scorer(tmp_path / "prm").score([]) == []


@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_a_prompt_without_steps_has_no_step_scores(tmp_path, kind: str) -> None:
    save(tmp_path, kind)
    scorer = load_scorer(tmp_path / "prm", device="cpu")
    prompt, steps = CHAINS[0]
    (alone,) = scorer.score([(prompt, ())])
    assert (alone.step_scores, alone.raw_scores, alone.truncated_steps) == ((), (), 0)
    beside, other = scorer.score([(prompt, ()), (prompt, steps)])
    assert (beside.step_scores, len(other.step_scores)) == ((), 1 if kind == "outcome" else len(steps))
    if kind == "advantage":
        assert alone.prompt_score == pytest.approx(other.prompt_score, abs=1e-5)


def test_only_an_empty_step_cannot_be_scored(tmp_path) -> None:
    save(tmp_path)
    scorer = load_scorer(tmp_path / "prm")
    with pytest.raises(InputError, match="step 1 is empty"):
        scorer.score([("How many?", (Step("fine"), Step("")))])
    one, other = scorer.score([("How many?", (Step(text),)) for text in ("one\ntwo", "one two")])
    assert one.step_scores != other.step_scores


@pytest.mark.parametrize("kind", ["process", "outcome", "advantage"])
def test_a_chain_longer_than_the_context_has_no_score_and_stops_no_other(tmp_path, kind: str) -> None:
    save(tmp_path, kind)
    scorer = load_scorer(tmp_path / "prm")
    pair = ("How many?", (Step("fine"), Step("and fine")))
    first, long, beside = scorer.score([("How many?", (Step("word " * 300),)), ("word " * 300, pair[1]), pair])
    assert (first.step_scores, first.truncated_steps) == ((), 1)
    assert (long.step_scores, long.raw_scores, long.truncated_steps) == ((), (), 2)
    assert beside.step_scores == pytest.approx(scorer.score([pair])[0].step_scores, abs=1e-5)


def test_folders_that_are_no_reward_model(tmp_path) -> None:
    save(tmp_path)
    save_lm(tmp_path / "policy", ENCODER)
    for name, reason in (("gone", r"no config\.json there"), ("policy", "not a reward model")):
        with pytest.raises(InputError, match=f"{name}: .*{reason}"):
            load_scorer(tmp_path / name)


def broken(tmp_path: Path, change: str) -> Path:
    save(tmp_path)
    folder = tmp_path / "prm"
    # As one from elsewhere; with its sums, every change is refused by them.
    (folder / "SHA256SUMS").unlink()
    if change == "pickled":
        torch.save(load_reward_model(folder).state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif change == "torn":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif change == "no weights":
        (folder / "model.safetensors").unlink()
    elif change == "no calibrator":
        (folder / "calibrator.json").unlink()
    elif change == "calibrator of another kind":
        (folder / "calibrator.json").write_text(json.dumps({"slope": 1}))
    elif change == "no surprisal":
        (folder / "surprisal.safetensors").unlink()
    elif change == "torn surprisal":
        (folder / "surprisal.safetensors").write_bytes(b"half")
    elif change == "surprisal of another size":
        save_file({name: torch.zeros(2) for name in ("vocabulary", "weight")},
                  folder / "surprisal.safetensors")
    elif change == "a tensor is missing":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif change == "a tensor of another size":
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif change == "a kind nobody knows":
        config = json.loads((folder / "config.json").read_text())
        config["prm"]["kind"] = "oracle"
        (folder / "config.json").write_text(json.dumps(config))
    elif change == "config is a list":
        (folder / "config.json").write_text(json.dumps([1]))
    return folder


@pytest.mark.parametrize(("change", "reason"), [
    ("pickled", "only pickled weights"),
    ("torn", "not a safetensors file"),
    ("no weights", "does not load"),
    ("no calibrator", "calibrator.json: no such file"),
    ("calibrator of another kind", "calibrator.json: not a calibrator"),
    ("no surprisal", r"surprisal\.safetensors: does not load"),
    ("torn surprisal", r"surprisal\.safetensors: does not load"),
    ("surprisal of another size", r"surprisal\.safetensors: does not load"),
    ("a tensor is missing", r"1 tensors of LlamaForTokenClassification are not in its weights \(first model\.layers"),
    ("a tensor of another size", "do not fit its config.json"),
    ("a kind nobody knows", "a reward model of kind 'oracle', where one of kind"),
    ("config is a list", "not a reward model folder"),
])
def test_broken_folders_are_named_with_the_reason(tmp_path, change: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as error:
        load_scorer(broken(tmp_path, change))
    assert str(tmp_path / "prm") in str(error.value)
    assert "\n" not in str(error.value)
