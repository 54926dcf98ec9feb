"""Reward models: where a step is read, what they see, that padding and later steps change nothing, and their folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModelForTokenClassification,
    BertConfig,
    BertLMHeadModel,
    CTRLConfig,
    CTRLLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from prm_core.errors import InputError
from prm_core.models.bases import Base
from prm_core.models.chains import ChainBatch, collate
from prm_core.scoring.kinds import load_reward_model
from prm_core.scoring.reward import RewardModel
from prm_core.scoring.settings import is_reward_model
from tests.builders.training import (
    CHAINS,
    KINDS,
    assert_same_weights,
    files,
    make_encoder,
    make_lm,
    make_reward_model,
    open_eyes,
    reward_model_on,
    save_lm,
    weights,
)

ENCODER = make_encoder()
ALL = [(kind, surprisal) for kind in KINDS for surprisal in (False, True)]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[tuple[str, bool], RewardModel]:
    folder = tmp_path_factory.mktemp("models")
    return {(kind, surprisal): make_reward_model(folder / f"{kind}{surprisal}", ENCODER, kind, surprisal)
            for kind, surprisal in ALL}


def padded(model: RewardModel, chains, pad_to: int = 0, filler: int | None = None) -> ChainBatch:
    """The chains as a batch at least `pad_to` wide, with `filler` for padding."""
    encoded = [ENCODER.encode(prompt, steps) for prompt, steps in chains]
    batch = collate(encoded, ENCODER.pad_id, prompt_slot=model.prompt_slot)
    extra = max(pad_to - batch.ids.shape[1], 0)
    ids = functional.pad(batch.ids, (0, extra), value=ENCODER.pad_id)
    if filler is not None:
        for row, chain in enumerate(encoded):
            ids[row, len(chain.ids) :] = filler
    return ChainBatch(ids, functional.pad(batch.steps, (0, extra), value=-1), batch.ends)


def scores(model: RewardModel, chains, pad_to: int = 0, filler: int | None = None) -> list[list[float]]:
    """Logits of each chain's slots."""
    batch = padded(model, chains, pad_to, filler)
    with torch.inference_mode():
        logits = model(batch)
    return [row[ends >= 0].tolist() for row, ends in zip(logits, batch.ends, strict=True)]


@pytest.mark.parametrize("key", ALL)
def test_padding_of_any_width_and_content_changes_no_score(models, key) -> None:
    alone = [scores(models[key], [chain])[0] for chain in CHAINS[:4]]

    @settings(max_examples=15)
    @given(width=st.integers(0, 200), filler=st.integers(0, len(ENCODER.tokenizer) - 1))
    def check(width: int, filler: int) -> None:
        for one, other in zip(alone, scores(models[key], CHAINS[:4], width, filler), strict=True):
            assert one == pytest.approx(other, abs=2e-5)

    check()
    assert max(map(max, alone)) - min(map(min, alone)) > 0.01, "scores that are all alike would show nothing"


@pytest.mark.parametrize("key", ALL)
def test_one_pass_scores_every_prefix_as_it_is_alone(models, key) -> None:
    first = models[key].prompt_slot
    for prompt, steps in CHAINS[:3]:
        whole = scores(models[key], [(prompt, steps)])[0]
        prefixes = [scores(models[key], [(prompt, steps[:k])])[0][-1] for k in range(not first, len(steps) + 1)]
        assert whole == pytest.approx(prefixes, abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_is_read_at_its_last_token_not_at_the_padding(models, kind: str) -> None:
    """The guide reads position -1, which is padding in a right-padded batch (METHODS 1)."""
    model = models[kind, False]
    found = scores(model, CHAINS[:4], pad_to=220)
    for (prompt, steps), values in zip(CHAINS[:4], found, strict=True):
        chain = ENCODER.encode(prompt, steps)
        ends = [chain.prompt_length - 1] * model.prompt_slot + chain.step_ends
        hidden = model.backbone(input_ids=torch.tensor([chain.ids])).last_hidden_state[0, ends]
        wrong, right = model.head(hidden).unbind(-1)
        assert values == pytest.approx((right - wrong).tolist(), abs=2e-5)


def test_without_surprisal_there_are_no_vocabulary_logits(models) -> None:
    size = len(ENCODER.tokenizer)
    model = models["process", False]
    assert model.surprisal is None
    assert [name for name, value in model.named_parameters() if size in value.shape] == [
        "network.model.embed_tokens.weight"]
    assert [name for name, module in model.named_modules() if getattr(module, "out_features", 0) == size] == []


def test_a_new_model_has_the_backbone_s_weights_and_no_opinion(tmp_path) -> None:
    source = make_lm(ENCODER)
    path = save_lm(tmp_path / "lm", ENCODER)
    for kind in KINDS:
        model = reward_model_on(path, kind)
        assert set(map(float, torch.cat([torch.tensor(row) for row in scores(model, CHAINS[:2])]))) == {0.0}
        assert torch.equal(model.surprisal.vocabulary, source.lm_head.weight)
        assert not model.surprisal.vocabulary.requires_grad
        assert_same_weights(weights(model.backbone), weights(source.model))
        assert not model.training


# The folder


@pytest.mark.parametrize("key", ALL)
def test_a_saved_model_is_the_same_model(models, tmp_path, key) -> None:
    models[key].save_pretrained(tmp_path / "prm")
    again = load_reward_model(tmp_path / "prm", device="cpu")
    assert type(again) is KINDS[key[0]]
    assert (again.encoder, again.training) == (dataclasses.asdict(ENCODER.config), False)
    assert scores(again, CHAINS) == scores(models[key], CHAINS)
    assert files(tmp_path / "prm") == sorted(
        ["config.json", "model.safetensors", *["surprisal.safetensors"] * key[1]])


@pytest.mark.parametrize("surprisal", [False, True])
def test_the_library_s_own_class_loads_the_folder(models, tmp_path, surprisal: bool) -> None:
    model = models["process", surprisal]
    model.save_pretrained(tmp_path / "prm")
    plain, report = AutoModelForTokenClassification.from_pretrained(tmp_path / "prm", output_loading_info=True)
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (set(), set())
    assert plain.config.id2label == {0: "wrong", 1: "right"}
    for (prompt, steps), own in zip(CHAINS[:4], scores(model, CHAINS[:4]), strict=True):
        chain = ENCODER.encode(prompt, steps)
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([chain.ids])).logits[0, chain.step_ends]
        right = logits.softmax(-1)[:, 1].tolist()
        # The surprisal is a term the library's class knows nothing of.
        assert (right == pytest.approx(torch.tensor(own).sigmoid().tolist(), abs=1e-6)) is not surprisal


@pytest.mark.parametrize(("saved", "asked"), [
    (saved, asked) for saved in KINDS for asked in KINDS if saved != asked])
def test_a_class_refuses_the_folder_of_another_kind(models, tmp_path, saved: str, asked: str) -> None:
    models[saved, False].save_pretrained(tmp_path / "prm")
    with pytest.raises(InputError, match=f"a reward model of kind '{saved}', where one of kind '{asked}' is needed"):
        load_reward_model(tmp_path / "prm", KINDS[asked])


def test_a_language_model_is_no_reward_model(tmp_path) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    assert not is_reward_model(str(path))
    with pytest.raises(InputError, match=r"lm: not a reward model folder \(no config\.json with `prm` in it\)"):
        load_reward_model(path)


def test_no_path_of_this_machine_enters_the_model(tmp_path) -> None:
    for name in ("one", "two"):
        make_reward_model(tmp_path / name, ENCODER).save_pretrained(tmp_path / f"prm-{name}")
    one, two = (tmp_path / f"prm-{name}" for name in ("one", "two"))
    assert "_name_or_path" not in json.loads((one / "config.json").read_text())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files(one))
    assert str(tmp_path) not in (one / "config.json").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bfloat16_model_scores_the_same_before_and_after_it_is_saved(tmp_path, kind: str) -> None:
    """Rotary frequencies rounded with the weights would shift every position, until the model is loaded again."""
    path = save_lm(tmp_path / "lm", ENCODER)
    model = open_eyes(reward_model_on(path, kind, encoder=ENCODER, dtype="bfloat16"))
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert model.backbone.rotary_emb.inv_freq.dtype == torch.float32
    model.save_pretrained(tmp_path / "prm")
    again = load_reward_model(tmp_path / "prm", device="cpu")
    assert {value.dtype for value in again.parameters()} == {torch.bfloat16}
    assert scores(again, CHAINS[:4]) == scores(model, CHAINS[:4])
    precise = load_reward_model(tmp_path / "prm", device="cpu", dtype="float32")
    for one, other in zip(scores(precise, CHAINS[:4]), scores(model, CHAINS[:4]), strict=True):
        assert one == pytest.approx(other, abs=0.3)


# Without the base


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("key", ALL)
def test_a_model_saved_without_its_base_scores_bit_for_bit_as_one_saved_whole(tmp_path, key, dtype: str) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    model = open_eyes(reward_model_on(path, *key, ENCODER, dtype))
    model.save_pretrained(tmp_path / "whole")
    model.base = Base.of(str(path), "lm")
    model.save_pretrained(tmp_path / "prm")
    again = load_reward_model(tmp_path / "prm", device="cpu", dtype=dtype)
    assert_same_weights(weights(again), weights(load_reward_model(tmp_path / "whole", device="cpu", dtype=dtype)))
    assert scores(again, CHAINS) == scores(model, CHAINS)
    assert type(again) is KINDS[key[0]]
    assert again.base == Base("lm", model.base.sha256, str(path))
    assert files(tmp_path / "prm") == ["config.json", "trained.safetensors"]
    assert (tmp_path / "prm/trained.safetensors").stat().st_size < 500
    again.save_pretrained(tmp_path / "copy")
    assert all((tmp_path / "copy" / name).read_bytes() == (tmp_path / "prm" / name).read_bytes()
               for name in files(tmp_path / "prm"))


@pytest.mark.parametrize("change", [
    lambda file: file.unlink(), lambda file: file.write_bytes(b"x"),
    lambda file: save_file({name: value for name, value in load_file(file).items() if "bias" not in name}, file),
    lambda file: save_file({name: value[..., :3].clone() for name, value in load_file(file).items()}, file),
    lambda file: save_file({name: value / 0 for name, value in load_file(file).items()}, file),
], ids=["gone", "garbled", "a tensor gone", "of another size", "infinite"])
def test_what_was_trained_must_be_there_whole(tmp_path, change) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    model = open_eyes(reward_model_on(path, encoder=ENCODER))
    model.base = Base.of(str(path), "lm")
    model.save_pretrained(tmp_path / "prm")
    change(tmp_path / "prm/trained.safetensors")
    with pytest.raises(InputError, match=r"prm/trained\.safetensors: .*copy the model's folder whole"):
        load_reward_model(tmp_path / "prm", device="cpu")


def test_a_config_that_its_base_does_not_fit_is_named(tmp_path) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    model = reward_model_on(path, encoder=ENCODER)
    model.base = Base.of(str(path), "lm")
    model.save_pretrained(tmp_path / "prm")
    values = json.loads((tmp_path / "prm/config.json").read_text())
    (tmp_path / "prm/config.json").write_text(json.dumps({**values, "intermediate_size": 7}))
    with pytest.raises(InputError, match=r"prm, put on its base: .*weights do not fit its config\.json"):
        load_reward_model(tmp_path / "prm", device="cpu")


# Backbones that will not do


def other_lm(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_backbone_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"gone.*no config\.json"):
        reward_model_on(tmp_path / "gone")


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "initializer_range": 0.5}


def test_an_encoder_reads_ahead_and_is_refused(tmp_path) -> None:
    path = other_lm(tmp_path / "bert", BertLMHeadModel(BertConfig(**SMALL)))
    with pytest.raises(InputError, match=r"bert: it reads ahead \(an encoder\).*name a causal model"):
        reward_model_on(path, surprisal=False)


def test_dropout_is_not_mistaken_for_reading_ahead(tmp_path) -> None:
    """The same network as a decoder is causal; in training mode two passes over it would differ."""
    path = other_lm(tmp_path / "bert", BertLMHeadModel(BertConfig(**SMALL, is_decoder=True, hidden_dropout_prob=0.5)))
    assert reward_model_on(path, surprisal=False).kind == "process"


@pytest.mark.parametrize("model", [
    OPTForCausalLM(OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2,
                             word_embed_proj_dim=16)),
    CTRLLMHeadModel(CTRLConfig(vocab_size=50, n_embd=16, dff=32, n_layer=1, n_head=2)),
], ids=["opt", "ctrl"])
def test_an_architecture_without_token_classification_is_named(tmp_path, model: PreTrainedModel) -> None:
    path = other_lm(tmp_path / "lm", model)
    with pytest.raises(InputError, match=f"unknown architecture '{model.config.model_type}'.*name a decoder"):
        reward_model_on(path, surprisal=False)


def test_pickled_weights_are_never_loaded(tmp_path) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    torch.save(make_lm(ENCODER).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"only pickled weights \(\.bin\); convert them to safetensors"):
        reward_model_on(path)


def test_a_backbone_with_a_tensor_missing_is_not_filled_up_with_random_weights(tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_lm(tmp_path / "lm", ENCODER)
    tensors = load_file(path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"2 tensors of LlamaForCausalLM are not in its weights \(first model\.layers"):
        reward_model_on(path)
