"""Base models by name and contents: which one it is, and where it is found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from prm_core.errors import InputError
from prm_core.models.bases import HINT, VARIABLE, Base, digest
from tests.builders.training import make_encoder, save_lm

ENCODER = make_encoder()


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> Path:
    return save_lm(tmp_path_factory.mktemp("bases") / "lm", ENCODER)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def values(base: Base) -> dict[str, str]:
    return {"name": base.name, "sha256": base.sha256}


def test_the_digest_is_of_the_contents_and_not_of_the_files(lm, tmp_path) -> None:
    again = tmp_path / "again"
    LlamaForCausalLM.from_pretrained(lm).save_pretrained(again, max_shard_size="5KB")
    AutoTokenizer.from_pretrained(lm).save_pretrained(again)
    assert len(list(again.glob("*.safetensors"))) > 1
    assert digest(str(again)) == digest(str(lm))


@pytest.mark.parametrize("what", ["a weight", "its type", "a token"])
def test_the_digest_is_another_when_the_contents_are(lm, tmp_path, what: str) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(lm), AutoTokenizer.from_pretrained(lm)
    if what == "a weight":
        model.model.norm.weight.data[0] += 1e-6
    elif what == "its type":
        model.to(torch.bfloat16)
    else:
        tokenizer.add_tokens(["another"])
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    assert digest(str(tmp_path / "other")) != digest(str(lm))


@pytest.mark.parametrize(("name", "known_as", "hint"), [
    ("some/hub-id", "some/hub-id", False), ("artifacts/models/backbone", "artifacts/models/backbone", False),
    ("/home/me/lm", "lm", True), ("../lm", "lm", True),
])
def test_no_path_of_a_machine_is_a_name(lm, name: str, known_as: str, hint: bool) -> None:
    base = Base.of(str(lm), name)
    assert (base.name, base.at, bool(base.hint)) == (known_as, str(lm), hint)


def test_a_base_is_found_in_the_workspace_of_the_model(lm, tmp_path) -> None:
    base = Base.of(str(lm), "artifacts/backbone")
    shutil.copytree(lm, tmp_path / "run/artifacts/backbone")
    found = Base.find(values(base), str(tmp_path / "run/artifacts/train_prm/prm"))
    assert (found.name, found.at) == ("artifacts/backbone", str(tmp_path / "run/artifacts/backbone"))


@pytest.mark.parametrize("below", [False, True])
def test_a_base_is_found_where_the_environment_says(lm, tmp_path, monkeypatch, below: bool) -> None:
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'gone'}:{lm.parent if below else lm}")
    base = Base.of(str(lm), "lm" if below else "some/hub-id")
    assert Base.find(values(base), str(tmp_path / "prm")).at == str(lm)


def test_a_base_is_found_where_it_was(lm, tmp_path) -> None:
    base = Base.of(str(lm), str(lm))
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / HINT).write_text(f"{base.hint}\n")
    assert Base.find(values(base), str(tmp_path / "prm")).at == str(lm)


def test_a_base_that_is_nowhere_is_named_with_its_digest_and_the_way_out(lm, tmp_path) -> None:
    base = Base.of(str(lm), "some/hub-id")
    with pytest.raises(InputError) as caught:
        Base.find(values(base), str(tmp_path / "prm"))
    assert str(caught.value) == (
        f"model {tmp_path / 'prm'}: was saved without its base model some/hub-id (sha256 {base.sha256} of weights and "
        "vocabulary), which is not there: no folder above the model's has one of that name, nor has the hub's cache. "
        "Set PRM_BASE to the base's folder")


def test_another_model_of_that_name_is_refused(lm, tmp_path) -> None:
    other = save_lm(tmp_path / "lm", ENCODER, seed=1)
    base = Base.of(str(lm), "lm")
    with pytest.raises(InputError, match=f"lm is another model, of sha256 {digest(str(other))}. Set PRM_BASE"):
        Base.find(values(base), str(tmp_path / "prm"))


@pytest.mark.parametrize("name", ["", "x" * 10_000, "a\0b", "/", "..", "no such name", "~"])
def test_a_name_that_is_none_is_one_clear_line(lm, tmp_path, name: str) -> None:
    with pytest.raises(InputError, match="was saved without its base model"):
        Base.find({"name": name, "sha256": "0" * 64}, str(tmp_path / "prm"))


def test_what_is_no_model_does_not_hide_the_base(lm, tmp_path, monkeypatch) -> None:
    empty, garbled = tmp_path / "lm", tmp_path / "garbled"
    for folder, weights in ((empty, None), (garbled, b"x")):
        folder.mkdir()
        shutil.copy(lm / "config.json", folder)
        if weights:
            (folder / "model.safetensors").write_bytes(weights)
    (tmp_path / "prm").mkdir()
    (tmp_path / "prm" / HINT).write_bytes(b"\xff\x00")
    base = Base.of(str(lm), "lm")
    monkeypatch.setenv(VARIABLE, str(garbled))
    with pytest.raises(InputError, match=r"garbled/model\.safetensors: not a safetensors file.*lm: no safetensors"):
        Base.find(values(base), str(tmp_path / "prm"))
    monkeypatch.setenv(VARIABLE, f"{garbled}:{lm}")
    assert Base.find(values(base), str(tmp_path / "prm")).at == str(lm)


@pytest.mark.parametrize("broken", [None, "lm", {"name": "lm"}, {"name": "lm", "sha256": 7}])
def test_a_folder_that_names_no_base_is_refused(tmp_path, broken) -> None:
    with pytest.raises(InputError, match=r"config\.json: prm\.base must hold texts `name` and `sha256`"):
        Base.find(broken, str(tmp_path))
