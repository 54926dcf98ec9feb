"""Writing model folders: what the library's users load from them is what was trained, and damage shows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.models.encoder import Encoder
from prm_core.platform import sums

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
    if not encoder.config.chat_template and tokenizer.encode("x")[:1] != encoder.bos_ids:
        _begin_with_bos(tokenizer)
    tokenizer.save_pretrained(folder)


def _begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    bos = tokenizer.bos_token
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.bos_token_id)])
    # What was there adds no beginning; it may keep offsets in order.
    backend.post_processor = processors.Sequence([*([backend.post_processor] if backend.post_processor else []),
                                                  template])
