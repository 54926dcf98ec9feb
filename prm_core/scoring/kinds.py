"""Every kind of reward model by name, and the one way a saved one is loaded whatever its kind."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from prm_core.errors import InputError
from prm_core.models.loading import check_folder, pick_device

# Imported for its registration.
from prm_core.scoring import implicit
from prm_core.scoring.reward import REWARD_MODELS, RewardModel, reward_settings

__all__ = ["REWARD_MODELS", "implicit", "load_reward_model"]

Model = TypeVar("Model", bound=RewardModel)


def load_reward_model(
    folder: str | Path, of: type[Model] = RewardModel, *, dtype: str = "auto", device: str = "auto"
) -> Model:
    """The model in a folder that `save_pretrained` wrote, in eval mode.

    Args:
        of: the class it must be of.

    Raises InputError when the folder holds no reward model, one of another class, or pickled weights.
    """
    path = str(folder)
    check_folder(path)
    settings = reward_settings(path)
    kind = settings["kind"]
    if kind not in REWARD_MODELS or not issubclass(REWARD_MODELS[kind], of):
        wanted = getattr(of, "kind", ", ".join(REWARD_MODELS))
        raise InputError(f"{path}: a reward model of kind {kind!r}, where one of kind {wanted!r} is needed")
    return REWARD_MODELS[kind].read(path, settings, dtype).to(pick_device(device)).eval()
