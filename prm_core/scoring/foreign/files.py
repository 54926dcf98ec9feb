"""Reading the folders of foreign models: complete safetensors only, and never the code that lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.models.loading import load_pretrained, one_line, pick_device, tensor_files
from prm_core.models.precision import as_saved

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest chain the model takes, in tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def load_whole(auto_class: Any, path: str, device: str) -> Any:
    model = load_pretrained(auto_class, path, dtype=as_saved(path, pick_device(device)), device=device)
    # Chains are scored whole; a key-value cache would only cost memory.
    model.config.use_cache = False
    return model


def read_tensors(folder: str, names: Sequence[str]) -> dict[str, Tensor]:
    """These tensors of a folder. Raises InputError naming the first that is not there."""
    from safetensors import safe_open

    files = tensor_files(Path(folder))
    result = {}
    for name in names:
        if name not in files:
            raise InputError(f"model {folder}: no tensor {name} in its weights; name the model's own style")
        with one_line(folder, f"its tensor {name} does not load", "copy the model's folder whole"), safe_open(
                files[name], "pt") as tensors:
            result[name] = tensors.get_tensor(name)
    return result
