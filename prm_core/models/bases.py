"""Base models that a saved model leaves out: named by what they are called and what is in them, and found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from prm_core.errors import InputError
from prm_core.models.loading import load_tokenizer, local_folder, one_line, tensor_files

# Folders of base models, joined as in PATH; they are looked at first.
VARIABLE = "PRM_BASE"
# Beside a model whose base has no name that leads to it from everywhere: where it was on this machine. Hidden, so that
# it is no part of the folder's contents.
HINT = ".base"


@dataclass(frozen=True, slots=True)
class Base:
    """A base model.

    Attributes:
        name: hub id, path relative to a workspace, or the folder's own name.
        sha256: of its weights and vocabulary, see `digest`.
        at: its folder or hub id on this machine.
        hint: the folder, to be noted beside the model; empty where the name is enough.
    """

    name: str
    sha256: str
    at: str
    hint: str = ""

    @classmethod
    def of(cls, at: str, name: str) -> Self:
        """The base in a folder or of a hub id, by the name a user gives it."""
        own = Path(name)
        if own.is_absolute() or ".." in own.parts:
            # A path on this machine: the same model must be the same folder wherever it is trained.
            return cls(own.resolve().name, digest(at), at, str(own.resolve()))
        return cls(name, digest(at), at)

    @classmethod
    def find(cls, values: Any, folder: str) -> Self:
        """The base of the model in a folder, of what its `config.json` says.

        Looked for in the folders that PRM_BASE names, where it was when the model was saved, under its name in the
        current folder and those above the model's, and in the hub's cache.

        Raises InputError when it is nowhere, or what is there has other contents.
        """
        if not (isinstance(values, dict) and all(isinstance(values.get(key), str) for key in ("name", "sha256"))):
            raise InputError(f"{folder}/config.json: prm.base must hold texts `name` and `sha256`; copy the model's "
                             "folder whole or train it again")
        name, wanted = values["name"], values["sha256"]
        others = []
        for place in _places(name, Path(folder)):
            # Unlike a path's own method it is False of names that are none.
            if not os.path.isfile(place / "config.json"):
                continue
            try:
                if (found := digest(str(place))) == wanted:
                    return cls(name, wanted, str(place))
                others.append(f"{place} is another model, of sha256 {found}")
            except InputError as error:
                others.append(str(error))
        if not others:
            try:
                if (found := digest(name)) == wanted:
                    return cls(name, wanted, name)
                others.append(f"the hub's {name} is another model, of sha256 {found}")
            except (InputError, OSError, ValueError):
                others.append("no folder above the model's has one of that name, nor has the hub's cache")
        raise InputError(f"model {folder}: was saved without its base model {name} (sha256 {wanted} of weights and "
                         f"vocabulary), which is not there: {'; '.join(others)}. Set {VARIABLE} to the base's folder")


def _places(name: str, folder: Path) -> Iterator[Path]:
    for given in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        yield from (Path(given), Path(given) / name)
    if (folder / HINT).is_file():
        yield Path((folder / HINT).read_text(errors="replace").strip())
    for above in dict.fromkeys((Path.cwd(), *folder.resolve().parents)):
        yield above / name


def digest(path: str) -> str:
    """SHA-256 of a model's tensors and vocabulary, hex: the same however they are spread over files, and whatever
    version of the library wrote them.

    Args:
        path: folder or hub id.

    Raises InputError when it is not there, or holds no safetensors or no tokenizer.
    """
    import torch
    from safetensors import safe_open

    folder = local_folder(path)
    sha = hashlib.sha256()
    for name, file in sorted(tensor_files(Path(folder)).items()):
        with one_line(folder, f"its tensor {name} does not load", "copy the model's folder whole"), safe_open(
                file, "pt") as tensors:
            values = tensors.get_tensor(name).contiguous()
        sha.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        sha.update(values.reshape(-1).view(torch.uint8).numpy())
    sha.update(json.dumps(sorted(load_tokenizer(folder).get_vocab().items())).encode())
    return sha.hexdigest()
