"""Reading the folders of foreign models: complete safetensors only, and never the code that lies in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.models.loading import check_folder, load_pretrained
from prm_core.platform import store

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


def load_config(path: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"model {path}: an architecture the transformers library does not know "
                         f"({str(error).splitlines()[0]}); code in a model's folder is never run") from error


def context_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest chain the model takes, in tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(tokenizer.model_max_length, positions or tokenizer.model_max_length)


def load_whole(auto_class: Any, path: str, device: str) -> Any:
    model = load_pretrained(auto_class, path, dtype="auto", device=device)
    # Chains are scored whole; a key-value cache would only cost memory.
    model.config.use_cache = False
    return model


def tensor_files(folder: str) -> Mapping[str, Path]:
    """File of each tensor of a folder's safetensors, sharded or not. Raises InputError when one does not open."""
    from safetensors import SafetensorError, safe_open

    index = Path(folder) / "model.safetensors.index.json"
    if index.is_file():
        return {name: Path(folder) / file for name, file in store.read_json(index)["weight_map"].items()}
    files = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                files.update(dict.fromkeys(tensors.keys(), file))
        except SafetensorError as error:
            raise InputError(f"{file}: not a safetensors file ({error}); copy the model's folder whole") from error
    return files


def read_tensors(folder: str, names: Sequence[str]) -> dict[str, Tensor]:
    """These tensors of a folder. Raises InputError naming the first that is not there."""
    from safetensors import safe_open

    files = tensor_files(folder)
    result = {}
    for name in names:
        if name not in files:
            raise InputError(f"model {folder}: no tensor {name} in its weights; name the model's own style")
        with safe_open(files[name], "pt") as tensors:
            result[name] = tensors.get_tensor(name)
    return result
