"""Loading Hugging Face models from a folder or a hub id, with errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.platform.ranks import local_rank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, to each process its own GPU, else the CPU."""
    import torch

    if name == "auto":
        # Some launchers show each process only its own.
        name = f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_folder(path: str) -> None:
    """Raises InputError when `path` is a path that is not there, or a folder of pickled weights only."""
    folder = Path(path)
    looks_local = path.startswith((".", "/")) or path.count("/") > 1 or folder.exists()
    if not looks_local:
        return
    if not (folder / "config.json").is_file():
        raise InputError(f"model {path}: no config.json there; name a Hugging Face model folder or a hub id, or run "
                         "the stage that writes it")
    if not any(folder.glob("model*.safetensors")) and any(folder.glob("*.bin")):
        raise InputError(f"model {path}: only pickled weights (.bin); convert them to safetensors with "
                         "`save_pretrained` first, pickle is never loaded")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id."""
    from transformers import AutoTokenizer

    check_folder(path)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"model {path}: its tokenizer does not load ({first_line(error)})") from error


def load_pretrained(auto_class: Any, path: str, *, dtype: str, device: str) -> Any:
    """`auto_class.from_pretrained(path)` in eval mode; dtype `auto` keeps the saved one.

    Safetensors only, complete ones only (the library would invent missing weights), and never code from the folder.

    Raises InputError when it does not load.
    """
    import torch
    from safetensors import SafetensorError

    check_folder(path)
    try:
        precision = dtype if dtype == "auto" else getattr(torch, dtype)
        model, report = auto_class.from_pretrained(path, dtype=precision, use_safetensors=True,
                                                   trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model {path}: does not load ({first_line(error)}); name a Hugging Face folder or a hub id "
                         "this machine can reach") from error
    except RuntimeError as error:
        raise InputError(f"model {path}: its weights do not fit its config.json ({first_line(error)})") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"model {path}: {len(missing)} tensors of {type(model).__name__} are not in its weights "
                         f"(first {missing[0]}); name a folder that holds such a model whole")
    return model.to(pick_device(device)).eval()


def model_version(path: str) -> str:
    """First 16 hex digits of the SHA-256 of a model folder's contents; a hub id stands for itself."""
    return store.digest(Path(path))[:16] if Path(path).is_dir() else path


def first_line(error: Exception) -> str:
    """Of an error's message, for errors that wrap it."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
