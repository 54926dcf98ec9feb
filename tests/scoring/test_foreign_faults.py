"""Folders and tokenizers that are no process reward model of a known style: refused, with the reason, before use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from prm_core.errors import InputError
from prm_core.scoring.foreign import detect_style, load_foreign
from prm_core.scoring.foreign.encoders import BoundaryHeadEncoder, VocabularyEncoder
from prm_core.types import Step
from tests.builders.foreign import CONTEXT, qwen_model, shepherd_model, tokenizer_of, trl_model


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_code_of_the_folder_is_never_run(tmp_path):
    qwen_model(tmp_path)
    # Its files raise SystemExit when imported.
    assert load_foreign(tmp_path, device="cpu").score([("Ann has 3 .", [Step("7")])])
    edit_config(tmp_path, model_type="qwen2_rm")
    with pytest.raises(InputError, match="an architecture the transformers library does not know"):
        load_foreign(tmp_path, device="cpu")


@pytest.mark.parametrize("write", [trl_model, qwen_model])
def test_three_labels_are_refused(tmp_path, write):
    write(tmp_path, labels=3)
    with pytest.raises(InputError, match="labels"):
        load_foreign(tmp_path, device="cpu")


def test_incomplete_weights_are_refused(tmp_path):
    """A style that does not fit the folder must not score with a head of random numbers."""
    shepherd_model(tmp_path)
    with pytest.raises(InputError, match=r"2 tensors of MistralForTokenClassification .*score"):
        load_foreign(tmp_path, "trl", device="cpu")
    trl_model(tmp_path / "trl")
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load_foreign(tmp_path / "trl", "math_shepherd", device="cpu")
    with pytest.raises(InputError, match="chat template"):
        load_foreign(tmp_path / "trl", "qwen_prm", device="cpu")


def test_missing_head_tensor_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    qwen_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor score\.2\.bias"):
        load_foreign(tmp_path, device="cpu")


@pytest.mark.parametrize("write", [trl_model, qwen_model, shepherd_model])
def test_torn_weights_are_refused(tmp_path, write):
    write(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
        load_foreign(tmp_path, device="cpu")


def test_weights_of_other_sizes_are_refused(tmp_path):
    trl_model(tmp_path)
    edit_config(tmp_path, intermediate_size=48)
    with pytest.raises(InputError, match="do not fit its config"):
        load_foreign(tmp_path, device="cpu")


def test_signs_that_are_not_one_token_are_refused(tmp_path):
    tokenizer = tokenizer_of("<unused>", bos=True)
    encoder = VocabularyEncoder(tokenizer, "ки", CONTEXT)
    assert encoder.candidates() == [261, 260]
    shepherd_model(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["unused"] = vocabulary.pop("Ġ+")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"'\+ -' is ids"):
        load_foreign(tmp_path, device="cpu")


def test_step_tag_that_is_not_one_token_is_refused(tmp_path):
    shepherd_model(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    tag = next(word for word, number in vocabulary.items() if number == 278)
    vocabulary["unused"] = vocabulary.pop(tag)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="causal language model, and separator 'ки' is 5 tokens"):
        load_foreign(tmp_path, device="cpu")


def test_boundary_of_several_tokens_is_refused(tmp_path):
    qwen_model(tmp_path)
    with pytest.raises(InputError, match=r"separator '<extra_1>' is .* tokens"):
        load_foreign(tmp_path, device="cpu", separator="<extra_1>")


def test_boundary_that_merges_with_the_step_before_it_is_refused():
    with pytest.raises(InputError, match="merges with the text before it"):
        VocabularyEncoder(Merging(), "ки", CONTEXT)


class Merging:
    """A tokenizer to which a whole text is one token."""

    unk_token_id = bos_token_id = None
    all_special_tokens: ClassVar[list[str]] = []
    added_tokens_decoder: ClassVar[dict[int, str]] = {}

    def encode(self, text, add_special_tokens=True):
        return [len(text)]


def test_template_that_changes_the_answer_is_refused():
    tokenizer = tokenizer_of("<extra_0>", chat=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | upper")
    with pytest.raises(InputError, match="does not put an assistant's text as it is"):
        BoundaryHeadEncoder(tokenizer, "<extra_0>", CONTEXT)


def test_model_without_a_template_is_refused():
    with pytest.raises(InputError, match=r"chat_template is not set.*; save the template the model was trained with"):
        BoundaryHeadEncoder(tokenizer_of("<extra_0>"), "<extra_0>", CONTEXT)


def test_template_without_a_system_message_is_refused():
    tokenizer = tokenizer_of("<extra_0>", chat=True)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        BoundaryHeadEncoder(tokenizer, "<extra_0>", CONTEXT)


def test_unknown_architectures_are_refused(tmp_path):
    trl_model(tmp_path)
    edit_config(tmp_path, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(InputError, match="of architecture LlamaForSequenceClassification"):
        load_foreign(tmp_path)
    edit_config(tmp_path, architectures=None)
    with pytest.raises(InputError, match="of architecture unnamed"):
        detect_style(str(tmp_path))
    with pytest.raises(InputError, match="unknown style of foreign reward model 'rlhflow'; known: math_shepherd, qwen"):
        load_foreign(tmp_path, "rlhflow")


def test_head_tensors_tell_the_style_where_the_config_does_not(tmp_path):
    qwen_model(tmp_path)
    edit_config(tmp_path, architectures=["Qwen2Model"])
    assert detect_style(str(tmp_path)) == "qwen_prm"


def test_folder_that_is_not_there():
    with pytest.raises(InputError, match=r"no config\.json there"):
        load_foreign("./nowhere")


def test_hub_models(tmp_path, monkeypatch):
    """A hub id is downloaded without its code and pickles, or refused."""
    trl_model(tmp_path)
    asked = []

    def download(name, *, ignore_patterns):
        asked.append((name, ignore_patterns))
        if name == "owner/none":
            raise FileNotFoundError("404")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_foreign("owner/prm", device="cpu").version == load_foreign(tmp_path, device="cpu").version
    assert asked[0][0] == "owner/prm"
    assert {"*.py", "*.bin"} <= set(asked[0][1])
    with pytest.raises(InputError, match="model owner/none: no such folder, and the hub does not give it"):
        load_foreign("owner/none")
