"""Writing model folders: what the library's users load from them is what was trained, and damage shows."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.loading import check_folder
from prm_core.models.marks import tokens
from prm_core.platform import store, sums

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_language_model(model: PreTrainedModel, encoder: Encoder, folder: Path) -> None:
    """A Hugging Face folder (safetensors) with the tokenizer, and the digests of its files.

    Plain `tokenizer(prompt + separator)` and `model.generate` see what the encoder would give the model, alone and in
    batches.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    # Penalties, cuts and further ends that an instruct model comes with are none of what the policy was trained by.
    model.generation_config = GenerationConfig(
        bos_token_id=encoder.tokenizer.bos_token_id, eos_token_id=encoder.eos_id, pad_token_id=encoder.pad_id)
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = own
    # Padding between a prompt and what is written after it would be part of the context.
    save_tokenizer(encoder, folder, padding_side="left")
    sums.write_sums(folder)


def save_tokenizer(encoder: Encoder, folder: Path, *, padding_side: str = "right") -> None:
    """The encoder's tokenizer, which begins a text with the tokens that the encoder begins a chain with."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    # Of the attribute alone the library saves nothing.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side
    if not encoder.config.chat_template and tokenizer.encode("x")[: len(encoder.bos_ids)] != encoder.bos_ids:
        _begin_with_bos(tokenizer)
    tokenizer.save_pretrained(folder)


def save_showing_marks(path: str, separator: str, folder: Path) -> None:
    """A copy of a policy's folder for a server that answers in text and leaves special tokens out of it: in the copy
    the boundary and the marks of turns are no special tokens, so that its texts show where steps end. Ids, weights and
    what a text reads as stay.

    Raises InputError where the tokenizer has no such tokens, or the new folder is not empty.
    """
    check_folder(path)
    marks = tokens(separator)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there is something there already; name a new folder")
    file = Path(path) / "tokenizer.json"
    described = store.read_json(file) if file.is_file() else {}
    added = {one["content"]: one for one in described.get("added_tokens", ())}
    if separator not in added:
        raise InputError(f"model {path}: its tokenizer.json has no {separator}; a policy that was not taught it needs "
                         "no copy: set encoder.policy_steps to how it writes")
    for mark in marks:
        added.get(mark, {})["special"] = False
    shutil.copytree(path, folder, ignore=shutil.ignore_patterns(sums.FILE), dirs_exist_ok=True)
    store.write_json(folder / file.name, described)
    sums.write_sums(folder)


def _begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    bos = tokenizer.bos_token
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)])
    # What was there adds no beginning; it may keep offsets in order.
    backend.post_processor = processors.Sequence([*([backend.post_processor] if backend.post_processor else []),
                                                  template])
