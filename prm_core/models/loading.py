"""Loading Hugging Face models from a folder or a hub id, with errors that say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import EncoderConfig
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.marks import give_rows, special_tokens, tokens
from prm_core.models.segments import TextEncoder
from prm_core.platform import store, sums
from prm_core.platform.environment import local_rank

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Characters of a library's message that are passed on; some repeat the whole file.
LONGEST_REASON = 300


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, to each process its own GPU, else the CPU."""
    import torch

    if name == "auto":
        # Some launchers show each process only its own.
        name = f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_folder(path: str) -> None:
    """Raises InputError when `path` is a path that is not there, a folder of pickled weights only, or one whose files
    are not those that were saved."""
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
    sums.check_sums(folder, "copy the model's folder whole or make it again; if you changed it on purpose, remove "
                            f"{sums.FILE}")


@contextmanager
def one_line(path: str, what: str, way_out: str) -> Iterator[None]:
    """Whatever a library raises on a broken model folder becomes an InputError that names the folder.

    Folders come from anywhere; on what is garbled in them libraries raise whatever it happens to break.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"model {path}: {what} ({first_line(error)}); {way_out}") from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id."""
    from transformers import AutoTokenizer

    check_folder(path)
    with one_line(path, "its tokenizer does not load", "copy the model's folder whole"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_config(path: str) -> PretrainedConfig:
    """The `config.json` of a model folder or hub id."""
    from transformers import AutoConfig

    with one_line(path, "an architecture the transformers library does not know, or a broken config.json",
                  "name another model; code in a model's folder is never run"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def load_pretrained(
    auto_class: Any, path: str, *, dtype: str, device: str, config: PretrainedConfig | None = None
) -> Any:
    """`auto_class.from_pretrained(path)` in eval mode; dtype `auto` keeps the saved one.

    Safetensors only, complete ones only (the library would invent missing weights) that fit the config, and never code
    from the folder. The model is tried on a few tokens.

    Args:
        config: in place of the folder's own.

    Raises InputError when it does not load, or gives no numbers.
    """
    import torch

    check_folder(path)
    types = _tensor_types(path)
    layers = getattr((config or load_config(path)).get_text_config(), "num_hidden_layers", None)
    # The library would make them all before it looked at the weights.
    if types and isinstance(layers, int) and not 0 < layers <= len(types):
        raise InputError(f"model {path}: its config.json says {layers} layers, its weights are {len(types)} tensors; "
                         "copy the model's folder whole")
    with one_line(path, "does not load", "name a Hugging Face folder or a hub id this machine can reach"):
        precision = dtype if dtype == "auto" else getattr(torch, dtype)
        try:
            model, report = auto_class.from_pretrained(
                path, config=config, dtype=precision, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True)
        except RuntimeError as error:
            raise InputError(f"model {path}: its weights do not fit its config.json ({first_line(error)})") from error
    _check_weights(model, report, types, path)
    model = model.to(pick_device(device)).eval()
    with one_line(path, "its weights do not fit its config.json", "copy the model's folder whole"):
        _check_numbers(model, path)
    return model


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


def tensor_files(folder: Path) -> dict[str, Path]:
    """File of each tensor of a folder's safetensors, sharded or not. Raises InputError when one does not open."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.exists():
        values = store.read_json(index)
        names = values.get("weight_map") if isinstance(values, dict) else None
        if not isinstance(names, dict) or not names or not all(
                isinstance(file, str) and file == Path(file).name for file in names.values()):
            raise InputError(f"{index}: names no files of this folder as `weight_map`; copy the model's folder whole")
        return {name: folder / file for name, file in names.items()}
    files = {}
    for file in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                files.update(dict.fromkeys(tensors.keys(), file))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a safetensors file ({error}); copy the model's folder whole") from error
    return files


def _tensor_types(path: str) -> dict[str, str]:
    """Name and type (F32, I64, …) of each tensor in a model folder; nothing of a hub id."""
    from safetensors import SafetensorError, safe_open

    types = {}
    files = tensor_files(Path(path))
    for file in sorted(set(files.values())):
        try:
            with safe_open(file, "pt") as tensors:
                types |= {name: tensors.get_slice(name).get_dtype() for name, at in files.items() if at == file}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: not a safetensors file ({error}); copy the model's folder whole") from error
    return types


def _check_weights(model: Any, report: Mapping[str, Any], types: Mapping[str, str], path: str) -> None:
    """Raises InputError when the weights are not those of the model that the config describes."""
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InputError(f"model {path}: {len(missing)} tensors of {type(model).__name__} are not in its weights "
                         f"(first {missing[0]}); name a folder that holds such a model whole")
    # Other heads are left out; a layer that the config does not count is no other head.
    inside = f"{model.base_model_prefix}."
    more = sorted(name for name in report["unexpected_keys"]
                  if name.startswith(inside) and not name.endswith("inv_freq"))
    if more:
        raise InputError(f"model {path}: {len(more)} tensors of its weights are none of what its config.json describes "
                         f"(first {more[0]}); copy the model's folder whole")
    quantized = getattr(model.config, "quantization_config", None) is not None
    whole = sorted(name for name, _ in model.named_parameters() if not types.get(name, "F").lstrip("B").startswith("F"))
    if whole and not quantized:
        raise InputError(f"model {path}: its tensor {whole[0]} holds {types[whole[0]]}, not floating-point numbers; "
                         "copy the model's folder whole")


def _check_numbers(model: Any, path: str) -> None:
    """Raises InputError when a weight, or what the model makes of a few tokens, is no number."""
    import torch

    with torch.inference_mode():
        for name, values in model.named_parameters():
            # One pass without a copy; a sum is finite when all its terms are.
            if values.is_floating_point() and not torch.isfinite(values.sum(dtype=torch.float32)):
                raise InputError(f"model {path}: its tensor {name} holds NaN or infinity; copy the model's folder "
                                 "whole, or train it again")
        rows = model.get_input_embeddings().num_embeddings
        outputs = model(input_ids=torch.arange(min(4, rows), device=model.device)[None], use_cache=False)
        if not all(torch.isfinite(values.float()).all() for values in outputs.values() if torch.is_tensor(values)):
            raise InputError(f"model {path}: it gives NaN or infinity; its config.json does not fit its weights")


def load_encoder(
    path: str, model: PreTrainedModel, config: EncoderConfig, *, policy: bool = False, complete: bool = False
) -> Encoder:
    """The encoder of a model folder or hub id, for the model that was loaded from there, which gets rows for the tokens
    that the encoder adds. It is tried on a short chain.

    Args:
        policy: encode as the policy writes, see `EncoderConfig.policy_steps`.
        complete: the folder's tokenizer must have the encoder's tokens: a model was trained to read them.

    Raises InputError when the tokenizer does not load, or it, the model and the settings do not fit each other.
    """
    tokenizer = load_tokenizer(path)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and config.max_length > context:
        raise InputError(f"model {path}: chains of up to {config.max_length} tokens (max_length of its encoder) are "
                         f"beyond the model's {context} positions; lower it, or copy the model's folder whole")
    with one_line(path, "its tokenizer does not encode", "copy the model's folder whole"):
        try:
            encoder = policy_encoder(tokenizer, config) if policy else Encoder(tokenizer, config)
            encoder.encode("1", ["1"])
        except InputError as error:
            raise InputError(f"model {path}: {error}") from None
    _check_rows(path, model, tokenizer, encoder)
    # A policy of plain text has no marks in its chains; a row like a line break's it would write as often as that.
    if config.renderer > 1 and not isinstance(encoder, TextEncoder):
        missing = [token for token in tokens(config.separator) if token not in special_tokens(tokenizer)]
        if missing and complete:
            raise InputError(f"model {path}: its tokenizer lacks {', '.join(missing)}, which its chains are read with; "
                             "copy the model's folder whole")
        give_rows(model, tokenizer, config.separator)
    return encoder


def policy_encoder(tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> Encoder:
    """The encoder of a policy: one that was taught the boundary, or writes plain text."""
    return Encoder(tokenizer, config) if config.policy_steps == "boundary" else TextEncoder(tokenizer, config)


def _check_rows(path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> None:
    rows = model.get_input_embeddings().num_embeddings
    known = tokenizer.get_vocab()
    put_in = {*encoder.bos_ids, encoder.eos_id, encoder.pad_id, *(known.get(token, 0) for token in encoder.tokens)}
    # Other special tokens are in no chain: the encoder reads what spells them as text.
    special = {*tokenizer.all_special_tokens, *special_tokens(tokenizer)}
    used = {number: token for token, number in known.items()
            if token not in special or number in put_in}
    if max(used) >= rows:
        raise InputError(f"model {path}: its tokenizer has token {used[max(used)]!r} with id {max(used)}, its weights "
                         f"are of {rows} tokens; copy tokenizer and weights of one model")


def model_version(path: str) -> str:
    """First 16 hex digits of the SHA-256 of a model folder's contents; a hub id stands for itself."""
    return store.digest(Path(path))[:16] if Path(path).is_dir() else path


def first_line(error: Exception) -> str:
    """Of an error's message, for errors that wrap it."""
    lines = str(error).strip().splitlines()
    return lines[0][:LONGEST_REASON] if lines else type(error).__name__
