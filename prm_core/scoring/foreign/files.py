"""Reading the folders of foreign models: complete safetensors only, and never the code that lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.models.loading import check_folder, load_pretrained, one_line, tensor_files

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def local_folder(path: str) -> str:
    """The folder itself, or that of a downloaded hub id. Raises InputError when it holds no safetensors."""
    check_folder(path)
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            folder = Path(snapshot_download(path, ignore_patterns=["*.py", "*.bin", "*.pt", "*.pth", "*.gguf"]))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise InputError(f"model {path}: no such folder, and the hub does not give it ({type(error).__name__}); "
                             "name a folder or a hub id this machine can reach") from error
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"model {path}: no safetensors weights; convert them with `save_pretrained` first, pickle is "
                         "never loaded")
    return str(folder)


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest chain the model takes, in tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def load_whole(auto_class: Any, path: str, device: str) -> Any:
    model = load_pretrained(auto_class, path, dtype="auto", device=device)
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
