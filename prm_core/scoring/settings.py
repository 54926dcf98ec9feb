"""What a reward model's folder says of itself, under `prm` in its `config.json`; read without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prm_core.errors import InputError
from prm_core.platform import store


def is_reward_model(path: str) -> bool:
    """Whether a folder is of a model of this project."""
    file = Path(path) / "config.json"
    config = store.read_json(file) if file.is_file() else None
    return isinstance(config, dict) and "prm" in config


def reward_settings(path: str) -> dict[str, Any]:
    """What `config.json` of a reward model's folder says under `prm`. Raises InputError when it is no such folder."""
    settings = store.read_json(Path(path) / "config.json")["prm"] if is_reward_model(path) else None
    if not isinstance(settings, dict) or not {"kind", "surprisal", "encoder"} <= set(settings):
        raise InputError(f"{path}: not a reward model folder (no config.json with `prm` in it); train one with the "
                         "stage train_prm or name its folder")
    if not isinstance(settings["kind"], str) or not isinstance(settings["surprisal"], bool):
        raise InputError(f"{path}/config.json: prm must hold a text `kind` and true or false `surprisal`; copy the "
                         "model's folder whole or train it again")
    return settings
