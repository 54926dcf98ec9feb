"""Model folders broken in every way: each is refused in one line that names it, and nothing in it is run."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prm_core.errors import InputError
from prm_core.platform.sums import FILE
from prm_core.scoring.foreign import load_any_scorer
from prm_core.types import Step
from tests.builders.reward_models import tiny_reward_model

CHAIN = ("Ann has 3 apples .", (Step("3 + 4 = 7 ."), Step("The answer is 7 .")))
DEEP = "[" * 100_000 + "]" * 100_000
Break = Callable[[Path], None]


def text(name: str, content: str | bytes) -> Break:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def gone(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def half(name: str) -> Break:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def folder_instead(name: str) -> Break:
    def swap(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return swap


def link_to(name: str, target: str) -> Break:
    def swap(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return swap


def edit(name: str, *keys: Any, to: Any) -> Break:
    """Sets a value in a JSON file, at the end of a path of keys."""
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to
        (folder / name).write_text(json.dumps(values))

    return change


def drop(name: str, *keys: Any) -> Break:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        inner = values
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        (folder / name).write_text(json.dumps(values))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors") -> Break:
    def rewrite(folder: Path) -> None:
        values = {name: value.clone() for name, value in load_file(folder / file).items()}
        change(values)
        save_file(values, folder / file, {"format": "pt"})

    return rewrite


def header(change: Callable[[dict[str, Any]], Any]) -> Break:
    """Rewrites the header of the weights, leaving the bytes as they are."""
    def rewrite(folder: Path) -> None:
        raw = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        values = json.loads(raw[8 : 8 + length])
        change(values)
        new = json.dumps(values).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return rewrite


CONFIG, WEIGHTS, TOKENS, CALIBRATOR = "config.json", "model.safetensors", "tokenizer.json", "calibrator.json"
HEAD, NORM = "score.weight", "model.norm.weight"
KNOTS = [[0.0, 0.1], [0.5, 0.4], [1.0, 0.9]]
BROKEN: dict[str, Break] = {
    **{f"{name} {how}": make(name) for name in (CONFIG, WEIGHTS, TOKENS, CALIBRATOR, "surprisal.safetensors")
       for how, make in {
           "missing": gone, "empty": lambda n: text(n, ""), "cut in half": half,
           "garbled": lambda n: text(n, b"\xff\x00\x80"),
           "a folder": folder_instead, "a link to nowhere": lambda n: link_to(n, "nowhere"),
           "a link to itself": lambda n: link_to(n, n), "a device": lambda n: link_to(n, "/dev/null"),
           "null": lambda n: text(n, "null"), "a list": lambda n: text(n, "[1]"), "a number": lambda n: text(n, "7"),
           "nested deep": lambda n: text(n, DEEP), "a huge number": lambda n: text(n, "1" * 5000),
           "an empty object": lambda n: text(n, "{}"),
       }.items()},
    "no model type": drop(CONFIG, "model_type"),
    "model type of another kind": edit(CONFIG, "model_type", to="t5"),
    "model type unknown": edit(CONFIG, "model_type", to="../evil"),
    "model type a list": edit(CONFIG, "model_type", to=["llama"]),
    **{f"{key} {value!r}"[:40]: edit(CONFIG, key, to=value) for key, value in [
        ("hidden_size", 32), ("hidden_size", "16"), ("hidden_size", -1), ("hidden_size", 0), ("hidden_size", None),
        ("hidden_size", 10**12), ("hidden_size", 10**400), ("hidden_size", 16.5), ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -3), ("num_hidden_layers", 2), ("num_hidden_layers", 0), ("num_hidden_layers", [1]),
        ("num_attention_heads", 0), ("num_attention_heads", 3), ("num_attention_heads", "two"),
        ("vocab_size", 5), ("vocab_size", 10**9), ("vocab_size", None), ("vocab_size", "many"),
        ("intermediate_size", 7), ("hidden_act", "magic"), ("hidden_act", 3), ("dtype", "float99"), ("dtype", 7),
        ("dtype", "int8"), ("rope_parameters", "x"), ("rope_parameters", {"rope_type": "none"}),
        ("rms_norm_eps", "tiny"), ("rms_norm_eps", float("nan")), ("id2label", {"a": "b"}), ("id2label", [1, 2]),
        ("id2label", {"0": "x"}), ("num_labels", 3), ("max_position_embeddings", 4), ("max_position_embeddings", -1),
        ("max_position_embeddings", "x"), ("quantization_config", 3), ("attn_implementation", "magic"),
        ("head_dim", 0), ("pad_token_id", 10**9),
        ("prm", None), ("prm", {}), ("prm", [1]), ("prm", {"kind": []}),
    ]},
    **{f"prm.{key} {value!r}"[:60]: edit(CONFIG, "prm", key, to=value) for key, value in [
        ("kind", "oracle"), ("kind", ["process"]), ("kind", {}), ("kind", None), ("surprisal", "yes"), ("surprisal", 3),
        ("encoder", 3), ("encoder", None), ("encoder", {"separator": "\n", "rows": 3}),
    ]},
    **{f"prm.encoder.{key} {value!r}"[:60]: edit(CONFIG, "prm", "encoder", key, to=value) for key, value in [
        ("separator", ""), ("separator", "no token of it"), ("renderer", 9), ("renderer", "2"),
        ("separator", None), ("separator", "\ud800"),
        ("max_length", 0), ("max_length", 10**9), ("max_length", "64"), ("max_length", 64.5), ("max_length", True),
        ("chat_template", "no"), ("chat_template", True),
    ]},
    "no prm.kind": drop(CONFIG, "prm", "kind"),
    "a tensor missing": tensors(lambda t: t.pop(NORM)),
    "no tensors": tensors(dict.clear),
        "a tensor of another shape": tensors(lambda t: t.update({HEAD: torch.zeros(3, 16)})),
    "a tensor flat": tensors(lambda t: t.update({HEAD: t[HEAD].flatten()})),
    "a tensor of whole numbers": tensors(lambda t: t.update({HEAD: torch.ones(2, 16, dtype=torch.int64)})),
    "a tensor of truth values": tensors(lambda t: t.update({NORM: torch.ones(16, dtype=torch.bool)})),
    "NaN in a tensor": tensors(lambda t: t[NORM].fill_(torch.nan)),
    "one NaN in the embeddings": tensors(lambda t: t["model.embed_tokens.weight"][-1].fill_(torch.nan)),
    "infinity in a tensor": tensors(lambda t: t[HEAD][0].fill_(torch.inf)),
    "NaN in the surprisal": tensors(lambda t: t["weight"].fill_(torch.nan), "surprisal.safetensors"),
    "surprisal of another size": tensors(lambda t: t.update(weight=torch.zeros(9)), "surprisal.safetensors"),
    "offsets beyond the end": header(lambda h: h[HEAD].update(data_offsets=[0, 10**12])),
    "offsets the wrong way": header(lambda h: h[HEAD].update(data_offsets=[64, 0])),
    "a type nobody knows": header(lambda h: h[HEAD].update(dtype="F99")),
    "a shape that is negative": header(lambda h: h[HEAD].update(shape=[-1, 16])),
    "a header that is longer than the file": text(WEIGHTS, struct.pack("<Q", 2**63) + b"{}"),
    "pickled weights in a file called safetensors": text(WEIGHTS, b"\x80\x04\x95cbuiltins\nexit\n."),
    "an index that leads out": lambda folder: (
        (folder / WEIGHTS).rename(folder.parent / "outside.safetensors"),
        (folder / "model.safetensors.index.json").write_text(json.dumps(
            {"metadata": {}, "weight_map": dict.fromkeys([HEAD], "../outside.safetensors")})))[0] and None,
    "an index of nothing": lambda folder: (
        (folder / WEIGHTS).unlink(), (folder / "model.safetensors.index.json").write_text("{}"))[0],
    "an index that is none": lambda folder: (
        (folder / WEIGHTS).unlink(), (folder / "model.safetensors.index.json").write_text("[3]"))[0],
    **{f"calibrator {values!r}"[:80]: text(CALIBRATOR, json.dumps({
        "method": "isotonic", "labels": 9, "reason": "", "knots": KNOTS, "slope": 1.0, "intercept": 0.0} | values))
       for values in [
           {"method": "magic"}, {"method": None}, {"method": ["platt"]}, {"more": 1}, {"labels": "nine"},
           {"labels": -1}, {"knots": []}, {"knots": [[0.0, 0.1]]}, {"knots": 3}, {"knots": [[0.0, 0.1], [1.0]]},
           {"knots": [[0.0, 0.9], [1.0, 0.1]]}, {"knots": [[0.0, 0.1], [0.5, 0.4], [0.5, 0.5], [1.0, 0.9]]},
           {"knots": [[0.0, 0.1], [1.0, 1.5]]}, {"knots": [[0.0, -0.1], [1.0, 0.5]]},
           {"knots": [[0.0, 0.1], [0.9, 0.5]]}, {"knots": [[0.1, 0.1], [1.0, 0.5]]},
           {"knots": [[1.0, 0.1], [0.0, 0.5]]},
           {"knots": [[0.0, float("nan")], [1.0, 0.5]]}, {"knots": [[0.0, 10**400], [1.0, 0.5]]},
           {"knots": [["0", 0.1], [1.0, 0.5]]}, {"knots": [[False, 0.1], [True, 0.5]]},
           {"method": "platt", "slope": -1.0}, {"method": "platt", "slope": float("inf")},
           {"method": "platt", "slope": "1"}, {"method": "platt", "intercept": float("nan")},
           {"method": "platt", "intercept": None}, {"method": "temperature", "slope": 0.0},
           {"method": "temperature", "intercept": 1.0}, {"method": "temperature", "slope": True},
       ]},
    "tokenizer with more words than the model": edit(TOKENS, "model", "vocab", "more", to=9999),
    "tokenizer of another model type": edit(TOKENS, "model", "type", to="Magic"),
    "tokenizer without its vocabulary": edit(TOKENS, "model", "vocab", to={}),
    "tokenizer with texts for ids": edit(TOKENS, "model", "vocab", "The", to="x"),
    "tokenizer without the separator": edit(TOKENS, "added_tokens", to=[]),
    "tokenizer config a list": text("tokenizer_config.json", "[]"),
    "tokenizer config garbled": text("tokenizer_config.json", b"\xff{"),
    "tokenizer config nested deep": text("tokenizer_config.json", DEEP),
    "tokenizer without an end": edit("tokenizer_config.json", "eos_token", to=None),
    "tokenizer whose end is a number": edit("tokenizer_config.json", "eos_token", to=3),
    "tokenizer whose end is a new word": edit("tokenizer_config.json", "eos_token", to="<new>"),
    "an adapter beside it": text("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "x"}'),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    folder = tiny_reward_model(tmp_path_factory.mktemp("sound") / "prm")
    # As one from elsewhere; with its sums, every change is refused by them.
    (folder / FILE).unlink()
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_refused_in_one_line(sound: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "prm"
    shutil.copytree(sound, folder)
    BROKEN[name](folder)
    with pytest.raises(InputError) as refused:
        load_any_scorer(folder, device="cpu").score([CHAIN])
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
