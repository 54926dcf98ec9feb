"""Work as bytes, for a process on another machine: a function with all that it holds, models included; and what that
process must have in common with this one for the work to give the same there."""

from __future__ import annotations

import importlib.metadata
import io
import pickle
import platform
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from prm_core.platform import store

# Of the same code, other versions of these may compute other numbers.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
# A lock arrives open, and locks among those it arrives with.
_LOCKS = {type(threading.Lock()): threading.Lock, type(threading.RLock()): threading.RLock}


def packed(work: Callable[[int], Any], cloudpickle: ModuleType) -> bytes:
    """A function and what it refers to, by value but for what modules define. What lies on a GPU travels through this
    machine's memory.

    Args:
        cloudpickle: the library, which the other side must have too.

    Raises TypeError or pickle.PicklingError for what cannot travel.
    """
    import torch

    models: list[torch.nn.Module] = []

    class Packer(cloudpickle.Pickler):  # type: ignore[misc,name-defined]
        def reducer_override(self, found: Any) -> Any:
            if isinstance(found, torch.nn.Module):
                models.append(found)
            elif isinstance(found, torch.Tensor) and found.device.type != "cpu":
                return _tensor, (found.detach().cpu(), isinstance(found, torch.nn.Parameter), found.requires_grad)
            elif type(found) in _LOCKS:
                return _LOCKS[type(found)], ()
            return super().reducer_override(found)

    content = io.BytesIO()
    packer = Packer(content, protocol=pickle.HIGHEST_PROTOCOL)
    packer.dump(work)
    # By the same packer, these are references to what is there already.
    packer.dump(list(models))
    return content.getvalue()


def unpacked(content: bytes, device: str) -> Callable[[int], Any]:
    """The function again, its models on a device of this machine."""
    unpickler = pickle.Unpickler(io.BytesIO(content))
    work = unpickler.load()
    for model in unpickler.load():
        model.to(device)
    return work


def _tensor(values: Any, parameter: bool, trained: bool) -> Any:
    import torch

    return torch.nn.Parameter(values, trained) if parameter else values.requires_grad_(trained)


def environment() -> dict[str, str]:
    """What the same work must find to give the same rows: the digest of our code, versions of Python and libraries."""
    found = {"prm_core": store.code_digest()[:16], "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not there"
    return found
